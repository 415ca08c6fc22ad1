//! What each function answers when it is called wrongly: the documented codes, for each way that can be brought about. Devices and memory.

#[path = "common/answers.rs"]
mod answers;
mod common;

use std::ffi::{CStr, c_void};
use std::os::fd::AsRawFd;
use std::ptr::{null, null_mut};

use answers::{answers, info, place};
use common::{LOCAL, PCI_READ, PCI_WRITE, alone, arm, device, doca, done, host};
use doca_sys::doca_error;

#[test]
fn devices() {
    alone("devices", device_answers);
}

fn device_answers() {
    let (arm, host) = (arm(), host());
    let (of_arm, representor) = (info(arm), common::representor(arm));
    let (mut list, mut number) = (null_mut(), 0);
    done!(doca_devinfo_rep_create_list(arm, 2, &raw mut list, &raw mut number));
    // SAFETY: the Arm has one.
    let entry = unsafe { *list };
    let mut text = [0; 16];
    answers! {
        ERROR_INVALID_VALUE: doca_devinfo_create_list(null_mut(), place());
        ERROR_INVALID_VALUE: doca_devinfo_create_list(place(), null_mut());
        ERROR_INVALID_VALUE: doca_devinfo_destroy_list(null_mut());
        ERROR_INVALID_VALUE: doca_devinfo_get_pci_addr_str(null(), place());
        ERROR_INVALID_VALUE: doca_devinfo_get_pci_addr_str(of_arm, null_mut());
        ERROR_INVALID_VALUE: doca_devinfo_get_ibdev_name(null(), place(), 64);
        ERROR_INVALID_VALUE: doca_devinfo_get_ibdev_name(of_arm, null_mut(), 64);
        ERROR_INVALID_VALUE: doca_devinfo_get_ibdev_name(of_arm, place(), 6), "mlx5_0 has no room";
        SUCCESS: doca_devinfo_get_ibdev_name(of_arm, text.as_mut_ptr(), 7);
        ERROR_INVALID_VALUE: doca_devinfo_get_iface_name(null(), place(), 256);
        ERROR_INVALID_VALUE: doca_devinfo_get_iface_name(of_arm, null_mut(), 256);
        ERROR_INVALID_VALUE: doca_devinfo_get_iface_name(of_arm, place(), 2), "p0 has no room";
        ERROR_INVALID_VALUE: doca_dev_open(null_mut(), place());
        ERROR_INVALID_VALUE: doca_dev_open(of_arm, null_mut());
        ERROR_INVALID_VALUE: doca_dev_close(null_mut());
        ERROR_INVALID_VALUE: doca_devinfo_rep_create_list(null_mut(), 0, place(), place());
        ERROR_INVALID_VALUE: doca_devinfo_rep_create_list(arm, 1, place(), place()), "no such filter";
        ERROR_INVALID_VALUE: doca_devinfo_rep_create_list(arm, 0, null_mut(), place());
        ERROR_INVALID_VALUE: doca_devinfo_rep_create_list(arm, 0, place(), null_mut());
        ERROR_NOT_SUPPORTED: doca_devinfo_rep_create_list(host, 0, place(), place());
        ERROR_INVALID_VALUE: doca_devinfo_rep_destroy_list(null_mut());
        ERROR_INVALID_VALUE: doca_devinfo_rep_get_pci_addr_str(null(), place());
        ERROR_INVALID_VALUE: doca_devinfo_rep_get_pci_addr_str(entry, null_mut());
        SUCCESS: doca_devinfo_rep_get_pci_addr_str(entry, text.as_mut_ptr());
        ERROR_INVALID_VALUE: doca_dev_rep_open(null_mut(), place());
        ERROR_INVALID_VALUE: doca_dev_rep_open(entry, null_mut());
        ERROR_INVALID_VALUE: doca_dev_rep_close(null_mut());
        SUCCESS: doca_devinfo_rep_destroy_list(list);
    }
    // SAFETY: it was filled.
    assert_eq!(unsafe { CStr::from_ptr(text.as_ptr()) }, c"0000:b1:00.0");
    // An opened device is the same as often as it is opened; with something made of it, it is not closed.
    assert_eq!(device(c"0000:03:00.0"), arm);
    answers! {
        SUCCESS: doca_dev_close(arm);
        ERROR_IN_USE: doca_dev_close(arm), "a representor is open";
        SUCCESS: doca_dev_rep_close(representor);
    }
    assert!(doca!(doca_dev_as_devinfo(null())).is_null());
}

#[test]
fn memory() {
    let (arm, host, mut bytes) = (arm(), host(), vec![0_u8; 8192]);
    let start = bytes.as_mut_ptr().cast::<c_void>();
    let mut mmap = null_mut();
    done!(doca_mmap_create(&raw mut mmap));
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let (_reader, pipe) = std::io::pipe().unwrap();
    answers! {
        ERROR_INVALID_VALUE: doca_mmap_cap_is_export_pci_supported(null(), place());
        ERROR_INVALID_VALUE: doca_mmap_cap_is_export_pci_supported(info(arm), null_mut());
        ERROR_INVALID_VALUE: doca_mmap_cap_is_create_from_export_pci_supported(null(), place());
        ERROR_INVALID_VALUE: doca_mmap_cap_is_create_from_export_pci_supported(info(arm), null_mut());
        ERROR_INVALID_VALUE: doca_mmap_create(null_mut());
        ERROR_INVALID_VALUE: doca_mmap_destroy(null_mut());
        ERROR_INVALID_VALUE: doca_mmap_add_dev(null_mut(), host);
        ERROR_INVALID_VALUE: doca_mmap_add_dev(mmap, null_mut());
        SUCCESS: doca_mmap_add_dev(mmap, host);
        ERROR_ALREADY_EXIST: doca_mmap_add_dev(mmap, host);
        ERROR_NO_MEMORY: doca_mmap_add_dev(mmap, arm), "one device unless more are asked for";
        ERROR_INVALID_VALUE: doca_mmap_set_permissions(null_mut(), LOCAL);
        ERROR_INVALID_VALUE: doca_mmap_set_permissions(mmap, 1 << 20), "no such flag";
        ERROR_INVALID_VALUE: doca_mmap_set_permissions(mmap, PCI_READ | PCI_WRITE);
        ERROR_INVALID_VALUE: doca_mmap_set_permissions(mmap, PCI_READ | 1 << 6), "relaxed ordering";
        ERROR_BAD_STATE: doca_mmap_get_memrange(mmap, place(), place()), "none was set";
        ERROR_INVALID_VALUE: doca_mmap_start(mmap), "no memory";
        ERROR_INVALID_VALUE: doca_mmap_set_memrange(null_mut(), start, 8192);
        ERROR_INVALID_VALUE: doca_mmap_set_memrange(mmap, null_mut(), 8192);
        ERROR_INVALID_VALUE: doca_mmap_set_memrange(mmap, start, 0);
        ERROR_INVALID_VALUE: doca_mmap_set_memrange(mmap, start, usize::MAX);
        ERROR_INVALID_VALUE: doca_mmap_set_dmabuf_memrange(null_mut(), file.as_raw_fd(), start, 0, 8192);
        ERROR_INVALID_VALUE: doca_mmap_set_dmabuf_memrange(mmap, -1, start, 0, 8192);
        ERROR_INVALID_VALUE: doca_mmap_set_dmabuf_memrange(mmap, file.as_raw_fd(), start, 4096, 8192), "it is shorter";
        ERROR_INVALID_VALUE: doca_mmap_set_dmabuf_memrange(mmap, file.as_raw_fd(), start, 0, usize::MAX);
        ERROR_NOT_SUPPORTED: doca_mmap_set_dmabuf_memrange(mmap, pipe.as_raw_fd(), start, 0, 8192), "it cannot be mapped";
        SUCCESS: doca_mmap_set_memrange(mmap, start, 8192);
        ERROR_NOT_PERMITTED: doca_mmap_set_memrange(mmap, start, 8192);
        ERROR_NOT_PERMITTED: doca_mmap_set_dmabuf_memrange(mmap, file.as_raw_fd(), start, 0, 8192);
        ERROR_INVALID_VALUE: doca_mmap_get_memrange(null(), place(), place());
        ERROR_INVALID_VALUE: doca_mmap_get_memrange(mmap, null_mut(), place());
        ERROR_INVALID_VALUE: doca_mmap_get_memrange(mmap, place(), null_mut());
        ERROR_NOT_PERMITTED: doca_mmap_export_pci(mmap, host, place(), place()), "it is not started";
        ERROR_BAD_STATE: doca_mmap_stop(mmap), "it is not started";
        ERROR_INVALID_VALUE: doca_mmap_start(null_mut());
        SUCCESS: doca_mmap_start(mmap);
        ERROR_BAD_STATE: doca_mmap_set_permissions(mmap, LOCAL);
        ERROR_BAD_STATE: doca_mmap_set_memrange(mmap, start, 8192);
        ERROR_BAD_STATE: doca_mmap_set_dmabuf_memrange(mmap, file.as_raw_fd(), start, 0, 8192);
        ERROR_NOT_PERMITTED: doca_mmap_add_dev(mmap, arm);
        ERROR_NOT_PERMITTED: doca_mmap_export_pci(mmap, host, place(), place()), "no permission for it";
        ERROR_INVALID_VALUE: doca_mmap_stop(null_mut());
        SUCCESS: doca_mmap_stop(mmap);
        SUCCESS: doca_mmap_set_permissions(mmap, LOCAL | PCI_WRITE);
        SUCCESS: doca_mmap_start(mmap);
        ERROR_INVALID_VALUE: doca_mmap_export_pci(null_mut(), host, place(), place());
        ERROR_INVALID_VALUE: doca_mmap_export_pci(mmap, null(), place(), place());
        ERROR_INVALID_VALUE: doca_mmap_export_pci(mmap, host, null_mut(), place());
        ERROR_INVALID_VALUE: doca_mmap_export_pci(mmap, host, place(), null_mut());
        ERROR_NOT_FOUND: doca_mmap_export_pci(mmap, arm, place(), place());
    }
    let descriptor = common::export(mmap, host);
    let (exported, len) = (descriptor.as_ptr().cast::<c_void>(), descriptor.len());
    let imported = common::import(arm, &descriptor).unwrap();
    let of_arm = common::mmap(arm, &mut bytes, LOCAL | PCI_WRITE);
    answers! {
        ERROR_NOT_PERMITTED: doca_mmap_start(mmap), "it is exported";
        ERROR_NOT_PERMITTED: doca_mmap_stop(mmap), "it is exported";
        ERROR_NOT_SUPPORTED: doca_mmap_export_pci(of_arm, arm, place(), place());
        ERROR_INVALID_VALUE: doca_mmap_create_from_export(null(), null(), len, arm, place());
        ERROR_INVALID_VALUE: doca_mmap_create_from_export(null(), exported, len - 1, arm, place());
        ERROR_INVALID_VALUE: doca_mmap_create_from_export(null(), exported, 0, arm, place());
        ERROR_INVALID_VALUE: doca_mmap_create_from_export(null(), exported, usize::MAX, arm, place());
        ERROR_INVALID_VALUE: doca_mmap_create_from_export(null(), exported, len, null_mut(), place());
        ERROR_INVALID_VALUE: doca_mmap_create_from_export(null(), exported, len, arm, null_mut());
        ERROR_NOT_SUPPORTED: doca_mmap_create_from_export(null(), exported, len, host, place());
        ERROR_NOT_PERMITTED: doca_mmap_start(imported);
        ERROR_NOT_PERMITTED: doca_mmap_stop(imported);
        ERROR_NOT_PERMITTED: doca_mmap_add_dev(imported, host);
        ERROR_NOT_PERMITTED: doca_mmap_set_permissions(imported, LOCAL);
        ERROR_NOT_PERMITTED: doca_mmap_set_memrange(imported, start, 1);
        ERROR_NOT_PERMITTED: doca_mmap_set_dmabuf_memrange(imported, file.as_raw_fd(), start, 0, 8192);
        ERROR_NOT_PERMITTED: doca_mmap_export_pci(imported, arm, place(), place());
    }
    let buf = common::buf(common::inventory(1), imported, start.addr(), 8, 8);
    answers! {
        ERROR_NOT_PERMITTED: doca_mmap_destroy(imported), "a buf is made of it";
        SUCCESS: doca_buf_dec_refcount(buf, null_mut());
        SUCCESS: doca_mmap_destroy(imported);
        SUCCESS: doca_mmap_destroy(mmap);
        ERROR_DRIVER: doca_mmap_create_from_export(null(), exported, len, arm, place()), "the export has ended";
        SUCCESS: doca_mmap_destroy(of_arm);
    }
    let (mut file_mmap, mut len) = (null_mut(), 0);
    let mut address = null_mut();
    done!(doca_mmap_create(&raw mut file_mmap));
    answers! {
        SUCCESS: doca_mmap_add_dev(file_mmap, host);
        SUCCESS: doca_mmap_set_dmabuf_memrange(file_mmap, file.as_raw_fd(), start, 4096, 4096);
        SUCCESS: doca_mmap_get_memrange(file_mmap, &raw mut address, &raw mut len);
        SUCCESS: doca_mmap_start(file_mmap);
        SUCCESS: doca_mmap_stop(file_mmap);
        SUCCESS: doca_mmap_start(file_mmap);
        SUCCESS: doca_mmap_destroy(file_mmap);
    }
    assert_eq!((address, len), (start, 4096));
}

#[test]
fn bufs() {
    let (arm, mut bytes) = (arm(), vec![0_u8; 4096]);
    let start = bytes.as_mut_ptr().cast::<c_void>();
    let (before, end) = (start.wrapping_byte_sub(1), start.wrapping_byte_add(4096));
    let mmap = common::mmap(arm, &mut bytes, LOCAL);
    let (mut idle_mmap, mut inventory, mut buf) = (null_mut(), null_mut(), null_mut());
    done!(doca_mmap_create(&raw mut idle_mmap));
    answers! {
        ERROR_INVALID_VALUE: doca_buf_inventory_create(0, place());
        ERROR_INVALID_VALUE: doca_buf_inventory_create(1, null_mut());
        SUCCESS: doca_buf_inventory_create(3, &raw mut inventory);
        ERROR_INVALID_VALUE: doca_buf_inventory_start(null_mut());
        ERROR_INVALID_VALUE: doca_buf_inventory_stop(null_mut());
        ERROR_INVALID_VALUE: doca_buf_inventory_destroy(null_mut());
        ERROR_BAD_STATE: doca_buf_inventory_buf_get_by_args(inventory, mmap, start, 8, start, 0, place()), "not started";
        SUCCESS: doca_buf_inventory_start(inventory);
        ERROR_BAD_STATE: doca_buf_inventory_buf_get_by_args(inventory, idle_mmap, start, 8, start, 0, place());
        ERROR_INVALID_VALUE: doca_buf_inventory_buf_get_by_args(null_mut(), mmap, start, 8, start, 0, place());
        ERROR_INVALID_VALUE: doca_buf_inventory_buf_get_by_args(inventory, null_mut(), start, 8, start, 0, place());
        ERROR_INVALID_VALUE: doca_buf_inventory_buf_get_by_args(inventory, mmap, start, 8, start, 0, null_mut());
        ERROR_INVALID_VALUE: doca_buf_inventory_buf_get_by_args(inventory, mmap, before, 8, before, 0, place());
        ERROR_INVALID_VALUE: doca_buf_inventory_buf_get_by_args(inventory, mmap, start, 4097, start, 0, place());
        ERROR_INVALID_VALUE: doca_buf_inventory_buf_get_by_args(inventory, mmap, start, usize::MAX, start, 0, place());
        ERROR_INVALID_VALUE: doca_buf_inventory_buf_get_by_args(inventory, mmap, end, 1, end, 0, place());
        ERROR_INVALID_VALUE: doca_buf_inventory_buf_get_by_args(inventory, mmap, start, 8, start, 9, place()), "data outside";
        ERROR_INVALID_VALUE: doca_buf_inventory_buf_get_by_args(inventory, mmap, start, 8, before, 1, place()), "data outside";
        SUCCESS: doca_buf_inventory_buf_get_by_args(inventory, mmap, start, 8, start, 8, &raw mut buf);
    }
    let [second, third] = [1, 2].map(|line| common::buf(inventory, mmap, start.addr() + 8 * line, 8, 8));
    answers! {
        ERROR_NO_MEMORY: doca_buf_inventory_buf_get_by_args(inventory, mmap, start, 8, start, 0, place());
        ERROR_NOT_PERMITTED: doca_mmap_stop(mmap), "bufs are made of it";
        ERROR_IN_USE: doca_buf_inventory_destroy(inventory);
        ERROR_INVALID_VALUE: doca_buf_inc_refcount(null_mut(), place());
        ERROR_INVALID_VALUE: doca_buf_dec_refcount(null_mut(), place());
        ERROR_INVALID_VALUE: doca_buf_get_refcount(null(), place());
        ERROR_INVALID_VALUE: doca_buf_get_refcount(buf, null_mut());
        ERROR_INVALID_VALUE: doca_buf_get_head(null(), place());
        ERROR_INVALID_VALUE: doca_buf_get_head(buf, null_mut());
        ERROR_INVALID_VALUE: doca_buf_get_len(null(), place());
        ERROR_INVALID_VALUE: doca_buf_get_len(buf, null_mut());
        ERROR_INVALID_VALUE: doca_buf_get_data(null(), place());
        ERROR_INVALID_VALUE: doca_buf_get_data(buf, null_mut());
        ERROR_INVALID_VALUE: doca_buf_get_data_len(null(), place());
        ERROR_INVALID_VALUE: doca_buf_get_data_len(buf, null_mut());
        ERROR_INVALID_VALUE: doca_buf_set_data(null_mut(), start, 0);
        ERROR_INVALID_VALUE: doca_buf_chain_list(null_mut(), second);
        ERROR_INVALID_VALUE: doca_buf_chain_list(buf, null_mut());
        ERROR_INVALID_VALUE: doca_buf_unchain_list(buf, second), "it is not in that list";
        ERROR_INVALID_VALUE: doca_buf_unchain_list(null_mut(), second);
        SUCCESS: doca_buf_inc_refcount(second, null_mut());
        ERROR_NOT_PERMITTED: doca_buf_chain_list(buf, second), "two references";
        SUCCESS: doca_buf_dec_refcount(second, null_mut());
        SUCCESS: doca_buf_chain_list(buf, second);
        SUCCESS: doca_buf_chain_list(buf, third);
        ERROR_NOT_PERMITTED: doca_buf_inc_refcount(second, null_mut()), "not the head";
        ERROR_NOT_PERMITTED: doca_buf_dec_refcount(second, null_mut()), "not the head";
        SUCCESS: doca_buf_unchain_list(buf, third);
        SUCCESS: doca_buf_dec_refcount(third, null_mut());
        ERROR_BAD_STATE: doca_buf_dec_refcount(third, null_mut());
    }
    let mut references = 0;
    for expected in 1..u16::MAX {
        done!(doca_buf_inc_refcount(buf, &raw mut references));
        assert_eq!(references, expected);
    }
    answers! { ERROR_TOO_BIG: doca_buf_inc_refcount(buf, &raw mut references); }
    for expected in (1..=u16::MAX).rev() {
        done!(doca_buf_dec_refcount(buf, &raw mut references));
        assert_eq!(references, expected);
    }
    // Its list went with it.
    answers! {
        ERROR_BAD_STATE: doca_buf_dec_refcount(second, null_mut());
        SUCCESS: doca_buf_inventory_stop(inventory);
        SUCCESS: doca_buf_inventory_destroy(inventory);
        SUCCESS: doca_mmap_stop(mmap);
        SUCCESS: doca_mmap_destroy(mmap);
    }
}

#[test]
fn codes_have_names() {
    assert_eq!(common::name(doca_error::DOCA_SUCCESS), "DOCA_SUCCESS");
    assert_eq!(common::name(doca_error(30)), "DOCA_ERROR_SKIPPED");
    assert_eq!(common::name(doca_error(1000)), "DOCA_ERROR_UNKNOWN");
    let described = doca!(doca_error_get_descr(doca_error::DOCA_ERROR_AGAIN));
    // SAFETY: it is a text that ends and stays.
    assert!(!unsafe { CStr::from_ptr(described) }.is_empty());
    let version = doca!(doca_version_runtime());
    // SAFETY: as above.
    assert_eq!(unsafe { CStr::from_ptr(version) }, c"3.0.0-emulated");
}
