//! Control messages: the two that carry segment sizes, read and written as bytes.
#![forbid(unsafe_code)]

const WORD: usize = size_of::<usize>();
/// `struct cmsghdr`: a length as wide as a pointer, then level and type.
const HEADER: usize = WORD + 8;
const ROOM: usize = 64;

/// Room for the control messages of one datagram, aligned for the kernel.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(crate) struct Control {
    bytes: [u8; ROOM],
}

impl Control {
    pub(crate) const EMPTY: Control = Control { bytes: [0; ROOM] };
    pub(crate) const ROOM: usize = ROOM;

    /// Asks the kernel to cut what is sent into datagrams of `segment` bytes; also the bytes used.
    pub(crate) fn with_segment(segment: u16) -> (Control, usize) {
        let mut control = Control::EMPTY;
        control.bytes[..WORD].copy_from_slice(&(HEADER + 2).to_ne_bytes());
        control.bytes[WORD..WORD + 4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        control.bytes[WORD + 4..HEADER].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
        control.bytes[HEADER..HEADER + 2].copy_from_slice(&segment.to_ne_bytes());
        (control, HEADER + WORD)
    }

    /// The size of the datagrams that the kernel put together, if it did, in the `len` bytes that it wrote.
    pub(crate) fn segment(&self, len: usize) -> Option<u16> {
        let mut rest = &self.bytes[..len.min(ROOM)];
        while rest.len() >= HEADER {
            let length = usize::from_ne_bytes(rest[..WORD].try_into().ok()?);
            let level = i32::from_ne_bytes(rest[WORD..WORD + 4].try_into().ok()?);
            let kind = i32::from_ne_bytes(rest[WORD + 4..HEADER].try_into().ok()?);
            if length < HEADER || length > rest.len() {
                return None;
            }
            if level == libc::SOL_UDP && kind == libc::UDP_GRO {
                // The kernel writes an int; some documents say u16.
                let data = &rest[HEADER..length];
                return match data.len() {
                    4.. => u16::try_from(i32::from_ne_bytes(data[..4].try_into().ok()?)).ok(),
                    2..4 => Some(u16::from_ne_bytes([data[0], data[1]])),
                    _ => None,
                };
            }
            rest = rest.get(length.next_multiple_of(WORD)..)?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    fn read(messages: &[Vec<u8>]) -> Option<u16> {
        let all = messages.concat();
        let mut control = Control::EMPTY;
        control.bytes[..all.len()].copy_from_slice(&all);
        control.segment(all.len())
    }

    #[test]
    fn the_segment_size_is_found_behind_other_messages() {
        let gro = message(libc::SOL_UDP, libc::UDP_GRO, &1472_i32.to_ne_bytes());
        let other = message(libc::SOL_SOCKET, 1, &[1; 12]);
        assert_eq!(read(&[]), None);
        assert_eq!(read(std::slice::from_ref(&other)), None);
        assert_eq!(read(std::slice::from_ref(&gro)), Some(1472));
        assert_eq!(read(&[other, gro]), Some(1472));
    }

    #[test]
    fn lengths_that_lie_end_the_search() {
        let mut short = message(libc::SOL_UDP, libc::UDP_GRO, &1472_i32.to_ne_bytes());
        short[..WORD].copy_from_slice(&3_usize.to_ne_bytes());
        assert_eq!(read(&[short.clone()]), None);
        short[..WORD].copy_from_slice(&usize::MAX.to_ne_bytes());
        assert_eq!(read(&[short]), None);
    }
}
