//! What goes wrong, and when: a function of a seed and of the calls that were made.

use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::call::text;
use crate::settings;

/// One thing that may go wrong.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    Delay,
    Reorder,
    Tear,
    Fail,
    Stop,
    Again,
    Disconnect,
}

/// The keys of the spec, in the order of [`Fault`].
const KEYS: [&str; 7] = ["delay", "reorder", "tear", "fail", "stop", "again", "disconnect"];
/// The longest delay, in progress calls.
const LONGEST: u32 = 64;

struct Faults {
    permille: [u32; KEYS.len()],
    state: u64,
}

/// Whether there are any, so that nothing is locked where there are none.
static ANY: AtomicBool = AtomicBool::new(false);
static FAULTS: Mutex<Faults> = Mutex::new(Faults { permille: [0; KEYS.len()], state: 0 });

/// Sets what goes wrong from now on, and starts its schedule anew. Returns 0, or -1 where the text is no spec, which standard error then tells.
///
/// A spec is a list of `key=value`, separated by commas. `seed` (0 unless given) is any number of 64 bits; the others are permille, 0 unless given:
///
/// - `delay`: of the tasks submitted, and of the copies that have been carried out, that wait for 1 to 64 progress calls of their context first.
/// - `reorder`: of the turns of a context with several copies, in which any of them that is ready is taken and not the oldest.
/// - `tear`: of the copies, those that arrive in two to eight pieces, in any order, a piece a progress call.
/// - `fail`: of the copies, those that complete with `IO_FAILED`; nothing or any piece of them has arrived.
/// - `stop`: of the copies that fail so, those that stop their context.
/// - `again`: of the submissions, those that are refused with `AGAIN`.
/// - `disconnect`: of the messages, those in whose place the connection ends.
///
/// # Safety
/// `spec` is null, for no faults, or a text that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn splitrpc_emulated_bluefield_faults(spec: *const c_char) -> c_int {
    let spec = text(spec).map_or(Ok(""), |spec| spec.to_str());
    let outcome = match spec {
        Ok(spec) => set(spec),
        Err(_) => Err("it is no text".to_owned()),
    };
    match outcome {
        Ok(()) => 0,
        Err(wrong) => {
            settings::tell(&format!("faults: {wrong}"));
            -1
        }
    }
}

/// Takes a spec.
pub(crate) fn set(spec: &str) -> Result<(), String> {
    let mut new = Faults { permille: [0; KEYS.len()], state: 0 };
    for part in spec.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("'{part}' is not key=value"))?;
        if key == "seed" {
            new.state = value.parse().map_err(|_| format!("seed is a number of 64 bits, not '{value}'"))?;
            continue;
        }
        let place = KEYS.iter().position(|name| *name == key);
        let place = place.ok_or_else(|| format!("there is no '{key}'; there are seed, {}", KEYS.join(", ")))?;
        let permille = value.parse().ok().filter(|permille| *permille <= 1000);
        new.permille[place] = permille.ok_or_else(|| format!("{key} is permille, 0 to 1000, not '{value}'"))?;
    }
    let any = new.permille.iter().any(|permille| *permille > 0);
    *faults() = new;
    ANY.store(any, Ordering::Release);
    Ok(())
}

/// Whether it goes wrong this time.
pub(crate) fn strikes(fault: Fault) -> bool {
    if !ANY.load(Ordering::Acquire) {
        return false;
    }
    let mut faults = faults();
    let permille = faults.permille[fault as usize];
    permille > 0 && faults.below(1000) < permille
}

/// How many progress calls this is to wait.
pub(crate) fn delay() -> u32 {
    if strikes(Fault::Delay) { 1 + below(LONGEST) } else { 0 }
}

/// A number from 0 to below `end`, which is not 0.
pub(crate) fn below(end: u32) -> u32 {
    faults().below(end)
}

fn faults() -> MutexGuard<'static, Faults> {
    FAULTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faults {
    /// By SplitMix64, whose sequence is good from any seed.
    fn below(&mut self, end: u32) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u64::from(mixed as u32) * u64::from(end)) >> 32) as u32
    }
}
