//! A program finds the library where it looks for DOCA's.

mod common;

use doca_sys::Loaded;

/// As `deploy/bluefield/emulate` makes a folder.
#[test]
fn one_library_stands_for_all_three() {
    let folder = tempfile::tempdir().unwrap();
    for library in ["libdoca_common.so.2", "libdoca_dma.so", "libdoca_comch.so.2"] {
        std::os::unix::fs::symlink(common::library(), folder.path().join(library)).unwrap();
    }
    // It has every function, or this would name the first that it has not.
    assert!(Loaded::new(Some(folder.path())).unwrap().emulated);
}
