use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use host_agent::config::{Builtin, Config};
use host_agent::metrics::ModelState;
use host_agent::serve::{Server, build};
use splitrpc_client::{Client, ClientOptions, Error, Input};
use splitrpc_cuda::{DeviceMemory, MemoryOptions};
use splitrpc_wire::{DType, Status};

use crate::common::{Repository, client, config, has_gpu, is_alone, start};

/// Has the model wait for so many microseconds.
fn pause(client: &mut Client, micros: i32) -> Result<i32, (Status, String)> {
    ask(client, "pause", micros)
}

/// What a model makes of a number, or how it was refused.
pub(crate) fn ask(client: &mut Client, model: &str, number: i32) -> Result<i32, (Status, String)> {
    let bytes = number.to_le_bytes();
    match client.infer(model, &[Input::new("IN", DType::Int32, &[1], &bytes[..])]) {
        Ok(response) => Ok(i32::from_le_bytes(response.data().try_into().unwrap())),
        Err(Error::Failed(failure)) => Err((failure.status, failure.text)),
        Err(error) => panic!("{error}"),
    }
}

/// Why a model is not served now, if it is not.
fn outage(server: &Server, model: &str) -> Option<String> {
    let models = server.built.status.models();
    let model = models.into_iter().find(|known| known.name == model).unwrap();
    assert_eq!(model.state == ModelState::Failed, model.reason.is_some());
    model.reason
}

fn echo(client: &mut Client, model: &str) -> Result<Vec<u8>, String> {
    let response = client.infer(model, &[Input::new("INPUT", DType::Uint8, &[3], &b"abc"[..])]);
    response.map(|r| r.data().to_vec()).map_err(|e| e.to_string())
}

#[test]
fn a_launch_that_takes_too_long_is_given_up_and_the_others_are_served() {
    if !has_gpu() {
        return;
    }
    let repository = Repository::new().with_pause();
    let mut config = config(Some(&repository), &[Builtin::Echo, Builtin::NullGpu]);
    config.gpu.launch_limit_ms = 200;
    let server = start(config);
    let mut client = client(&server);
    assert_eq!(pause(&mut client, 1_000), Ok(1_000));
    let begun = Instant::now();
    let (status, text) = pause(&mut client, 1_500_000).unwrap_err();
    assert_eq!(status, Status::ModelFailed);
    assert!(text.starts_with("the launch has not ended after 2"), "{text}");
    assert!(begun.elapsed() < Duration::from_millis(1_200), "{:?}", begun.elapsed());
    let (status, text) = pause(&mut client, 1).unwrap_err();
    assert_eq!((status, text.as_str()), (Status::ModelFailed, "an earlier launch of the model has not ended"));
    assert!(outage(&server, "pause").unwrap().contains("does not end"));
    assert_eq!(outage(&server, "null-gpu"), None);
    assert_eq!(echo(&mut client, "echo").unwrap(), b"abc");
    assert_eq!(echo(&mut client, "null-gpu").unwrap().len(), 4_000);
    // It ends after all, and the model with it is served again.
    let until = Instant::now() + Duration::from_secs(20);
    while pause(&mut client, 7) != Ok(7) {
        assert!(Instant::now() < until, "the model does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(outage(&server, "pause"), None);
    assert!(server.stop());
}

#[test]
fn a_kernel_that_never_ends_keeps_its_model_from_being_served_and_no_other() {
    if !is_alone("faults::a_kernel_that_never_ends_keeps_its_model_from_being_served_and_no_other", &[]) {
        return;
    }
    let repository = Repository::new().with_number("endless", "endless", crate::kernels::ENDLESS);
    let repository = repository.with_add("sum", 256, 0, "graph", "");
    let mut config = config(Some(&repository), &[Builtin::Echo, Builtin::NullGpu]);
    config.gpu.launch_limit_ms = 300;
    let server = start(config);
    let mut client = client(&server);
    assert_eq!(ask(&mut client, "endless", 3), Ok(3));
    assert!(ask(&mut client, "endless", 7).unwrap_err().1.starts_with("the launch has not ended after 3"));
    for _ in 0..100 {
        assert_eq!(echo(&mut client, "echo").unwrap(), b"abc");
        assert_eq!(echo(&mut client, "null-gpu").unwrap().len(), 4_000);
        let [a, b, expected] = crate::common::sum(3, 256);
        let inputs = [Input::new("A", DType::Fp32, &[256], &a[..]), Input::new("B", DType::Fp32, &[256], &b[..])];
        assert_eq!(client.infer("sum", &inputs).unwrap().data(), expected);
        assert!(ask(&mut client, "endless", 3).is_err());
    }
    assert!(outage(&server, "endless").unwrap().contains("does not end"));
    assert!(server.stop());
}

#[test]
fn a_kernel_that_does_not_end_when_it_is_tried_costs_the_models_on_the_gpu_alone() {
    if !is_alone("faults::a_kernel_that_does_not_end_when_it_is_tried_costs_the_models_on_the_gpu_alone", &[]) {
        return;
    }
    let at_once = crate::kernels::ENDLESS.replace("%word, 7;", "%word, 0;");
    let repository = Repository::new().with_number("endless", "endless", &at_once);
    let repository = repository.with_add("sum", 256, 0, "graph", "");
    let mut config = config(Some(&repository), &[Builtin::Echo, Builtin::NullGpu]);
    config.gpu.launch_limit_ms = 300;
    let server = start(config);
    assert!(outage(&server, "endless").unwrap().contains("the launch has not ended"));
    for model in ["sum", "null-gpu"] {
        assert!(outage(&server, model).unwrap().contains("take that out"));
    }
    assert_eq!(echo(&mut client(&server), "echo").unwrap(), b"abc");
    assert!(server.stop());
}

#[test]
fn a_kernel_that_faults_when_it_is_tried_costs_the_models_on_the_gpu_alone() {
    if !is_alone("faults::a_kernel_that_faults_when_it_is_tried_costs_the_models_on_the_gpu_alone", &[]) {
        return;
    }
    let repository = Repository::new().with_number("faults", "faults", crate::kernels::FAULTS);
    let server = start(config(Some(&repository), &[Builtin::Echo, Builtin::NullGpu]));
    assert!(outage(&server, "faults").unwrap().contains("CUDA_ERROR_ILLEGAL_ADDRESS"));
    assert!(outage(&server, "null-gpu").unwrap().contains("take that out"));
    assert_eq!(echo(&mut client(&server), "echo").unwrap(), b"abc");
    assert!(server.stop());
}

#[test]
fn the_agent_starts_anew_without_the_models_that_spoil_the_gpu() {
    if !has_gpu() {
        return;
    }
    let at_once = crate::kernels::ENDLESS.replace("%word, 7;", "%word, 0;");
    let repository = Repository::new().with_number("endless", "endless", &at_once);
    let repository = repository.with_number("faults", "faults", crate::kernels::FAULTS);
    let repository = repository.with_add("sum", 256, 0, "graph", "");
    // Of those on the GPU alone.
    let mut config = config(Some(&repository), &[]);
    config.gpu.launch_limit_ms = 300;
    let agent = Agent::start(&config);
    let reason = |model: &str| {
        let start = format!("  model  {model}: not served: ");
        agent.said.iter().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("{:?}", agent.said))
    };
    assert!(reason("endless").contains("the launch has not ended"), "{:?}", agent.said);
    assert!(reason("faults").contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{:?}", agent.said);
    let mut client = Client::connect(&agent.tcp, ClientOptions::default()).unwrap();
    let [a, b, expected] = crate::common::sum(3, 256);
    let inputs = [Input::new("A", DType::Fp32, &[256], &a[..]), Input::new("B", DType::Fp32, &[256], &b[..])];
    assert_eq!(client.infer("sum", &inputs).unwrap().data(), expected);
}

/// The program itself, in a process of its own.
struct Agent {
    child: Child,
    said: Vec<String>,
    tcp: String,
}

impl Agent {
    fn start(config: &Config) -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, config.to_toml()).unwrap();
        let program = std::env::var("SPLITRPC_TESTS_HOST_AGENT");
        let mut command = Command::new(program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_host-agent")));
        command.arg("serve").arg("--config").arg(&file).stdout(Stdio::piped());
        let mut child =
            command.spawn().expect("SPLITRPC_TESTS_HOST_AGENT names the program, where it was carried here");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let said: Vec<_> = lines.take_while(|line| line != "ready").collect();
        let tcp = said.iter().find_map(|line| line.strip_prefix("  tcp    ")).map(str::to_owned);
        let tcp = tcp.unwrap_or_else(|| panic!("it does not serve: {:?} {said:?}", child.wait()));
        Agent { child, said, tcp }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn models_for_which_there_is_no_place_together_leave_the_others_served() {
    if !has_gpu() {
        return;
    }
    let repository = Repository::new().with_add("sum", 1_000_000, 0, "graph", "");
    let built = build(config(Some(&repository), &[Builtin::Echo])).unwrap();
    // Somebody else takes what was free when the model was tried.
    let context = built.gpu.as_ref().unwrap().context.clone();
    let (free, _) = context.memory_bytes().unwrap();
    let taken = DeviceMemory::new(&context, free as usize - (32 << 20), MemoryOptions::default()).unwrap();
    let server = Server::start(built).unwrap();
    assert!(outage(&server, "sum").unwrap().contains("no place"));
    assert_eq!(echo(&mut client(&server), "echo").unwrap(), b"abc");
    assert!(server.stop());
    drop(taken);
}

#[test]
fn a_kernel_that_faults_loses_the_gpu_and_nothing_else() {
    if !is_alone("faults::a_kernel_that_faults_loses_the_gpu_and_nothing_else", &[]) {
        return;
    }
    let repository = Repository::new().with_pause();
    let server = start(config(Some(&repository), &[Builtin::Echo, Builtin::NullGpu]));
    let mut client = client(&server);
    assert_eq!(pause(&mut client, 1), Ok(1));
    for _ in 0..3 {
        let (status, text) = pause(&mut client, -1).unwrap_err();
        assert_eq!(status, Status::ModelFailed);
        assert!(text.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && text.contains("started anew"), "{text}");
    }
    assert!(echo(&mut client, "null-gpu").unwrap_err().contains("CUDA_ERROR_ILLEGAL_ADDRESS"));
    assert!(["pause", "null-gpu"].iter().all(|model| outage(&server, model).unwrap().contains("lost")));
    assert_eq!(outage(&server, "echo"), None);
    // More often than there are slots.
    for _ in 0..100 {
        assert!(pause(&mut client, 1).is_err());
        assert_eq!(echo(&mut client, "echo").unwrap(), b"abc");
    }
    assert!(server.stop());
}

#[test]
fn models_that_do_not_fit_their_kernels_or_the_gpu_say_so() {
    if !has_gpu() {
        return;
    }
    let add = crate::kernels::ADD.as_bytes();
    let tensors = "input { name: \"A\" data_type: TYPE_FP32 dims: [ 256 ] }\n\
                   output { name: \"C\" data_type: TYPE_FP32 dims: [ 256 ] }\n";
    let kernel = |function: &str, block: &str, arguments: &str| {
        format!(
            "module = \"add.ptx\"\n[[kernel]]\nfunction = \"{function}\"\ngrid = [1]\nblock = [{block}]\n\
             arguments = [{arguments}]\n"
        )
    };
    let right = "{ input = \"A\" }, { input = \"A\" }, { output = \"C\" }, { u32 = 256 }";
    let repository = Repository::new()
        .with("args", tensors, &kernel("add", "256", "{ input = \"A\" }, { output = \"C\" }"), &[("add.ptx", add)])
        .with("block", tensors, &kernel("add", "2048", right), &[("add.ptx", add)])
        .with("function", tensors, &kernel("sub", "256", right), &[("add.ptx", add)])
        .with("garbage", tensors, &kernel("add", "256", right), &[("add.ptx", b".version 7.0 .entry nonsense")])
        .with("half", tensors, &kernel("add", "256", right), &[("add.ptx", b"\x7fELF\x02\x01")])
        .with("none", tensors, &kernel("add", "256", right), &[])
        .with_add("good", 256, 0, "graph", "")
        .with_add("huge", 16_000_000, 0, "graph", "");
    let mut config = config(Some(&repository), &[]);
    config.limits.class_bytes = 1 << 40;
    config.limits.slots_per_model = 4_096;
    config.limits.max_request_bytes = 256 << 20;
    let built = build(config).unwrap();
    let reason = |name: &str| {
        let models = built.status.models();
        let model = models.iter().find(|m| m.name == name).unwrap();
        assert_eq!(model.state == ModelState::Failed, name != "good", "{name}: {:?}", model.reason);
        model.reason.clone().unwrap_or_default()
    };
    assert!(
        reason("args").contains("takes arguments of [8, 8, 8, 4] bytes, and is given [8, 8]"),
        "{}",
        reason("args")
    );
    assert!(reason("block").contains("a block has 2048 threads, where 1024 may be"), "{}", reason("block"));
    assert!(reason("function").contains("sub"), "{}", reason("function"));
    assert!(reason("garbage").contains("1/add.ptx"), "{}", reason("garbage"));
    assert!(reason("half").contains("was cut short"), "{}", reason("half"));
    assert!(reason("none").contains("cannot be read"), "{}", reason("none"));
    assert!(reason("huge").contains("MiB of the GPU's memory"), "{}", reason("huge"));
    assert_eq!(reason("good"), "");
}
