use splitrpc_cuda::CopyBatch;
use splitrpc_gpu::{GpuError, Piece};

use crate::common::{FRAME, FRAMES, Gpu, LARGE, SLOTS, SMALL, gpu, pattern, run};

/// A tensor in frames of `len` bytes each, which begin at `skip` of every frame. Pieces are in the tensor's order.
fn frames(gpu: &Gpu, tensor: &[u8], skip: u32, len: u32) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (number, bytes) in tensor.chunks(len as usize).enumerate() {
        let frame = run(FRAMES, number as u32, 1);
        gpu.write(frame, 0, skip, bytes);
        let offset = number as u32 * len;
        let len = bytes.len() as u32;
        pieces.push(Piece { frame, frame_offset: skip, slot: run(SLOTS, 1, 1), tensor: 0, offset, len });
    }
    pieces
}

#[test]
fn frames_in_any_order_become_one_tensor() {
    let Some(gpu) = gpu() else { return };
    // Aligned; to words only; not at all; an odd length, so that every place differs; more than one launch takes.
    for (skip, len) in [(64, 8_192), (60, 8_192), (61, 8_192), (64, 8_137), (64, 1_371), (0, 1_408), (4, 1_180)] {
        let tensor = pattern(skip + len, LARGE);
        let mut pieces = frames(&gpu, &tensor, skip, len);
        fastrand::Rng::with_seed(u64::from(len)).shuffle(&mut pieces);
        let lane = gpu.lane();
        let launches = lane.work().gather(&pieces).unwrap();
        lane.finish().unwrap();
        assert!(launches == 1 || launches == pieces.len().div_ceil(128), "{skip}, {len}: {launches}");
        assert!(gpu.fetch(run(SLOTS, 1, 1), 0, LARGE) == tensor, "{skip}, {len}");
    }
}

#[test]
fn the_copy_engines_gather_the_same() {
    let Some(gpu) = gpu() else { return };
    let tensor = pattern(13, LARGE);
    let mut pieces = frames(&gpu, &tensor, 64, 8_192);
    fastrand::Rng::with_seed(1).shuffle(&mut pieces);
    let (lane, mut batch) = (gpu.lane(), CopyBatch::default());
    match lane.work().gather_by_engine(&mut batch, &pieces) {
        Err(GpuError::Cuda(splitrpc_cuda::Error::Unsupported { needs, .. })) => eprintln!("skipped: needs {needs}"),
        done => {
            done.unwrap();
            lane.finish().unwrap();
            assert!(gpu.fetch(run(SLOTS, 1, 1), 0, LARGE) == tensor);
        }
    }
}

#[test]
fn what_continues_on_both_sides_goes_as_one() {
    let Some(gpu) = gpu() else { return };
    let tensor = pattern(7, 60 * FRAME);
    let pieces = frames(&gpu, &tensor, 0, FRAME);
    let lane = gpu.lane();
    // Twenty copies of the whole, each of which is one entry.
    let many: Vec<_> = std::iter::repeat_n(&pieces, 20).flatten().copied().collect();
    assert_eq!(lane.work().gather(&many).unwrap(), 1);
    lane.finish().unwrap();
    assert!(gpu.fetch(run(SLOTS, 1, 1), 0, 60 * FRAME) == tensor);
}

#[test]
fn a_tensor_goes_back_into_frames() {
    let Some(gpu) = gpu() else { return };
    let tensor = pattern(3, LARGE);
    let slot = run(SLOTS, 1, 1);
    for skip in [64, 63] {
        let pieces = frames(&gpu, &vec![0; LARGE as usize], skip, 8_192);
        gpu.write(slot, 0, 0, &tensor);
        let lane = gpu.lane();
        lane.work().copy_in(slot, 0, 0, LARGE).unwrap();
        lane.work().scatter(&pieces).unwrap();
        lane.finish().unwrap();
        for (piece, bytes) in pieces.iter().zip(tensor.chunks(8_192)) {
            let frame = gpu.read(piece.frame, 0, FRAME);
            let (before, rest) = frame.split_at(skip as usize);
            assert!(rest[..bytes.len()] == *bytes, "frame {:?}", piece.frame);
            assert!(before.iter().all(|&byte| byte == frame[0]), "nothing before it is touched");
        }
    }
}

#[test]
fn a_piece_that_is_not_inside_is_refused() {
    let Some(gpu) = gpu() else { return };
    let right =
        Piece { frame: run(FRAMES, 0, 1), frame_offset: 0, slot: run(SLOTS, 0, 1), tensor: 1, offset: 0, len: SMALL };
    let wrong = [
        Piece { frame_offset: FRAME - SMALL + 1, ..right },
        Piece { frame: run(FRAMES, 512, 1), ..right },
        Piece { offset: 1, ..right },
        Piece { tensor: 2, ..right },
        Piece { slot: run(SLOTS, 8, 1), ..right },
        // Frames are not on the device, and slots are no frames.
        Piece { slot: run(FRAMES, 0, 1), tensor: 0, ..right },
        Piece { frame_offset: u32::MAX, ..right },
    ];
    let lane = gpu.lane();
    for piece in wrong {
        assert_eq!(lane.work().gather(&[piece]), Err(GpuError::NoSlots), "{piece:?}");
    }
    assert_eq!(lane.work().gather(&[right]), Ok(1));
    assert_eq!(lane.work().gather(&[Piece { len: 0, ..right }]), Ok(0));
    lane.finish().unwrap();
}
