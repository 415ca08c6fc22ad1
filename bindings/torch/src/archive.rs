//! Packages as they are stored: a zip archive of uncompressed entries, those of the model in `…/data/aotinductor/NAME/`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, copy};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::TempDir;

use crate::error::Error;

/// Files of a package, at most.
const MAX_ENTRIES: usize = 16 << 10;
const MAX_METADATA: u64 = 1 << 20;
const MODELS: &str = "data/aotinductor/";

/// The device that a package is to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The device's number.
    pub device: u16,
    /// Its compute capability.
    pub capability: (u32, u32),
}

/// A package's files, unpacked. They go when this is dropped.
#[derive(Debug)]
pub(crate) struct Unpacked {
    folder: TempDir,
    pub(crate) object: PathBuf,
}

impl Unpacked {
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// What a package says of the machine that it was compiled for.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(rename = "AOTI_DEVICE_KEY")]
    device: Option<String>,
    #[serde(rename = "AOTI_MACHINE")]
    machine: Option<String>,
    #[serde(rename = "AOTI_COMPUTE_CAPABILITY")]
    capability: Option<String>,
    #[serde(rename = "AOTI_CPU_ISA")]
    cpu: Option<String>,
}

/// Unpacks the one model of a package, if it was compiled for this machine.
pub(crate) fn unpack(file: &Path, target: Target) -> Result<Unpacked, Error> {
    let refuse = |why: &dyn std::fmt::Display| Error::Package(why.to_string());
    // Opening a pipe would wait for whoever writes there.
    let about = std::fs::metadata(file).map_err(|error| refuse(&format!("cannot be read: {error}")))?;
    if !about.is_file() {
        return Err(refuse(&"cannot be read: it is no plain file"));
    }
    let opened = File::open(file).map_err(|error| refuse(&format!("cannot be read: {error}")))?;
    let mut archive =
        zip::ZipArchive::new(opened).map_err(|error| refuse(&format!("is no package of PyTorch's: {error}")))?;
    if archive.len() > MAX_ENTRIES {
        return Err(refuse(&format!("has {} files, where {MAX_ENTRIES} may be", archive.len())));
    }
    let names = archive.file_names().collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|error| refuse(&format!("is no package of PyTorch's: {error}")))?;
    let model = models(names.iter().map(AsRef::as_ref));
    drop(names);
    let files = match model.len() {
        1 => model.into_values().next().unwrap_or_default(),
        0 => return Err(refuse(&"holds no model: it has to be written by torch._inductor.aoti_compile_and_package")),
        _ => {
            let names: Vec<&str> = model.keys().map(String::as_str).collect();
            return Err(refuse(&format!("holds several models ({}), which is not supported", names.join(", "))));
        }
    };
    let folder = TempDir::new().map_err(|error| refuse(&format!("cannot be unpacked: {error}")))?;
    let mut objects = Vec::new();
    // Several entries may claim the same bytes, but a package does not unpack to more than it is.
    let mut room = about.len();
    for (entry, name) in files {
        let mut from = archive.by_name(&entry).map_err(|error| refuse(&format!("{name}: {error}")))?;
        let (len, stored) = (from.size(), from.compressed_size());
        if len != stored || from.compression() != zip::CompressionMethod::Stored {
            return Err(refuse(&format!("{name} is compressed, which PyTorch's packages are not")));
        }
        room = room.checked_sub(len).ok_or_else(|| refuse(&"has files that overlap"))?;
        if name.ends_with("metadata.json") {
            let mut text = Vec::new();
            from.by_ref()
                .take(MAX_METADATA)
                .read_to_end(&mut text)
                .map_err(|error| refuse(&format!("{name}: {error}")))?;
            let metadata: Metadata =
                serde_json::from_slice(&text).map_err(|error| refuse(&format!("{name}: {error}")))?;
            metadata.check(target).map_err(|why| refuse(&why))?;
            continue;
        }
        let path = folder.path().join(&name);
        let unpacked = File::create_new(&path).and_then(|mut to| copy(&mut from.by_ref().take(len), &mut to));
        unpacked.map_err(|error| refuse(&format!("{name} cannot be unpacked: {error}; TMPDIR says where to")))?;
        if name.ends_with(".so") {
            objects.push(path);
        }
    }
    let [object] = &objects[..] else {
        return Err(refuse(&format!("has {} shared objects, where there is to be one", objects.len())));
    };
    Ok(Unpacked { object: object.clone(), folder })
}

/// The files of each model by its name: the whole entry, and the file's own name.
fn models<'n>(entries: impl Iterator<Item = &'n str>) -> BTreeMap<String, Vec<(String, String)>> {
    let mut models = BTreeMap::<String, Vec<(String, String)>>::new();
    for entry in entries {
        let inside = match entry.strip_prefix(MODELS) {
            Some(inside) => inside,
            None => match entry.split_once('/').and_then(|(_, rest)| rest.strip_prefix(MODELS)) {
                Some(inside) => inside,
                None => continue,
            },
        };
        // Nothing below a model's own folder, and no name that leads elsewhere.
        if let Some((model, name)) = inside.split_once('/')
            && !name.is_empty()
            && !name.contains(['/', '\\', '\0'])
            && name != "."
            && name != ".."
        {
            models.entry(model.to_owned()).or_default().push((entry.to_owned(), name.to_owned()));
        }
    }
    models
}

impl Metadata {
    fn check(&self, target: Target) -> Result<(), String> {
        if let Some(device) = self.device.as_deref().filter(|device| *device != "cuda") {
            return Err(format!("was compiled for {device:?}, and not for \"cuda\""));
        }
        if let Some(machine) = self.machine.as_deref().filter(|machine| *machine != std::env::consts::ARCH) {
            return Err(format!("was compiled for {machine}, and this is {}", std::env::consts::ARCH));
        }
        let here = format!("{}{}", target.capability.0, target.capability.1);
        if let Some(capability) = self.capability.as_deref().filter(|capability| *capability != here) {
            return Err(format!("was compiled for compute capability {capability}, and the GPU has {here}"));
        }
        let wants = self.cpu.as_deref().unwrap_or_default();
        let lacks = |name: &&str| wants.split(' ').any(|word| word == *name) && !cpu_has(name);
        match ["AVX2", "AVX512"].iter().copied().find(lacks) {
            Some(lacks) => Err(format!("was compiled for a CPU with {lacks}, which this one lacks")),
            None => Ok(()),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has(name: &str) -> bool {
    match name {
        "AVX2" => std::arch::is_x86_feature_detected!("avx2"),
        "AVX512" => std::arch::is_x86_feature_detected!("avx512f"),
        _ => true,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has(_: &str) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_model_are_told_from_others() {
        let entries = [
            "tiny/data/aotinductor/model/a.so",
            "data/aotinductor/other/b.so",
            "tiny/data/aotinductor/model/../c.so",
            "tiny/data/aotinductor/model/..",
            "tiny/data/aotinductor/model/",
            "tiny/data/weights/d",
            "byteorder",
        ];
        let models = models(entries.into_iter());
        let names = |model: &str| models[model].iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>();
        assert_eq!((models.len(), names("model"), names("other")), (2, vec!["a.so"], vec!["b.so"]));
    }

    #[test]
    fn what_was_compiled_for_another_machine_is_refused() {
        let target = Target { device: 0, capability: (9, 0) };
        let check = |text: &str| serde_json::from_str::<Metadata>(text).unwrap().check(target);
        assert_eq!(check("{}"), Ok(()));
        assert_eq!(check(r#"{"AOTI_DEVICE_KEY": "cuda", "AOTI_COMPUTE_CAPABILITY": "90", "x": 1}"#), Ok(()));
        assert!(check(r#"{"AOTI_DEVICE_KEY": "cpu"}"#).unwrap_err().contains("cpu"));
        assert!(check(r#"{"AOTI_COMPUTE_CAPABILITY": "80"}"#).unwrap_err().contains("has 90"));
        assert!(check(r#"{"AOTI_MACHINE": "pdp11"}"#).unwrap_err().contains("pdp11"));
    }
}
