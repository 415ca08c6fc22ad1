//! Frames to bytes and back.

use splitrpc_wire::{HEADER_LEN, Header, WireError};

pub fn encode(header: &Header, head: &[u8], data: &[u8]) -> Vec<u8> {
    assert_eq!(header.length as usize, head.len() + data.len(), "{header:?}");
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(data);
    bytes
}

/// The frames of a datagram, up to the first that does not parse.
pub fn split(mut bytes: &[u8]) -> impl Iterator<Item = Result<(Header, &[u8]), WireError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let step = Header::parse(bytes).and_then(|header| {
            let end = HEADER_LEN.saturating_add(header.length as usize);
            let payload = bytes.get(HEADER_LEN..end).ok_or(WireError::Truncated)?;
            Ok((header, payload, &bytes[end..]))
        });
        match step {
            Ok((header, payload, rest)) => {
                bytes = rest;
                Some(Ok((header, payload)))
            }
            Err(error) => {
                bytes = &[];
                Some(Err(error))
            }
        }
    })
}
