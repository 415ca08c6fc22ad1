// How bindgen is asked for the bindings: by the build, where an SDK is installed, and by the test that holds the ones kept here against the
// header kept here.

/// What the project uses of DOCA: every function that its own header declares.
fn functions(header: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let before = header.match_indices('(').map(|(at, _)| &header[..at]);
    let names = before.filter_map(|text| text.rsplit(|c| !is_name(c)).next().filter(|name| name.starts_with("doca_")));
    names.collect()
}

/// Bindings of one struct with a pointer to each of these functions, by `include`, which names the headers.
fn builder(include: &str, functions: &[&str]) -> bindgen::Builder {
    let mut builder = bindgen::Builder::default()
        .header_contents("used.h", include)
        .dynamic_library_name("Doca")
        .dynamic_link_require_all(true)
        .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
        .prepend_enum_name(false)
        .allowlist_type("doca_error|doca_error_t|doca_access_flag|doca_devinfo_rep_filter")
        .layout_tests(true)
        .generate_comments(false)
        .use_core()
        .wrap_unsafe_ops(true)
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("the first with edition 2024"))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .formatter(bindgen::Formatter::Prettyplease);
    for function in functions {
        builder = builder.allowlist_function(function);
    }
    builder
}
