//! The model repository: folders, versions, configurations, and every way in which a model can be unfit.

mod model_support;

use std::path::Path;
use std::sync::Arc;

use host_agent::gpu::LazyGpu;
use host_agent::model::{ModelError, load_repository};
use host_agent::runtime::Factory;
use model_support::onnx::{BFLOAT16, D, FLOAT, Graph, INT64, STRING};
use model_support::rig::{Data, Request, Rig};
use model_support::{load_model, put, put_version};

/// y = x + `add`, over rows of two.
fn adder(add: f32) -> Graph {
    Graph::default()
        .input("x", FLOAT, &[D::S("N"), D::N(2)])
        .floats("add", &[1], &[add])
        .node("Add", &["x", "add"], &["y"], vec![])
        .output("y", FLOAT, &[D::S("N"), D::N(2)])
}

fn load(graph: &Graph, config: Option<&str>) -> Result<Arc<dyn Factory>, ModelError> {
    let repository = tempfile::tempdir().unwrap();
    load_model(&put(repository.path(), "m", &graph.file(), config))
}

/// The error's words from the model's folder on.
fn why(result: Result<Arc<dyn Factory>, ModelError>) -> String {
    let words = result.map(|m| m.spec().clone()).unwrap_err().to_string();
    words[words.find("/m").unwrap()..].to_owned()
}

fn file_fault(file: &[u8]) -> String {
    let repository = tempfile::tempdir().unwrap();
    why(load_model(&put(repository.path(), "m", file, None)))
}

fn config_fault(graph: &Graph, config: &str) -> String {
    why(load(graph, Some(config)))
}

/// What a model that adds a number gives for zeroes: the number.
fn added(model: &dyn Factory) -> f32 {
    let request = Request { rows: 1, inputs: vec![Data::f32(&[1, 2], &[0.0, 0.0])] };
    Rig::new(model).one(request).unwrap()[0].to_f32()[0]
}

#[test]
fn a_bad_model_does_not_keep_the_others_from_being_served() {
    let repository = tempfile::tempdir().unwrap();
    let root = repository.path();
    put(root, "b_good", &adder(1.0).file(), None);
    put(root, "a_good", &adder(2.0).file(), Some("max_batch_size: 16"));
    put(root, "c_bad", b"", None);
    std::fs::create_dir_all(root.join(".hidden/1")).unwrap();
    std::fs::write(root.join("README.md"), "not a model").unwrap();
    let models = load_repository(root, &LazyGpu::default()).unwrap();
    let names: Vec<_> =
        models.iter().map(|m| m.as_ref().map(|m| m.spec().name.clone()).map_err(|e| e.path.clone())).collect();
    assert_eq!(names, [Ok("a_good".into()), Ok("b_good".into()), Err(root.join("c_bad/1/model.onnx"))]);
    assert_eq!(models[0].as_ref().unwrap().spec().max_batch, 16);
    let bad = models[2].as_ref().unwrap_err();
    assert_eq!(bad.to_string(), format!("{}/c_bad/1/model.onnx: is empty", root.display()));
}

#[test]
fn what_is_not_a_plain_file_is_refused_unread() {
    let repository = tempfile::tempdir().unwrap();
    let folder = put(repository.path(), "m", &adder(1.0).file(), None);
    let (config, model) = (folder.join("config.pbtxt"), folder.join("1/model.onnx"));
    std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
    let words = why(load_model(&folder));
    assert_eq!(words, "/m/config.pbtxt: cannot be read: it is a pipe, a socket or a device, not a plain file");
    std::fs::remove_file(&config).unwrap();
    std::fs::remove_file(&model).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &model).unwrap();
    let words = why(load_model(&folder));
    assert_eq!(words, "/m/1/model.onnx: cannot be read: it is a pipe, a socket or a device, not a plain file");
    std::fs::remove_file(&model).unwrap();
    std::fs::create_dir(&model).unwrap();
    let words = why(load_model(&folder));
    assert!(words.starts_with("/m/1/model.onnx: cannot be read: "), "{words}");
}

#[test]
fn a_repository_that_is_not_there() {
    let error = load_repository(Path::new("/nonexistent/models"), &LazyGpu::default()).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/models: cannot be read: No such file"), "{error}");
}

#[test]
fn the_highest_version_is_served_unless_the_policy_says_otherwise() {
    let repository = tempfile::tempdir().unwrap();
    let folder = repository.path().join("m");
    for version in [2, 10, 9] {
        put_version(&folder, version, &adder(version as f32).file());
    }
    // None of these is a version.
    for name in ["0", "011", "-1", "x", "99999999999"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let served = |config: &str| {
        std::fs::write(folder.join("config.pbtxt"), config).unwrap();
        load_model(&folder).map(|m| (m.spec().version, added(&*m))).map_err(|e| e.reason)
    };
    assert_eq!(served(""), Ok((10, 10.0)));
    assert_eq!(served("version_policy { latest { num_versions: 1 } }"), Ok((10, 10.0)));
    assert_eq!(served("version_policy { specific { versions: 2 } }"), Ok((2, 2.0)));
    assert!(served("version_policy { all {} }").unwrap_err().contains("several versions"));
    assert!(served("version_policy { latest { num_versions: 2 } }").unwrap_err().contains("several versions"));
    assert!(served("version_policy { specific { versions: [2, 9] } }").unwrap_err().contains("several versions"));
    assert!(
        served("version_policy { specific { versions: 3 } }").unwrap_err().contains("version 3, which has no folder")
    );
    assert!(served("version_policy { specific {} }").unwrap_err().contains("names no version"));
}

#[test]
fn another_file_name() {
    let repository = tempfile::tempdir().unwrap();
    let folder = put(repository.path(), "m", b"not this one", Some("default_model_filename: 'net.onnx'"));
    assert!(why(load_model(&folder)).starts_with("/m/1/net.onnx: cannot be read: No such file"));
    std::fs::write(folder.join("1/net.onnx"), adder(3.0).file()).unwrap();
    assert_eq!(added(&*load_model(&folder).unwrap()), 3.0);
}

#[test]
fn files_that_are_not_models() {
    let good = adder(1.0).file();
    assert_eq!(file_fault(b""), "/m/1/model.onnx: is empty");
    assert_eq!(file_fault(b"hello, I am a text file, not a model"), "/m/1/model.onnx: is not an ONNX model");
    assert_eq!(file_fault(&[0; 64]), "/m/1/model.onnx: is not an ONNX model");
    let cut = file_fault(&good[..good.len() / 2]);
    assert!(cut.starts_with("/m/1/model.onnx: is cut short: it has "), "{cut}");
    assert!(file_fault(&good[..2]).contains("cut short"), "only the version of the format is left");
    let repository = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(repository.path().join("m/1")).unwrap();
    assert!(why(load_model(&repository.path().join("m"))).starts_with("/m/1/model.onnx: cannot be read: No such file"));
    std::fs::remove_dir(repository.path().join("m/1")).unwrap();
    assert_eq!(why(load_model(&repository.path().join("m"))), "/m: has no version folder, such as 1");
}

#[test]
fn no_part_of_a_file_is_taken_for_the_whole() {
    let good = adder(1.0).file();
    for length in 0..good.len() {
        let reason = file_fault(&good[..length]);
        assert!(
            ["is empty", "cut short", "not an ONNX model"].iter().any(|w| reason.contains(w)),
            "{length}: {reason}"
        );
    }
}

#[test]
fn operators_that_are_not_supported_are_named() {
    let graph = Graph::default()
        .input("x", FLOAT, &[D::N(2)])
        .node("FlipTheTable", &["x"], &["a"], vec![])
        .node_of("com.example", "Relu", &["a"], &["b"], vec![])
        .node("StringSplit", &["b"], &["c"], vec![])
        .node("ReduceLogSumExp", &["c"], &["y"], vec![])
        .output("y", FLOAT, &[D::N(2)]);
    assert_eq!(
        file_fault(&graph.file()),
        "/m/1/model.onnx: uses operators that are not supported: FlipTheTable, ReduceLogSumExp with sums that \
         overflow, StringSplit, com.example.Relu"
    );
    let body = Graph::default().node("Unheard", &["x"], &["z"], vec![]).output("z", FLOAT, &[D::N(2)]);
    let nested = Graph::default().input("x", FLOAT, &[D::N(2)]).input("c", model_support::onnx::BOOL, &[]).node(
        "If",
        &["c"],
        &["y"],
        vec![
            model_support::onnx::Attr::Graph("then_branch", body.clone()),
            model_support::onnx::Attr::Graph("else_branch", body),
        ],
    );
    assert!(file_fault(&nested.output("y", FLOAT, &[D::N(2)]).file()).ends_with("not supported: Unheard"));
}

#[test]
fn types_that_are_not_supported_are_named() {
    for (kind, name) in [(STRING, "STRING"), (BFLOAT16, "BFLOAT16"), (77, "number 77")] {
        let graph = Graph::default().input("x", kind, &[D::N(2)]).node("Identity", &["x"], &["y"], vec![]).output(
            "y",
            kind,
            &[D::N(2)],
        );
        assert_eq!(
            file_fault(&graph.file()),
            format!("/m/1/model.onnx: has an input \"x\" of element type {name}, which is not supported")
        );
    }
}

#[test]
fn graphs_that_do_not_hold_together() {
    let dangling = Graph::default()
        .input("x", FLOAT, &[D::N(2)])
        .node("Add", &["x", "nowhere"], &["y"], vec![])
        .output("y", FLOAT, &[D::N(2)]);
    assert_eq!(file_fault(&dangling.file()), "/m/1/model.onnx: uses tensors that nothing gives: nowhere");
    let no_output = Graph::default().input("x", FLOAT, &[D::N(2)]).node("Relu", &["x"], &["y"], vec![]);
    assert!(file_fault(&no_output.file()).ends_with("has no output, so there is nothing to serve"));
    let no_input = Graph::default().floats("x", &[1], &[1.0]).output("x", FLOAT, &[D::N(1)]);
    assert!(file_fault(&no_input.file()).ends_with("has no input, so there is nothing to serve"));
    // An output that no node makes makes tract panic; a panic is an error like any other.
    let missing = Graph::default().input("x", FLOAT, &[D::N(2)]).node("Relu", &["x"], &["y"], vec![]).output(
        "z",
        FLOAT,
        &[D::N(2)],
    );
    assert!(file_fault(&missing.file()).contains("is not understood"));
    let deep = Graph::default().input("x", FLOAT, &[D::N(1); 9]).output("x", FLOAT, &[D::N(1); 9]);
    assert!(file_fault(&deep.file()).ends_with("has an input \"x\" of 9 dimensions, where 8 are supported"));
}

#[test]
fn wrong_shapes_are_found_when_loading() {
    let wrong_output = Graph::default()
        .input("x", FLOAT, &[D::S("N"), D::N(2)])
        .node("Relu", &["x"], &["y"], vec![])
        .output("y", FLOAT, &[D::S("N"), D::N(3)]);
    assert!(file_fault(&wrong_output.file()).ends_with("declares output \"y\" as [3], but computes [2]"));
    let wrong_product = Graph::default()
        .input("x", FLOAT, &[D::S("N"), D::N(2)])
        .floats("w", &[3, 1], &[1.0; 3])
        .node("MatMul", &["x", "w"], &["y"], vec![])
        .output("y", FLOAT, &[D::S("N"), D::N(1)]);
    assert!(file_fault(&wrong_product.file()).contains("cannot be computed"));
}

#[test]
fn initialisers_are_not_inputs() {
    // Old files list them among the inputs.
    let graph = Graph::default()
        .input("x", FLOAT, &[D::S("N"), D::N(2)])
        .input("add", FLOAT, &[D::N(1)])
        .floats("add", &[1], &[5.0])
        .node("Add", &["x", "add"], &["y"], vec![])
        .output("y", FLOAT, &[D::S("N"), D::N(2)]);
    let model = load(&graph, None).unwrap();
    assert_eq!(model.spec().inputs.len(), 1);
    assert_eq!((model.spec().max_batch, added(&*model)), (4, 5.0));
}

#[test]
fn an_output_that_is_no_batch() {
    let summed = |name: D| {
        Graph::default()
            .input("x", FLOAT, &[D::S("N"), D::N(2)])
            .int64s("axes", &[1], &[0])
            .node("ReduceSum", &["x", "axes"], &["y"], vec![])
            .output("y", FLOAT, &[name, D::N(2)])
    };
    let words = "declares a batch dimension, but computes 1 as the first dimension of output \"y\" whatever the batch";
    // It says that it is one, or the configuration does.
    assert!(file_fault(&summed(D::S("N")).file()).ends_with(words));
    assert!(config_fault(&summed(D::Free), "max_batch_size: 4").ends_with(words));
    // Nobody says so: it is served, request by request.
    assert_eq!(load(&summed(D::Free), None).unwrap().spec().max_batch, 0);
    let scalar = Graph::default()
        .input("x", FLOAT, &[D::S("N"), D::N(2)])
        .node("ReduceSum", &["x"], &["y"], vec![model_support::onnx::Attr::Int("keepdims", 0)])
        .output_without_shape("y", FLOAT);
    assert!(config_fault(&scalar, "max_batch_size: 4").contains("computes a scalar"));
}

#[test]
fn configurations_that_fit() {
    let config = "name: 'm' platform: 'onnxruntime_onnx' max_batch_size: 8
        input { name: 'x' data_type: TYPE_FP32 dims: 2 } output { name: 'y' data_type: TYPE_FP32 dims: 2 }
        dynamic_batching { preferred_batch_size: [4, 8] max_queue_delay_microseconds: 50 }
        instance_group { count: 2 }";
    let model = load(&adder(1.0), Some(config)).unwrap();
    let spec = model.spec();
    assert_eq!((spec.max_batch, spec.instances, spec.version), (8, 2, 1));
    let batching = spec.batching.as_ref().unwrap();
    assert_eq!((batching.max_queue_delay_us, &batching.preferred[..]), (50, &[4, 8][..]));
    assert_eq!(added(&*model), 1.0);
    // Without a batch dimension, dims are the whole shape.
    let config = "max_batch_size: 0 input { name: 'x' data_type: TYPE_FP32 dims: [3, 2] }";
    let model = load(&adder(1.0), Some(config)).unwrap();
    assert_eq!((model.spec().max_batch, &model.spec().inputs[0].dims[..]), (0, &[Some(3), Some(2)][..]));
    assert_eq!(model.spec().outputs[0].dims, [Some(3), Some(2)]);
    assert!(model.spec().batching.is_none());
}

#[test]
fn outputs_that_are_not_described_are_not_served() {
    let graph = adder(1.0).node("Neg", &["x"], &["z"], vec![]).output("z", FLOAT, &[D::S("N"), D::N(2)]);
    let config = "max_batch_size: 2 output { name: 'z' data_type: TYPE_FP32 dims: 2 }";
    let model = load(&graph, Some(config)).unwrap();
    assert_eq!(model.spec().outputs.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["z"]);
    let request = Request { rows: 1, inputs: vec![Data::f32(&[1, 2], &[1.0, 2.0])] };
    assert_eq!(Rig::new(&*model).one(request).unwrap(), [Data::f32(&[1, 2], &[-1.0, -2.0])]);
}

#[test]
fn configurations_that_do_not_fit() {
    let model = adder(1.0);
    let cases = [
        ("sequence_batching {}", "/m/config.pbtxt:1: sequence_batching is not supported"),
        ("\nname: \"other", "/m/config.pbtxt:2:7: the string is not closed"),
        ("name: 'other'", "/m/config.pbtxt: names the model \"other\", but its folder is \"m\""),
        (
            "\n\ninput { name: 'z' data_type: TYPE_FP32 dims: 2 }",
            "/m/config.pbtxt:3: input \"z\" is not in the model, which has x",
        ),
        (
            "input { name: 'x' data_type: TYPE_INT64 dims: [-1, 2] }",
            "/m/config.pbtxt:1: input \"x\" is INT64 here and FP32 in the model",
        ),
        (
            "max_batch_size: 4\ninput { name: 'x' data_type: TYPE_FP32 dims: 3 }",
            "/m/config.pbtxt:2: input \"x\" is [3] here and [2] in the model",
        ),
        (
            "max_batch_size: 4 output { name: 'y' data_type: TYPE_FP32 dims: [1, 2] }",
            "/m/config.pbtxt:1: output \"y\" is [1, 2] here and [2] in the model",
        ),
        (
            "input [ { name: 'x' data_type: TYPE_FP32 dims: 2 }, { name: 'x' data_type: TYPE_FP32 dims: 2 } ]",
            "/m/config.pbtxt:1: input \"x\" is described twice",
        ),
        ("max_batch_size: 4 model_warmup { name: 'w' }", "/m/config.pbtxt:1: model_warmup \"w\" lacks input \"x\""),
        (
            "max_batch_size: 4 model_warmup { batch_size: 5 }",
            "/m/config.pbtxt:1: model_warmup \"\" has batch_size 5, where 4 is the most",
        ),
        (
            "dynamic_batching { preferred_batch_size: 5 }",
            "/m/config.pbtxt: dynamic_batching.preferred_batch_size 5 exceeds the largest batch, 4",
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(config_fault(&model, config), expected);
    }
    let fixed = Graph::default().input("x", FLOAT, &[D::N(1), D::N(2)]).node("Relu", &["x"], &["y"], vec![]).output(
        "y",
        FLOAT,
        &[D::N(1), D::N(2)],
    );
    assert_eq!(
        config_fault(&fixed, "max_batch_size: 1"),
        "/m/config.pbtxt: max_batch_size is above 0, but input \"x\" of the model has 1 as its first dimension"
    );
    assert_eq!(
        config_fault(&fixed, "dynamic_batching {}"),
        "/m/config.pbtxt: dynamic_batching is asked for, but the model has no batch dimension"
    );
    let two = fixed.input("z", INT64, &[D::N(1)]);
    assert_eq!(
        config_fault(&two, "input { name: 'x' data_type: TYPE_FP32 dims: [1, 2] }"),
        "/m/config.pbtxt: input \"z\" of the model is not described"
    );
}

#[test]
fn shapes_that_only_the_configuration_knows() {
    let graph = Graph::default()
        .input_without_shape("x", FLOAT)
        .node("Relu", &["x"], &["y"], vec![])
        .output_without_shape("y", FLOAT);
    let config = "max_batch_size: 2 input { name: 'x' data_type: TYPE_FP32 dims: [3] }";
    let model = load(&graph, Some(config)).unwrap();
    assert_eq!(model.spec().outputs[0].dims, [None, Some(3)]);
    assert!(file_fault(&graph.file()).ends_with("does not say what shape input \"x\" has; config.pbtxt can"));
}
