use host_agent::config::Builtin;
use splitrpc_client::Input;
use splitrpc_wire::path::{Memory, Mover};
use splitrpc_wire::{DType, Stage};

use crate::common::{Repository, bytes, client, config, has_gpu, start, sum};

#[test]
fn the_null_model_answers_from_the_gpu() {
    if !has_gpu() {
        return;
    }
    let server = start(config(None, &[Builtin::NullGpu]));
    let mut client = client(&server);
    let expected: Vec<u8> = (0..4_000_u32).map(|i| ((i * 7 + 13) % 251) as u8).collect();
    // Part of the launch, and in pieces ahead of it.
    for size in [1_u32, 64, 602_112, 5_000_000] {
        let (dims, input) = ([size], vec![7; size as usize]);
        for round in 0..40 {
            let input = [Input::new("INPUT", DType::Uint8, &dims, &input[..])];
            let response = client.infer("null-gpu", &input).unwrap();
            assert_eq!(response.data(), expected);
            let path = response.path().unwrap();
            assert_eq!((path.mover, path.memory, path.device_compactions), (Mover::GpuCopy, Memory::Cuda, 0));
            // The kernel's own copy is the only one that a CPU makes.
            assert_eq!((path.cpu_copies(), path.runtime_copied_bytes), (1, 0));
            // The first launch of a size is not timed by its stages.
            assert!(round < 2 || path.stage(Stage::CopyIn) > 0, "{path:?}");
            client.recycle(response);
        }
    }
    assert!(server.stop());
}

#[test]
fn kernels_compute_on_slots_one_by_one_and_as_a_graph() {
    if !has_gpu() {
        return;
    }
    let repository = Repository::new()
        .with_add("add-kernel", 256, 0, "kernel", "")
        .with_add("add-graph", 256, 0, "graph", "")
        .with_add("add-large", 2_000_000, 0, "graph", "");
    let server = start(config(Some(&repository), &[]));
    let mut client = client(&server);
    for (model, n) in [("add-kernel", 256_u32), ("add-graph", 256), ("add-large", 2_000_000)] {
        let dims = [n];
        for seed in 0..30 {
            let [a, b, expected] = sum(seed, n);
            let inputs = [Input::new("B", DType::Fp32, &dims, &b[..]), Input::new("A", DType::Fp32, &dims, &a[..])];
            let response = client.infer(model, &inputs).unwrap();
            assert!(response.data() == expected, "{model}, {seed}");
            assert_eq!(response.path().unwrap().memory, Memory::Cuda);
            assert!(response.path().unwrap().stage(Stage::Compute) > 0);
            client.recycle(response);
        }
    }
    assert!(server.stop());
}

#[test]
fn buffers_hold_what_files_say_and_what_kernels_pass_on() {
    if !has_gpu() {
        return;
    }
    // room = IN + weights; OUT = room + weights.
    let config_text = "max_batch_size: 4\n\
        input { name: \"IN\" data_type: TYPE_FP32 dims: [ 64 ] }\n\
        output { name: \"OUT\" data_type: TYPE_FP32 dims: [ 64 ] }\n";
    let manifest = r#"
        module = "add.ptx"
        [[buffer]]
        name = "weights"
        file = "weights.bin"
        bytes = 1024
        [[buffer]]
        name = "room"
        bytes_per_row = 256
        [[kernel]]
        function = "add"
        grid = [{ per_row = 64, per_block = 32 }]
        block = [32]
        arguments = [{ input = "IN" }, { buffer = "weights" }, { buffer = "room" }, { u32_per_row = 64 }]
        [[kernel]]
        function = "add"
        grid = [{ per_row = 64, per_block = 32 }]
        block = [32]
        arguments = [{ buffer = "room" }, { buffer = "weights" }, { output = "OUT" }, { u32_per_row = 64 }]
    "#;
    let weights = bytes((0..256).map(|i| i as f32));
    let files: [(&str, &[u8]); 2] = [("add.ptx", crate::kernels::ADD.as_bytes()), ("weights.bin", &weights)];
    let repository = Repository::new().with("twice", config_text, manifest, &files);
    let server = start(config(Some(&repository), &[]));
    let mut client = client(&server);
    for rows in 1..=4_u32 {
        let input = bytes((0..64 * rows).map(|i| (i * 3) as f32));
        let expected = bytes((0..64 * rows).map(|i| (i * 3 + 2 * i) as f32));
        let dims = [rows, 64];
        let response = client.infer("twice", &[Input::new("IN", DType::Fp32, &dims, &input[..])]).unwrap();
        assert!(response.data() == expected, "{rows} rows");
        client.recycle(response);
    }
    assert!(server.stop());
}

#[test]
fn small_requests_to_kernels_that_read_each_byte_once_stay_on_the_host() {
    if !has_gpu() {
        return;
    }
    let mut repository = Repository::new();
    for (name, launch) in [("graph", "graph"), ("kernel", "kernel")] {
        repository = repository.with_in_place_add(name, 8_000, 4, launch);
    }
    let mut config = config(Some(&repository), &[]);
    config.limits.slots_per_model = 64;
    let server = start(config);
    let mut client = client(&server);
    for name in ["graph", "kernel"] {
        for round in 0..300 {
            // 64,000 bytes for each row: one is small, and two are not.
            let rows = 1 + round % 2;
            let sums: Vec<_> = (0..rows).map(|row| sum(round * 2 + row, 8_000)).collect();
            let [a, b, c] = [0, 1, 2].map(|which| sums.iter().flat_map(|sum| sum[which].clone()).collect::<Vec<u8>>());
            let dims = [rows, 8_000];
            let inputs = [Input::new("A", DType::Fp32, &dims, &a[..]), Input::new("B", DType::Fp32, &dims, &b[..])];
            let response = client.infer(name, &inputs).unwrap();
            assert!(response.data() == c, "{name}, round {round}");
            let path = response.path().unwrap();
            let memory = if rows == 1 { Memory::Pinned } else { Memory::Cuda };
            assert_eq!((path.memory, path.device_compactions), (memory, 0));
            client.recycle(response);
        }
    }
    assert!(server.stop());
}
