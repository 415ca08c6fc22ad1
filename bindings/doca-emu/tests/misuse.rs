//! What each function answers when it is called wrongly: the documented codes, for each way that can be brought about.

mod common;

use std::ffi::{CStr, c_void};
use std::os::fd::AsRawFd;
use std::ptr::{null, null_mut};

use common::{LOCAL, PCI_READ, PCI_WRITE, alone, arm, device, doca, done, engine, events, host, name, pair};
use doca_sys::*;

/// Calls functions, and compares what each answers.
macro_rules! answers {
    ($($code:ident: $function:ident($($argument:expr),* $(,)?) $(, $why:literal)?;)*) => {$(
        let answered = name(doca!($function($($argument),*)));
        assert_eq!(answered, concat!("DOCA_", stringify!($code)), "{} {}", stringify!($function), concat!($($why)?));
    )*};
}

const NO_CALLBACKS: doca_data = doca_data { u64_: 0 };

fn place<T>() -> *mut T {
    // As much as any answer takes; nothing looks at it.
    vec![0_u64; 64].leak().as_mut_ptr().cast()
}

fn info(device: *mut doca_dev) -> *mut doca_devinfo {
    doca!(doca_dev_as_devinfo(device))
}

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
fn contexts_and_copies() {
    let (arm, host, engine, other) = (arm(), host(), engine(), engine());
    let mut dma = null_mut();
    let (completed, failed) = (Some(events::copied as _), Some(events::copy_failed as _));
    answers! {
        ERROR_INVALID_VALUE: doca_dma_cap_task_memcpy_is_supported(null());
        ERROR_INVALID_VALUE: doca_dma_cap_task_memcpy_get_max_buf_size(null(), place());
        ERROR_INVALID_VALUE: doca_dma_cap_task_memcpy_get_max_buf_size(info(arm), null_mut());
        ERROR_INVALID_VALUE: doca_dma_cap_task_memcpy_get_max_buf_list_len(null(), place());
        ERROR_INVALID_VALUE: doca_dma_cap_task_memcpy_get_max_buf_list_len(info(arm), null_mut());
        ERROR_INVALID_VALUE: doca_dma_create(null_mut(), place());
        ERROR_INVALID_VALUE: doca_dma_create(arm, null_mut());
        SUCCESS: doca_dma_create(arm, &raw mut dma);
        ERROR_INVALID_VALUE: doca_dma_cap_get_max_num_tasks(null_mut(), place());
        ERROR_INVALID_VALUE: doca_dma_cap_get_max_num_tasks(dma, null_mut());
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_set_conf(null_mut(), completed, failed, 1);
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_set_conf(dma, None, failed, 1);
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_set_conf(dma, completed, None, 1);
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_set_conf(dma, completed, failed, 0);
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_set_conf(dma, completed, failed, u32::MAX);
        ERROR_INVALID_VALUE: doca_dma_destroy(null_mut());
        ERROR_INVALID_VALUE: doca_pe_create(null_mut());
        ERROR_INVALID_VALUE: doca_pe_destroy(null_mut());
    }
    let context = doca!(doca_dma_as_ctx(dma));
    answers! {
        ERROR_NOT_CONNECTED: doca_ctx_start(context);
        ERROR_NOT_CONNECTED: doca_ctx_stop(context);
        ERROR_INVALID_VALUE: doca_pe_connect_ctx(null_mut(), context);
        ERROR_INVALID_VALUE: doca_pe_connect_ctx(engine, null_mut());
        SUCCESS: doca_pe_connect_ctx(engine, context);
        ERROR_NOT_PERMITTED: doca_pe_connect_ctx(other, context);
        ERROR_INVALID_VALUE: doca_ctx_start(null_mut());
        ERROR_INVALID_VALUE: doca_ctx_start(context), "tasks were not configured";
        ERROR_INVALID_VALUE: doca_ctx_stop(null_mut());
        ERROR_BAD_STATE: doca_ctx_stop(context), "it is idle";
        ERROR_INVALID_VALUE: doca_ctx_get_state(null(), place());
        ERROR_INVALID_VALUE: doca_ctx_get_state(context, null_mut());
        ERROR_INVALID_VALUE: doca_ctx_get_num_inflight_tasks(null(), place());
        ERROR_INVALID_VALUE: doca_ctx_get_num_inflight_tasks(context, null_mut());
        ERROR_INVALID_VALUE: doca_ctx_set_user_data(null_mut(), NO_CALLBACKS);
        ERROR_INVALID_VALUE: doca_ctx_set_state_changed_cb(null_mut(), Some(events::changed));
        ERROR_INVALID_VALUE: doca_ctx_set_state_changed_cb(context, None);
        ERROR_IN_USE: doca_pe_destroy(engine), "a context is connected";
        SUCCESS: doca_dma_task_memcpy_set_conf(dma, completed, failed, 2);
        ERROR_BAD_STATE: doca_dma_task_memcpy_alloc_init(dma, buf_of(arm), buf_of(arm), NO_CALLBACKS, place()), "idle";
        SUCCESS: doca_ctx_start(context);
        ERROR_BAD_STATE: doca_ctx_start(context);
        ERROR_BAD_STATE: doca_pe_connect_ctx(engine, context), "it is not idle";
        ERROR_BAD_STATE: doca_dma_task_memcpy_set_conf(dma, completed, failed, 2);
        ERROR_IN_USE: doca_dma_destroy(dma), "it runs";
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_alloc_init(null_mut(), buf_of(arm), buf_of(arm), NO_CALLBACKS, place());
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_alloc_init(dma, null(), buf_of(arm), NO_CALLBACKS, place());
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_alloc_init(dma, buf_of(arm), null_mut(), NO_CALLBACKS, place());
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_alloc_init(dma, buf_of(arm), buf_of(arm), NO_CALLBACKS, null_mut());
        ERROR_INVALID_VALUE: doca_task_try_submit(null_mut());
    }
    assert!(doca!(doca_dma_as_ctx(null_mut())).is_null());
    let (from, to, longer, read_only) = (buf_of(arm), buf_of(arm), buf_of(arm), read_only(arm));
    done!(doca_buf_chain_list(longer, buf_of(arm)));
    let [first, second] = [1, 2].map(|number| common::copy(dma, from, to, number));
    answers! { ERROR_NO_MEMORY: doca_dma_task_memcpy_alloc_init(dma, from, to, NO_CALLBACKS, place()); }
    for (from, to, why) in [
        (longer, to, "more than there is room for"),
        (from, longer, "a list of destinations"),
        (from, read_only, "memory that is only read"),
        (from, buf_of(host), "memory of another device"),
        (buf_of(host), to, "memory of another device"),
        (null_mut(), to, "no source"),
        (from, null_mut(), "no destination"),
    ] {
        doca!(doca_dma_task_memcpy_set_src(first.cast(), from));
        doca!(doca_dma_task_memcpy_set_dst(first.cast(), to));
        assert_eq!(name(doca!(doca_task_try_submit(first))), "DOCA_ERROR_INVALID_VALUE", "{why}");
    }
    // Submitted all the same, it stops the context, which comes to rest when its tasks are freed.
    answers! {
        SUCCESS: doca_task_submit(first);
        SUCCESS: doca_task_submit(second);
        ERROR_IN_PROGRESS: doca_ctx_stop(context);
        ERROR_IN_PROGRESS: doca_ctx_stop(context);
        ERROR_BAD_STATE: doca_dma_task_memcpy_alloc_init(dma, from, to, NO_CALLBACKS, place());
    }
    events::take();
    for _ in 0..common::ENOUGH {
        doca!(doca_pe_progress(engine));
    }
    let flushed = |number| events::Event::CopyFailed(number, "DOCA_ERROR_IO_FAILED");
    assert_eq!(events::take(), [flushed(1), flushed(2)]);
    assert_eq!(common::state(context), doca_ctx_states::DOCA_CTX_STATE_STOPPING);
    answers! { ERROR_BAD_STATE: doca_task_submit(first); }
    doca!(doca_task_free(first));
    doca!(doca_task_free(second));
    common::until(engine, "it is idle", || common::state(context) == doca_ctx_states::DOCA_CTX_STATE_IDLE);
    answers! {
        ERROR_BAD_STATE: doca_ctx_stop(context);
        SUCCESS: doca_dma_destroy(dma);
        SUCCESS: doca_pe_destroy(engine);
        SUCCESS: doca_pe_destroy(other);
    }
}

/// 64 bytes of data and no more room, on a device.
fn buf_of(device: *mut doca_dev) -> *mut doca_buf {
    buf_with(device, LOCAL)
}

fn read_only(device: *mut doca_dev) -> *mut doca_buf {
    buf_with(device, 0)
}

fn buf_with(device: *mut doca_dev, access: u32) -> *mut doca_buf {
    let memory = vec![0; 64].leak();
    let address = memory.as_ptr().expose_provenance();
    common::buf(common::inventory(1), common::mmap(device, memory, access), address, 64, 64)
}

/// What is more than hardware copies at once is taken, and stops the context.
#[test]
fn an_oversize_copy_stops_its_context() {
    let (arm, engine) = (arm(), engine());
    let memory = vec![0; 2 * 2_097_153].leak();
    let address = memory.as_ptr().expose_provenance();
    let (mmap, inventory) = (common::mmap(arm, memory, LOCAL), common::inventory(2));
    let from = common::buf(inventory, mmap, address, 2_097_153, 2_097_153);
    let to = common::buf(inventory, mmap, address + 2_097_153, 2_097_153, 0);
    let dma = common::dma(arm, engine, 1);
    let task = common::copy(dma, from, to, 9);
    done!(doca_task_try_submit(task));
    common::until(engine, "it fails", || events::has(&events::Event::CopyFailed(9, "DOCA_ERROR_IO_FAILED")));
    assert_eq!(common::state(doca!(doca_dma_as_ctx(dma))), doca_ctx_states::DOCA_CTX_STATE_STOPPING);
}

#[test]
fn servers_and_clients() {
    alone("servers_and_clients", service_answers);
}

fn service_answers() {
    let (arm, host, engine) = (arm(), host(), engine());
    let (of_arm, of_host, representor) = (info(arm), info(host), common::representor(arm));
    let long = std::ffi::CString::new("n".repeat(121)).unwrap();
    let (completed, failed) = (Some(events::sent as _), Some(events::send_failed as _));
    let (changed, consumer) = (Some(events::connected as _), Some(events::new_consumer as _));
    let received = Some(events::message_received as _);
    let server = pair::idle_server(arm, engine, c"misused");
    let context = doca!(doca_comch_server_as_ctx(server));
    let mut client = null_mut();
    answers! {
        ERROR_INVALID_VALUE: doca_comch_cap_server_is_supported(null());
        ERROR_NOT_SUPPORTED: doca_comch_cap_server_is_supported(of_host);
        ERROR_INVALID_VALUE: doca_comch_cap_client_is_supported(null());
        ERROR_NOT_SUPPORTED: doca_comch_cap_client_is_supported(of_arm);
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_name_len(null(), place());
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_name_len(of_arm, null_mut());
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_msg_size(null(), place());
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_msg_size(of_arm, null_mut());
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_recv_queue_size(null(), place());
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_recv_queue_size(of_arm, null_mut());
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_send_tasks(null(), place());
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_send_tasks(of_arm, null_mut());
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_clients(null(), place());
        ERROR_INVALID_VALUE: doca_comch_cap_get_max_clients(of_arm, null_mut());
        ERROR_INVALID_VALUE: doca_comch_server_create(null_mut(), representor, c"name".as_ptr(), place());
        ERROR_INVALID_VALUE: doca_comch_server_create(arm, null_mut(), c"name".as_ptr(), place());
        ERROR_INVALID_VALUE: doca_comch_server_create(arm, representor, null(), place());
        ERROR_INVALID_VALUE: doca_comch_server_create(arm, representor, c"".as_ptr(), place());
        ERROR_INVALID_VALUE: doca_comch_server_create(arm, representor, long.as_ptr(), place());
        ERROR_INVALID_VALUE: doca_comch_server_create(arm, representor, c"name".as_ptr(), null_mut());
        ERROR_NOT_SUPPORTED: doca_comch_server_create(host, representor, c"name".as_ptr(), place());
        ERROR_INVALID_VALUE: doca_comch_server_destroy(null_mut());
        ERROR_INVALID_VALUE: doca_comch_server_set_max_msg_size(null_mut(), 64);
        ERROR_INVALID_VALUE: doca_comch_server_set_max_msg_size(server, 0);
        ERROR_INVALID_VALUE: doca_comch_server_set_max_msg_size(server, 4081);
        ERROR_INVALID_VALUE: doca_comch_server_set_recv_queue_size(null_mut(), 1);
        ERROR_INVALID_VALUE: doca_comch_server_set_recv_queue_size(server, 0);
        ERROR_INVALID_VALUE: doca_comch_server_set_recv_queue_size(server, u32::MAX);
        ERROR_INVALID_VALUE: doca_comch_server_task_send_set_conf(null_mut(), completed, failed, 1);
        ERROR_INVALID_VALUE: doca_comch_server_task_send_set_conf(server, None, failed, 1);
        ERROR_INVALID_VALUE: doca_comch_server_task_send_set_conf(server, completed, None, 1);
        ERROR_INVALID_VALUE: doca_comch_server_task_send_set_conf(server, completed, failed, 0);
        ERROR_INVALID_VALUE: doca_comch_server_event_msg_recv_register(null_mut(), received);
        ERROR_INVALID_VALUE: doca_comch_server_event_msg_recv_register(server, None);
        ERROR_INVALID_VALUE: doca_comch_server_event_connection_status_changed_register(null_mut(), changed, changed);
        ERROR_INVALID_VALUE: doca_comch_server_event_connection_status_changed_register(server, None, changed);
        ERROR_INVALID_VALUE: doca_comch_server_event_connection_status_changed_register(server, changed, None);
        ERROR_INVALID_VALUE: doca_comch_server_event_consumer_register(null_mut(), consumer, consumer);
        ERROR_INVALID_VALUE: doca_comch_server_event_consumer_register(server, None, consumer);
        ERROR_INVALID_VALUE: doca_comch_server_event_consumer_register(server, consumer, None);
        ERROR_INVALID_VALUE: doca_comch_client_create(null_mut(), c"name".as_ptr(), place());
        ERROR_INVALID_VALUE: doca_comch_client_create(host, null(), place());
        ERROR_INVALID_VALUE: doca_comch_client_create(host, long.as_ptr(), place());
        ERROR_INVALID_VALUE: doca_comch_client_create(host, c"name".as_ptr(), null_mut());
        ERROR_NOT_SUPPORTED: doca_comch_client_create(arm, c"name".as_ptr(), place());
        SUCCESS: doca_comch_client_create(host, c"nobody".as_ptr(), &raw mut client);
        ERROR_INVALID_VALUE: doca_comch_client_destroy(null_mut());
        ERROR_INVALID_VALUE: doca_comch_client_set_max_msg_size(null_mut(), 64);
        ERROR_INVALID_VALUE: doca_comch_client_set_max_msg_size(client, 4081);
        ERROR_INVALID_VALUE: doca_comch_client_set_recv_queue_size(null_mut(), 1);
        ERROR_INVALID_VALUE: doca_comch_client_set_recv_queue_size(client, 0);
        ERROR_INVALID_VALUE: doca_comch_client_task_send_set_conf(null_mut(), completed, failed, 1);
        ERROR_INVALID_VALUE: doca_comch_client_task_send_set_conf(client, None, failed, 1);
        ERROR_INVALID_VALUE: doca_comch_client_event_msg_recv_register(null_mut(), received);
        ERROR_INVALID_VALUE: doca_comch_client_event_msg_recv_register(client, None);
        ERROR_INVALID_VALUE: doca_comch_client_event_consumer_register(null_mut(), consumer, consumer);
        ERROR_INVALID_VALUE: doca_comch_client_event_consumer_register(client, consumer, None);
        ERROR_INVALID_VALUE: doca_comch_client_get_connection(null(), place());
        ERROR_INVALID_VALUE: doca_comch_client_get_connection(client, null_mut());
        ERROR_BAD_STATE: doca_comch_client_get_connection(client, place()), "it is not started";
        SUCCESS: doca_comch_client_destroy(client);
        SUCCESS: doca_ctx_start(context);
        ERROR_BAD_STATE: doca_comch_server_set_max_msg_size(server, 64);
        ERROR_BAD_STATE: doca_comch_server_set_recv_queue_size(server, 64);
        ERROR_BAD_STATE: doca_comch_server_task_send_set_conf(server, completed, failed, 1);
        ERROR_BAD_STATE: doca_comch_server_event_msg_recv_register(server, received);
        ERROR_BAD_STATE: doca_comch_server_event_connection_status_changed_register(server, changed, changed);
        ERROR_BAD_STATE: doca_comch_server_event_consumer_register(server, consumer, consumer);
        ERROR_IN_USE: doca_comch_server_destroy(server), "it runs";
    }
    let second = pair::idle_server(arm, engine, c"misused");
    let second_context = doca!(doca_comch_server_as_ctx(second));
    answers! { ERROR_ALREADY_EXIST: doca_ctx_start(second_context); }
    let client = pair::connected_client(host, engine, c"misused");
    let client_context = doca!(doca_comch_client_as_ctx(client));
    let (at_server, at_client) = (events::connection(), pair::connection(client));
    let message = c"message".as_ptr().cast::<c_void>();
    answers! {
        ERROR_BAD_STATE: doca_comch_client_set_max_msg_size(client, 64);
        ERROR_BAD_STATE: doca_comch_client_set_recv_queue_size(client, 64);
        ERROR_BAD_STATE: doca_comch_client_task_send_set_conf(client, completed, failed, 1);
        ERROR_BAD_STATE: doca_comch_client_event_msg_recv_register(client, received);
        ERROR_BAD_STATE: doca_comch_client_event_consumer_register(client, consumer, consumer);
        ERROR_IN_USE: doca_comch_client_destroy(client), "it runs";
        ERROR_INVALID_VALUE: doca_comch_server_task_send_alloc_init(null_mut(), at_server, message, 7, place());
        ERROR_INVALID_VALUE: doca_comch_server_task_send_alloc_init(server, null_mut(), message, 7, place());
        ERROR_INVALID_VALUE: doca_comch_server_task_send_alloc_init(server, at_client, message, 7, place()), "another's";
        ERROR_INVALID_VALUE: doca_comch_server_task_send_alloc_init(server, at_server, null(), 7, place());
        ERROR_INVALID_VALUE: doca_comch_server_task_send_alloc_init(server, at_server, message, 0, place());
        ERROR_INVALID_VALUE: doca_comch_server_task_send_alloc_init(server, at_server, message, 4081, place());
        ERROR_INVALID_VALUE: doca_comch_server_task_send_alloc_init(server, at_server, message, 7, null_mut());
        ERROR_INVALID_VALUE: doca_comch_client_task_send_alloc_init(null_mut(), at_client, message, 7, place());
        ERROR_INVALID_VALUE: doca_comch_client_task_send_alloc_init(client, null_mut(), message, 7, place());
        ERROR_INVALID_VALUE: doca_comch_client_task_send_alloc_init(client, at_client, message, 4081, place());
        ERROR_INVALID_VALUE: doca_comch_server_disconnect(null_mut(), at_server);
        ERROR_INVALID_VALUE: doca_comch_server_disconnect(server, null_mut());
        ERROR_INVALID_VALUE: doca_comch_server_disconnect(server, at_client), "another's";
        ERROR_INVALID_VALUE: doca_comch_connection_set_user_data(null_mut(), NO_CALLBACKS);
        SUCCESS: doca_comch_connection_set_user_data(at_server, doca_data { u64_: 5 });
    }
    let attached = doca!(doca_comch_connection_get_user_data(at_server));
    // SAFETY: it is what was set.
    assert_eq!(unsafe { attached.u64_ }, 5);
    assert_eq!(doca!(doca_comch_server_get_server_ctx(at_server)), server);
    assert_eq!(doca!(doca_comch_client_get_client_ctx(at_client)), client);
    // As many tasks as were asked for, and as many messages as the other side has room for.
    let mut taken = vec![null_mut(); 256];
    for task in &mut taken {
        done!(doca_comch_server_task_send_alloc_init(server, at_server, message, 7, &raw mut *task));
    }
    answers! { ERROR_NO_MEMORY: doca_comch_server_task_send_alloc_init(server, at_server, message, 7, place()); }
    let tasks = taken.into_iter().map(|task| doca!(doca_comch_task_send_as_task(task))).collect::<Vec<_>>();
    let outcomes = tasks.iter().map(|task| name(doca!(doca_task_submit(*task)))).collect::<Vec<_>>();
    assert_eq!(outcomes.iter().position(|outcome| *outcome == "DOCA_ERROR_AGAIN"), Some(128));
    answers! { ERROR_AGAIN: doca_comch_server_disconnect(server, at_server); }
    tasks[128..].iter().for_each(|task| doca!(doca_task_free(*task)));
    let is_message = |event: &events::Event| matches!(event, events::Event::Message(bytes) if bytes == b"message");
    common::until(engine, "all are received", || events::count(is_message) == 128);
    common::until(engine, "all have come back", || {
        events::count(|event| matches!(event, events::Event::Sent(_))) == 128
    });
    answers! { SUCCESS: doca_comch_server_disconnect(server, at_server); }
    common::until(engine, "both have parted", || {
        events::has(&events::Event::Disconnected)
            && common::state(client_context) == doca_ctx_states::DOCA_CTX_STATE_IDLE
    });
    answers! {
        ERROR_IN_USE: doca_dev_close(host), "a client is made of it";
        SUCCESS: doca_comch_client_destroy(client);
        SUCCESS: doca_ctx_stop(context);
        SUCCESS: doca_comch_server_destroy(server);
        SUCCESS: doca_comch_server_destroy(second);
        SUCCESS: doca_pe_destroy(engine);
    }
}

#[test]
fn consumers_and_producers() {
    let (arm, host, engine) = (arm(), host(), engine());
    let (server, at_server, client) = pair::both(arm, host, engine, c"fast");
    let (at_client, memory) = (pair::connection(client), vec![0; 4096].leak());
    let address = memory.as_ptr().expose_provenance();
    let mmap = common::mmap(arm, memory, LOCAL | PCI_WRITE);
    let local = common::mmap(arm, memory, LOCAL);
    let (received, receive_failed) = (Some(events::received as _), Some(events::receive_failed as _));
    let (produced, produce_failed) = (Some(events::produced as _), Some(events::produce_failed as _));
    let (mut idle, mut idle_producer) = (null_mut(), null_mut());
    answers! {
        ERROR_INVALID_VALUE: doca_comch_consumer_cap_is_supported(null());
        ERROR_INVALID_VALUE: doca_comch_consumer_cap_get_max_num_tasks(null(), place());
        ERROR_INVALID_VALUE: doca_comch_consumer_cap_get_max_num_tasks(info(arm), null_mut());
        ERROR_INVALID_VALUE: doca_comch_consumer_cap_get_max_buf_size(null(), place());
        ERROR_INVALID_VALUE: doca_comch_consumer_cap_get_max_imm_data_len(null(), place());
        ERROR_INVALID_VALUE: doca_comch_producer_cap_is_supported(null());
        ERROR_INVALID_VALUE: doca_comch_producer_cap_get_max_num_tasks(null(), place());
        ERROR_INVALID_VALUE: doca_comch_producer_cap_get_max_buf_size(null(), place());
        ERROR_INVALID_VALUE: doca_comch_consumer_create(null_mut(), mmap, place());
        ERROR_INVALID_VALUE: doca_comch_consumer_create(at_server, null_mut(), place());
        ERROR_INVALID_VALUE: doca_comch_consumer_create(at_server, mmap, null_mut());
        ERROR_INVALID_VALUE: doca_comch_consumer_create(at_server, local, place()), "it is not for the other side";
        SUCCESS: doca_comch_consumer_create(at_server, mmap, &raw mut idle);
        ERROR_NOT_PERMITTED: doca_mmap_destroy(mmap), "a consumer is made of it";
        ERROR_INVALID_VALUE: doca_comch_consumer_destroy(null_mut());
        ERROR_INVALID_VALUE: doca_comch_consumer_get_id(null(), place());
        ERROR_INVALID_VALUE: doca_comch_consumer_get_id(idle, null_mut());
        ERROR_INVALID_VALUE: doca_comch_consumer_set_imm_data_len(null_mut(), 8);
        ERROR_INVALID_VALUE: doca_comch_consumer_set_imm_data_len(idle, 33);
        ERROR_INVALID_VALUE: doca_comch_consumer_task_post_recv_set_conf(null_mut(), received, receive_failed, 1);
        ERROR_INVALID_VALUE: doca_comch_consumer_task_post_recv_set_conf(idle, None, receive_failed, 1);
        ERROR_INVALID_VALUE: doca_comch_consumer_task_post_recv_set_conf(idle, received, receive_failed, 0);
        ERROR_BAD_STATE: doca_comch_consumer_task_post_recv_alloc_init(idle, null_mut(), place()), "it does not run";
        SUCCESS: doca_comch_consumer_destroy(idle);
        ERROR_INVALID_VALUE: doca_comch_producer_create(null_mut(), place());
        ERROR_INVALID_VALUE: doca_comch_producer_create(at_client, null_mut());
        SUCCESS: doca_comch_producer_create(at_client, &raw mut idle_producer);
        ERROR_INVALID_VALUE: doca_comch_producer_task_send_set_conf(null_mut(), produced, produce_failed, 1);
        ERROR_INVALID_VALUE: doca_comch_producer_task_send_set_conf(idle_producer, produced, None, 1);
        ERROR_INVALID_VALUE: doca_comch_producer_task_send_set_conf(idle_producer, produced, produce_failed, 0);
        ERROR_INVALID_VALUE: doca_comch_producer_destroy(null_mut());
        SUCCESS: doca_comch_producer_destroy(idle_producer);
    }
    let consumer = pair::consumer(at_server, mmap, engine, 4);
    let id = pair::consumer_id(consumer);
    common::until(engine, "the client knows of it", || events::has(&events::Event::NewConsumer(id)));
    let producer = pair::producer(at_client, engine);
    let into = common::buf(common::inventory(1), mmap, address, 64, 0);
    let elsewhere = common::buf(common::inventory(1), local, address, 64, 0);
    let from = buf_of(host);
    let mut long = [0; 33];
    let server_context = doca!(doca_comch_server_as_ctx(server));
    let client_context = doca!(doca_comch_client_as_ctx(client));
    answers! {
        ERROR_BAD_STATE: doca_comch_consumer_set_imm_data_len(consumer, 8);
        ERROR_BAD_STATE: doca_comch_consumer_task_post_recv_set_conf(consumer, received, receive_failed, 1);
        ERROR_IN_USE: doca_comch_consumer_destroy(consumer), "it runs";
        ERROR_INVALID_VALUE: doca_comch_consumer_task_post_recv_alloc_init(null_mut(), into, place());
        ERROR_INVALID_VALUE: doca_comch_consumer_task_post_recv_alloc_init(consumer, into, null_mut());
        ERROR_INVALID_VALUE: doca_comch_consumer_task_post_recv_alloc_init(consumer, elsewhere, place()), "another mmap's";
        ERROR_BAD_STATE: doca_comch_producer_task_send_set_conf(producer, produced, produce_failed, 1);
        ERROR_IN_USE: doca_comch_producer_destroy(producer), "it runs";
        ERROR_INVALID_VALUE: doca_comch_producer_task_send_alloc_init(null_mut(), from, null_mut(), 0, id, place());
        ERROR_INVALID_VALUE: doca_comch_producer_task_send_alloc_init(producer, from, null_mut(), 0, id, null_mut());
        ERROR_INVALID_VALUE: doca_comch_producer_task_send_alloc_init(producer, from, long.as_mut_ptr(), 33, id, place());
        ERROR_INVALID_VALUE: doca_comch_producer_task_send_alloc_init(producer, from, null_mut(), 1, id, place());
        ERROR_IN_USE: doca_comch_server_disconnect(server, at_server), "a consumer lives";
        ERROR_IN_USE: doca_ctx_stop(server_context), "a consumer lives";
        ERROR_IN_USE: doca_ctx_stop(client_context), "a producer lives";
    }
    assert_eq!(name(pair::produce(producer, from, b"", id, 1)), "DOCA_ERROR_AGAIN", "nothing is posted");
    events::keep_receives();
    pair::post(consumer, null_mut(), 10);
    // What does not fit fails, and what was posted stays so.
    for (buf, immediate, to, code) in [
        (from, &b""[..], id, "DOCA_ERROR_IO_FAILED"),
        (null_mut(), b"12345", id, "DOCA_ERROR_IO_FAILED"),
        (null_mut(), b"", id + 77, "DOCA_ERROR_NOT_CONNECTED"),
    ] {
        common::succeeds("it is taken", pair::produce(producer, buf, immediate, to, 2));
        common::until(engine, code, || events::take().contains(&events::Event::ProduceFailed(2, code)));
    }
    common::succeeds("it is taken", pair::produce(producer, null_mut(), b"1234", id, 3));
    common::until(engine, "it is received", || {
        events::has(&events::Event::Produced(3))
            && events::count(|event| matches!(event, events::Event::Received { .. })) == 1
    });
    let (consumer_context, producer_context) =
        (doca!(doca_comch_consumer_as_ctx(consumer)), doca!(doca_comch_producer_as_ctx(producer)));
    // The task of the receive is still the program's, so the consumer does not come to rest.
    answers! {
        SUCCESS: doca_ctx_stop(producer_context);
        ERROR_IN_PROGRESS: doca_ctx_stop(consumer_context);
        SUCCESS: doca_comch_producer_destroy(producer);
    }
    common::until(engine, "the client knows of it", || events::has(&events::Event::ExpiredConsumer(id)));
    assert_eq!(common::state(consumer_context), doca_ctx_states::DOCA_CTX_STATE_STOPPING);
}

#[test]
fn codes_have_names() {
    assert_eq!(name(doca_error::DOCA_SUCCESS), "DOCA_SUCCESS");
    assert_eq!(name(doca_error(30)), "DOCA_ERROR_SKIPPED");
    assert_eq!(name(doca_error(1000)), "DOCA_ERROR_UNKNOWN");
    let described = doca!(doca_error_get_descr(doca_error::DOCA_ERROR_AGAIN));
    // SAFETY: it is a text that ends and stays.
    assert!(!unsafe { CStr::from_ptr(described) }.is_empty());
    let version = doca!(doca_version_runtime());
    // SAFETY: as above.
    assert_eq!(unsafe { CStr::from_ptr(version) }, c"3.0.0-emulated");
}
