//! Registered memory: what devices may reach, and what is granted to the other side.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use doca_sys::{doca_access_flag as Flag, doca_data, doca_dev, doca_devinfo, doca_error_t, doca_mmap};
use rustix::process::{PTracer, set_ptracer};
use zerocopy::IntoBytes;

use super::descriptor::{Descriptor, FilePlace, GPU, NO_FILE};
use super::grant::{Exporter, Grant};
use super::mapping::Mapping;
use super::{Backing, LOCAL_READ_WRITE, Memory, PCI_READ_ONLY, PCI_READ_WRITE, Reach, file, foreign, gpu};
use crate::call::{Result, answer, call};
use crate::device::{Device, DeviceInfo, Side};
use crate::error::{
    ALREADY_EXIST, BAD_STATE, DRIVER, INVALID_VALUE, NO_MEMORY, NOT_FOUND, NOT_PERMITTED, NOT_SUPPORTED,
};
use crate::handle::{Handle, object};
use crate::settings;

/// Devices that one may have, unless more were asked for, which is not offered.
const MAX_DEVICES: usize = 1;
/// DOCA's flags for remote access over a network: known, and without effect.
const RDMA: u32 = 0b1110;
const KNOWN: u32 = Flag::DOCA_ACCESS_FLAG_LOCAL_READ_ONLY.0 | LOCAL_READ_WRITE | RDMA | PCI_READ_ONLY | PCI_READ_WRITE;
const PCI: u32 = PCI_READ_ONLY | PCI_READ_WRITE;

/// A `doca_mmap`.
pub(crate) struct Mmap {
    setup: Mutex<Setup>,
    /// Bufs and consumers that are made of it.
    pub(crate) users: AtomicUsize,
}
object!(Mmap, 5, "an mmap");

struct Setup {
    devices: Vec<Handle<Device>>,
    access: u32,
    range: Option<Range>,
    imported: bool,
    started: Option<Arc<Memory>>,
    export: Option<Export>,
}

/// Memory as the program named it.
struct Range {
    address: usize,
    len: usize,
    /// What it rests on where it is not this process's own memory; what was mapped, until the start.
    backing: Option<Backing>,
    /// Where it lies in this process.
    place: usize,
}

struct Export {
    descriptor: Box<Descriptor>,
    _grant: Grant,
    _file: Option<OwnedFd>,
}

impl Mmap {
    fn setup(&self) -> MutexGuard<'_, Setup> {
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its memory, once it has been started.
    pub(crate) fn memory(&self) -> Option<Arc<Memory>> {
        self.setup().started.clone()
    }

    /// Whether its memory is granted to the other side for writing, and may be written to on this one.
    pub(crate) fn takes_receives(&self) -> bool {
        let wanted = LOCAL_READ_WRITE | PCI_READ_WRITE;
        self.setup().access & wanted == wanted
    }
}

impl Setup {
    /// # Errors
    /// Why it may not be set up any more.
    fn may_change(&self) -> Result {
        match (self.imported, &self.started) {
            (true, _) => Err(NOT_PERMITTED),
            (false, Some(_)) => Err(BAD_STATE),
            (false, None) => Ok(()),
        }
    }

    fn sides(&self) -> Vec<Side> {
        self.devices.iter().map(|device| device.side).collect()
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_cap_is_export_pci_supported(
    info: *const doca_devinfo,
    supported: *mut u8,
) -> doca_error_t {
    call("doca_mmap_cap_is_export_pci_supported", || {
        let side = Handle::<DeviceInfo>::given(info)?.side;
        answer(supported)?.put(u8::from(side == Side::Host));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_cap_is_create_from_export_pci_supported(
    info: *const doca_devinfo,
    supported: *mut u8,
) -> doca_error_t {
    call("doca_mmap_cap_is_create_from_export_pci_supported", || {
        let side = Handle::<DeviceInfo>::given(info)?.side;
        answer(supported)?.put(u8::from(side == Side::Arm));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_create(mmap: *mut *mut doca_mmap) -> doca_error_t {
    call("doca_mmap_create", || {
        let (devices, access) = (Vec::new(), Flag::DOCA_ACCESS_FLAG_LOCAL_READ_ONLY.0);
        let setup = Setup { devices, access, range: None, imported: false, started: None, export: None };
        answer(mmap)?.put(Handle::new(Mmap { setup: Mutex::new(setup), users: AtomicUsize::new(0) }).as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_destroy(mmap: *mut doca_mmap) -> doca_error_t {
    call("doca_mmap_destroy", || {
        let mmap = Handle::<Mmap>::given(mmap)?;
        if mmap.users.load(Ordering::Acquire) > 0 {
            return Err(NOT_PERMITTED);
        }
        for device in &mmap.setup().devices {
            device.users.fetch_sub(1, Ordering::Release);
        }
        mmap.end();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_add_dev(mmap: *mut doca_mmap, device: *mut doca_dev) -> doca_error_t {
    call("doca_mmap_add_dev", || {
        let (mmap, device) = (Handle::<Mmap>::given(mmap)?, Handle::<Device>::given(device)?);
        let mut setup = mmap.setup();
        setup.may_change().map_err(|_| NOT_PERMITTED)?;
        if setup.devices.contains(&device) {
            return Err(ALREADY_EXIST);
        }
        if setup.devices.len() == MAX_DEVICES {
            return Err(NO_MEMORY);
        }
        device.users.fetch_add(1, Ordering::Relaxed);
        setup.devices.push(device);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_set_permissions(mmap: *mut doca_mmap, access: u32) -> doca_error_t {
    call("doca_mmap_set_permissions", || {
        let mmap = Handle::<Mmap>::given(mmap)?;
        if access & !KNOWN != 0 || access & PCI == PCI {
            return Err(INVALID_VALUE);
        }
        let mut setup = mmap.setup();
        setup.may_change()?;
        setup.access = access;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_set_memrange(
    mmap: *mut doca_mmap,
    address: *mut c_void,
    len: usize,
) -> doca_error_t {
    call("doca_mmap_set_memrange", || {
        let mmap = Handle::<Mmap>::given(mmap)?;
        // Copies go by the address alone.
        let address = address.expose_provenance();
        set_range(mmap, address, len, || match gpu::find(address, len) {
            Ok(None) => Ok(None),
            Ok(Some(named)) if settings::gpu().peermem => Ok(Some(Backing::Gpu(named))),
            _ => Err(NOT_SUPPORTED),
        })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_set_dmabuf_memrange(
    mmap: *mut doca_mmap,
    file: c_int,
    address: *mut c_void,
    offset: usize,
    len: usize,
) -> doca_error_t {
    call("doca_mmap_set_dmabuf_memrange", || {
        let mmap = Handle::<Mmap>::given(mmap)?;
        let address = address.addr();
        set_range(mmap, address, len, || foreign::open(file, address, offset, len).map(Some))
    })
}

fn set_range(mmap: Handle<Mmap>, address: usize, len: usize, back: impl Fn() -> Result<Option<Backing>>) -> Result {
    if address == 0 || len == 0 || address.checked_add(len).is_none() {
        return Err(INVALID_VALUE);
    }
    let mut setup = mmap.setup();
    setup.may_change()?;
    if setup.range.is_some() {
        return Err(NOT_PERMITTED);
    }
    let backing = back()?;
    let place = match &backing {
        Some(Backing::File(mapping)) => mapping.pointer(0, len).expose_provenance(),
        _ => address,
    };
    setup.range = Some(Range { address, len, backing, place });
    Ok(())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_get_memrange(
    mmap: *const doca_mmap,
    address: *mut *mut c_void,
    len: *mut usize,
) -> doca_error_t {
    call("doca_mmap_get_memrange", || {
        let (mmap, address, len) = (Handle::<Mmap>::given(mmap)?, answer(address)?, answer(len)?);
        let setup = mmap.setup();
        let range = setup.range.as_ref().ok_or(BAD_STATE)?;
        address.put(std::ptr::with_exposed_provenance_mut(range.address));
        len.put(range.len);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_start(mmap: *mut doca_mmap) -> doca_error_t {
    call("doca_mmap_start", || {
        let mmap = Handle::<Mmap>::given(mmap)?;
        let mut setup = mmap.setup();
        if setup.imported || setup.export.is_some() {
            return Err(NOT_PERMITTED);
        }
        setup.may_change()?;
        let (sides, writable) = (setup.sides(), setup.access & LOCAL_READ_WRITE != 0);
        if sides.is_empty() {
            return Err(INVALID_VALUE);
        }
        let range = setup.range.as_mut().ok_or(INVALID_VALUE)?;
        let reach = match range.backing.take() {
            None => Reach::Own,
            Some(Backing::File(mapping)) => Reach::Mapped(mapping),
            gpu @ Some(Backing::Gpu(_)) => {
                range.backing = gpu;
                Reach::Elsewhere
            }
        };
        let memory = Memory { base: range.address, len: range.len, writable, sides, reach };
        setup.started = Some(Arc::new(memory));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_stop(mmap: *mut doca_mmap) -> doca_error_t {
    call("doca_mmap_stop", || {
        let mmap = Handle::<Mmap>::given(mmap)?;
        let mut setup = mmap.setup();
        if setup.imported || setup.export.is_some() || mmap.users.load(Ordering::Acquire) > 0 {
            return Err(NOT_PERMITTED);
        }
        let memory = setup.started.take().ok_or(BAD_STATE)?;
        if let Some((Memory { reach: Reach::Mapped(mapping), .. }, range)) =
            Arc::into_inner(memory).zip(setup.range.as_mut())
        {
            range.backing = Some(Backing::File(mapping));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_export_pci(
    mmap: *mut doca_mmap,
    device: *const doca_dev,
    descriptor: *mut *const c_void,
    len: *mut usize,
) -> doca_error_t {
    call("doca_mmap_export_pci", || {
        let (mmap, device) = (Handle::<Mmap>::given(mmap)?, Handle::<Device>::given(device)?);
        let (descriptor, len) = (answer(descriptor)?, answer(len)?);
        let mut setup = mmap.setup();
        if setup.imported || setup.started.is_none() || setup.access & PCI == 0 {
            return Err(NOT_PERMITTED);
        }
        if !setup.devices.contains(&device) {
            return Err(NOT_FOUND);
        }
        if device.side != Side::Host {
            return Err(NOT_SUPPORTED);
        }
        if setup.export.is_none() {
            setup.export = Some(export(setup.range.as_ref().ok_or(INVALID_VALUE)?, setup.access & PCI)?);
        }
        let bytes = setup.export.as_ref().map_or(&[][..], |export| export.descriptor.as_bytes());
        descriptor.put(bytes.as_ptr().cast());
        len.put(bytes.len());
        Ok(())
    })
}

/// Grants a range to whoever has the descriptor.
fn export(range: &Range, access: u32) -> Result<Export> {
    let mut token = [0; 16];
    getrandom::fill(&mut token).map_err(|_| DRIVER)?;
    let mut descriptor = Box::new(Descriptor::new(token, range.address, range.len, range.place, access));
    let file = match &range.backing {
        Some(Backing::Gpu(named)) => {
            let file = named.descriptor().try_clone_to_owned().map_err(|_| DRIVER)?;
            let place = FilePlace { device: named.device(), inode: named.bytes(), offset: named.offset };
            descriptor.set_gpu(file.as_raw_fd().unsigned_abs(), place);
            Some(file)
        }
        _ => file::of_range(range.place, range.len).map(|(file, place)| {
            descriptor.set_file(file.as_raw_fd().unsigned_abs(), place);
            file
        }),
    };
    if file.is_none() || descriptor.kind == GPU {
        // So that the importer may have the kernel move bytes, or the handle. Where that needs no leave there is nothing to be had, and it fails.
        let _ = set_ptracer(PTracer::Any);
    }
    let grant = Grant::new(&mut descriptor).map_err(|_| DRIVER)?;
    Ok(Export { descriptor, _grant: grant, _file: file })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_mmap_create_from_export(
    _user_data: *const doca_data,
    descriptor: *const c_void,
    len: usize,
    device: *mut doca_dev,
    mmap: *mut *mut doca_mmap,
) -> doca_error_t {
    call("doca_mmap_create_from_export", || {
        let (device, mmap) = (Handle::<Device>::given(device)?, answer(mmap)?);
        if descriptor.is_null() {
            return Err(INVALID_VALUE);
        }
        if device.side != Side::Arm {
            return Err(NOT_SUPPORTED);
        }
        if len != size_of::<Descriptor>() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller passes so many bytes, or null, which was refused.
        let bytes = unsafe { std::slice::from_raw_parts(descriptor.cast::<u8>(), len) };
        let descriptor = Descriptor::parse(bytes).ok_or(INVALID_VALUE)?;
        let reach = import(&descriptor).ok_or(DRIVER)?;
        let (base, len) = (descriptor.address as usize, descriptor.length as usize);
        let memory = Memory { base, len, writable: descriptor.access == PCI_READ_WRITE, sides: vec![Side::Arm], reach };
        device.users.fetch_add(1, Ordering::Relaxed);
        let setup = Setup {
            devices: vec![device],
            access: descriptor.access,
            range: Some(Range { address: base, len, backing: None, place: 0 }),
            imported: true,
            started: Some(Arc::new(memory)),
            export: None,
        };
        mmap.put(Handle::new(Mmap { setup: Mutex::new(setup), users: AtomicUsize::new(0) }).as_ptr());
        Ok(())
    })
}

/// How to get at granted memory. `None` where nothing like that is granted, or no longer.
fn import(descriptor: &Descriptor) -> Option<Reach> {
    let exporter = Exporter::find(descriptor)?;
    if descriptor.file == NO_FILE {
        return Some(Reach::Process(exporter, descriptor.place as usize));
    }
    if descriptor.kind == GPU {
        let handle = exporter.handle(descriptor.file)?;
        let mapped = gpu::Mapped::new(&handle, descriptor.device, descriptor.inode, descriptor.offset)?;
        return Some(Reach::Gpu(mapped, exporter));
    }
    let writable = descriptor.access == PCI_READ_WRITE;
    let file = exporter.memory(descriptor, writable)?;
    let mapping = Mapping::of(file.as_fd(), descriptor.offset, descriptor.length as usize, writable).ok()?;
    Some(Reach::Granted(mapping, exporter))
}
