//! Panics that are caught on purpose are not printed; all others still are.

use std::panic::{self, catch_unwind};
use std::sync::Mutex;

use host_agent::quiet::caught;

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn word(panic: &dyn std::any::Any) -> &'static str {
    panic.downcast_ref::<&'static str>().copied().unwrap_or("other")
}

/// One test, since the hook is the process's.
#[test]
fn the_hook_is_silent_inside_and_passes_on_everything_else() {
    panic::set_hook(Box::new(|info| SEEN.lock().unwrap().push(word(info.payload()).to_owned())));
    assert_eq!(caught(|| 7).unwrap(), 7);
    assert_eq!(word(&*caught(|| panic!("inside")).unwrap_err()), "inside");
    let elsewhere = || std::thread::spawn(|| panic!("on another thread")).join().unwrap_err();
    caught(|| drop(elsewhere())).unwrap();
    // Inside one another, the outer one is not over with the inner.
    caught::<()>(|| {
        caught(|| panic!("within")).unwrap_err();
        panic!("still inside")
    })
    .unwrap_err();
    catch_unwind(|| panic!("afterwards")).unwrap_err();
    // What fails from here on is printed as ever.
    drop(panic::take_hook());
    assert_eq!(*SEEN.lock().unwrap(), ["on another thread", "afterwards"]);
}
