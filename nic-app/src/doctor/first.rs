//! What documents leave open, and a real card answers: looked at where this side can look.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use splitrpc_arena::{Arena, PoolLayout};
use splitrpc_doca::{Access, Device, Dma, Inventory, Library, Memory, ProgressEngine};

use crate::program::checks::{Check, fail, ok, warn};

/// Bytes of the copy that is tried.
const TRIED: usize = 64 << 10;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The first five things to look at on a card that nobody has tried.
pub(super) fn five(library: &Library, device: &Device) -> Vec<Check> {
    let emulated = library.is_emulated();
    let largest = device.info().can.copy_bytes;
    vec![
        libraries(),
        match copy(library, device) {
            Ok(took) => ok(
                "copy",
                format!(
                    "{TRIED} bytes arrived in {} us, into a destination that said it holds none{}",
                    took.as_micros(),
                    if emulated { " (emulated)" } else { "" }
                ),
            ),
            Err(why) => fail(
                "copy",
                why,
                "where DOCA names a length: the destination's length of data before a copy may have to be other than 0",
            ),
        },
        ok(
            "large copies",
            format!("cut into pieces of at most {} bytes; a larger one is never tried", largest.min(1 << 20)),
        ),
        ok("gpu memory", "shown by the host, if at all: `host-agent doctor` there says by which way it could be"),
        ok("message time", "`host-agent doctor` on the host measures it while this card waits, there and back"),
    ]
}

/// The files that DOCA was loaded from, and the versions that their symbols carry.
fn libraries() -> Check {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = |line: &str| line.split_once('/').map(|(_, path)| format!("/{path}"));
    let files: BTreeSet<String> = maps.lines().filter(|line| line.contains("doca")).filter_map(path).collect();
    let files: Vec<_> = files.into_iter().filter(|file| file.contains(".so")).collect();
    if files.is_empty() {
        return warn(
            "libraries",
            "which files they are cannot be told",
            "readelf -dV FILE shows their names and versions",
        );
    }
    let shown = files.iter().map(|file| match versions(&fs::read(file).unwrap_or_default()) {
        versions if versions.is_empty() => format!("{file} (its symbols have no versions)"),
        versions => format!("{file} ({})", versions.join(" ")),
    });
    ok("libraries", shown.collect::<Vec<_>>().join("; "))
}

/// The versions of symbols that stand in a library, such as `DOCA_2.9`.
fn versions(bytes: &[u8]) -> Vec<String> {
    let words = bytes.split(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'_' | b'.'));
    let version = |word: &[u8]| {
        let number = word.strip_prefix(b"DOCA_")?;
        let is_number = !number.is_empty() && number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
        is_number.then(|| String::from_utf8_lossy(word).into_owned())
    };
    words.filter_map(version).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Copies bytes within this side's memory. Returns how long it took.
fn copy(library: &Library, device: &Device) -> Result<Duration, String> {
    let text = |error: splitrpc_doca::Error| error.to_string();
    let layout = PoolLayout::new(&[TRIED as u32], 1, 2).map_err(|error| error.to_string())?;
    let arena = Arena::new("splitrpc-doctor", &[(0, layout)], 0).map_err(|error| error.to_string())?;
    let engine = ProgressEngine::new(library).map_err(text)?;
    let memory = Memory::of_arena(device, &arena, Access::Local).map_err(text)?;
    let mut dma = Dma::new(&engine, device, 1).map_err(text)?;
    let inventory = Inventory::new(library, 2).map_err(text)?;
    let bytes: Vec<u8> = (0..TRIED).map(|at| (at % 251) as u8 + 1).collect();
    let half = |offset| arena.whole().slice(offset, TRIED).ok_or("the trial's memory is too small");
    half(0)?.copy_from(&bytes);
    let (source, target) = (inventory.source(&memory, 0, TRIED), inventory.target(&memory, TRIED, TRIED));
    let begun = Instant::now();
    dma.copy(source.map_err(text)?, target.map_err(text)?, 0).map_err(text)?;
    loop {
        engine.progress();
        if let Some(finished) = dma.finished() {
            finished.result.map_err(text)?;
            break;
        }
        if begun.elapsed() > PATIENCE {
            return Err("a copy does not end within two seconds".to_owned());
        }
    }
    let took = begun.elapsed();
    let mut arrived = vec![0; TRIED];
    half(TRIED)?.copy_to(&mut arrived);
    if arrived == bytes { Ok(took) } else { Err("a copy ended well, and its bytes did not arrive".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_symbols_are_found_among_other_words() {
        let library = b"\0DOCA_2.9\0doca_dma_create\0DOCA_ERROR_IN_USE\0DOCA_3\0DOCA_3\0DOCA_\0libdoca_common.so.2\0";
        assert_eq!(versions(library), ["DOCA_2.9", "DOCA_3"]);
        assert!(versions(b"\x7fELF\0nothing").is_empty());
    }
}
