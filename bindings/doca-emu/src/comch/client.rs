//! The host's side of a connection.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

use doca_sys::{
    doca_comch_client, doca_comch_connection, doca_comch_event_consumer_cb_t as ConsumerChanged,
    doca_comch_event_msg_recv_cb_t as Received, doca_comch_task_send,
    doca_comch_task_send_completion_cb_t as MessageCallback, doca_ctx, doca_dev, doca_error_t,
};

use super::connection::Connection;
use super::service::{Role, Service};
use super::{MAX_SEND_TASKS, socket};
use crate::call::{Result, answer, broken, call, inside, text};
use crate::context::{Context, Work};
use crate::device::{Device, Side};
use crate::error::{BAD_STATE, INVALID_VALUE, NOT_SUPPORTED};
use crate::handle::Handle;
use crate::task::{Callback, Configuration};

/// A client, which is a service without a representor.
///
/// # Errors
/// `INVALID_VALUE` for a null pointer.
fn given(client: *const doca_comch_client) -> Result<Handle<Context>> {
    let context = Handle::<Context>::given(client)?;
    match &context.work {
        Work::Service(service) if matches!(service.role, Role::Client) => Ok(context),
        _ => broken("another context was passed as a client"),
    }
}

/// Runs what needs a client, in any state or in the idle one.
fn with(
    client: *const doca_comch_client,
    idle: bool,
    body: impl FnOnce(Handle<Context>, &Service) -> Result,
) -> Result {
    let context = given(client)?;
    if idle && !context.is_idle() {
        return Err(BAD_STATE);
    }
    match &context.work {
        Work::Service(service) => body(context, service),
        _ => Err(INVALID_VALUE),
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_create(
    device: *mut doca_dev,
    name: *const c_char,
    client: *mut *mut doca_comch_client,
) -> doca_error_t {
    call("doca_comch_client_create", || {
        let (device, name, client) = (Handle::<Device>::given(device)?, text(name)?, answer(client)?);
        if name.is_empty() || name.count_bytes() > socket::MAX_NAME {
            return Err(INVALID_VALUE);
        }
        if device.side != Side::Host {
            return Err(NOT_SUPPORTED);
        }
        let service = Service::new(Role::Client, name.to_owned());
        client.put(Context::new(device, Work::Service(Box::new(service))).as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_destroy(client: *mut doca_comch_client) -> doca_error_t {
    call("doca_comch_client_destroy", || {
        with(client, false, |_, service| service.may_be_destroyed())?;
        Context::destroy(given(client)?)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_as_ctx(client: *mut doca_comch_client) -> *mut doca_ctx {
    inside("doca_comch_client_as_ctx", || given(client).map_or(null_mut(), Handle::as_ptr))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_set_max_msg_size(client: *mut doca_comch_client, size: u32) -> doca_error_t {
    call("doca_comch_client_set_max_msg_size", || with(client, true, |_, service| service.set_max_message(size)))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_set_recv_queue_size(
    client: *mut doca_comch_client,
    size: u32,
) -> doca_error_t {
    call("doca_comch_client_set_recv_queue_size", || with(client, true, |_, service| service.set_queue(size)))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_task_send_set_conf(
    client: *mut doca_comch_client,
    completed: MessageCallback,
    failed: MessageCallback,
    number: u32,
) -> doca_error_t {
    call("doca_comch_client_task_send_set_conf", || {
        with(client, true, |context, service| {
            let (completed, failed) = (Callback::Message(completed), Callback::Message(failed));
            context.tasks.configure(Configuration { completed, failed, number }, MAX_SEND_TASKS)?;
            service.reserve(number);
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_task_send_alloc_init(
    client: *mut doca_comch_client,
    peer: *mut doca_comch_connection,
    message: *const c_void,
    len: u32,
    task: *mut *mut doca_comch_task_send,
) -> doca_error_t {
    call("doca_comch_client_task_send_alloc_init", || {
        with(client, false, |context, service| {
            let (peer, answer) = (Connection::given(peer)?, answer(task)?);
            answer.put(service.message(context, peer, message.cast(), len)?.as_ptr());
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_event_msg_recv_register(
    client: *mut doca_comch_client,
    received: Received,
) -> doca_error_t {
    call("doca_comch_client_event_msg_recv_register", || {
        with(client, true, |_, service| {
            service.received.set(Some(received.ok_or(INVALID_VALUE)?));
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_event_consumer_register(
    client: *mut doca_comch_client,
    new: ConsumerChanged,
    expired: ConsumerChanged,
) -> doca_error_t {
    call("doca_comch_client_event_consumer_register", || {
        with(client, true, |_, service| {
            let (new, expired) = new.zip(expired).ok_or(INVALID_VALUE)?;
            service.new_consumer.set(Some(new));
            service.expired_consumer.set(Some(expired));
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_client_get_connection(
    client: *const doca_comch_client,
    connection: *mut *mut doca_comch_connection,
) -> doca_error_t {
    call("doca_comch_client_get_connection", || {
        with(client, false, |_, service| {
            let connection = answer(connection)?;
            connection.put(service.connection()?.as_ptr());
            Ok(())
        })
    })
}
