//! The devices that a machine has, and those that a card stands for.
#![expect(unsafe_code, reason = "calls of DOCA")]

use std::ffi::{CStr, c_char};
use std::fmt;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use doca_sys::{doca_dev, doca_dev_rep, doca_devinfo, doca_devinfo_rep, doca_devinfo_rep_filter, doca_error_t};

use crate::error::{Code, Error, check};
use crate::library::Library;

/// Bytes of a PCI address as text, its end included.
const ADDRESS: usize = 13;
/// Bytes of an interface's name at most.
const NAME: usize = 64;

/// What a device says of itself, and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Where it is, as `0000:03:00.0`.
    pub address: String,
    /// Its name among RDMA devices; empty where it has none.
    pub ibdev: String,
    /// Its name among network interfaces; empty where it has none.
    pub interface: String,
    /// What it can do.
    pub can: Capabilities,
}

/// What a device can do. A limit of 0 is that of what it cannot do at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Memory of its machine can be shown to the other side.
    pub export: bool,
    /// Memory that the other side shows can be reached.
    pub import: bool,
    /// Bytes that one copy may have.
    pub copy_bytes: u64,
    /// Buffers that one copy may gather.
    pub copy_buffers: u32,
    /// A server of messages can run here, which is so on the card.
    pub server: bool,
    /// A client of messages can run here, which is so on the host.
    pub client: bool,
    /// Bytes that a message may have.
    pub message_bytes: u32,
    /// Messages that may wait to be received.
    pub receive_queue: u32,
    /// Messages that may be under way.
    pub send_tasks: u32,
    /// Bytes that a server's name may have.
    pub name_bytes: u32,
    /// Receives that a consumer may have posted.
    pub consumer_tasks: u32,
    /// Bytes that may go with a producer's message.
    pub immediate_bytes: u32,
    /// Sends that a producer may have under way.
    pub producer_tasks: u32,
}

/// An opened device. Clones are the same one.
#[derive(Clone)]
pub struct Device {
    inner: Rc<Inner>,
}

struct Inner {
    library: Library,
    device: NonNull<doca_dev>,
    info: DeviceInfo,
}

impl Device {
    /// All devices of this machine that DOCA knows.
    ///
    /// # Errors
    /// Those of DOCA; that there are none is no error.
    pub fn all(library: &Library) -> Result<Vec<DeviceInfo>, Error> {
        with_list(library, |devices| Ok(devices.iter().map(|device| describe(library, *device)).collect()))
    }

    /// Opens the device at a PCI address, as `03:00.0` or `0000:03:00.0`.
    ///
    /// # Errors
    /// [`Code::NOT_FOUND`] where there is none, and those of DOCA.
    pub fn open(library: &Library, address: &str) -> Result<Device, Error> {
        with_list(library, |devices| {
            let at = |device: &&*mut doca_devinfo| is_at(&address_of(library, **device), address);
            let found = devices.iter().find(at).ok_or(Error::refused(
                "doca_devinfo_create_list",
                Code::NOT_FOUND,
                "there is no device at that address",
            ))?;
            let mut device = ptr::null_mut();
            // SAFETY: it is of a list that is still there, and what is written to lives through the call.
            check("doca_dev_open", unsafe { (library.doca().doca_dev_open)(*found, &raw mut device) })?;
            let device = not_null("doca_dev_open", device)?;
            Ok(Device { inner: Rc::new(Inner { library: library.clone(), device, info: describe(library, *found) }) })
        })
    }

    /// What it says of itself, and can do.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// What of the host this card can speak to, by PCI address. Only a card has them.
    ///
    /// # Errors
    /// [`Code::NOT_SUPPORTED`] on the host, and others of DOCA.
    pub fn representors(&self) -> Result<Vec<String>, Error> {
        self.with_representors(|all| Ok(all.iter().map(|info| self.representor_address(*info)).collect()))
    }

    /// Opens what stands for the host's device at a PCI address.
    ///
    /// # Errors
    /// [`Code::NOT_FOUND`] where there is none, and those of DOCA.
    pub fn representor(&self, address: &str) -> Result<Representor, Error> {
        self.with_representors(|all| {
            let at = |info: &&*mut doca_devinfo_rep| is_at(&self.representor_address(**info), address);
            let found = all.iter().find(at).ok_or(Error::refused(
                "doca_devinfo_rep_create_list",
                Code::NOT_FOUND,
                "nothing stands for a device at that address",
            ))?;
            let mut representor = ptr::null_mut();
            // SAFETY: it is of a list that is still there, and what is written to lives through the call.
            let answer = unsafe { (self.library().doca().doca_dev_rep_open)(*found, &raw mut representor) };
            check("doca_dev_rep_open", answer)?;
            let representor = not_null("doca_dev_rep_open", representor)?;
            let address = self.representor_address(*found);
            Ok(Representor { inner: Rc::new(Opened { representor, device: self.clone(), address }) })
        })
    }

    /// What it was opened with.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.inner.library
    }

    pub(crate) fn as_ptr(&self) -> *mut doca_dev {
        self.inner.device.as_ptr()
    }

    fn with_representors<T>(&self, of: impl FnOnce(&[*mut doca_devinfo_rep]) -> Result<T, Error>) -> Result<T, Error> {
        let doca = self.library().doca();
        let (mut list, mut count) = (ptr::null_mut(), 0);
        let filter = doca_devinfo_rep_filter::DOCA_DEVINFO_REP_FILTER_NET.0 as i32;
        // SAFETY: the device is open, and what is written to lives through the call.
        let answer =
            unsafe { (doca.doca_devinfo_rep_create_list)(self.as_ptr(), filter, &raw mut list, &raw mut count) };
        check("doca_devinfo_rep_create_list", answer)?;
        // SAFETY: DOCA made so many, which stay until the list goes.
        let result = of(unsafe { entries(list, count) });
        if !list.is_null() {
            // SAFETY: made just above, and nothing of it is kept.
            check("doca_devinfo_rep_destroy_list", unsafe { (doca.doca_devinfo_rep_destroy_list)(list) })?;
        }
        result
    }

    fn representor_address(&self, info: *mut doca_devinfo_rep) -> String {
        text::<ADDRESS>(|to| {
            // SAFETY: it is of a list that is still there, and there is room for what is written.
            unsafe { (self.library().doca().doca_devinfo_rep_get_pci_addr_str)(info, to) }
        })
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.inner.info.address).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; all that uses it holds it.
        let answer = unsafe { (self.library.doca().doca_dev_close)(self.device.as_ptr()) };
        told(check("doca_dev_close", answer));
    }
}

/// What stands, on a card, for one of the host's devices. Clones are the same one.
#[derive(Clone)]
pub struct Representor {
    inner: Rc<Opened>,
}

struct Opened {
    representor: NonNull<doca_dev_rep>,
    device: Device,
    address: String,
}

impl Representor {
    /// Where the host has that device.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    pub(crate) fn as_ptr(&self) -> *mut doca_dev_rep {
        self.inner.representor.as_ptr()
    }
}

impl fmt::Debug for Representor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Representor").field(&self.inner.address).finish()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; all that uses it holds it.
        let answer = unsafe { (self.device.library().doca().doca_dev_rep_close)(self.representor.as_ptr()) };
        told(check("doca_dev_rep_close", answer));
    }
}

/// Says what a call of a destructor answered, from which no error can be returned.
pub(crate) fn told(answer: Result<(), Error>) {
    if let Err(error) = answer {
        tracing::error!(%error, "DOCA keeps what was to be given back");
    }
}

pub(crate) fn not_null<T>(call: &'static str, made: *mut T) -> Result<NonNull<T>, Error> {
    NonNull::new(made).ok_or(Error::refused(call, Code::UNEXPECTED, "it succeeded and made nothing"))
}

fn with_list<T>(library: &Library, of: impl FnOnce(&[*mut doca_devinfo]) -> Result<T, Error>) -> Result<T, Error> {
    let doca = library.doca();
    let (mut list, mut count) = (ptr::null_mut(), 0);
    // SAFETY: what is written to lives through the call.
    let answer = unsafe { (doca.doca_devinfo_create_list)(&raw mut list, &raw mut count) };
    match check("doca_devinfo_create_list", answer) {
        // As it is documented where there is no device; seen was a list of none.
        Err(error) if error.code() == Code::NOT_FOUND => return of(&[]),
        other => other?,
    }
    // SAFETY: DOCA made so many, which stay until the list goes.
    let result = of(unsafe { entries(list, count) });
    if !list.is_null() {
        // SAFETY: made just above, and nothing of it is kept.
        check("doca_devinfo_destroy_list", unsafe { (doca.doca_devinfo_destroy_list)(list) })?;
    }
    result
}

/// # Safety
/// `count` entries are at `list`, unless there are none, and stay for `'a`.
unsafe fn entries<'a, T>(list: *mut *mut T, count: u32) -> &'a [*mut T] {
    match (NonNull::new(list), count) {
        (None, _) | (_, 0) => &[],
        // SAFETY: the caller says so.
        (Some(list), count) => unsafe { std::slice::from_raw_parts(list.as_ptr(), count as usize) },
    }
}

/// Whether an address is the one that is meant, which may leave out the domain 0000.
fn is_at(address: &str, meant: &str) -> bool {
    let whole = |text: &str| if text.matches(':').count() == 1 { format!("0000:{text}") } else { text.to_owned() };
    whole(address).eq_ignore_ascii_case(&whole(meant))
}

/// What a call writes into a buffer of `N` bytes; nothing where it fails.
fn text<const N: usize>(of: impl FnOnce(*mut c_char) -> doca_error_t) -> String {
    let mut bytes = [0_u8; N];
    let answer = of(bytes.as_mut_ptr().cast());
    let text = CStr::from_bytes_until_nul(&bytes).ok().filter(|_| check("", answer).is_ok());
    text.map_or_else(String::new, |text| text.to_string_lossy().into_owned())
}

fn address_of(library: &Library, device: *mut doca_devinfo) -> String {
    // SAFETY: it is of a list that is still there, and there is room for what is written.
    text::<ADDRESS>(|to| unsafe { (library.doca().doca_devinfo_get_pci_addr_str)(device, to) })
}

fn describe(library: &Library, device: *mut doca_devinfo) -> DeviceInfo {
    let doca = library.doca();
    DeviceInfo {
        address: address_of(library, device),
        // SAFETY: as above; the buffer's length is given.
        ibdev: text::<NAME>(|to| unsafe { (doca.doca_devinfo_get_ibdev_name)(device, to, NAME as u32) }),
        // SAFETY: as above.
        interface: text::<NAME>(|to| unsafe { (doca.doca_devinfo_get_iface_name)(device, to, NAME as u32) }),
        can: capabilities(library, device),
    }
}

/// Asks for each capability; what cannot be asked for is not there.
fn capabilities(library: &Library, device: *const doca_devinfo) -> Capabilities {
    let doca = library.doca();
    // SAFETY: the device is of a list that is still there, or open, here and in all that follows, and what is written to lives through the call.
    let can = |ask: unsafe extern "C" fn(*const doca_devinfo) -> doca_error_t| unsafe { ask(device) };
    let can = |ask| check("", can(ask)).is_ok();
    let flag = |ask: unsafe extern "C" fn(*const doca_devinfo, *mut u8) -> doca_error_t| {
        let mut value = 0;
        // SAFETY: as above.
        let answer = unsafe { ask(device, &raw mut value) };
        check("", answer).is_ok() && value != 0
    };
    let number = |ask: unsafe extern "C" fn(*const doca_devinfo, *mut u32) -> doca_error_t| {
        let mut value = 0;
        // SAFETY: as above.
        let answer = unsafe { ask(device, &raw mut value) };
        if check("", answer).is_ok() { value } else { 0 }
    };
    let mut all = Capabilities {
        export: flag(doca.doca_mmap_cap_is_export_pci_supported),
        import: flag(doca.doca_mmap_cap_is_create_from_export_pci_supported),
        server: can(doca.doca_comch_cap_server_is_supported),
        client: can(doca.doca_comch_cap_client_is_supported),
        ..Capabilities::default()
    };
    if can(doca.doca_dma_cap_task_memcpy_is_supported) {
        // SAFETY: as above.
        let answer = unsafe { (doca.doca_dma_cap_task_memcpy_get_max_buf_size)(device, &raw mut all.copy_bytes) };
        all.copy_bytes = if check("", answer).is_ok() { all.copy_bytes } else { 0 };
        all.copy_buffers = number(doca.doca_dma_cap_task_memcpy_get_max_buf_list_len);
    }
    if all.server || all.client {
        all.message_bytes = number(doca.doca_comch_cap_get_max_msg_size);
        all.receive_queue = number(doca.doca_comch_cap_get_max_recv_queue_size);
        all.send_tasks = number(doca.doca_comch_cap_get_max_send_tasks);
        all.name_bytes = number(doca.doca_comch_cap_get_max_name_len);
    }
    if can(doca.doca_comch_consumer_cap_is_supported) {
        all.consumer_tasks = number(doca.doca_comch_consumer_cap_get_max_num_tasks);
        all.immediate_bytes = number(doca.doca_comch_consumer_cap_get_max_imm_data_len);
    }
    if can(doca.doca_comch_producer_cap_is_supported) {
        all.producer_tasks = number(doca.doca_comch_producer_cap_get_max_num_tasks);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_out_its_domain() {
        assert!(
            is_at("0000:03:00.0", "03:00.0") && is_at("03:00.0", "0000:03:00.0") && is_at("0000:0A:00.1", "0a:00.1")
        );
        assert!(!is_at("0001:03:00.0", "03:00.0") && !is_at("0000:03:00.0", "03:00.1") && !is_at("", "03:00.0"));
    }
}
