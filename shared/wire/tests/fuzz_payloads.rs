//! Manifests, paths and catalogues: no bytes make a parser panic, and what parses survives being written and parsed
//! again. Fuzz targets, see `fuzz_frames.rs`.

use splitrpc_wire::catalog::{Catalog, TensorInfo, write_model};
use splitrpc_wire::manifest::ManifestWriter;
use splitrpc_wire::{DType, MAX_MANIFEST_LEN, MAX_RANK, MAX_TENSORS, Manifest, Path, Shape, TensorDesc};

#[test]
fn manifest() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(manifest) = Manifest::parse(bytes) else { return };
        let mut writer = if manifest.path().is_some() { ManifestWriter::with_path() } else { ManifestWriter::new() };
        if let Some(path) = manifest.path() {
            writer.set_path(path);
        }
        assert_eq!(manifest.tensors().count(), manifest.len());
        for tensor in manifest.tensors() {
            writer.push(&tensor).unwrap();
        }
        assert_eq!(writer.data_len(), manifest.data_len());
        assert_eq!(writer.finish(), manifest.as_bytes());
        assert_eq!(bytes[..manifest.as_bytes().len()], *manifest.as_bytes());
    });
}

/// Tensors made up from the input: those that a writer takes, a parser gives back.
#[test]
fn manifest_writer() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut writer = ManifestWriter::new();
        let mut taken = Vec::new();
        for seed in bytes.chunks_exact(6) {
            let dims = [u32::from(seed[0]), u32::from(seed[1]) << 8, u32::from(seed[2]) << 24];
            let shape = Shape::new(&dims[..usize::from(seed[3] % 4)]).unwrap();
            let dtype = DType::ALL[usize::from(seed[4]) % DType::ALL.len()];
            let size = shape.bytes(dtype).unwrap_or_else(|| u32::from(seed[2]) * 7);
            let tensor = TensorDesc { handle: u16::from(seed[5]), dtype, shape, bytes: size };
            let before = writer.finish().to_vec();
            match writer.push(&tensor) {
                Ok(()) => taken.push(tensor),
                Err(_) => assert_eq!(writer.finish(), before),
            }
        }
        let written = writer.finish();
        assert!(written.len() <= MAX_MANIFEST_LEN && taken.len() <= MAX_TENSORS);
        let manifest = Manifest::parse(written).unwrap();
        assert_eq!(manifest.tensors().collect::<Vec<_>>(), taken);
    });
}

#[test]
fn path() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok(path) = Path::parse(bytes) {
            assert_eq!(path.to_bytes(), bytes[..splitrpc_wire::path::PATH_LEN]);
            assert!(path.payload_bytes == 0 || path.cpu_copies() >= path.copied_bytes / path.payload_bytes);
        }
    });
}

#[test]
fn catalogue() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut at = 0;
        for model in Catalog::new(bytes) {
            let Ok(model) = model else { break };
            let inputs: Vec<TensorInfo<'_>> = model.inputs().collect();
            let outputs: Vec<TensorInfo<'_>> = model.outputs().collect();
            for tensor in inputs.iter().chain(&outputs) {
                assert!(tensor.dims().len() <= MAX_RANK && tensor.dims().iter().all(|&dim| dim >= -1));
            }
            let mut out = vec![0; bytes.len()];
            let length =
                write_model(&mut out, model.handle, model.name, model.version, model.max_batch, &inputs, &outputs)
                    .unwrap();
            assert_eq!(out[..length], bytes[at..at + length]);
            at += length;
        }
    });
}
