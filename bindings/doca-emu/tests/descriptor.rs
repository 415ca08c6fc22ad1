//! Export descriptors come from strangers: nothing but what was granted is imported. A fuzz target.

mod common;

use std::sync::OnceLock;

/// A descriptor as it was exported, whose export holds.
fn exported() -> &'static [u8] {
    static EXPORTED: OnceLock<Vec<u8>> = OnceLock::new();
    EXPORTED.get_or_init(|| {
        let host = common::host();
        let memory = vec![0; 4096].leak();
        common::export(common::mmap(host, memory, common::LOCAL | common::PCI_WRITE), host)
    })
}

/// The input is what is changed of a right descriptor: bytes that are added to its bytes, and then how many are left out or put behind.
#[test]
fn only_what_was_granted_is_imported() {
    let arm = common::arm();
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut descriptor = exported().to_vec();
        let (changes, len) = bytes.split_at(bytes.len().min(descriptor.len()));
        for (byte, change) in descriptor.iter_mut().zip(changes) {
            *byte = byte.wrapping_add(*change);
        }
        if let [len, ..] = len {
            descriptor.resize(usize::from(*len), 0);
        }
        match common::import(arm, &descriptor) {
            Ok(mmap) => {
                assert_eq!(descriptor, exported());
                common::done!(doca_mmap_destroy(mmap));
            }
            Err(code) => {
                assert_ne!(descriptor, exported());
                assert!(["DOCA_ERROR_INVALID_VALUE", "DOCA_ERROR_DRIVER"].contains(&code), "{code}");
            }
        }
    });
}

/// One field at a time, so that every check is met.
#[test]
fn no_changed_byte_is_believed() {
    let arm = common::arm();
    common::done!(doca_mmap_destroy(common::import(arm, exported()).unwrap()));
    for place in 0..exported().len() {
        for change in [1, 0x7f, 0x80, 0xff] {
            let mut descriptor = exported().to_vec();
            descriptor[place] ^= change;
            assert!(common::import(arm, &descriptor).is_err(), "byte {place} changed by {change:#x}");
        }
    }
}
