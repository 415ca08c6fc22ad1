//! Bufs, which name parts of an mmap, and the inventories that they come from.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use doca_sys::{doca_buf, doca_buf_inventory, doca_error_t, doca_mmap};

use crate::call::{Result, answer, broken, call};
use crate::error::{BAD_STATE, IN_USE, INVALID_VALUE, NO_MEMORY, NOT_PERMITTED, TOO_BIG};
use crate::handle::{Handle, object};
use crate::memory::{Memory, Mmap};

/// A `doca_buf_inventory`.
pub(crate) struct Inventory {
    elements: Vec<Handle<Buffer>>,
    /// The one given back longest ago comes first.
    free: RefCell<VecDeque<Handle<Buffer>>>,
    started: Cell<bool>,
}
object!(Inventory, 6, "an inventory");

/// A `doca_buf`. Its reference count is 0 while it is in its inventory.
pub(crate) struct Buffer {
    inventory: Cell<Option<Handle<Inventory>>>,
    registered: RefCell<Option<Registered>>,
    head: Cell<usize>,
    len: Cell<usize>,
    data: Cell<usize>,
    data_len: Cell<usize>,
    references: Cell<u16>,
    /// What follows it in its list.
    next: Cell<Option<Handle<Buffer>>>,
    follows: Cell<bool>,
    /// Submitted tasks that name it.
    tasks: Cell<u32>,
}
object!(Buffer, 7, "a buf");

/// What a buf is made of.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) mmap: Handle<Mmap>,
    pub(crate) memory: Arc<Memory>,
}

/// A part of memory that a buf names for a copy.
pub(crate) struct Part {
    pub(crate) memory: Arc<Memory>,
    pub(crate) address: usize,
    pub(crate) len: usize,
}

impl Buffer {
    /// Its bytes, if they lie inside the buf.
    pub(crate) fn bytes(&self) -> Option<Part> {
        self.part(self.data_len.get())
    }

    /// From its data to its end, if that lies inside the buf.
    pub(crate) fn room(&self) -> Option<Part> {
        let end = self.head.get() + self.len.get();
        self.part(end.checked_sub(self.data.get())?)
    }

    fn part(&self, len: usize) -> Option<Part> {
        let (address, head) = (self.data.get(), self.head.get());
        let inside = address >= head && len <= self.len.get() && address - head <= self.len.get() - len;
        let registered = self.registered.borrow();
        registered.as_ref().filter(|_| inside).map(|of| Part { memory: of.memory.clone(), address, len })
    }

    pub(crate) fn is_of(&self, mmap: Handle<Mmap>) -> bool {
        self.registered.borrow().as_ref().is_some_and(|of| of.mmap == mmap)
    }

    pub(crate) fn set_data_len(&self, len: usize) {
        self.data_len.set(len);
    }

    pub(crate) fn next(&self) -> Option<Handle<Buffer>> {
        self.next.get()
    }

    /// Says that a submitted task names it, or that one no longer does.
    pub(crate) fn hold(&self) {
        self.tasks.set(self.tasks.get() + 1);
    }

    pub(crate) fn release(&self) {
        self.tasks.set(self.tasks.get() - 1);
    }

    fn must_be_idle(&self, what: &str) {
        if self.tasks.get() > 0 {
            broken(&format!("a buf of a task in flight was {what}"));
        }
    }

    /// Puts it back into its inventory.
    fn give_back(buffer: Handle<Buffer>) {
        if let Some(registered) = buffer.registered.take() {
            registered.mmap.users.fetch_sub(1, Ordering::Release);
        }
        buffer.references.set(0);
        buffer.next.set(None);
        buffer.follows.set(false);
        if let Some(inventory) = buffer.inventory.get() {
            inventory.free.borrow_mut().push_back(buffer);
        }
    }
}

/// A buf that is out of its inventory.
///
/// # Errors
/// `INVALID_VALUE` for a null pointer.
pub(crate) fn given(buffer: *const doca_buf) -> Result<Handle<Buffer>> {
    let buffer = Handle::<Buffer>::given(buffer)?;
    if buffer.references.get() == 0 {
        broken("a buf was used after it went back to its inventory");
    }
    Ok(buffer)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_inventory_create(
    number: usize,
    inventory: *mut *mut doca_buf_inventory,
) -> doca_error_t {
    call("doca_buf_inventory_create", || {
        let inventory = answer(inventory)?;
        if number == 0 || u32::try_from(number).is_err() {
            return Err(INVALID_VALUE);
        }
        let element = |_| {
            Handle::new(Buffer {
                inventory: Cell::new(None),
                registered: RefCell::new(None),
                head: Cell::new(0),
                len: Cell::new(0),
                data: Cell::new(0),
                data_len: Cell::new(0),
                references: Cell::new(0),
                next: Cell::new(None),
                follows: Cell::new(false),
                tasks: Cell::new(0),
            })
        };
        let elements: Vec<_> = (0..number).map(element).collect();
        let free = RefCell::new(elements.iter().copied().collect());
        let new = Handle::new(Inventory { elements, free, started: Cell::new(false) });
        new.elements.iter().for_each(|element| element.inventory.set(Some(new)));
        inventory.put(new.as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_inventory_destroy(inventory: *mut doca_buf_inventory) -> doca_error_t {
    call("doca_buf_inventory_destroy", || {
        let inventory = Handle::<Inventory>::given(inventory)?;
        if inventory.free.borrow().len() < inventory.elements.len() {
            return Err(IN_USE);
        }
        inventory.elements.iter().for_each(|element| element.end());
        inventory.end();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_inventory_start(inventory: *mut doca_buf_inventory) -> doca_error_t {
    call("doca_buf_inventory_start", || {
        Handle::<Inventory>::given(inventory)?.started.set(true);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_inventory_stop(inventory: *mut doca_buf_inventory) -> doca_error_t {
    call("doca_buf_inventory_stop", || {
        Handle::<Inventory>::given(inventory)?.started.set(false);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_inventory_buf_get_by_args(
    inventory: *mut doca_buf_inventory,
    mmap: *mut doca_mmap,
    address: *mut c_void,
    len: usize,
    data: *mut c_void,
    data_len: usize,
    buffer: *mut *mut doca_buf,
) -> doca_error_t {
    call("doca_buf_inventory_buf_get_by_args", || {
        let (inventory, mmap) = (Handle::<Inventory>::given(inventory)?, Handle::<Mmap>::given(mmap)?);
        let buffer = answer(buffer)?;
        let memory = mmap.memory().filter(|_| inventory.started.get()).ok_or(BAD_STATE)?;
        let (head, data) = (address.addr(), data.addr());
        let end = head.checked_add(len).filter(|_| len > 0 && memory.contains(head, len)).ok_or(INVALID_VALUE)?;
        if data < head || data.checked_add(data_len).is_none_or(|data_end| data_end > end) {
            return Err(INVALID_VALUE);
        }
        let taken = inventory.free.borrow_mut().pop_front().ok_or(NO_MEMORY)?;
        mmap.users.fetch_add(1, Ordering::Relaxed);
        taken.registered.replace(Some(Registered { mmap, memory }));
        taken.head.set(head);
        taken.len.set(len);
        taken.data.set(data);
        taken.data_len.set(data_len);
        taken.references.set(1);
        buffer.put(taken.as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_inc_refcount(buffer: *mut doca_buf, before: *mut u16) -> doca_error_t {
    call("doca_buf_inc_refcount", || {
        let buffer = given(buffer)?;
        if buffer.follows.get() {
            return Err(NOT_PERMITTED);
        }
        let references = buffer.references.get();
        buffer.references.set(references.checked_add(1).ok_or(TOO_BIG)?);
        // Whoever does not want to know passes null.
        let _ = answer(before).map(|before| before.put(references));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_dec_refcount(buffer: *mut doca_buf, before: *mut u16) -> doca_error_t {
    call("doca_buf_dec_refcount", || {
        let buffer = Handle::<Buffer>::given(buffer)?;
        let references = buffer.references.get();
        if references == 0 {
            return Err(BAD_STATE);
        }
        if buffer.follows.get() {
            return Err(NOT_PERMITTED);
        }
        if references == 1 {
            // With all of its list.
            buffer.must_be_idle("given back");
            let mut element = Some(buffer);
            while let Some(each) = element {
                element = each.next();
                Buffer::give_back(each);
            }
        } else {
            buffer.references.set(references - 1);
        }
        // Whoever does not want to know passes null.
        let _ = answer(before).map(|before| before.put(references));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_get_refcount(buffer: *const doca_buf, references: *mut u16) -> doca_error_t {
    call("doca_buf_get_refcount", || {
        answer(references)?.put(Handle::<Buffer>::given(buffer)?.references.get());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_get_head(buffer: *const doca_buf, head: *mut *mut c_void) -> doca_error_t {
    call("doca_buf_get_head", || {
        answer(head)?.put(std::ptr::with_exposed_provenance_mut(given(buffer)?.head.get()));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_get_len(buffer: *const doca_buf, len: *mut usize) -> doca_error_t {
    call("doca_buf_get_len", || {
        answer(len)?.put(given(buffer)?.len.get());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_get_data(buffer: *const doca_buf, data: *mut *mut c_void) -> doca_error_t {
    call("doca_buf_get_data", || {
        answer(data)?.put(std::ptr::with_exposed_provenance_mut(given(buffer)?.data.get()));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_get_data_len(buffer: *const doca_buf, data_len: *mut usize) -> doca_error_t {
    call("doca_buf_get_data_len", || {
        answer(data_len)?.put(given(buffer)?.data_len.get());
        Ok(())
    })
}

/// Does not look whether the data lies inside the buf.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_set_data(buffer: *mut doca_buf, data: *mut c_void, data_len: usize) -> doca_error_t {
    call("doca_buf_set_data", || {
        let buffer = given(buffer)?;
        buffer.must_be_idle("changed");
        buffer.data.set(data.addr());
        buffer.data_len.set(data_len);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_chain_list(first: *mut doca_buf, second: *mut doca_buf) -> doca_error_t {
    call("doca_buf_chain_list", || {
        let (first, second) = (given(first)?, given(second)?);
        if first == second {
            return Err(INVALID_VALUE);
        }
        if first.follows.get() || second.follows.get() || second.references.get() != 1 {
            return Err(NOT_PERMITTED);
        }
        first.must_be_idle("chained");
        second.must_be_idle("chained");
        let mut last = first;
        while let Some(next) = last.next() {
            last = next;
        }
        last.next.set(Some(second));
        second.follows.set(true);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn doca_buf_unchain_list(first: *mut doca_buf, second: *mut doca_buf) -> doca_error_t {
    call("doca_buf_unchain_list", || {
        let (first, second) = (given(first)?, given(second)?);
        let mut before = first;
        while before.next() != Some(second) {
            before = before.next().ok_or(INVALID_VALUE)?;
        }
        first.must_be_idle("unchained");
        before.next.set(None);
        second.follows.set(false);
        Ok(())
    })
}
