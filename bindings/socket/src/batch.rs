//! Many datagrams with one call, into frames allocated once.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::address::Name;
use crate::control::Control;
use crate::message::{header, retry};

const UNSPECIFIED: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// Frames for `recvmmsg` and what it said about each.
pub struct RecvBatch {
    frames: Box<[u8]>,
    frame_bytes: usize,
    names: Box<[Name]>,
    controls: Box<[Control]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    filled: usize,
}

// SAFETY: the raw pointers point only into this batch's own boxes, and are written anew before each use.
unsafe impl Send for RecvBatch {}

/// One received datagram, or several of one sender that the kernel put together.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Its bytes, as far as the frame holds them.
    pub bytes: &'a [u8],
    /// The sender.
    pub from: SocketAddr,
    /// Size of the datagrams (the last may be shorter) when the kernel put several together.
    pub segment: Option<u16>,
    /// Whether the frame was too small.
    pub truncated: bool,
}

impl RecvBatch {
    /// Room for `frames` datagrams of `frame_bytes` each.
    #[must_use]
    pub fn new(frames: usize, frame_bytes: usize) -> RecvBatch {
        let iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        RecvBatch {
            frames: vec![0; frames * frame_bytes].into(),
            frame_bytes,
            names: vec![Name::EMPTY; frames].into(),
            controls: vec![Control::EMPTY; frames].into(),
            iovecs: vec![iovec; frames].into(),
            headers: vec![libc::mmsghdr { msg_hdr: header(), msg_len: 0 }; frames].into(),
            filled: 0,
        }
    }

    /// Datagrams it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Datagrams of the last receive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether the last receive brought nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// A datagram of the last receive.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Datagram<'_>> {
        let libc::mmsghdr { msg_hdr, msg_len } = self.headers[..self.filled].get(index)?;
        let len = (*msg_len as usize).min(self.frame_bytes);
        Some(Datagram {
            bytes: &self.frames[index * self.frame_bytes..][..len],
            // The kernel names the sender of every internet datagram.
            from: self.names[index].decode(msg_hdr.msg_namelen).unwrap_or(UNSPECIFIED),
            segment: self.controls[index].segment(msg_hdr.msg_controllen as _),
            truncated: msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }

    /// The datagrams of the last receive, in order of arrival.
    pub fn iter(&self) -> impl Iterator<Item = Datagram<'_>> {
        (0..self.filled).filter_map(|index| self.get(index))
    }

    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.filled = 0;
        if self.headers.is_empty() {
            return Ok(0);
        }
        // One pointer for all frames: taking a reference to each in turn would end the life of those before it.
        let frames = self.frames.as_mut_ptr();
        let (names, controls, iovecs) = (self.names.as_mut_ptr(), self.controls.as_mut_ptr(), self.iovecs.as_mut_ptr());
        for (index, iovec) in self.iovecs.iter_mut().enumerate() {
            iovec.iov_base = frames.wrapping_add(index * self.frame_bytes).cast();
            iovec.iov_len = self.frame_bytes;
        }
        for (index, entry) in self.headers.iter_mut().enumerate() {
            entry.msg_len = 0;
            entry.msg_hdr.msg_name = names.wrapping_add(index).cast();
            entry.msg_hdr.msg_namelen = Name::ROOM;
            entry.msg_hdr.msg_control = controls.wrapping_add(index).cast();
            entry.msg_hdr.msg_controllen = Control::ROOM as _;
            entry.msg_hdr.msg_iov = iovecs.wrapping_add(index);
            entry.msg_hdr.msg_iovlen = 1;
            entry.msg_hdr.msg_flags = 0;
        }
        let (headers, count) = (self.headers.as_mut_ptr(), self.headers.len());
        self.filled = retry(|| {
            // SAFETY: `count` headers, each with a frame, a name and room for control messages of its own inside this
            // batch's boxes, which are borrowed exclusively and outlive the call; no timeout is passed.
            let received = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers,
                    count as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    ptr::null_mut(),
                )
            };
            received as isize
        })?;
        Ok(self.filled)
    }
}

impl std::fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBatch")
            .field("capacity", &self.capacity())
            .field("frame_bytes", &self.frame_bytes)
            .field("filled", &self.filled)
            .finish_non_exhaustive()
    }
}
