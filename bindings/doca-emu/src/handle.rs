//! What a C program holds: pointers to objects that still tell what they were after their end.

use std::collections::VecDeque;
use std::fmt;
use std::mem::{MaybeUninit, offset_of};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::call::{Result, broken};
use crate::error::INVALID_VALUE;

const ALIVE: u64 = 0x5350_4c49_5442_4600;
const ENDED: u64 = 0x656e_6465_6421_2100;
/// The lowest byte of a mark is the object's kind.
const KIND: u64 = 0xff;
/// So many ended objects of a kind are kept before the place of the first is used again.
const KEPT: usize = 4096;

/// Something that has handles.
pub(crate) trait Object: Sized + 'static {
    /// How messages name one, with its article.
    const NAME: &'static str;
    /// Unlike that of any other.
    const NUMBER: u8;

    /// Where its ended ones lie.
    fn graves() -> &'static Graves;
}

/// Declares that something has handles.
macro_rules! object {
    ($type:ty, $number:literal, $name:literal) => {
        impl $crate::handle::Object for $type {
            const NAME: &'static str = $name;
            const NUMBER: u8 = $number;

            fn graves() -> &'static $crate::handle::Graves {
                static GRAVES: $crate::handle::Graves = $crate::handle::Graves::new();
                &GRAVES
            }
        }
    };
}
pub(crate) use object;

/// The places of ended objects, oldest first.
pub(crate) struct Graves(Mutex<VecDeque<usize>>);

impl Graves {
    pub(crate) const fn new() -> Graves {
        Graves(Mutex::new(VecDeque::new()))
    }
}

/// Memory of an object, which is never given back.
#[repr(C)]
struct Shell<T> {
    mark: AtomicU64,
    value: MaybeUninit<T>,
}

/// A pointer to an object, as it is handed out.
pub(crate) struct Handle<T>(NonNull<Shell<T>>);

impl<T: Object> Handle<T> {
    const MARK: u64 = ALIVE | T::NUMBER as u64;

    pub(crate) fn new(value: T) -> Handle<T> {
        let mut graves = T::graves().0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = if graves.len() > KEPT { graves.pop_front() } else { None };
        drop(graves);
        let old = old.and_then(|old| NonNull::new(std::ptr::with_exposed_provenance_mut::<Shell<T>>(old)));
        let handle = Handle(old.unwrap_or_else(|| {
            NonNull::from(Box::leak(Box::new(Shell { mark: AtomicU64::new(0), value: MaybeUninit::uninit() })))
        }));
        // SAFETY: the place is this function's alone: just made, or that of an object that has ended.
        unsafe { handle.value().write(value) };
        handle.mark().store(Self::MARK, Ordering::Release);
        handle
    }

    /// The object that a caller means. One that has ended, or is something else, ends the program.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub(crate) fn given<C>(pointer: *const C) -> Result<Handle<T>> {
        let shell = NonNull::new(pointer.cast_mut().cast::<Shell<T>>()).ok_or(INVALID_VALUE)?;
        if !shell.is_aligned() {
            broken(&format!("what was passed as {} is none", T::NAME));
        }
        let handle = Handle(shell);
        let mark = handle.mark().load(Ordering::Acquire);
        if mark != Self::MARK {
            match mark & !KIND {
                ENDED if mark & KIND == u64::from(T::NUMBER) => broken(&format!("{} was used after its end", T::NAME)),
                _ => broken(&format!("what was passed as {} is none", T::NAME)),
            }
        }
        Ok(handle)
    }

    /// As [`Self::given`], where null is no error code's business.
    pub(crate) fn needed<C>(pointer: *const C) -> Handle<T> {
        Handle::given(pointer).unwrap_or_else(|_| broken(&format!("a null pointer was passed as {}", T::NAME)))
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(self) -> bool {
        self.mark().load(Ordering::Acquire) == Self::MARK
    }

    /// Ends the object.
    pub(crate) fn end(self) {
        self.mark().store(ENDED | u64::from(T::NUMBER), Ordering::Release);
        // SAFETY: it was alive until now, and nobody gets at it any more.
        unsafe { self.value().drop_in_place() };
        T::graves().0.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.0.as_ptr().expose_provenance());
    }

    /// Only this is looked at before it is known what the pointer points to.
    fn mark(&self) -> &AtomicU64 {
        // SAFETY: shells begin with it and stay where they are for ever, and what a caller passes was handed out by this library; if it was not,
        // then a program that DOCA itself would not survive is told so here.
        unsafe { self.0.cast::<AtomicU64>().as_ref() }
    }

    fn value(&self) -> *mut T {
        self.0.as_ptr().wrapping_byte_add(offset_of!(Shell<T>, value)).cast()
    }
}

impl<T> Handle<T> {
    pub(crate) fn as_ptr<C>(self) -> *mut C {
        self.0.as_ptr().cast()
    }
}

impl<T: Object> Deref for Handle<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: what this library holds itself it holds no longer than the object lives: `given` has looked, and owners end objects last.
        unsafe { &*self.value() }
    }
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Handle<T> {
        *self
    }
}

impl<T> Copy for Handle<T> {}

impl<T> PartialEq for Handle<T> {
    fn eq(&self, other: &Handle<T>) -> bool {
        self.0 == other.0
    }
}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
