//! Copies to and from memory that another party may be writing.
//!
//! Shared bytes are only ever read and written with relaxed atomic operations, 8 bytes at a time where they are aligned.
//! What is read while another writes may be torn between words; it is never undefined.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

const WORD: usize = size_of::<u64>();

/// Copies shared memory at `from` to private memory.
///
/// # Safety
/// `to.len()` bytes from `from` must be mapped, readable and writable, and accessed by others of this process only
/// atomically.
#[inline]
pub(super) unsafe fn read(from: *const u8, to: &mut [u8]) {
    let (head, body, tail) = parts(from, to.len());
    let (to_head, rest) = to.split_at_mut(head);
    let (to_body, to_tail) = rest.split_at_mut(body);
    for (index, byte) in to_head.iter_mut().enumerate() {
        // SAFETY: inside the range that the caller vouches for.
        *byte = unsafe { load_byte(from.wrapping_add(index)) };
    }
    for (index, word) in to_body.chunks_exact_mut(WORD).enumerate() {
        // SAFETY: as above, and aligned because `head` bytes were skipped.
        let value = unsafe { load_word(from.wrapping_add(head + index * WORD)) };
        word.copy_from_slice(&value.to_ne_bytes());
    }
    debug_assert_eq!(to_tail.len(), tail);
    for (index, byte) in to_tail.iter_mut().enumerate() {
        // SAFETY: inside the range.
        *byte = unsafe { load_byte(from.wrapping_add(head + body + index)) };
    }
}

/// Copies private memory to shared memory at `to`.
///
/// # Safety
/// As for [`read`], of `from.len()` bytes from `to`.
#[inline]
pub(super) unsafe fn write(to: *mut u8, from: &[u8]) {
    let (head, body, _) = parts(to, from.len());
    let (from_head, rest) = from.split_at(head);
    let (from_body, from_tail) = rest.split_at(body);
    for (index, byte) in from_head.iter().enumerate() {
        // SAFETY: inside the range that the caller vouches for.
        unsafe { store_byte(to.wrapping_add(index), *byte) };
    }
    let (words, _) = from_body.as_chunks::<WORD>();
    for (index, word) in words.iter().enumerate() {
        // SAFETY: as above, and aligned because `head` bytes were skipped.
        unsafe { store_word(to.wrapping_add(head + index * WORD), u64::from_ne_bytes(*word)) };
    }
    for (index, byte) in from_tail.iter().enumerate() {
        // SAFETY: inside the range.
        unsafe { store_byte(to.wrapping_add(head + body + index), *byte) };
    }
}

/// Sets `len` shared bytes.
///
/// # Safety
/// As for [`read`], of `len` bytes from `to`.
pub(super) unsafe fn fill(to: *mut u8, len: usize, value: u8) {
    let (head, body, _) = parts(to, len);
    for index in (0..head).chain(head + body..len) {
        // SAFETY: inside the range that the caller vouches for.
        unsafe { store_byte(to.wrapping_add(index), value) };
    }
    for offset in (head..head + body).step_by(WORD) {
        // SAFETY: as above, and aligned because `head` bytes were skipped.
        unsafe { store_word(to.wrapping_add(offset), u64::from_ne_bytes([value; WORD])) };
    }
}

/// Copies shared memory to shared memory; the ranges may overlap.
///
/// # Safety
/// As for [`read`], of `len` bytes from both addresses.
pub(super) unsafe fn transfer(to: *mut u8, from: *const u8, len: usize) {
    // A copy that runs upward would overwrite what it has yet to read when the target begins inside the source.
    let downward = to.addr() > from.addr() && to.addr() - from.addr() < len;
    let (head, body, _) = if to.addr() % WORD == from.addr() % WORD { parts(to, len) } else { (len, 0, 0) };
    let byte = |index: usize| {
        // SAFETY: inside both ranges that the caller vouches for.
        let value = unsafe { load_byte(from.wrapping_add(index)) };
        // SAFETY: as above.
        unsafe { store_byte(to.wrapping_add(index), value) };
    };
    let word = |index: usize| {
        let offset = head + index * WORD;
        // SAFETY: inside both ranges, and aligned in both because their alignments agree and `head` bytes are skipped.
        let value = unsafe { load_word(from.wrapping_add(offset)) };
        // SAFETY: as above.
        unsafe { store_word(to.wrapping_add(offset), value) };
    };
    if downward {
        (head + body..len).rev().for_each(byte);
        (0..body / WORD).rev().for_each(word);
        (0..head).rev().for_each(byte);
    } else {
        (0..head).for_each(byte);
        (0..body / WORD).for_each(word);
        (head + body..len).for_each(byte);
    }
}

/// Bytes before the first aligned word, in whole words, and after the last.
fn parts(shared: *const u8, len: usize) -> (usize, usize, usize) {
    let head = (shared.addr().wrapping_neg() % WORD).min(len);
    let body = (len - head) / WORD * WORD;
    (head, body, len - head - body)
}

/// # Safety
/// `at` must be mapped, and accessed by others of this process only atomically.
unsafe fn load_byte(at: *const u8) -> u8 {
    // SAFETY: the caller's promise; a byte is always aligned.
    unsafe { AtomicU8::from_ptr(at.cast_mut()) }.load(Relaxed)
}

/// # Safety
/// As for [`load_byte`].
unsafe fn store_byte(at: *mut u8, value: u8) {
    // SAFETY: the caller's promise; a byte is always aligned.
    unsafe { AtomicU8::from_ptr(at) }.store(value, Relaxed);
}

/// # Safety
/// As for [`load_byte`], for 8 bytes, aligned to 8.
unsafe fn load_word(at: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(at.cast_mut().cast()) }.load(Relaxed)
}

/// # Safety
/// As for [`load_word`].
unsafe fn store_word(at: *mut u8, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(at.cast()) }.store(value, Relaxed);
}
