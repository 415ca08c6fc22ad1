//! Takes the bindings from the headers of an installed SDK, where pkg-config finds one, and otherwise those that are kept here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use quote::ToTokens;
use syn::{ImplItem, Item, Type};

/// The oldest SDK whose calls are those that are used.
const OLDEST: &str = "2.9";

const INCLUDES: &str = "\
#include <doca_error.h>
#include <doca_types.h>
#include <doca_version.h>
#include <doca_dev.h>
#include <doca_mmap.h>
#include <doca_buf.h>
#include <doca_buf_inventory.h>
#include <doca_ctx.h>
#include <doca_pe.h>
#include <doca_dma.h>
#include <doca_comch.h>
#include <doca_comch_consumer.h>
#include <doca_comch_producer.h>
";

fn main() {
    for changes in ["build.rs", "include/doca.h", "src/declared.rs"] {
        println!("cargo::rerun-if-changed={changes}");
    }
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    println!("cargo::rustc-check-cfg=cfg(doca_sdk)");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where")).join("doca.rs");
    match folders() {
        Some(folders) => {
            from_sdk(&folders, &out);
            println!("cargo::rustc-cfg=doca_sdk");
        }
        None => {
            fs::copy("src/declared.rs", out).expect("the folder is there to be written to");
        }
    }
}

/// Where the headers of an installed SDK are.
fn folders() -> Option<Vec<PathBuf>> {
    let mut all = Vec::new();
    for library in ["doca-common", "doca-dma", "doca-comch"] {
        let found = pkg_config::Config::new().cargo_metadata(false).atleast_version(OLDEST).probe(library).ok()?;
        all.extend(found.include_paths);
    }
    Some(all)
}

/// Writes the bindings of the SDK's headers, if they are those that this project's header declares.
fn from_sdk(folders: &[PathBuf], out: &Path) {
    let header = fs::read_to_string("include/doca.h").expect("it is part of this crate");
    // One call that is used is of those that may change with any release.
    let mut builder = builder(INCLUDES, &functions(&header)).clang_arg("-DDOCA_ALLOW_EXPERIMENTAL_API");
    for folder in folders {
        builder = builder.clang_arg(format!("-I{}", folder.display()));
    }
    let bindings =
        builder.generate().expect("bindgen reads DOCA's headers; it needs libclang, as in Debian's libclang-dev");
    let (found, declared) =
        (bindings.to_string(), fs::read_to_string("src/declared.rs").expect("it is part of this crate"));
    let differences = differences(&declared, &found);
    assert!(
        differences.is_empty(),
        "the installed DOCA's interface is not the one that this project was written for (2.9 LTS to 3.x):\n{}",
        differences.join("\n")
    );
    fs::write(out, found).expect("the folder is there to be written to");
}

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

/// What bindings declare otherwise than those that are expected, or not at all.
fn differences(expected: &str, found: &str) -> Vec<String> {
    let found = declarations(found);
    let differs = |(name, expected): (String, String)| match found.get(&name) {
        None => Some(format!("{name} is not there")),
        Some(found) if *found != expected => Some(format!("{name} is {found}, where {expected} was expected")),
        Some(_) => None,
    };
    declarations(expected).into_iter().filter_map(differs).collect()
}

/// The type of each function, the value of each constant, and the sizes and offsets that bindgen asserts, all by name.
fn declarations(bindings: &str) -> BTreeMap<String, String> {
    let file = syn::parse_file(bindings).expect("bindgen writes Rust");
    let mut all = BTreeMap::new();
    for item in file.items {
        match item {
            Item::Struct(table) if table.ident == "Doca" => {
                for field in table.fields {
                    if let (Some(name), Type::BareFn(mut function)) = (field.ident, field.ty) {
                        // Parameters may be called otherwise.
                        function.inputs.iter_mut().for_each(|input| input.name = None);
                        all.insert(name.to_string(), function.to_token_stream().to_string());
                    }
                }
            }
            Item::Impl(kind) => {
                for item in kind.items {
                    if let ImplItem::Const(constant) = item {
                        all.insert(constant.ident.to_string(), constant.expr.to_token_stream().to_string());
                    }
                }
            }
            Item::Const(assertions) if assertions.ident == "_" => {
                let text = assertions.expr.to_token_stream().to_string();
                let each = text.split(';').filter_map(|assertion| assertion.split_once(']'));
                all.extend(
                    each.map(|(name, value)| (name.trim_matches(['{', '[', ' ', '"']).to_owned(), value.to_owned())),
                );
            }
            _ => {}
        }
    }
    all
}
