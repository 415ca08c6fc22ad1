//! What the environment says.

use std::env::{self, VarError};
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::call::Result;
use crate::device::Side;
use crate::error::INITIALIZATION;
use crate::faults;

const BUS: &str = "SPLITRPC_BLUEFIELD";
const SIDE: &str = "SPLITRPC_BLUEFIELD_SIDE";
const FAULTS: &str = "SPLITRPC_BLUEFIELD_FAULTS";
const GPU: &str = "SPLITRPC_BLUEFIELD_GPU";

/// Where the card and its host meet, and which of them this process is.
pub(crate) struct Settings {
    pub(crate) bus: PathBuf,
    pub(crate) sides: &'static [Side],
    /// How a GPU's memory can be registered.
    pub(crate) gpu: Gpu,
}

/// Whether a GPU's memory can be registered by dma-buf, and by its address.
#[derive(Clone, Copy)]
pub(crate) struct Gpu {
    pub(crate) dma_buf: bool,
    pub(crate) peermem: bool,
}

/// The same, as it was read; where nothing was, none.
pub(crate) fn gpu() -> Gpu {
    let none = Gpu { dma_buf: false, peermem: false };
    settings().ok().flatten().map_or(none, |settings| settings.gpu)
}

/// What was read when it was first asked for; `None` where there is no card.
///
/// # Errors
/// `INITIALIZATION` for a setting that means nothing, which standard error tells.
pub(crate) fn settings() -> Result<Option<&'static Settings>> {
    static SETTINGS: OnceLock<std::result::Result<Option<Settings>, String>> = OnceLock::new();
    match SETTINGS.get_or_init(read) {
        Ok(settings) => Ok(settings.as_ref()),
        Err(wrong) => {
            tell(wrong);
            Err(INITIALIZATION)
        }
    }
}

/// Says what is wrong with a setting.
pub(crate) fn tell(wrong: &str) {
    // Where standard error is closed the code alone has to do.
    let _ = writeln!(std::io::stderr(), "software BlueField: {wrong}");
}

fn read() -> std::result::Result<Option<Settings>, String> {
    let Some(bus) = variable(BUS)?.map(PathBuf::from) else { return Ok(None) };
    if !bus.is_dir() {
        return Err(format!("{BUS} names a folder, and '{}' is none", bus.display()));
    }
    let sides: &[Side] = match variable(SIDE)?.as_deref() {
        Some("arm") => &[Side::Arm],
        Some("host") => &[Side::Host],
        Some("both") => &[Side::Arm, Side::Host],
        Some(other) => return Err(format!("{SIDE} is arm, host or both, not '{other}'")),
        None => return Err(format!("{BUS} is set, and {SIDE} is not: arm, host or both")),
    };
    if let Some(spec) = variable(FAULTS)? {
        faults::set(&spec).map_err(|wrong| format!("{FAULTS}: {wrong}"))?;
    }
    let gpu = match variable(GPU)?.as_deref() {
        None | Some("dmabuf,peermem") => Gpu { dma_buf: true, peermem: true },
        Some("dmabuf") => Gpu { dma_buf: true, peermem: false },
        Some("peermem") => Gpu { dma_buf: false, peermem: true },
        Some("none") => Gpu { dma_buf: false, peermem: false },
        Some(other) => return Err(format!("{GPU} is dmabuf, peermem, 'dmabuf,peermem' or none, not '{other}'")),
    };
    Ok(Some(Settings { bus, sides, gpu }))
}

fn variable(name: &str) -> std::result::Result<Option<String>, String> {
    match env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(value)) => Err(format!("{name} is not text: {}", value.display())),
    }
}
