//! The Arm's side of a connection.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

use doca_sys::{
    doca_comch_connection, doca_comch_event_connection_status_changed_cb_t as StatusChanged,
    doca_comch_event_consumer_cb_t as ConsumerChanged, doca_comch_event_msg_recv_cb_t as Received, doca_comch_server,
    doca_comch_task_send, doca_comch_task_send_completion_cb_t as MessageCallback, doca_ctx, doca_dev, doca_dev_rep,
    doca_error_t,
};

use super::connection::{Connection, must_be_of};
use super::service::{Role, Service};
use super::{MAX_SEND_TASKS, socket};
use crate::call::{Result, answer, broken, call, inside, text};
use crate::context::{Context, Work};
use crate::device::{Device, Representor, Side};
use crate::error::{AGAIN, BAD_STATE, INVALID_VALUE, NOT_SUPPORTED};
use crate::faults::{self, Fault};
use crate::handle::Handle;
use crate::task::{Callback, Configuration};

/// A server, which is a service that has a representor.
///
/// # Errors
/// `INVALID_VALUE` for a null pointer.
fn given(server: *const doca_comch_server) -> Result<Handle<Context>> {
    let context = Handle::<Context>::given(server)?;
    match &context.work {
        Work::Service(service) if matches!(service.role, Role::Server(_)) => Ok(context),
        _ => broken("another context was passed as a server"),
    }
}

/// Runs what needs a server, in any state or in the idle one.
fn with(
    server: *const doca_comch_server,
    idle: bool,
    body: impl FnOnce(Handle<Context>, &Service) -> Result,
) -> Result {
    let context = given(server)?;
    if idle && !context.is_idle() {
        return Err(BAD_STATE);
    }
    match &context.work {
        Work::Service(service) => body(context, service),
        _ => Err(INVALID_VALUE),
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_create(
    device: *mut doca_dev,
    representor: *mut doca_dev_rep,
    name: *const c_char,
    server: *mut *mut doca_comch_server,
) -> doca_error_t {
    call("doca_comch_server_create", || {
        let (device, representor) = (Handle::<Device>::given(device)?, Handle::<Representor>::given(representor)?);
        let (name, server) = (text(name)?, answer(server)?);
        if name.is_empty() || name.count_bytes() > socket::MAX_NAME {
            return Err(INVALID_VALUE);
        }
        if device.side != Side::Arm {
            return Err(NOT_SUPPORTED);
        }
        representor.users.fetch_add(1, Ordering::Relaxed);
        let service = Service::new(Role::Server(representor), name.to_owned());
        server.put(Context::new(device, Work::Service(Box::new(service))).as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_destroy(server: *mut doca_comch_server) -> doca_error_t {
    call("doca_comch_server_destroy", || {
        with(server, false, |_, service| service.may_be_destroyed())?;
        Context::destroy(given(server)?)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_as_ctx(server: *mut doca_comch_server) -> *mut doca_ctx {
    inside("doca_comch_server_as_ctx", || given(server).map_or(null_mut(), Handle::as_ptr))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_set_max_msg_size(server: *mut doca_comch_server, size: u32) -> doca_error_t {
    call("doca_comch_server_set_max_msg_size", || with(server, true, |_, service| service.set_max_message(size)))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_set_recv_queue_size(
    server: *mut doca_comch_server,
    size: u32,
) -> doca_error_t {
    call("doca_comch_server_set_recv_queue_size", || with(server, true, |_, service| service.set_queue(size)))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_task_send_set_conf(
    server: *mut doca_comch_server,
    completed: MessageCallback,
    failed: MessageCallback,
    number: u32,
) -> doca_error_t {
    call("doca_comch_server_task_send_set_conf", || {
        with(server, true, |context, service| {
            let (completed, failed) = (Callback::Message(completed), Callback::Message(failed));
            context.tasks.configure(Configuration { completed, failed, number }, MAX_SEND_TASKS)?;
            service.reserve(number);
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_task_send_alloc_init(
    server: *mut doca_comch_server,
    peer: *mut doca_comch_connection,
    message: *const c_void,
    len: u32,
    task: *mut *mut doca_comch_task_send,
) -> doca_error_t {
    call("doca_comch_server_task_send_alloc_init", || {
        with(server, false, |context, service| {
            let (peer, answer) = (Connection::given(peer)?, answer(task)?);
            answer.put(service.message(context, peer, message.cast(), len)?.as_ptr());
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_event_msg_recv_register(
    server: *mut doca_comch_server,
    received: Received,
) -> doca_error_t {
    call("doca_comch_server_event_msg_recv_register", || {
        with(server, true, |_, service| {
            service.received.set(Some(received.ok_or(INVALID_VALUE)?));
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_event_connection_status_changed_register(
    server: *mut doca_comch_server,
    connected: StatusChanged,
    disconnected: StatusChanged,
) -> doca_error_t {
    call("doca_comch_server_event_connection_status_changed_register", || {
        with(server, true, |_, service| {
            let (connected, disconnected) = connected.zip(disconnected).ok_or(INVALID_VALUE)?;
            service.connected.set(Some(connected));
            service.disconnected.set(Some(disconnected));
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_event_consumer_register(
    server: *mut doca_comch_server,
    new: ConsumerChanged,
    expired: ConsumerChanged,
) -> doca_error_t {
    call("doca_comch_server_event_consumer_register", || {
        with(server, true, |_, service| {
            let (new, expired) = new.zip(expired).ok_or(INVALID_VALUE)?;
            service.new_consumer.set(Some(new));
            service.expired_consumer.set(Some(expired));
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_server_disconnect(
    server: *mut doca_comch_server,
    connection: *mut doca_comch_connection,
) -> doca_error_t {
    call("doca_comch_server_disconnect", || {
        with(server, false, |context, service| {
            let connection = Connection::given(connection)?;
            must_be_of(connection, context)?;
            if faults::strikes(Fault::Again) {
                return Err(AGAIN);
            }
            service.disconnect(connection)
        })
    })
}
