//! What describes exported memory to the other side. It comes from a stranger: nothing in it is believed before the exporter's grant says the same.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{PCI_READ_ONLY, PCI_READ_WRITE};

const MAGIC: [u8; 8] = *b"SPLITBF\0";
const VERSION: u32 = 2;
/// In place of a file's number, where the memory lies in none.
pub(super) const NO_FILE: u32 = u32::MAX;

/// The bytes of an export descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Descriptor {
    magic: [u8; 8],
    version: u32,
    /// The exporting process.
    pub(super) process: u32,
    /// What no other export has.
    pub(super) token: [u8; 16],
    /// The range, as its bufs name it.
    pub(super) address: u64,
    pub(super) length: u64,
    /// Where the range begins in the exporting process.
    pub(super) place: u64,
    /// The access flag that is granted.
    pub(super) access: u32,
    /// The exporter's number of the file that has the grant.
    pub(super) grant: u32,
    /// The exporter's number of the file that has the memory, or [`NO_FILE`].
    pub(super) file: u32,
    /// What kind of file that is.
    pub(super) kind: u32,
    /// Which file that is; of a GPU's memory, where the GPU is, and how many bytes there are in all.
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Where in it the range begins.
    pub(super) offset: u64,
}

/// The file is one that can be mapped, or CUDA's handle of a GPU's memory.
pub(super) const MAPPABLE: u32 = 0;
pub(super) const GPU: u32 = 1;

/// Memory in a file, as an exporter knows it.
#[derive(Clone, Copy, Default)]
pub(super) struct FilePlace {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) offset: u64,
}

impl Descriptor {
    pub(super) fn new(token: [u8; 16], address: usize, length: usize, place: usize, access: u32) -> Descriptor {
        Descriptor {
            magic: MAGIC,
            version: VERSION,
            process: std::process::id(),
            token,
            address: address as u64,
            length: length as u64,
            place: place as u64,
            access,
            grant: 0,
            file: NO_FILE,
            kind: MAPPABLE,
            device: 0,
            inode: 0,
            offset: 0,
        }
    }

    pub(super) fn set_file(&mut self, number: u32, place: FilePlace) {
        (self.file, self.device, self.inode, self.offset) = (number, place.device, place.inode, place.offset);
    }

    /// The same of a GPU's memory.
    pub(super) fn set_gpu(&mut self, number: u32, place: FilePlace) {
        self.set_file(number, place);
        self.kind = GPU;
    }

    /// What the bytes say, if it makes sense: every sum of what it says fits, and every number is one that can be.
    pub(super) fn parse(bytes: &[u8]) -> Option<Descriptor> {
        let descriptor = Descriptor::read_from_bytes(bytes).ok()?;
        let numbers = [descriptor.process, descriptor.grant];
        let fits = |start: u64| {
            usize::try_from(descriptor.length)
                .ok()
                .zip(usize::try_from(start).ok())
                .is_some_and(|(len, start)| start.checked_add(len).is_some_and(|end| isize::try_from(end).is_ok()))
        };
        let sound = descriptor.magic == MAGIC
            && descriptor.version == VERSION
            && (descriptor.kind == MAPPABLE || descriptor.kind == GPU && descriptor.file != NO_FILE)
            && descriptor.process > 0
            && numbers.iter().all(|number| i32::try_from(*number).is_ok())
            && (descriptor.file == NO_FILE || i32::try_from(descriptor.file).is_ok())
            && [PCI_READ_ONLY, PCI_READ_WRITE].contains(&descriptor.access)
            && descriptor.length > 0
            && [descriptor.address, descriptor.place, descriptor.offset].into_iter().all(fits);
        sound.then_some(descriptor)
    }
}
