//! Memory that copies read and write: this process's own, and what others granted.

mod descriptor;
mod file;
mod foreign;
mod gpu;
mod grant;
mod mapping;
pub(crate) mod mmap;

use std::mem::MaybeUninit;

use doca_sys::doca_access_flag as Flag;

use self::grant::Exporter;
pub(crate) use self::mapping::{Mapping, keeps, sealed_file};
pub(crate) use self::mmap::Mmap;
use crate::device::Side;

pub(crate) const LOCAL_READ_WRITE: u32 = Flag::DOCA_ACCESS_FLAG_LOCAL_READ_WRITE.0;
pub(crate) const PCI_READ_ONLY: u32 = Flag::DOCA_ACCESS_FLAG_PCI_READ_ONLY.0;
pub(crate) const PCI_READ_WRITE: u32 = Flag::DOCA_ACCESS_FLAG_PCI_READ_WRITE.0;

/// Bytes could not be moved: the grant has ended, or there is no such memory.
#[derive(Debug)]
pub(crate) struct OutOfReach;

/// A range of memory that bufs are made of. Addresses are those by which its owner calls it.
pub(crate) struct Memory {
    base: usize,
    len: usize,
    /// Whether it may be written to.
    pub(crate) writable: bool,
    /// Devices that may reach it.
    pub(crate) sides: Vec<Side>,
    reach: Reach,
}

/// What a range rests on, where it is not this process's own memory.
enum Backing {
    File(Mapping),
    Gpu(gpu::Named),
}

/// How a processor gets at it.
enum Reach {
    /// It is this process's own.
    Own,
    /// It is mapped here, and called by other addresses.
    Mapped(Mapping),
    /// It is mapped here as long as its owner grants it.
    Granted(Mapping, Exporter),
    /// It is a GPU's, mapped here as long as its owner grants it.
    Gpu(gpu::Mapped, Exporter),
    /// It is a GPU's, of which this process only tells the other side.
    Elsewhere,
    /// It lies in another process, from this address on, and only the kernel can move bytes there.
    Process(Exporter, usize),
}

impl Memory {
    /// Whether these bytes are all inside.
    pub(crate) fn contains(&self, address: usize, len: usize) -> bool {
        address.checked_sub(self.base).is_some_and(|offset| offset <= self.len && len <= self.len - offset)
    }

    fn is_granted(&self) -> bool {
        match &self.reach {
            Reach::Own | Reach::Mapped(_) => true,
            Reach::Granted(_, exporter) | Reach::Process(exporter, _) | Reach::Gpu(_, exporter) => exporter.grants(),
            Reach::Elsewhere => false,
        }
    }

    /// Where these bytes, which are inside, lie.
    fn place(&self, address: usize, len: usize) -> Place<'_> {
        let offset = address - self.base;
        match &self.reach {
            Reach::Own => Place::Here(std::ptr::with_exposed_provenance_mut(address)),
            Reach::Mapped(mapping) | Reach::Granted(mapping, _) => Place::Here(mapping.pointer(offset, len)),
            Reach::Process(exporter, base) => Place::There(exporter, base + offset),
            Reach::Gpu(mapped, _) => Place::Gpu(mapped, offset),
            // It is never granted here, and so never asked for.
            Reach::Elsewhere => Place::Nowhere,
        }
    }

    /// Copies bytes out of it to where a pointer points.
    pub(crate) fn read(&self, address: usize, to: *mut u8, len: usize) -> Result<(), OutOfReach> {
        if !self.contains(address, len) || !self.is_granted() {
            return Err(OutOfReach);
        }
        move_bytes(&self.place(address, len), &Place::Here(to), len)
    }

    /// Copies bytes into it from where a pointer points.
    pub(crate) fn write(&self, address: usize, from: *const u8, len: usize) -> Result<(), OutOfReach> {
        if !self.contains(address, len) || !self.writable || !self.is_granted() {
            return Err(OutOfReach);
        }
        move_bytes(&Place::Here(from.cast_mut()), &self.place(address, len), len)
    }
}

/// Copies from one memory to another, or as far as it came if it fails.
pub(crate) fn copy(from: (&Memory, usize), to: (&Memory, usize), len: usize) -> Result<(), OutOfReach> {
    let inside = from.0.contains(from.1, len) && to.0.contains(to.1, len);
    if !inside || !to.0.writable || !from.0.is_granted() || !to.0.is_granted() {
        return Err(OutOfReach);
    }
    move_bytes(&from.0.place(from.1, len), &to.0.place(to.1, len), len)
}

enum Place<'a> {
    Here(*mut u8),
    There(&'a Exporter, usize),
    Gpu(&'a gpu::Mapped, usize),
    Nowhere,
}

impl Place<'_> {
    /// The place so many bytes further on.
    fn after(&self, bytes: usize) -> Place<'_> {
        match *self {
            Place::Here(pointer) => Place::Here(pointer.wrapping_add(bytes)),
            Place::There(exporter, address) => Place::There(exporter, address + bytes),
            Place::Gpu(mapped, offset) => Place::Gpu(mapped, offset + bytes),
            Place::Nowhere => Place::Nowhere,
        }
    }
}

fn move_bytes(from: &Place<'_>, to: &Place<'_>, len: usize) -> Result<(), OutOfReach> {
    match (from, to) {
        (Place::Here(from), Place::Here(to)) => {
            // SAFETY: both lie inside memory that is mapped as long as it is registered, or the program broke its word; they may overlap.
            unsafe { std::ptr::copy(*from, *to, len) };
            Ok(())
        }
        (Place::There(exporter, from), Place::Here(to)) => exporter.move_bytes(libc::process_vm_readv, *from, *to, len),
        (Place::Here(from), Place::There(exporter, to)) => {
            exporter.move_bytes(libc::process_vm_writev, *to, *from, len)
        }
        (Place::There(reader, from), Place::There(writer, to)) => {
            let mut between = [MaybeUninit::<u8>::uninit(); 16 << 10];
            let through = between.as_mut_ptr().cast::<u8>();
            for done in (0..len).step_by(between.len()) {
                let part = between.len().min(len - done);
                reader.move_bytes(libc::process_vm_readv, from + done, through, part)?;
                writer.move_bytes(libc::process_vm_writev, to + done, through, part)?;
            }
            Ok(())
        }
        (Place::Nowhere, _) | (_, Place::Nowhere) => Err(OutOfReach),
        (Place::Gpu(mapped, at), to @ Place::Gpu(..)) => {
            // Both may be one, whose way is taken once at a time.
            let mut between = vec![0; len];
            mapped.read(*at, len, |done, part| {
                between[done..done + part.len()].copy_from_slice(part);
                Ok(())
            })?;
            move_bytes(&Place::Here(between.as_mut_ptr()), to, len)
        }
        (Place::Gpu(mapped, at), to) => mapped.read(*at, len, |done, part| {
            move_bytes(&Place::Here(part.as_ptr().cast_mut()), &to.after(done), part.len())
        }),
        (from, Place::Gpu(mapped, at)) => mapped
            .write(*at, len, |done, part| move_bytes(&from.after(done), &Place::Here(part.as_mut_ptr()), part.len())),
    }
}

/// One of the two system calls that move bytes between processes.
type Mover = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> isize;

impl Exporter {
    fn move_bytes(&self, mover: Mover, there: usize, here: *mut u8, len: usize) -> Result<(), OutOfReach> {
        let mut done = 0;
        while done < len {
            let left = len - done;
            let here = libc::iovec { iov_base: here.wrapping_add(done).cast(), iov_len: left };
            let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(there + done), iov_len: left };
            // SAFETY: what lies here is as long as it is said to be; what lies there the kernel looks at itself.
            let moved = unsafe { mover(self.pid.as_raw_nonzero().get(), &raw const here, 1, &raw const there, 1, 0) };
            match usize::try_from(moved) {
                Ok(moved) if moved > 0 => done += moved,
                _ => return Err(OutOfReach),
            }
        }
        Ok(())
    }
}
