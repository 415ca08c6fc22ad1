//! How two processes meet: by a socket in the folder that is the bus. What it carries is how to reach memory, and it tells when a process ends.

use std::ffi::CStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, open, openat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The longest name of a server.
pub(super) const MAX_NAME: usize = 120;
const MAGIC: [u8; 8] = *b"SPLITCH\0";
/// Clients that may wait for a server to look.
const BACKLOG: i32 = 16;

/// A client's first packet, with the connection's memory.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Hello {
    magic: [u8; 8],
    /// The longest message that it sends and takes.
    pub(super) max_message: u32,
    /// Messages that it may be sent before it has received any.
    pub(super) queue: u32,
    name: [u8; MAX_NAME],
}

/// A server's answer.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Welcome {
    magic: [u8; 8],
    pub(super) max_message: u32,
    pub(super) queue: u32,
}

/// Either side's consumer, with its memory.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Announcement {
    magic: [u8; 8],
    pub(super) consumer: u64,
}

impl Hello {
    pub(super) fn new(max_message: u32, queue: u32, name: &CStr) -> Hello {
        let mut hello = Hello { magic: MAGIC, max_message, queue, name: [0; MAX_NAME] };
        hello.name[..name.count_bytes()].copy_from_slice(name.to_bytes());
        hello
    }

    pub(super) fn is_for(&self, name: &CStr) -> bool {
        *self.as_bytes() == *Hello::new(self.max_message, self.queue, name).as_bytes()
    }
}

impl Welcome {
    pub(super) fn new(max_message: u32, queue: u32) -> Welcome {
        Welcome { magic: MAGIC, max_message, queue }
    }

    pub(super) fn is_one(&self) -> bool {
        self.magic == MAGIC
    }
}

impl Announcement {
    pub(super) fn new(consumer: u32) -> Announcement {
        Announcement { magic: MAGIC, consumer: consumer.into() }
    }

    pub(super) fn is_of(&self, consumer: u32) -> bool {
        self.magic == MAGIC && self.consumer == u64::from(consumer)
    }
}

/// A server's socket, which clients find by its file.
pub(super) struct Listener {
    socket: OwnedFd,
    folder: OwnedFd,
    name: String,
    /// Held as long as the process lives, so that a dead server's file is told from a living one's.
    _lock: OwnedFd,
}

impl Listener {
    /// # Errors
    /// `EXIST` where a server of that name lives.
    pub(super) fn new(bus: &Path, address: &CStr, server: &CStr) -> Result<Listener, Errno> {
        let folder = folder(bus)?;
        let name = file_name(address, server);
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let lock = openat(&folder, format!("{name}.lock"), flags, Mode::RUSR | Mode::WUSR)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| Errno::EXIST)?;
        // What a dead one left; mostly there is nothing.
        let _ = unlinkat(&folder, name.as_str(), AtFlags::empty());
        let socket = new_socket()?;
        bind(&socket, &address_of(&folder, &name)?)?;
        listen(&socket, BACKLOG)?;
        Ok(Listener { socket, folder, name, _lock: lock })
    }

    /// A client that has come.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If it is not there then nobody is misled by it.
        let _ = unlinkat(&self.folder, self.name.as_str(), AtFlags::empty());
    }
}

/// A socket to a server, if there is one and it has room.
pub(super) fn dial(bus: &Path, address: &CStr, server: &CStr) -> Result<OwnedFd, Errno> {
    let folder = folder(bus)?;
    let socket = new_socket()?;
    connect(&socket, &address_of(&folder, &file_name(address, server))?)?;
    Ok(socket)
}

fn new_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn folder(bus: &Path) -> Result<OwnedFd, Errno> {
    open(bus, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// By the folder's number: sockets have short names only.
fn address_of(folder: &OwnedFd, name: &str) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

/// The function's address, and a hash (FNV-1a) of the server's name, which may have any characters.
fn file_name(address: &CStr, server: &CStr) -> String {
    let hash = server
        .to_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{}-{hash:016x}", address.to_string_lossy())
}

/// Sends a packet, and a file with it.
pub(super) fn send(socket: &OwnedFd, packet: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let files: Vec<_> = file.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop)
}

/// What has come by a socket.
pub(super) enum Received<T> {
    Nothing,
    Packet(T, Option<OwnedFd>),
    /// The other side has ended, or sent what makes no sense.
    End,
}

pub(super) fn receive<T: FromBytes + IntoBytes>(socket: &OwnedFd) -> Received<T> {
    let mut packet = T::new_zeroed();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let size = size_of::<T>();
    let received = recvmsg(socket, &mut [IoSliceMut::new(packet.as_mut_bytes())], &mut control, flags);
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    match received {
        Ok(received) if received.bytes == size => Received::Packet(packet, file),
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        _ => Received::End,
    }
}

/// Whether the other side has ended.
pub(super) fn has_ended(socket: &OwnedFd) -> bool {
    let mut ends = [PollFd::new(socket, PollFlags::RDHUP)];
    let polled = poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok_and(|ready| ready > 0)
        && ends[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR)
}

/// A file's memory, mapped, if it is as long as it must be and stays so.
pub(super) fn map(file: &OwnedFd, len: usize) -> Option<crate::memory::Mapping> {
    let mapped = || -> io::Result<_> { crate::memory::Mapping::of(file.as_fd(), 0, len, true) };
    crate::memory::keeps(file.as_fd(), len as u64).then(mapped)?.ok()
}
