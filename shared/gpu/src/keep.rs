//! What may have to be left behind.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// A value that can be left undropped, until the process ends: to give a device's memory back waits for all that it computes, which may be for
/// ever.
#[derive(Debug)]
pub struct Keep<T> {
    value: ManuallyDrop<T>,
    is_left: bool,
}

impl<T> Keep<T> {
    /// A value that is dropped as ever.
    pub fn new(value: T) -> Keep<T> {
        Keep { value: ManuallyDrop::new(value), is_left: false }
    }

    /// It will not be dropped.
    pub fn leave(&mut self) {
        self.is_left = true;
    }
}

impl<T> Deref for Keep<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Keep<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Keep<T> {
    fn drop(&mut self) {
        if !self.is_left {
            // SAFETY: dropped once, here, and not used after that.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::Keep;

    #[test]
    fn what_is_left_is_not_dropped() {
        let value = Rc::new(());
        let (kept, mut left) = (Keep::new(Rc::clone(&value)), Keep::new(Rc::clone(&value)));
        left.leave();
        drop((kept, left));
        assert_eq!(Rc::strong_count(&value), 2);
    }
}
