//! Models whose kernel stays on the GPU.

use std::time::{Duration, Instant};

use host_agent::config::{Builtin, Config};
use host_agent::metrics::ModelState;
use host_agent::serve::build;
use splitrpc_client::{Client, Input};
use splitrpc_wire::path::Memory;
use splitrpc_wire::{DType, Stage, Status};

use crate::common::{
    Repository, answers, bytes, client, config, connection, has_gpu, is_alone, start, submit_sum, sum,
};
use crate::faults::ask;

/// Made from `persistent.cu` by `benches/workloads/build.py`.
const CODE: &str = include_str!("persistent.ptx");

/// A model of one of the kernels, on so many blocks. `head` is what its manifest says of the whole.
fn with(
    repository: Repository,
    name: &str,
    function: &str,
    config: &str,
    blocks: u32,
    head: &str,
    arguments: &str,
) -> Repository {
    let manifest = format!(
        "module = \"persistent.ptx\"\nlaunch = \"persistent\"\n{head}[[kernel]]\nfunction = \"{function}\"\n\
         grid = [{blocks}]\nblock = [128]\narguments = [{arguments}]\n"
    );
    repository.with(name, config, &manifest, &[("persistent.ptx", CODE.as_bytes())])
}

/// `C = A + B` of rows of `n` numbers.
fn with_add(repository: Repository, name: &str, n: u32, max_batch: u16, blocks: u32, head: &str) -> Repository {
    let tensor = |kind: &str, name: &str| format!("{kind} {{ name: \"{name}\" data_type: TYPE_FP32 dims: [ {n} ] }}\n");
    let tensors = [tensor("input", "A"), tensor("input", "B"), tensor("output", "C")].concat();
    let batching = "dynamic_batching { max_queue_delay_microseconds: 200000 }";
    let batching = if max_batch > 0 { format!("max_batch_size: {max_batch} {batching}\n") } else { String::new() };
    let arguments = format!("{{ input = \"A\" }}, {{ input = \"B\" }}, {{ output = \"C\" }}, {{ u32_per_row = {n} }}");
    with(repository, name, "add", &format!("{tensors}{batching}"), blocks, head, &arguments)
}

/// A model that takes a number, and gives one.
fn with_number(repository: Repository, name: &str, function: &str) -> Repository {
    let config = "input { name: \"IN\" data_type: TYPE_INT32 dims: [ 1 ] }\n\
                  output { name: \"OUT\" data_type: TYPE_INT32 dims: [ 1 ] }\n";
    with(repository, name, function, config, 2, "", "{ input = \"IN\" }, { output = \"OUT\" }")
}

/// Asks for sums of one request of so many numbers.
fn add(client: &mut Client, model: &str, seed: u32, n: u32) -> (Memory, u32) {
    let [a, b, expected] = sum(seed, n);
    let dims = [n];
    let inputs = [Input::new("A", DType::Fp32, &dims, &a[..]), Input::new("B", DType::Fp32, &dims, &b[..])];
    let response = client.infer(model, &inputs).unwrap();
    assert!(response.data() == expected, "{model}, {seed}");
    let path = response.path().unwrap();
    let said = (path.memory, path.stage(Stage::Compute));
    client.recycle(response);
    said
}

#[test]
fn the_code_is_made_from_the_source_beside_it() {
    let source =
        [&include_bytes!("persistent.cu")[..], include_bytes!("../../include/splitrpc/persistent.cuh")].concat();
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = source.iter().fold(0xcbf2_9ce4_8422_2325, step);
    assert!(
        CODE.starts_with(&format!("// Made from persistent.cu ({hash:016x}) by build.py.\n")),
        "run build.py again"
    );
}

#[test]
fn one_block_or_several_compute_small_and_large_requests_wherever_they_are() {
    if !has_gpu() {
        return;
    }
    let mut repository = Repository::new();
    let models = [
        ("one", 256, 1, "", Memory::Cuda),
        ("several", 256, 8, "", Memory::Cuda),
        ("in-place", 256, 1, "in_place = true\n", Memory::Pinned),
        ("several-in-place", 8_000, 8, "in_place = true\n", Memory::Pinned),
        ("middle", 100_000, 8, "", Memory::Cuda),
        ("large", 2_000_000, 16, "in_place = true\n", Memory::Cuda),
    ];
    for (name, n, blocks, head, _) in models {
        repository = with_add(repository, name, n, 0, blocks, head);
    }
    let mut config = config(Some(&repository), &[Builtin::NullGpu]);
    config.limits.slots_per_model = 8;
    let server = start(config);
    let mut client = client(&server);
    for seed in 0..60 {
        for (name, n, _, _, memory) in models {
            let (said, computed) = add(&mut client, name, seed, n);
            assert!(said == memory && computed > 0, "{name}: {said:?}, {computed} ns");
        }
    }
    // One after the other, so that they find the kernel, and a porter.
    for (name, n, _, _, memory) in models {
        for seed in 0..if n > 1_000_000 { 30 } else { 2_000 } {
            assert_eq!(add(&mut client, name, seed % 50, n).0, memory, "{name}");
        }
    }
    assert!(server.stop());
}

#[test]
fn a_kernel_that_has_ended_for_want_of_requests_comes_back() {
    if !has_gpu() {
        return;
    }
    let repository = with_add(Repository::new(), "add", 256, 0, 4, "in_place = true\n");
    let server = start(config(Some(&repository), &[]));
    let mut client = client(&server);
    for (round, wait) in [0_u64, 1, 2, 7, 9, 30, 60, 120].into_iter().cycle().take(64).enumerate() {
        std::thread::sleep(Duration::from_millis(wait));
        add(&mut client, "add", round as u32, 256);
    }
    assert!(server.stop());
}

#[test]
fn batches_are_computed_where_they_lie_or_put_together_and_taken_apart() {
    if !has_gpu() {
        return;
    }
    // Rows that are aligned, and rows that are not.
    let mut repository = with_add(Repository::new(), "even", 256, 8, 4, "");
    repository = with_add(repository, "odd", 257, 8, 1, "");
    repository = with_add(repository, "far", 25, 8, 2, "alignment = 4096\n");
    let server = start(config(Some(&repository), &[]));
    let mut connection = connection(&server);
    for (name, n) in [("even", 256), ("odd", 257), ("far", 25)] {
        let model = connection.catalogue().model(name).unwrap().handle;
        for round in 0..12 {
            let sums: Vec<_> = (0..7).map(|seed| sum(round * 8 + seed, n)).collect();
            let ids: Vec<_> = sums.iter().map(|sum| submit_sum(&mut connection, model, sum)).collect();
            let gone: &[usize] = if round % 2 == 0 { &[] } else { &[2, 4] };
            for gone in gone {
                assert!(connection.cancel(ids[*gone]));
            }
            let rows = 7 - gone.len();
            for (id, data, path) in answers(&mut connection, rows) {
                let place = ids.iter().position(|known| *known == id).unwrap();
                assert!(data == sums[place][2], "{name}, round {round}, request {place}");
                assert_eq!(usize::from(path.batch_rows), rows);
                // The slots of those that were cancelled lie between.
                assert!(name == "far" || path.device_compactions == u8::from(!gone.is_empty()), "{path:?}");
            }
        }
    }
    assert!(server.stop());
}

#[test]
fn rows_and_numbers_are_what_the_manifest_says() {
    if !has_gpu() {
        return;
    }
    let config_text = "max_batch_size: 8\ninput { name: \"IN\" data_type: TYPE_FP32 dims: [ 4 ] }\n\
                       output { name: \"OUT\" data_type: TYPE_FP32 dims: [ 1 ] }\n";
    let manifest = "{ input = \"IN\" }, { output = \"OUT\" }, { f32 = 0.25 }, { i64 = -1 }";
    let repository = with(Repository::new(), "rows", "rows", config_text, 1, "", manifest);
    let server = start(config(Some(&repository), &[]));
    let mut client = client(&server);
    for rows in (1..=8_u32).cycle().take(200) {
        let input = bytes((0..4 * rows).map(|i| i as f32));
        let expected = bytes((0..rows).map(|row| (16 * row + 6) as f32 + 0.25));
        let response = client.infer("rows", &[Input::new("IN", DType::Fp32, &[rows, 4], &input[..])]).unwrap();
        assert!(response.data() == expected, "{rows} rows");
        client.recycle(response);
    }
    assert!(server.stop());
}

#[test]
fn what_is_asked_of_several_lanes_at_once_is_answered_right() {
    if !has_gpu() {
        return;
    }
    let more = "instance_group [ { count: 2 kind: KIND_GPU } ]\n";
    for shares in [false, true] {
        let mut repository = Repository::new();
        // With eight models there are more streams than queues, and the kernels end behind each batch.
        for model in 0..if shares { 8 } else { 1 } {
            let arguments = "{ input = \"A\" }, { input = \"B\" }, { output = \"C\" }, { u32_per_row = 100 }";
            let tensors = ["input { name: \"A\"", "input { name: \"B\"", "output { name: \"C\""]
                .map(|tensor| format!("{tensor} data_type: TYPE_FP32 dims: [ 100 ] }}\n"));
            let config = format!("max_batch_size: 1 {more}{}", tensors.concat());
            repository = with(repository, &format!("add-{model}"), "add", &config, 2, "", arguments);
        }
        let mut config = config(Some(&repository), &[Builtin::NullGpu]);
        config.limits.slots_per_model = 64;
        let server = start(config);
        let mut connection = connection(&server);
        for model in 0..if shares { 8 } else { 1 } {
            let model = connection.catalogue().model(&format!("add-{model}")).unwrap().handle;
            let sums: Vec<_> = (0..8).map(|seed| sum(seed, 100)).collect();
            for round in 0..50 {
                let ids: Vec<_> = sums.iter().map(|sum| submit_sum(&mut connection, model, sum)).collect();
                for (id, data, _) in answers(&mut connection, 8) {
                    let place = ids.iter().position(|known| *known == id).unwrap();
                    assert!(data == sums[place][2], "round {round}, request {place}");
                }
            }
        }
        assert!(server.stop());
    }
}

#[test]
fn a_kernel_that_returns_unasked_is_launched_once_more_and_then_its_requests_fail() {
    if !has_gpu() {
        return;
    }
    let repository = with_number(Repository::new(), "shy", "shy");
    let repository = with_number(repository, "leaves", "leaves");
    let built = build(config(Some(&repository), &[Builtin::Echo])).unwrap();
    let models = built.status.models();
    let of = |name: &str| models.iter().find(|model| model.name == name).unwrap();
    let reason = of("leaves").reason.clone().unwrap_or_default();
    assert!(of("leaves").state == ModelState::Failed && reason.contains("ended without computing"), "{reason}");
    assert_eq!(of("shy").reason, None);
    let server = host_agent::serve::Server::start(built).unwrap();
    let mut client = client(&server);
    for number in 0..100 {
        assert_eq!(ask(&mut client, "shy", number), Ok(2 * number));
    }
    assert!(server.stop());
}

#[test]
fn a_batch_that_takes_too_long_is_given_up_and_the_model_comes_back() {
    if !has_gpu() {
        return;
    }
    let repository = with_number(Repository::new(), "pause", "pause");
    let mut config: Config = config(Some(&repository), &[Builtin::NullGpu]);
    config.gpu.launch_limit_ms = 200;
    let server = start(config);
    let mut client = client(&server);
    assert_eq!(ask(&mut client, "pause", 1_000), Ok(1_000));
    let (status, text) = ask(&mut client, "pause", 1_500_000).unwrap_err();
    assert_eq!(status, Status::ModelFailed);
    assert!(text.starts_with("the launch has not ended after 2"), "{text}");
    let (_, text) = ask(&mut client, "pause", 1).unwrap_err();
    assert_eq!(text, "an earlier launch of the model has not ended");
    let until = Instant::now() + Duration::from_secs(20);
    while ask(&mut client, "pause", 7) != Ok(7) {
        assert!(Instant::now() < until, "the model does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(server.stop());
}

#[test]
fn a_persistent_kernel_that_faults_loses_the_gpu_and_nothing_else() {
    if !is_alone("persistent::a_persistent_kernel_that_faults_loses_the_gpu_and_nothing_else", &[]) {
        return;
    }
    let repository = with_number(Repository::new(), "pause", "pause");
    let server = start(config(Some(&repository), &[Builtin::Echo, Builtin::NullGpu]));
    let mut client = client(&server);
    assert_eq!(ask(&mut client, "pause", 1), Ok(1));
    for _ in 0..3 {
        let (status, text) = ask(&mut client, "pause", -1).unwrap_err();
        assert_eq!(status, Status::ModelFailed);
        assert!(text.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && text.contains("started anew"), "{text}");
    }
    for _ in 0..50 {
        assert!(ask(&mut client, "pause", 1).is_err());
        let response = client.infer("echo", &[Input::new("INPUT", DType::Uint8, &[3], &b"abc"[..])]).unwrap();
        assert_eq!(response.data(), b"abc");
    }
    assert!(server.stop());
}

#[test]
fn kernels_that_cannot_stay_are_refused_and_say_why() {
    if !has_gpu() {
        return;
    }
    let launched = "module = \"add.ptx\"\nlaunch = \"persistent\"\n[[kernel]]\nfunction = \"add\"\ngrid = [1]\n\
                    block = [128]\narguments = [{ input = \"A\" }, { output = \"C\" }]\n";
    let tensors = "input { name: \"A\" data_type: TYPE_FP32 dims: [ 256 ] }\n\
                   output { name: \"C\" data_type: TYPE_FP32 dims: [ 256 ] }\n";
    let repository = with_add(Repository::new(), "good", 256, 0, 4, "");
    let repository = with_add(repository, "many", 256, 0, 100_000, "").with(
        "launched",
        tensors,
        launched,
        &[("add.ptx", crate::kernels::ADD.as_bytes())],
    );
    let built = build(config(Some(&repository), &[])).unwrap();
    let models = built.status.models();
    let reason = |name: &str| models.iter().find(|m| m.name == name).unwrap().reason.clone().unwrap_or_default();
    assert_eq!(reason("good"), "");
    assert!(reason("many").contains("multiprocessors"), "{}", reason("many"));
    assert!(reason("launched").contains("takes one splitrpc::Doorbell"), "{}", reason("launched"));
}
