//! The bindings that are kept here are those of the header that is kept here.

include!("../bindings.rs");

/// To take them anew: `SPLITRPC_BLESS=1 cargo test -p doca-sys --test declared -- --ignored`.
#[test]
#[ignore = "needs libclang"]
fn bindings_are_of_the_header() {
    let header = include_str!("../include/doca.h");
    let bindings = builder(header, &functions(header)).generate().unwrap().to_string();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/declared.rs");
    if std::env::var_os("SPLITRPC_BLESS").is_some() {
        std::fs::write(path, bindings).unwrap();
        return;
    }
    assert!(bindings == std::fs::read_to_string(path).unwrap(), "include/doca.h and src/declared.rs differ");
}
