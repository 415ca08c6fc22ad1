//! Tokens by which a datagram client proves that it receives at its address, without the server keeping anything.

use core::hash::Hasher;
use core::net::SocketAddr;

use siphasher::sip::SipHasher24;

use crate::Time;
use crate::time::SEC;

/// A token stays good for one to two of these.
const PERIOD: u64 = 10 * SEC;

#[derive(Clone, Copy, Debug)]
pub(crate) struct CookieJar {
    secret: [u8; 16],
}

impl CookieJar {
    pub(crate) fn new(secret: [u8; 16]) -> CookieJar {
        CookieJar { secret }
    }

    pub(crate) fn issue(&self, now: Time, addr: SocketAddr, nonce: u64) -> u64 {
        self.token(now.nanos() / PERIOD, addr, nonce)
    }

    pub(crate) fn accepts(&self, now: Time, addr: SocketAddr, nonce: u64, token: u64) -> bool {
        let period = now.nanos() / PERIOD;
        let last = period.checked_sub(1).map(|p| self.token(p, addr, nonce));
        self.token(period, addr, nonce) == token || last == Some(token)
    }

    /// A number that cannot be guessed without the secret.
    pub(crate) fn unguessable(&self, counter: u64) -> u64 {
        let mut hash = SipHasher24::new_with_key(&self.secret);
        hash.write_u8(b's');
        hash.write_u64(counter);
        hash.finish()
    }

    fn token(&self, period: u64, addr: SocketAddr, nonce: u64) -> u64 {
        let mut hash = SipHasher24::new_with_key(&self.secret);
        hash.write_u8(b'c');
        match addr {
            SocketAddr::V4(a) => hash.write(&a.ip().octets()),
            SocketAddr::V6(a) => hash.write(&a.ip().octets()),
        }
        hash.write_u16(addr.port());
        hash.write_u64(period);
        hash.write_u64(nonce);
        // 0 stands for no token on the wire.
        hash.finish().max(1)
    }
}
