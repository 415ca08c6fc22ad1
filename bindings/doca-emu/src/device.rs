//! The card as each side sees it: one device for the Arm, with a representor of the host's function, and that function for the host.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use doca_sys::{
    doca_dev, doca_dev_rep, doca_devinfo, doca_devinfo_rep, doca_devinfo_rep_filter as Filter, doca_error_t,
};

use crate::call::{Result, answer, broken, call, inside, put_text};
use crate::error::{IN_USE, INVALID_VALUE, NOT_SUPPORTED};
use crate::handle::{Handle, object};
use crate::settings::settings;

/// Characters of a PCI address, with the end of the text.
const PCI_ADDRESS_SIZE: usize = 13;

/// Whose device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Arm,
    Host,
}

impl Side {
    pub(crate) fn pci_address(self) -> &'static CStr {
        match self {
            Side::Arm => c"0000:03:00.0",
            Side::Host => c"0000:b1:00.0",
        }
    }

    fn ibdev(self) -> &'static CStr {
        match self {
            Side::Arm => c"mlx5_0",
            Side::Host => c"mlx5_2",
        }
    }

    fn interface(self) -> &'static CStr {
        match self {
            Side::Arm => c"p0",
            Side::Host => c"ens1f0np0",
        }
    }
}

/// An entry of a list of devices, or what an open one tells of itself.
pub(crate) struct DeviceInfo {
    pub(crate) side: Side,
}
object!(DeviceInfo, 1, "a devinfo");

/// An open device.
pub(crate) struct Device {
    pub(crate) side: Side,
    info: Handle<DeviceInfo>,
    /// How often it was opened.
    opened: AtomicUsize,
    /// What was made of it and is still there.
    pub(crate) users: AtomicUsize,
}
object!(Device, 2, "a device");

/// An entry of a list of representors.
pub(crate) struct RepresentorInfo {
    device: Handle<Device>,
}
object!(RepresentorInfo, 3, "a representor's devinfo");

/// An open representor.
pub(crate) struct Representor {
    device: Handle<Device>,
    /// Servers that it stands for.
    pub(crate) users: AtomicUsize,
}
object!(Representor, 4, "a representor");

/// Addresses of open devices, at most one for each side.
static OPEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// How many entries each list has that was handed out, by its address.
static LISTS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_devinfo_create_list(list: *mut *mut *mut doca_devinfo, number: *mut u32) -> doca_error_t {
    call("doca_devinfo_create_list", || {
        let (list, number) = (answer(list)?, answer(number)?);
        let sides = settings()?.map_or(&[][..], |settings| settings.sides);
        let entries = sides.iter().map(|side| Handle::new(DeviceInfo { side: *side }).as_ptr()).collect();
        number.put(sides.len() as u32);
        list.put(hand_out(entries));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_devinfo_destroy_list(list: *mut *mut doca_devinfo) -> doca_error_t {
    call("doca_devinfo_destroy_list", || take_back(list, |entry| Handle::<DeviceInfo>::needed(entry).end()))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_devinfo_get_pci_addr_str(
    info: *const doca_devinfo,
    address: *mut c_char,
) -> doca_error_t {
    call("doca_devinfo_get_pci_addr_str", || {
        put_text(address, PCI_ADDRESS_SIZE, Handle::<DeviceInfo>::given(info)?.side.pci_address())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_devinfo_get_ibdev_name(
    info: *const doca_devinfo,
    name: *mut c_char,
    size: u32,
) -> doca_error_t {
    call("doca_devinfo_get_ibdev_name", || {
        put_text(name, size as usize, Handle::<DeviceInfo>::given(info)?.side.ibdev())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_devinfo_get_iface_name(
    info: *const doca_devinfo,
    name: *mut c_char,
    size: u32,
) -> doca_error_t {
    call("doca_devinfo_get_iface_name", || {
        put_text(name, size as usize, Handle::<DeviceInfo>::given(info)?.side.interface())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dev_open(info: *mut doca_devinfo, device: *mut *mut doca_dev) -> doca_error_t {
    call("doca_dev_open", || {
        let (info, device) = (Handle::<DeviceInfo>::given(info)?, answer(device)?);
        let mut open = open_devices();
        let known =
            open.iter().map(|address| Handle::<Device>::needed(std::ptr::with_exposed_provenance::<u8>(*address)));
        let opened = known.into_iter().find(|known| known.side == info.side).unwrap_or_else(|| {
            let own = Handle::new(DeviceInfo { side: info.side });
            let (opened, users) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let new = Handle::new(Device { side: info.side, info: own, opened, users });
            open.push(new.as_ptr::<u8>().expose_provenance());
            new
        });
        opened.opened.fetch_add(1, Ordering::Relaxed);
        device.put(opened.as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dev_close(device: *mut doca_dev) -> doca_error_t {
    call("doca_dev_close", || {
        let device = Handle::<Device>::given(device)?;
        let mut open = open_devices();
        if device.opened.load(Ordering::Relaxed) > 1 {
            device.opened.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        if device.users.load(Ordering::Acquire) > 0 {
            return Err(IN_USE);
        }
        open.retain(|address| *address != device.as_ptr::<u8>().addr());
        device.info.end();
        device.end();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dev_as_devinfo(device: *const doca_dev) -> *mut doca_devinfo {
    inside("doca_dev_as_devinfo", || Handle::<Device>::given(device).map_or(null_mut(), |device| device.info.as_ptr()))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_devinfo_rep_create_list(
    device: *mut doca_dev,
    filter: c_int,
    list: *mut *mut *mut doca_devinfo_rep,
    number: *mut u32,
) -> doca_error_t {
    call("doca_devinfo_rep_create_list", || {
        let (device, list, number) = (Handle::<Device>::given(device)?, answer(list)?, answer(number)?);
        let known = [Filter::DOCA_DEVINFO_REP_FILTER_ALL, Filter::DOCA_DEVINFO_REP_FILTER_NET];
        if !known.iter().any(|known| i64::from(known.0) == i64::from(filter)) {
            return Err(INVALID_VALUE);
        }
        if device.side != Side::Arm {
            return Err(NOT_SUPPORTED);
        }
        number.put(1);
        list.put(hand_out(vec![Handle::new(RepresentorInfo { device }).as_ptr()]));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_devinfo_rep_destroy_list(list: *mut *mut doca_devinfo_rep) -> doca_error_t {
    call("doca_devinfo_rep_destroy_list", || take_back(list, |entry| Handle::<RepresentorInfo>::needed(entry).end()))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_devinfo_rep_get_pci_addr_str(
    info: *const doca_devinfo_rep,
    address: *mut c_char,
) -> doca_error_t {
    call("doca_devinfo_rep_get_pci_addr_str", || {
        Handle::<RepresentorInfo>::given(info)?;
        put_text(address, PCI_ADDRESS_SIZE, Side::Host.pci_address())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dev_rep_open(
    info: *mut doca_devinfo_rep,
    representor: *mut *mut doca_dev_rep,
) -> doca_error_t {
    call("doca_dev_rep_open", || {
        let (info, representor) = (Handle::<RepresentorInfo>::given(info)?, answer(representor)?);
        // It may have been closed since the list was made.
        let device = Handle::<Device>::needed(info.device.as_ptr::<doca_dev>());
        device.users.fetch_add(1, Ordering::Relaxed);
        representor.put(Handle::new(Representor { device, users: AtomicUsize::new(0) }).as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_dev_rep_close(representor: *mut doca_dev_rep) -> doca_error_t {
    call("doca_dev_rep_close", || {
        let representor = Handle::<Representor>::given(representor)?;
        if representor.users.load(Ordering::Acquire) > 0 {
            return Err(IN_USE);
        }
        representor.device.users.fetch_sub(1, Ordering::Release);
        representor.end();
        Ok(())
    })
}

fn open_devices() -> MutexGuard<'static, Vec<usize>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lists() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    LISTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a list a caller's, with a null pointer behind its entries.
fn hand_out<C>(mut entries: Vec<*mut C>) -> *mut *mut C {
    entries.push(null_mut());
    let list = Box::leak(entries.into_boxed_slice());
    lists().insert(list.as_ptr().addr(), list.len());
    list.as_mut_ptr()
}

fn take_back<C>(list: *mut *mut C, end: impl Fn(*mut C)) -> Result {
    if list.is_null() {
        return Err(INVALID_VALUE);
    }
    let Some(len) = lists().remove(&list.addr()) else {
        broken("a list that was not handed out, or no longer, was destroyed")
    };
    // SAFETY: it was made by `hand_out`, with this length, and is given back once.
    let entries = unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(list, len)) };
    entries.iter().take(len - 1).for_each(|entry| end(*entry));
    Ok(())
}
