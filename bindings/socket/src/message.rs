//! `recvmsg` and `sendmsg`, the only places where pointers go to the kernel together with sockets. The system calls are
//! made directly: the C library's functions of these names are points at which a thread may be cancelled, for which they
//! pay two atomic operations a call in programs of several threads.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use splitrpc_arena::{IoVec, IoVecSend};

use crate::address::Name;
use crate::control::Control;

/// Elements of a scatter or gather list that the kernel takes in one call; stream calls take no more of a longer list.
pub const MAX_IOVECS: usize = 1024;

const SEND_FLAGS: libc::c_long = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as libc::c_long;

/// What one `recvmsg` brought.
pub(crate) struct Arrival {
    /// What the call returned: bytes placed, or with `MSG_TRUNC` the datagram's own length.
    pub(crate) len: usize,
    pub(crate) from: Option<SocketAddr>,
    pub(crate) segment: Option<u16>,
    pub(crate) truncated: bool,
}

/// Receives into `iov`. With `details` also sender and segment size, which streams do not have.
pub(crate) fn receive(socket: BorrowedFd<'_>, iov: &mut [IoVec<'_>], flags: i32, details: bool) -> io::Result<Arrival> {
    let (mut name, mut control) = (Name::EMPTY, Control::EMPTY);
    let mut header = header();
    header.msg_iov = iov.as_mut_ptr().cast();
    header.msg_iovlen = iov.len() as _;
    if details {
        header.msg_name = (&raw mut name).cast();
        header.msg_namelen = Name::ROOM;
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = Control::ROOM as _;
    }
    let len = retry(|| {
        // SAFETY: `header` names a list of `iovec`s (`IoVec` is laid out as one) whose memory the kernel may write, and
        // room for name and control messages of the lengths given; all of them outlive the call.
        unsafe {
            let flags = libc::c_long::from(flags | libc::MSG_DONTWAIT);
            libc::syscall(libc::SYS_recvmsg, number(socket), &raw mut header, flags) as isize
        }
    })?;
    let truncated = header.msg_flags & libc::MSG_TRUNC != 0;
    let (from, segment) = if details {
        (name.decode(header.msg_namelen), control.segment(header.msg_controllen as _))
    } else {
        (None, None)
    };
    Ok(Arrival { len, from, segment, truncated })
}

/// Sends what `iov` names, as one datagram, as datagrams of `segment` bytes, or as the next bytes of a stream.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    to: Option<SocketAddr>,
    iov: &[IoVecSend<'_>],
    segment: Option<u16>,
) -> io::Result<usize> {
    let mut header = header();
    header.msg_iov = iov.as_ptr().cast_mut().cast();
    header.msg_iovlen = iov.len() as _;
    let (mut name, mut control);
    if let Some(to) = to {
        let (encoded, len) = Name::encode(to);
        name = encoded;
        header.msg_name = (&raw mut name).cast();
        header.msg_namelen = len;
    }
    if let Some(segment) = segment {
        let (encoded, len) = Control::with_segment(segment);
        control = encoded;
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = len as _;
    }
    retry(|| {
        // SAFETY: `header` names a list of `iovec`s (`IoVecSend` is laid out as one) that the kernel only reads, and an
        // address and a control message of the lengths given; all of them outlive the call.
        unsafe { libc::syscall(libc::SYS_sendmsg, number(socket), &raw const header, SEND_FLAGS) as isize }
    })
}

/// The descriptor as wide as a system call takes its arguments.
fn number(socket: BorrowedFd<'_>) -> libc::c_long {
    socket.as_raw_fd().into()
}

/// An empty message header; some platforms pad it, so it cannot be written out.
fn header() -> libc::msghdr {
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// Repeats a call while signals interrupt it.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(done) = usize::try_from(call()) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sets an option of UDP itself.
pub(crate) fn set_udp_option(socket: BorrowedFd<'_>, option: i32, value: i32) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    let done = retry(|| {
        // SAFETY: the option's value is an int of the length given, which the kernel only reads.
        let result =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, option, (&raw const value).cast(), len) };
        result as isize
    });
    done.map(drop)
}
