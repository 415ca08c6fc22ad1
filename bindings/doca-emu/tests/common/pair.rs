//! Servers, clients, and what is on their connections.

use std::ffi::CStr;
use std::ptr::null_mut;

use doca_sys::*;

use super::events::{self, Event};
use super::{doca, done, name, representor, until};

/// A server, running.
pub(crate) fn server(device: *mut doca_dev, engine: *mut doca_pe, called: &CStr) -> *mut doca_comch_server {
    let server = idle_server(device, engine, called);
    let context = doca!(doca_comch_server_as_ctx(server));
    done!(doca_ctx_start(context));
    server
}

/// A server with all that it needs to start.
pub(crate) fn idle_server(device: *mut doca_dev, engine: *mut doca_pe, called: &CStr) -> *mut doca_comch_server {
    let mut server = null_mut();
    done!(doca_comch_server_create(device, representor(device), called.as_ptr(), &raw mut server));
    done!(doca_comch_server_task_send_set_conf(server, Some(events::sent), Some(events::send_failed), 256));
    done!(doca_comch_server_event_msg_recv_register(server, Some(events::message_received)));
    let (connected, disconnected) = (Some(events::connected as _), Some(events::disconnected as _));
    done!(doca_comch_server_event_connection_status_changed_register(server, connected, disconnected));
    let (new, expired) = (Some(events::new_consumer as _), Some(events::expired_consumer as _));
    done!(doca_comch_server_event_consumer_register(server, new, expired));
    let context = doca!(doca_comch_server_as_ctx(server));
    done!(doca_pe_connect_ctx(engine, context));
    server
}

/// A client that has begun to look for its server.
pub(crate) fn client(device: *mut doca_dev, engine: *mut doca_pe, called: &CStr) -> *mut doca_comch_client {
    let mut client = null_mut();
    done!(doca_comch_client_create(device, called.as_ptr(), &raw mut client));
    done!(doca_comch_client_task_send_set_conf(client, Some(events::sent), Some(events::send_failed), 256));
    done!(doca_comch_client_event_msg_recv_register(client, Some(events::message_received)));
    let (new, expired) = (Some(events::new_consumer as _), Some(events::expired_consumer as _));
    done!(doca_comch_client_event_consumer_register(client, new, expired));
    let context = doca!(doca_comch_client_as_ctx(client));
    done!(doca_ctx_set_state_changed_cb(context, Some(events::changed)));
    done!(doca_pe_connect_ctx(engine, context));
    assert_eq!(name(doca!(doca_ctx_start(context))), "DOCA_ERROR_IN_PROGRESS");
    client
}

/// A client whose server has let it in.
pub(crate) fn connected_client(device: *mut doca_dev, engine: *mut doca_pe, called: &CStr) -> *mut doca_comch_client {
    let client = client(device, engine, called);
    until(engine, "a client is let in", || events::has(&Event::State(1, 2)));
    client
}

/// A client that keeps looking for a server that may not yet be there.
pub(crate) fn persistent_client(device: *mut doca_dev, engine: *mut doca_pe, called: &CStr) -> *mut doca_comch_client {
    let client = client(device, engine, called);
    let context = doca!(doca_comch_client_as_ctx(client));
    until(engine, "a server is found", || {
        if events::take().contains(&Event::State(1, 0)) {
            assert_eq!(name(doca!(doca_ctx_start(context))), "DOCA_ERROR_IN_PROGRESS");
        }
        super::state(context) == doca_ctx_states::DOCA_CTX_STATE_RUNNING
    });
    client
}

pub(crate) fn connection(client: *mut doca_comch_client) -> *mut doca_comch_connection {
    let mut connection = null_mut();
    done!(doca_comch_client_get_connection(client, &raw mut connection));
    connection
}

/// Both in one process, connected: the server, its connection, and the client.
pub(crate) fn both(
    arm: *mut doca_dev,
    host: *mut doca_dev,
    engine: *mut doca_pe,
    called: &CStr,
) -> (*mut doca_comch_server, *mut doca_comch_connection, *mut doca_comch_client) {
    let server = server(arm, engine, called);
    let client = connected_client(host, engine, called);
    assert!(events::has(&Event::Connected));
    (server, events::connection(), client)
}

/// Sends a message; its bytes stay until the test is over.
pub(crate) fn server_sends(
    server: *mut doca_comch_server,
    to: *mut doca_comch_connection,
    bytes: &[u8],
    number: u64,
) -> doca_error {
    let bytes: &'static [u8] = bytes.to_vec().leak();
    let (mut task, len) = (null_mut(), bytes.len() as u32);
    done!(doca_comch_server_task_send_alloc_init(server, to, bytes.as_ptr().cast(), len, &raw mut task));
    submit(doca!(doca_comch_task_send_as_task(task)), number)
}

/// Sends a message; its bytes stay until the test is over.
pub(crate) fn client_sends(client: *mut doca_comch_client, bytes: &[u8], number: u64) -> doca_error {
    let bytes: &'static [u8] = bytes.to_vec().leak();
    let (mut task, to, len) = (null_mut(), connection(client), bytes.len() as u32);
    done!(doca_comch_client_task_send_alloc_init(client, to, bytes.as_ptr().cast(), len, &raw mut task));
    submit(doca!(doca_comch_task_send_as_task(task)), number)
}

/// Submits a task, which is freed if that fails.
pub(crate) fn submit(task: *mut doca_task, number: u64) -> doca_error {
    doca!(doca_task_set_user_data(task, doca_data { u64_: number }));
    let outcome = doca!(doca_task_submit(task));
    if outcome != super::SUCCESS {
        doca!(doca_task_free(task));
    }
    outcome
}

/// A consumer, running, whose receives take so much immediate data.
pub(crate) fn consumer(
    connection: *mut doca_comch_connection,
    mmap: *mut doca_mmap,
    engine: *mut doca_pe,
    immediate: u32,
) -> *mut doca_comch_consumer {
    let mut consumer = null_mut();
    done!(doca_comch_consumer_create(connection, mmap, &raw mut consumer));
    done!(doca_comch_consumer_set_imm_data_len(consumer, immediate));
    let (completed, failed) = (Some(events::received as _), Some(events::receive_failed as _));
    done!(doca_comch_consumer_task_post_recv_set_conf(consumer, completed, failed, 64));
    let context = doca!(doca_comch_consumer_as_ctx(consumer));
    done!(doca_pe_connect_ctx(engine, context));
    assert_eq!(name(doca!(doca_ctx_start(context))), "DOCA_ERROR_IN_PROGRESS");
    until(engine, "a consumer starts", || super::state(context) == doca_ctx_states::DOCA_CTX_STATE_RUNNING);
    consumer
}

pub(crate) fn consumer_id(consumer: *mut doca_comch_consumer) -> u32 {
    let mut id = 0;
    done!(doca_comch_consumer_get_id(consumer, &raw mut id));
    id
}

/// Posts a receive, with a buf or none.
pub(crate) fn post(consumer: *mut doca_comch_consumer, buf: *mut doca_buf, number: u64) {
    let mut task = null_mut();
    done!(doca_comch_consumer_task_post_recv_alloc_init(consumer, buf, &raw mut task));
    let outcome = submit(doca!(doca_comch_consumer_task_post_recv_as_task(task)), number);
    super::succeeds("a receive is posted", outcome);
}

/// A producer, running.
pub(crate) fn producer(connection: *mut doca_comch_connection, engine: *mut doca_pe) -> *mut doca_comch_producer {
    let mut producer = null_mut();
    done!(doca_comch_producer_create(connection, &raw mut producer));
    let (completed, failed) = (Some(events::produced as _), Some(events::produce_failed as _));
    done!(doca_comch_producer_task_send_set_conf(producer, completed, failed, 64));
    let context = doca!(doca_comch_producer_as_ctx(producer));
    done!(doca_pe_connect_ctx(engine, context));
    done!(doca_ctx_start(context));
    producer
}

/// Sends to a consumer.
pub(crate) fn produce(
    producer: *mut doca_comch_producer,
    buf: *mut doca_buf,
    immediate: &[u8],
    consumer: u32,
    number: u64,
) -> doca_error {
    let (mut task, mut bytes) = (null_mut(), immediate.to_vec());
    let (immediate, len) = (bytes.as_mut_ptr(), bytes.len() as u32);
    done!(doca_comch_producer_task_send_alloc_init(producer, buf, immediate, len, consumer, &raw mut task));
    submit(doca!(doca_comch_producer_task_send_as_task(task)), number)
}
