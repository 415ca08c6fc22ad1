//! Every function, and the check that each has the type that `doca_sys` declares.

use doca_sys::Doca;

use crate::buffer::*;
use crate::comch::exported::*;
use crate::comch::*;
use crate::context::*;
use crate::device::*;
use crate::dma::*;
use crate::engine::*;
use crate::error::*;
use crate::memory::mmap::*;
use crate::task::*;

/// Does not compile unless each function has the type of the field that is called by its name.
macro_rules! as_declared {
    ($($name:ident)+) => {
        const _: fn(&mut Doca) = |doca| {$(doca.$name = $name;)+};
    };
}

as_declared! {
    doca_error_get_name
    doca_error_get_descr
    doca_version_runtime
    doca_devinfo_create_list
    doca_devinfo_destroy_list
    doca_devinfo_get_pci_addr_str
    doca_devinfo_get_ibdev_name
    doca_devinfo_get_iface_name
    doca_dev_open
    doca_dev_close
    doca_dev_as_devinfo
    doca_devinfo_rep_create_list
    doca_devinfo_rep_destroy_list
    doca_devinfo_rep_get_pci_addr_str
    doca_dev_rep_open
    doca_dev_rep_close
    doca_mmap_cap_is_export_pci_supported
    doca_mmap_cap_is_create_from_export_pci_supported
    doca_mmap_create
    doca_mmap_destroy
    doca_mmap_add_dev
    doca_mmap_set_permissions
    doca_mmap_set_memrange
    doca_mmap_set_dmabuf_memrange
    doca_mmap_get_memrange
    doca_mmap_start
    doca_mmap_stop
    doca_mmap_export_pci
    doca_mmap_create_from_export
    doca_buf_inventory_create
    doca_buf_inventory_destroy
    doca_buf_inventory_start
    doca_buf_inventory_stop
    doca_buf_inventory_buf_get_by_args
    doca_buf_inc_refcount
    doca_buf_dec_refcount
    doca_buf_get_refcount
    doca_buf_get_head
    doca_buf_get_len
    doca_buf_get_data
    doca_buf_get_data_len
    doca_buf_set_data
    doca_buf_chain_list
    doca_buf_unchain_list
    doca_ctx_start
    doca_ctx_stop
    doca_ctx_get_state
    doca_ctx_get_num_inflight_tasks
    doca_ctx_set_user_data
    doca_ctx_set_state_changed_cb
    doca_pe_create
    doca_pe_destroy
    doca_pe_connect_ctx
    doca_pe_progress
    doca_task_submit
    doca_task_try_submit
    doca_task_free
    doca_task_get_status
    doca_task_set_user_data
    doca_dma_cap_task_memcpy_is_supported
    doca_dma_cap_task_memcpy_get_max_buf_size
    doca_dma_cap_task_memcpy_get_max_buf_list_len
    doca_dma_cap_get_max_num_tasks
    doca_dma_create
    doca_dma_destroy
    doca_dma_as_ctx
    doca_dma_task_memcpy_set_conf
    doca_dma_task_memcpy_alloc_init
    doca_dma_task_memcpy_as_task
    doca_dma_task_memcpy_set_src
    doca_dma_task_memcpy_set_dst
    doca_comch_cap_server_is_supported
    doca_comch_cap_client_is_supported
    doca_comch_cap_get_max_name_len
    doca_comch_cap_get_max_msg_size
    doca_comch_cap_get_max_recv_queue_size
    doca_comch_cap_get_max_send_tasks
    doca_comch_cap_get_max_clients
    doca_comch_task_send_as_task
    doca_comch_consumer_cap_get_max_num_tasks
    doca_comch_consumer_cap_get_max_buf_size
    doca_comch_consumer_cap_get_max_imm_data_len
    doca_comch_producer_cap_get_max_num_tasks
    doca_comch_producer_cap_get_max_buf_size
    doca_comch_server_create
    doca_comch_server_destroy
    doca_comch_server_as_ctx
    doca_comch_server_set_max_msg_size
    doca_comch_server_set_recv_queue_size
    doca_comch_server_task_send_set_conf
    doca_comch_server_task_send_alloc_init
    doca_comch_server_event_msg_recv_register
    doca_comch_server_event_connection_status_changed_register
    doca_comch_server_event_consumer_register
    doca_comch_server_disconnect
    doca_comch_server_get_server_ctx
    doca_comch_client_create
    doca_comch_client_destroy
    doca_comch_client_as_ctx
    doca_comch_client_set_max_msg_size
    doca_comch_client_set_recv_queue_size
    doca_comch_client_task_send_set_conf
    doca_comch_client_task_send_alloc_init
    doca_comch_client_event_msg_recv_register
    doca_comch_client_event_consumer_register
    doca_comch_client_get_connection
    doca_comch_client_get_client_ctx
    doca_comch_connection_set_user_data
    doca_comch_connection_get_user_data
    doca_comch_consumer_cap_is_supported
    doca_comch_consumer_create
    doca_comch_consumer_destroy
    doca_comch_consumer_as_ctx
    doca_comch_consumer_get_id
    doca_comch_consumer_set_imm_data_len
    doca_comch_consumer_task_post_recv_set_conf
    doca_comch_consumer_task_post_recv_alloc_init
    doca_comch_consumer_task_post_recv_get_buf
    doca_comch_consumer_task_post_recv_get_producer_id
    doca_comch_consumer_task_post_recv_get_imm_data
    doca_comch_consumer_task_post_recv_get_imm_data_len
    doca_comch_consumer_task_post_recv_as_task
    doca_comch_producer_cap_is_supported
    doca_comch_producer_create
    doca_comch_producer_destroy
    doca_comch_producer_as_ctx
    doca_comch_producer_task_send_set_conf
    doca_comch_producer_task_send_alloc_init
    doca_comch_producer_task_send_set_imm_data
    doca_comch_producer_task_send_as_task
}
