//! Ring lines in memory that a device can reach.

use splitrpc_arena::{Arena, ArenaError, PoolLayout, Run};
use splitrpc_ring::{CONTROL_LINES, Line, MAX_CAPACITY};

/// So many [`Line`]s, zeroed, that the other side may write.
#[derive(Clone, Debug)]
pub struct Lines {
    arena: Arena,
    count: usize,
}

impl Lines {
    /// `count` lines, at most as many as a ring may have.
    ///
    /// # Errors
    /// Those of the kernel, when it does not give the memory.
    pub fn new(name: &str, count: usize) -> Result<Lines, ArenaError> {
        let count = count.clamp(1, CONTROL_LINES + MAX_CAPACITY);
        let layout = PoolLayout::new(&[(count * size_of::<Line>()) as u32], 1, 1).expect("2^24 lines are 2^30 bytes");
        Ok(Lines { arena: Arena::new(name, &[(0, layout)], 0)?, count })
    }

    /// The memory that they lie in, from its beginning on.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Where a line lies in that memory.
    #[must_use]
    pub fn offset(line: usize) -> usize {
        line * size_of::<Line>()
    }
}

impl AsRef<[Line]> for Lines {
    #[expect(unsafe_code, reason = "the memory is the kernel's")]
    fn as_ref(&self) -> &[Line] {
        let all = Run { pool: 0, rows: 1, first: 0, generation: 0 };
        let bytes = self.arena.span(all, 0, 0, (self.count * size_of::<Line>()) as u32).expect("it was made so large");
        let first = std::ptr::NonNull::new(bytes.as_mut_ptr().cast()).expect("it is mapped");
        // SAFETY: so many lines from the beginning of a mapping on, which is aligned to pages and lives as long as `self`; spans, which alone touch
        // it beside these lines, use atomic operations.
        unsafe { Line::slice_from_raw(first, self.count) }
    }
}

#[cfg(test)]
mod tests {
    use splitrpc_ring::{Consumer, Producer};

    use super::*;

    #[test]
    fn a_ring_works_in_them() {
        let lines = Lines::new("ring", CONTROL_LINES + 4).unwrap();
        let mut to = Producer::new(lines.clone()).unwrap();
        let mut from = Consumer::new(lines).unwrap();
        to.push(&[1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!((from.pop(), from.pop()), (Some([1, 2, 3, 4, 5, 6]), None));
    }
}
