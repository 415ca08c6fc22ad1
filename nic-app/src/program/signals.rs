//! SIGTERM and SIGINT.

use signal_hook::consts::TERM_SIGNALS;
use signal_hook::iterator::Signals;

/// The exit status after a second signal, as shells use it for an interrupted program.
const INTERRUPTED: i32 = 130;

/// Calls `first` at the first signal, on a thread of its own. A second one ends the program at once.
///
/// # Errors
/// Those of the kernel.
pub fn watch(mut first: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS)?;
    let watch = move || {
        for (count, _) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(INTERRUPTED);
            }
            first();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map(drop)
}
