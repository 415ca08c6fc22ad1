//! A message on its way in: what of it is in place.

use splitrpc_wire::{Header, Manifest};

use crate::message::{Chunk, Sizes};
use crate::ranges::RangeSet;

/// Separate stretches that one message may arrive in. A frame that would make another is dropped and comes again.
const STRETCHES: usize = 64;

/// Why a frame of a message cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// It lies outside the message.
    Outside,
    /// It is in place already.
    Duplicate,
    /// Too many gaps.
    TooFragmented,
}

/// The receiving side of one message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Incoming {
    sizes: Sizes,
    described: bool,
    stretches: RangeSet<STRETCHES>,
    received: u64,
}

impl Incoming {
    /// Starts a message whose tensor sizes are known before its manifest is.
    #[inline]
    pub(crate) fn start(&mut self, sizes: &Sizes) {
        self.sizes.assign(sizes);
        self.described = false;
        self.stretches.clear();
        self.received = 0;
    }

    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Data bytes in place.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The first byte past the highest one in place, as tensor and offset.
    pub(crate) fn frontier(&self) -> (u16, u32) {
        self.stretches.last().map_or((0, 0), |(_, end)| ((end >> 32) as u16, end as u32))
    }

    /// As [`Incoming::frontier`], if every byte before it is in place.
    pub(crate) fn unbroken(&self) -> Option<(u16, u32)> {
        let (tensor, offset) = self.frontier();
        let whole = self.sizes.as_slice().get(..usize::from(tensor))?;
        let before: u64 = whole.iter().map(|bytes| u64::from(*bytes)).sum();
        (self.received == before + u64::from(offset)).then_some((tensor, offset))
    }

    #[inline]
    pub(crate) fn is_complete(&self) -> bool {
        self.described && self.received == self.sizes.total()
    }

    /// The chunk that a frame carries, if it can be placed.
    #[inline]
    pub(crate) fn chunk(&self, header: &Header, manifest: Option<&Manifest<'_>>) -> Result<Chunk, Misfit> {
        let chunk = match manifest {
            Some(manifest) => {
                let length = header.length.checked_sub(manifest.as_bytes().len() as u32).ok_or(Misfit::Outside)?;
                Chunk::First { length, whole: header.is_whole() }
            }
            None => Chunk::Part { tensor: header.tensor, offset: header.offset, length: header.length },
        };
        let inside = match chunk {
            Chunk::First { whole: true, length } => u64::from(length) == self.sizes.total(),
            Chunk::First { length, .. } => length <= self.sizes.get(0).unwrap_or(0),
            Chunk::Part { tensor, offset, length } => {
                let end = offset.checked_add(length).ok_or(Misfit::Outside)?;
                self.sizes.get(tensor).is_some_and(|size| end <= size)
            }
        };
        if !inside {
            return Err(Misfit::Outside);
        }
        let ranges = || (0..self.sizes.count(&chunk)).map(|n| self.sizes.range(&chunk, n));
        let nothing_new = ranges().all(|(start, end)| self.stretches.contains(start, end));
        if nothing_new && (manifest.is_none() || self.described) {
            return Err(Misfit::Duplicate);
        }
        // A whole message finds an empty set, which has room for every tensor.
        if !ranges().all(|(start, end)| self.stretches.can_insert(start, end)) {
            return Err(Misfit::TooFragmented);
        }
        Ok(chunk)
    }

    /// A chunk is in place. Returns how many of its data bytes are new.
    #[inline]
    pub(crate) fn commit(&mut self, chunk: &Chunk) -> u64 {
        self.described |= matches!(chunk, Chunk::First { .. });
        let mut new = 0;
        for n in 0..self.sizes.count(chunk) {
            let (start, end) = self.sizes.range(chunk, n);
            // `chunk` checked that there is room; without it the bytes simply do not count, and come again.
            new += self.stretches.insert(start, end).unwrap_or(0);
        }
        self.received += new;
        new
    }
}
