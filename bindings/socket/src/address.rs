//! Socket addresses in the kernel's form, without a trip through the heap or through raw pointers.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

const V4_LEN: usize = 16;
const V6_LEN: usize = 28;

/// Room for a `sockaddr_in` or a `sockaddr_in6`, aligned as both need it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(crate) struct Name {
    bytes: [u8; 32],
}

impl Name {
    pub(crate) const EMPTY: Name = Name { bytes: [0; 32] };
    pub(crate) const ROOM: u32 = V6_LEN as u32;

    /// The kernel's form, and its length in bytes.
    pub(crate) fn encode(address: SocketAddr) -> (Name, u32) {
        let mut bytes = [0; 32];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                (Name { bytes }, V4_LEN as u32)
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                // The standard library keeps flow information in the kernel's own byte order.
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (Name { bytes }, V6_LEN as u32)
            }
        }
    }

    /// The address, if the kernel wrote one of a family that the project speaks.
    pub(crate) fn decode(&self, len: u32) -> Option<SocketAddr> {
        let bytes = &self.bytes;
        let family = i32::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        if family == libc::AF_INET && len as usize >= V4_LEN {
            let ip = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
            Some(SocketAddrV4::new(ip, port).into())
        } else if family == libc::AF_INET6 && len as usize >= V6_LEN {
            let ip: [u8; 16] = bytes[8..24].try_into().ok()?;
            let flowinfo = u32::from_ne_bytes(bytes[4..8].try_into().ok()?);
            let scope = u32::from_ne_bytes(bytes[24..28].try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flowinfo, scope).into())
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        for text in ["127.0.0.1:80", "10.1.2.3:65535", "[::1]:4433", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let (name, len) = Name::encode(address);
            assert_eq!(name.decode(len), Some(address));
            assert_eq!(name.decode(len - 1), None);
        }
        assert_eq!(Name::EMPTY.decode(28), None);
    }

    #[test]
    fn the_form_is_the_kernels() {
        for text in ["127.0.0.1:80", "[2001:db8::7]:4433"] {
            let address: SocketAddr = text.parse().unwrap();
            let reference = socket2::SockAddr::from(address);
            let (name, len) = Name::encode(address);
            assert_eq!(len, reference.len());
            assert_eq!(i32::from(u16::from_ne_bytes([name.bytes[0], name.bytes[1]])), i32::from(reference.family()));
        }
    }
}
