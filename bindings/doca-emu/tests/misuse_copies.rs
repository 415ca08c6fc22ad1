//! What each function answers when it is called wrongly: the documented codes, for each way that can be brought about. Contexts and copies.

#[path = "common/answers.rs"]
mod answers;
mod common;

use std::ptr::{null, null_mut};

use answers::{NOTHING, answers, buf_of, info, place, read_only};
use common::{LOCAL, arm, doca, done, engine, events, host, name};
use doca_sys::doca_ctx_states;

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
        ERROR_INVALID_VALUE: doca_ctx_set_user_data(null_mut(), NOTHING);
        ERROR_INVALID_VALUE: doca_ctx_set_state_changed_cb(null_mut(), Some(events::changed));
        ERROR_INVALID_VALUE: doca_ctx_set_state_changed_cb(context, None);
        ERROR_IN_USE: doca_pe_destroy(engine), "a context is connected";
        SUCCESS: doca_dma_task_memcpy_set_conf(dma, completed, failed, 2);
        ERROR_BAD_STATE: doca_dma_task_memcpy_alloc_init(dma, buf_of(arm), buf_of(arm), NOTHING, place()), "idle";
        SUCCESS: doca_ctx_start(context);
        ERROR_BAD_STATE: doca_ctx_start(context);
        ERROR_BAD_STATE: doca_pe_connect_ctx(engine, context), "it is not idle";
        ERROR_BAD_STATE: doca_dma_task_memcpy_set_conf(dma, completed, failed, 2);
        ERROR_IN_USE: doca_dma_destroy(dma), "it runs";
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_alloc_init(null_mut(), buf_of(arm), buf_of(arm), NOTHING, place());
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_alloc_init(dma, null(), buf_of(arm), NOTHING, place());
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_alloc_init(dma, buf_of(arm), null_mut(), NOTHING, place());
        ERROR_INVALID_VALUE: doca_dma_task_memcpy_alloc_init(dma, buf_of(arm), buf_of(arm), NOTHING, null_mut());
        ERROR_INVALID_VALUE: doca_task_try_submit(null_mut());
    }
    assert!(doca!(doca_dma_as_ctx(null_mut())).is_null());
    let (from, to, longer, read_only) = (buf_of(arm), buf_of(arm), buf_of(arm), read_only(arm));
    done!(doca_buf_chain_list(longer, buf_of(arm)));
    let [first, second] = [1, 2].map(|number| common::copy(dma, from, to, number));
    answers! { ERROR_NO_MEMORY: doca_dma_task_memcpy_alloc_init(dma, from, to, NOTHING, place()); }
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
        ERROR_BAD_STATE: doca_dma_task_memcpy_alloc_init(dma, from, to, NOTHING, place());
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
