//! Panics of other people's code that are errors here, and nothing that anybody need see on standard error.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// This thread is inside [`caught`].
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, and turns a panic into the panic itself, of which nothing is printed. Panics elsewhere, on other threads at the
/// same time too, go to the hook that was there before. What `work` touches must not be used after a panic.
///
/// # Errors
/// What `work` panicked with.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // A thread whose variables are gone already is at its end, and not in here.
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                before(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    outcome
}
