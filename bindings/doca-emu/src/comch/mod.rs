//! Messages between the card and its host, and the fast path.

mod client;
mod connection;
mod consumer;
mod link;
mod path;
mod producer;
mod ring;
mod server;
mod service;
mod socket;

use doca_sys::{doca_comch_task_send, doca_devinfo, doca_error_t, doca_task};

pub(crate) use self::connection::Connection;
pub(crate) use self::consumer::Consumer;
pub(crate) use self::producer::Producer;
pub(crate) use self::service::Service;
use crate::call::{answer, call, inside};
use crate::device::{DeviceInfo, Side};
use crate::error::NOT_SUPPORTED;
use crate::handle::Handle;
use crate::task::Task;

/// Functions that are exported, for the check of their types.
pub(crate) mod exported {
    pub(crate) use super::client::*;
    pub(crate) use super::connection::*;
    pub(crate) use super::consumer::*;
    pub(crate) use super::producer::*;
    pub(crate) use super::server::*;
}

/// Bytes of the longest message.
const MAX_MESSAGE: u32 = 4080;
/// Messages that may be received at once: a ring has room for as many of the longest.
const MAX_QUEUE: u32 = 128;
const MAX_SEND_TASKS: u32 = 8192;
const MAX_CLIENTS: u32 = 64;
/// Consumers of one side of a connection.
const MAX_CONSUMERS: u32 = 64;
const _: () = assert!(MAX_QUEUE as usize * (MAX_MESSAGE as usize + 16) < ring::CAPACITY);

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_cap_server_is_supported(info: *const doca_devinfo) -> doca_error_t {
    call("doca_comch_cap_server_is_supported", || match Handle::<DeviceInfo>::given(info)?.side {
        Side::Arm => Ok(()),
        Side::Host => Err(NOT_SUPPORTED),
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_cap_client_is_supported(info: *const doca_devinfo) -> doca_error_t {
    call("doca_comch_cap_client_is_supported", || match Handle::<DeviceInfo>::given(info)?.side {
        Side::Arm => Err(NOT_SUPPORTED),
        Side::Host => Ok(()),
    })
}

/// Functions that tell a limit, the same for every device.
macro_rules! limits {
    ($($name:ident = $limit:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name(info: *const doca_devinfo, limit: *mut u32) -> doca_error_t {
            call(stringify!($name), || {
                Handle::<DeviceInfo>::given(info)?;
                answer(limit)?.put($limit);
                Ok(())
            })
        }
    )*};
}

limits! {
    doca_comch_cap_get_max_name_len = socket::MAX_NAME as u32;
    doca_comch_cap_get_max_msg_size = MAX_MESSAGE;
    doca_comch_cap_get_max_recv_queue_size = MAX_QUEUE;
    doca_comch_cap_get_max_send_tasks = MAX_SEND_TASKS;
    doca_comch_cap_get_max_clients = MAX_CLIENTS;
    doca_comch_consumer_cap_get_max_num_tasks = path::MAX_POSTS;
    doca_comch_consumer_cap_get_max_buf_size = path::MAX_PAYLOAD;
    doca_comch_consumer_cap_get_max_imm_data_len = crate::task::MAX_IMMEDIATE as u32;
    doca_comch_producer_cap_get_max_num_tasks = MAX_SEND_TASKS;
    doca_comch_producer_cap_get_max_buf_size = path::MAX_PAYLOAD;
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_comch_task_send_as_task(task: *mut doca_comch_task_send) -> *mut doca_task {
    inside("doca_comch_task_send_as_task", || Task::out(task).as_ptr())
}
