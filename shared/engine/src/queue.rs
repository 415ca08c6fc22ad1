//! A first-in first-out queue over storage that the caller lends.

#[derive(Debug)]
pub(crate) struct Queue<'a, T> {
    ring: &'a mut [T],
    first: usize,
    len: usize,
}

impl<'a, T: Copy> Queue<'a, T> {
    pub(crate) fn new(ring: &'a mut [T]) -> Queue<'a, T> {
        Queue { ring, first: 0, len: 0 }
    }

    pub(crate) fn room(&self) -> usize {
        self.ring.len() - self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends; `false` where there is no room.
    pub(crate) fn push(&mut self, item: T) -> bool {
        if self.room() == 0 {
            return false;
        }
        let at = (self.first + self.len) % self.ring.len();
        self.ring[at] = item;
        self.len += 1;
        true
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        let item = self.ring[self.first];
        self.first = (self.first + 1) % self.ring.len();
        self.len -= 1;
        Some(item)
    }

    /// The items, oldest first.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let (wrapped, from_first) = self.ring.split_at_mut(self.first);
        let before_end = self.len.min(from_first.len());
        from_first[..before_end].iter_mut().chain(&mut wrapped[..self.len - before_end])
    }

    pub(crate) fn front(&self) -> Option<&T> {
        if self.len == 0 { None } else { Some(&self.ring[self.first]) }
    }
}
