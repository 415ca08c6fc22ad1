//! Packages, opened and computed with a stand-in for PyTorch, which a C compiler makes of `fake.c`.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use splitrpc_torch::{Element, Error, Library, Package, Target, View};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const TARGET: Target = Target { device: 3, capability: (9, 0) };
const STREAM: *mut c_void = 99 as *mut c_void;

struct Fake {
    folder: PathBuf,
    library: Library,
}

/// The library, loaded once: it stays in the process.
fn fake() -> &'static Fake {
    static FAKE: OnceLock<Fake> = OnceLock::new();
    FAKE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake-torch");
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["libtorch_cpu.so", "libtorch_cuda.so", "libtorch.so"] {
            build(&folder.join(name), &["-DLIBRARY"]);
        }
        let library = Library::open(&folder).unwrap();
        Fake { folder, library }
    })
}

/// Others, whose files these are too, may build or have loaded the same at the same time.
fn build(object: &Path, more: &[&str]) {
    static BUILT: AtomicU32 = AtomicU32::new(0);
    let number = BUILT.fetch_add(1, Ordering::Relaxed);
    let made = object.with_extension(format!("{}-{number}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake.c");
    let compiler = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&made).arg(source).args(more).output();
    let compiler = compiler.expect("a C compiler, as Rust itself needs one to link");
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    std::fs::rename(made, object).unwrap();
}

/// A model that goes wrong in one of its ways, or in none (0).
fn model(mode: u32) -> Vec<u8> {
    let fake = fake();
    let object = fake.folder.join(format!("model-{mode}.so"));
    let library = fake.folder.join("libtorch_cpu.so");
    build(&object, &[&format!("-DMODE={mode}"), library.to_str().unwrap()]);
    std::fs::read(object).unwrap()
}

/// A file in a package: its name, and its contents.
type Entry<'e> = (&'e str, &'e [u8]);

fn package(folder: &Path, entries: &[Entry<'_>]) -> PathBuf {
    let path = folder.join("model.pt2");
    let mut archive = ZipWriter::new(File::create(&path).unwrap());
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(*name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    path
}

fn open(entries: &[Entry<'_>]) -> Result<Package, Error> {
    let folder = tempfile::tempdir().unwrap();
    Package::open(&fake().library, &package(folder.path(), entries), TARGET)
}

fn open_mode(mode: u32) -> Result<Package, Error> {
    open(&[("m/data/aotinductor/model/a.wrapper.so", &model(mode)), ("m/archive_format", b"pt2")])
}

fn alive() -> i32 {
    // SAFETY: the stand-in is a library like any other, and loaded already.
    let object = unsafe { libloading::Library::new(fake().folder.join("libtorch_cpu.so")) }.unwrap();
    // SAFETY: it is declared so.
    let count = unsafe { object.get::<unsafe extern "C" fn() -> c_int>(b"tensors_alive\0") }.unwrap();
    // SAFETY: it takes nothing and returns a number.
    unsafe { count() }
}

/// Computes on numbers, and reads the outputs where they were put.
fn compute(package: &Package, numbers: &[f32], sizes: &[i64]) -> Result<(Vec<f32>, i64), Error> {
    let view = View { address: numbers.as_ptr() as u64, element: Element::Float32, sizes };
    // SAFETY: the stand-in has no stream, and computes at once.
    let outputs = unsafe { package.submit(STREAM, &[view]) }?;
    let doubled = outputs[0].address(0, &view)? as *const f32;
    let count = outputs[1].address(1, &View { address: 0, element: Element::Int64, sizes: &[] })? as *const i64;
    // SAFETY: as many as went in are there until the outputs are dropped.
    let doubled = unsafe { std::slice::from_raw_parts(doubled, numbers.len()) }.to_vec();
    // SAFETY: as above.
    Ok((doubled, unsafe { *count }))
}

#[test]
fn a_package_computes_and_leaves_nothing_behind() {
    let package = open_mode(0).unwrap();
    assert_eq!((package.inputs(), package.outputs()), (1, 2));
    for _ in 0..3 {
        let computed = compute(&package, &[1.0, -2.5, 3.0, 0.0, 7.0, 8.0], &[2, 3]).unwrap();
        assert_eq!(computed, (vec![2.0, -5.0, 6.0, 0.0, 14.0, 16.0], 6));
    }
    // SAFETY: nothing is computed.
    let count = unsafe { package.submit(STREAM, &[]) }.unwrap_err();
    assert_eq!(count, Error::Count { wants: 1, given: 0 });

    assert!(matches!(open_mode(1).unwrap_err(), Error::Failed { .. }));
    let failing = compute(&open_mode(2).unwrap(), &[1.0], &[1]).unwrap_err();
    assert!(failing.to_string().contains("cannot compute the model"), "{failing}");
    let wrong = [
        (3, "output 0 is float32[2, 2] that is not contiguous, where float32[2, 2] was expected"),
        (4, "output 1 is int64[1], where int64[] was expected"),
        (5, "output 1 is int64[], and not on a CUDA device, where int64[] was expected"),
    ];
    for (mode, text) in wrong {
        let error = compute(&open_mode(mode).unwrap(), &[1.0, 2.0, 3.0, 4.0], &[2, 2]).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(alive(), 0);
}

#[test]
fn what_is_no_package_is_refused_with_the_reason() {
    let good = model(0);
    let so = "m/data/aotinductor/model/a.so";
    let refusals: [(&[Entry<'_>], &str); 8] = [
        (&[("m/readme", b"x")], "holds no model"),
        (&[(so, &good), ("m/data/aotinductor/other/b.so", &good)], "several models (model, other)"),
        (&[(so, &good), ("m/data/aotinductor/model/b.so", &good)], "has 2 shared objects"),
        (&[("m/data/aotinductor/model/a.cubin", b"x")], "has 0 shared objects"),
        (&[("m/data/aotinductor/model/../../../a.so", &good)], "holds no model"),
        (&[(so, b"not an object, libstdc++.so")], "cannot be loaded"),
        (&[(so, b"\x7fELF, but cut short")], "CXX=/usr/bin/g++"),
        (
            &[(so, &good), ("m/data/aotinductor/model/a_metadata.json", br#"{"AOTI_DEVICE_KEY": "cpu"}"#)],
            "was compiled for \"cpu\"",
        ),
    ];
    for (entries, reason) in refusals {
        let error = open(entries).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}, and not {reason}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.pt2");
    for bytes in [&b""[..], b"PK\x03\x04", &good] {
        std::fs::write(&file, bytes).unwrap();
        let error = Package::open(&fake().library, &file, TARGET).unwrap_err().to_string();
        assert!(error.contains("is no package"), "{error}");
    }
    let error = Package::open(&fake().library, &folder.path().join("none"), TARGET).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
    let error = Package::open(&fake().library, folder.path(), TARGET).unwrap_err().to_string();
    assert!(error.contains("no plain file"), "{error}");
    // Whatever is cut off, or changed, is refused or opened, and nothing worse.
    let whole = std::fs::read(package(folder.path(), &[(so, &good), ("m/byteorder", b"little")])).unwrap();
    for cut in (0..whole.len()).step_by(whole.len() / 40) {
        std::fs::write(&file, &whole[..cut]).unwrap();
        assert!(Package::open(&fake().library, &file, TARGET).is_err(), "{cut}");
    }
}

#[test]
fn libraries_that_are_missing_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Library::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("libtorch_cpu.so"), "{error}");
    assert_eq!(Library::open(&fake().folder).unwrap().folder(), fake().folder);
}
