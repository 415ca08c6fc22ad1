//! What is told where there are no libraries, or not those that are needed.

use std::path::Path;
use std::process::Command;

use doca_sys::{LoadError, Loaded};

#[test]
fn a_folder_without_libraries_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Loaded::new(Some(folder.path())).unwrap_err();
    assert!(matches!(error, LoadError::NoLibrary { library: "libdoca_common", .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("libdoca_common") && told.contains(folder.path().to_str().unwrap()), "{told}");
}

#[test]
fn a_library_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libdoca_common.so.2"), "no library").unwrap();
    let error = Loaded::new(Some(folder.path())).unwrap_err().to_string();
    // Not only that there is none by another name.
    assert!(error.contains("libdoca_common.so.2: file too short"), "{error}");
}

/// Libraries with fewer functions: those of an older DOCA, say.
#[test]
fn the_first_function_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (library, source) in [
        ("libdoca_common.so", "const char *doca_error_get_name(int error) { return error ? \"SOME\" : \"NONE\"; }"),
        ("libdoca_dma.so", "int nothing;"),
        ("libdoca_comch.so", "int nothing;"),
    ] {
        build(&folder.path().join(library), source);
    }
    let error = Loaded::new(Some(folder.path())).unwrap_err();
    assert!(matches!(&error, LoadError::NoFunction(why) if why.contains("doca_error_get_descr")), "{error}");
}

/// As the software BlueField is one.
#[test]
fn a_file_is_loaded_in_place_of_all_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("anything.so");
    build(&library, "const char *doca_error_get_name(int error) { return error ? \"SOME\" : \"NONE\"; }");
    let error = Loaded::new(Some(&library)).unwrap_err();
    assert!(matches!(&error, LoadError::NoFunction(why) if why.contains("doca_error_get_descr")), "{error}");
    let other = folder.path().join("nothing.so");
    std::fs::write(&other, "no library").unwrap();
    let error = Loaded::new(Some(&other)).unwrap_err().to_string();
    assert!(error.contains(other.to_str().unwrap()) && error.contains("file too short"), "{error}");
}

fn build(library: &Path, source: &str) {
    let file = library.with_extension("c");
    std::fs::write(&file, source).unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(&file).status();
    assert!(made.expect("a C compiler, as Rust itself needs one to link").success());
}
