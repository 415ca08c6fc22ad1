//! What each function answers when it is called wrongly: the documented codes, for each way that can be brought about. Messages and the fast path.

#[path = "common/answers.rs"]
mod answers;
mod common;

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

use answers::{NOTHING, answers, buf_of, info, place};
use common::{LOCAL, PCI_WRITE, alone, arm, doca, done, engine, events, host, name, pair};
use doca_sys::{doca_ctx_states, doca_data};

#[test]
fn servers_and_clients() {
    alone("servers_and_clients", service_answers);
}

fn service_answers() {
    let (arm, host, engine) = (arm(), host(), engine());
    let (of_arm, of_host, representor) = (info(arm), info(host), common::representor(arm));
    let long = CString::new("n".repeat(121)).unwrap();
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
        ERROR_INVALID_VALUE: doca_comch_connection_set_user_data(null_mut(), NOTHING);
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
fn what_was_not_sent_leaves_what_was_posted() {
    let (arm, host, engine) = (arm(), host(), engine());
    let (_, at_server, client) = pair::both(arm, host, engine, c"left");
    let memory = vec![0; 4096].leak();
    let address = memory.as_ptr().expose_provenance();
    let mmap = common::mmap(arm, memory, LOCAL | PCI_WRITE);
    let consumer = pair::consumer(at_server, mmap, engine, 4);
    let id = pair::consumer_id(consumer);
    common::until(engine, "the client knows of it", || events::has(&events::Event::NewConsumer(id)));
    pair::post(consumer, null_mut(), 1);
    // One that stops before it has sent.
    let producer = pair::producer(pair::connection(client), engine);
    common::succeeds("it is taken", pair::produce(producer, null_mut(), b"1", id, 2));
    let context = doca!(doca_comch_producer_as_ctx(producer));
    answers! { ERROR_IN_PROGRESS: doca_ctx_stop(context); }
    common::until(engine, "it stops", || common::state(context) == doca_ctx_states::DOCA_CTX_STATE_IDLE);
    assert!(events::has(&events::Event::ProduceFailed(2, "DOCA_ERROR_IO_FAILED")));
    // What its device does not reach.
    done!(doca_ctx_start(context));
    let elsewhere = common::buf(common::inventory(1), mmap, address, 64, 8);
    common::succeeds("it is taken", pair::produce(producer, elsewhere, b"", id, 3));
    let failed = events::Event::ProduceFailed(3, "DOCA_ERROR_IO_FAILED");
    common::until(engine, "it fails", || events::has(&failed));
    // There is one receive, for one that is sent.
    common::succeeds("it is taken", pair::produce(producer, null_mut(), b"4", id, 4));
    common::until(engine, "it is received", || {
        events::count(|event| matches!(event, events::Event::Received { immediate, .. } if immediate == b"4")) == 1
    });
    assert_eq!(name(pair::produce(producer, null_mut(), b"5", id, 5)), "DOCA_ERROR_AGAIN", "nothing is posted");
}
