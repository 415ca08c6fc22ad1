//! Frames to bytes and back.

use splitrpc_wire::{HEADER_LEN, Header, Train, WireError};

pub fn encode(header: &Header, head: &[u8], data: &[u8]) -> Vec<u8> {
    assert_eq!(header.length as usize, head.len() + data.len(), "{header:?}");
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(data);
    bytes
}

/// The frames of a train, or the one that there is.
pub fn encode_all(header: &Header, frames: u32, head: &[u8], data: &[u8]) -> Vec<Vec<u8>> {
    if frames == 1 {
        return vec![encode(header, head, data)];
    }
    assert!(head.is_empty() && data.len() == header.length as usize * frames as usize);
    let train = Train::new(header);
    let chunks = data.chunks(header.length as usize).zip(0..);
    chunks.map(|(chunk, n)| [&train.nth(n)[..], chunk].concat()).collect()
}

/// How many of these datagrams, from the first on, make a train; 1 where they do not.
pub fn train_len<'d>(mut datagrams: impl Iterator<Item = &'d [u8]>) -> u32 {
    let Some(first) = datagrams.next() else { return 0 };
    let Ok(header) = Header::parse(first) else { return 1 };
    if HEADER_LEN + header.length as usize != first.len() {
        return 1;
    }
    let train = Train::new(&header);
    let goes_on = |(datagram, n): &(&[u8], u32)| {
        datagram.len() == first.len() && datagram.first_chunk().is_some_and(|bytes| train.is_nth(*n, bytes))
    };
    1 + datagrams.zip(1..).take_while(goes_on).count() as u32
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
