//! ONNX models computed by tract on slots of an arena: one and several inputs, batched and not, fixed and varying.

mod model_support;

use std::sync::Arc;

use host_agent::model::spec::TensorSpec;
use host_agent::runtime::Factory;
use host_agent::warmup::warm_up;
use host_agent::worker::Instance;
use model_support::onnx::{Attr, BOOL, D, FLOAT, Graph, INT64, UINT8};
use model_support::rig::{Data, Request, Rig, plain};
use model_support::{load_model, put};
use splitrpc_wire::{DType, Status};

fn load(graph: &Graph, config: Option<&str>) -> Arc<dyn Factory> {
    let repository = tempfile::tempdir().unwrap();
    load_model(&put(repository.path(), "m", &graph.file(), config)).unwrap()
}

type Dims = Vec<Vec<Option<u32>>>;

/// The dimensions of a model's inputs and outputs.
fn dims(model: &dyn Factory) -> (Dims, Dims) {
    let of = |tensors: &[TensorSpec]| tensors.iter().map(|t| t.dims.clone()).collect();
    (of(&model.spec().inputs), of(&model.spec().outputs))
}

/// x[N, 3] times a matrix, and x plus one.
fn dense() -> Graph {
    Graph::default()
        .input("x", FLOAT, &[D::S("N"), D::N(3)])
        .floats("w", &[3, 2], &[1.0, 0.5, -2.0, 4.0, 3.0, -1.0])
        .floats("one", &[1], &[1.0])
        .node("MatMul", &["x", "w"], &["y"], vec![])
        .node("Add", &["x", "one"], &["z"], vec![])
        .output("y", FLOAT, &[D::S("N"), D::N(2)])
        .output("z", FLOAT, &[D::S("N"), D::N(3)])
}

fn row(seed: f32) -> Data {
    Data::f32(&[1, 3], &[seed, seed * 2.0 - 1.0, 0.25 - seed])
}

#[test]
fn batched_rows_are_what_they_are_alone() {
    let model = load(&dense(), None);
    assert_eq!(model.spec().max_batch, 4);
    assert!(model.spec().batching.is_some());
    assert_eq!(dims(&*model), (vec![vec![None, Some(3)]], vec![vec![None, Some(2)], vec![None, Some(3)]]));
    let mut rig = Rig::new(&*model);
    let alone: Vec<_> =
        [0.0, 1.0, 2.5, -3.0].map(|seed| rig.one(Request { rows: 1, inputs: vec![row(seed)] }).unwrap()).into();
    assert_eq!(alone[1][0].to_f32(), [1.0 - 2.0 - 2.25, 0.5 + 4.0 + 0.75]);
    assert_eq!(alone[1][1].to_f32(), [2.0, 2.0, 0.25]);

    let requests = [0.0, 1.0, 2.5, -3.0].map(|seed| Request { rows: 1, inputs: vec![row(seed)] });
    let together = rig.launch(&requests).unwrap();
    assert_eq!(together.outputs, alone);
    assert!(together.in_place);
    assert_eq!(together.copied_bytes, 4 * (12 + 8 + 12));
    // Three is not a size that a plan was made for.
    assert_eq!(rig.launch(&requests[..3]).unwrap().outputs, alone[..3]);
}

#[test]
fn requests_of_several_rows_share_a_launch() {
    let mut rig = Rig::new(&*load(&dense(), None));
    let pair = Data::f32(&[2, 3], &[row(1.0).to_f32(), row(2.0).to_f32()].concat());
    let requests = [
        Request { rows: 1, inputs: vec![row(0.5)] },
        Request { rows: 2, inputs: vec![pair] },
        Request { rows: 1, inputs: vec![row(9.0)] },
    ];
    let together = rig.launch(&requests).unwrap().outputs;
    assert_eq!(together[1][0].dims, [2, 2]);
    let alone: Vec<_> = [0.5, 1.0, 2.0, 9.0]
        .iter()
        .flat_map(|&s| rig.one(Request { rows: 1, inputs: vec![row(s)] }).unwrap()[0].to_f32())
        .collect();
    assert_eq!(together.iter().flat_map(|r| r[0].to_f32()).collect::<Vec<_>>(), alone);
}

#[test]
fn a_fixed_first_dimension_is_not_a_batch() {
    let graph = Graph::default()
        .input("a", FLOAT, &[D::N(1), D::N(2)])
        .input("b", FLOAT, &[D::N(2)])
        .node("Mul", &["a", "b"], &["y"], vec![])
        .output("y", FLOAT, &[D::N(1), D::N(2)]);
    let model = load(&graph, None);
    assert_eq!((model.spec().max_batch, model.spec().batching.clone()), (0, None));
    let mut rig = Rig::new(&*model);
    let request = || plain(vec![Data::f32(&[1, 2], &[2.0, 3.0]), Data::f32(&[2], &[5.0, 7.0])]);
    assert_eq!(rig.one(request()).unwrap(), [Data::f32(&[1, 2], &[10.0, 21.0])]);
    // Several in one launch are computed one after the other.
    assert_eq!(rig.launch(&[request(), request()]).unwrap().outputs.len(), 2);
}

#[test]
fn varying_dimensions_come_from_the_request() {
    let graph = Graph::default()
        .input("x", FLOAT, &[D::S("N"), D::S("length")])
        .int64s("axes", &[1], &[1])
        .node("ReduceSum", &["x", "axes"], &["sum"], vec![Attr::Int("keepdims", 0)])
        .node("Relu", &["x"], &["positive"], vec![])
        .output("sum", FLOAT, &[D::S("N")])
        .output("positive", FLOAT, &[D::S("N"), D::S("length")]);
    let model = load(&graph, None);
    assert_eq!(model.spec().max_batch, 4);
    assert_eq!(dims(&*model).1, [vec![None], vec![None, None]]);
    let mut rig = Rig::new(&*model);
    for length in [3u32, 1, 40, 3, 7] {
        let values: Vec<f32> = (0..2 * length).map(|i| i as f32 - 2.0).collect();
        let request = Request { rows: 2, inputs: vec![Data::f32(&[2, length], &values)] };
        let answer = rig.launch(&[request]).unwrap();
        assert!(!answer.in_place);
        let outputs = &answer.outputs[0];
        let sums: Vec<f32> = values.chunks(length as usize).map(|row| row.iter().sum()).collect();
        assert_eq!(outputs[0], Data::f32(&[2], &sums));
        assert_eq!(outputs[1], Data::f32(&[2, length], &values.iter().map(|v| v.max(0.0)).collect::<Vec<_>>()));
    }
}

#[test]
fn a_size_known_only_after_computing() {
    let graph = Graph::default().input("x", FLOAT, &[D::N(5)]).node("NonZero", &["x"], &["where"], vec![]).output(
        "where",
        INT64,
        &[D::N(1), D::S("found")],
    );
    let model = load(&graph, None);
    assert_eq!(dims(&*model).1, [vec![Some(1), None]]);
    let mut rig = Rig::new(&*model);
    let answer = rig.one(plain(vec![Data::f32(&[5], &[0.0, 1.0, 0.0, 2.0, 3.0])])).unwrap();
    assert_eq!(answer, [Data::i64(&[1, 3], &[1, 3, 4])]);
    let none = rig.one(plain(vec![Data::f32(&[5], &[0.0; 5])])).unwrap();
    assert_eq!(none, [Data::i64(&[1, 0], &[])]);
}

#[test]
fn sums_of_64_bits_are_refused_rather_than_computed_with_32() {
    let sum = |kind| {
        Graph::default()
            .input("x", kind, &[D::S("N"), D::N(3)])
            .node("ReduceSum", &["x"], &["total"], vec![Attr::Int("keepdims", 1)])
            .output("total", kind, &[D::N(1), D::N(1)])
    };
    let repository = tempfile::tempdir().unwrap();
    let refused = load_model(&put(repository.path(), "m", &sum(INT64).file(), None));
    let error = refused.expect_err("it must not be served").to_string();
    assert!(error.contains("64-bit integers"), "{error}");
    load(&sum(FLOAT), None);
}

/// Why a model with this graph is not served.
fn refusal(graph: &Graph) -> String {
    let repository = tempfile::tempdir().unwrap();
    let error = load_model(&put(repository.path(), "m", &graph.file(), None)).expect_err("it must not be served");
    assert!(error.path.ends_with("m/1/model.onnx"), "{error}");
    error.to_string()
}

#[test]
fn types_that_an_operator_has_nothing_for_are_refused_by_node() {
    let table = |n| {
        let graph = Graph::default().input("x", INT64, &[n, D::N(3)]).int64s("w", &[3, 2], &[1, 2, 3, 4, 5, 6]);
        graph.node("MatMul", &["x", "w"], &["y"], vec![]).output("y", INT64, &[n, D::N(2)])
    };
    let both = Graph::default().input("x", INT64, &[D::S("N"), D::N(3)]).input("w", INT64, &[D::N(3), D::S("M")]);
    let both = both.node("MatMul", &["x", "w"], &["y"], vec![]).output("y", INT64, &[D::S("N"), D::S("M")]);
    for graph in [table(D::S("N")), table(D::N(2)), both] {
        let error = refusal(&graph);
        assert!(error.contains("node \"y\" (MatMul) multiplies matrices of INT64"), "{error}");
    }
    for op in ["Sigmoid", "Exp", "Sqrt"] {
        let graph = Graph::default().input("x", INT64, &[D::S("N"), D::N(3)]).node(op, &["x"], &["y"], vec![]);
        let error = refusal(&graph.output("y", INT64, &[D::S("N"), D::N(3)]));
        assert!(error.contains(&format!("node \"y\" ({op}) cannot be computed with INT64")), "{error}");
    }
}

#[test]
fn an_index_past_its_table_is_its_own_requests_fault() {
    let graph = Graph::default()
        .input("at", INT64, &[D::S("N"), D::N(1)])
        .floats(
            "table",
            &[4, 4],
            &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0],
        )
        .node("Gather", &["table", "at"], &["y"], vec![])
        .output("y", FLOAT, &[D::S("N"), D::N(1), D::N(4)]);
    let model = load(&graph, None);
    assert_eq!(model.spec().max_batch, 4);
    let mut rig = Rig::new(&*model);
    let ask = |index: i64| Request { rows: 1, inputs: vec![Data::i64(&[1, 1], &[index])] };
    // The last is one that a product of 64 bits would bring back into the table.
    for wrong in [4, -5, i64::MAX, i64::MIN, 1 << 62] {
        let (each, ..) = rig.each(&[ask(1), ask(wrong), ask(-1)]);
        assert_eq!(each[0].as_ref().unwrap()[0].to_f32(), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(each[2].as_ref().unwrap()[0].to_f32(), [12.0, 13.0, 14.0, 15.0]);
        let (status, text) = each[1].as_ref().unwrap_err();
        assert_eq!(*status, Status::BadTensor);
        assert_eq!(*text, format!("model \"m\": node \"y\" (Gather): index {wrong} is outside of -4 to 3"));
    }
    assert!(rig.launch(&[ask(0), ask(3)]).is_ok());
}

#[test]
fn every_operator_that_takes_indexes_looks_at_them() {
    let two = [D::N(2), D::N(2)];
    let nodes: [(&str, &[&str], i64); 5] = [
        ("Gather", &["data", "at"], 2),
        ("GatherElements", &["data", "at"], 2),
        ("GatherND", &["data", "at"], 1 << 32),
        ("ScatterElements", &["data", "at", "data"], 2),
        ("ScatterND", &["data", "at", "updates"], 2),
    ];
    for (op, inputs, wrong) in nodes {
        let graph = Graph::default()
            .input("data", FLOAT, &two)
            .input("at", INT64, &two)
            .floats("updates", &[2], &[7.0, 8.0])
            .node(op, inputs, &["y"], vec![])
            .output_without_shape("y", FLOAT);
        let mut rig = Rig::new(&*load(&graph, Some("max_batch_size: 0")));
        let mut ask = |at: [i64; 4]| rig.one(plain(vec![Data::f32(&[2, 2], &[1.0; 4]), Data::i64(&[2, 2], &at)]));
        assert!(ask([0, 1, 1, 0]).is_ok(), "{op}");
        let (status, text) = ask([0, 1, wrong, 0]).unwrap_err();
        assert_eq!(status, Status::BadTensor, "{op}");
        assert!(text.contains(&format!("node \"y\" ({op}): index {wrong} is outside of")), "{text}");
    }
}

#[test]
fn more_values_than_there_are_are_not_made_up() {
    let graph = Graph::default()
        .input("x", FLOAT, &[D::N(4)])
        .input("k", INT64, &[D::N(1)])
        .node("TopK", &["x", "k"], &["y", "at"], vec![])
        .output_without_shape("y", FLOAT)
        .output_without_shape("at", INT64);
    let mut rig = Rig::new(&*load(&graph, Some("max_batch_size: 0")));
    let mut ask = |k: i64| rig.one(plain(vec![Data::f32(&[4], &[2.0, 9.0, 4.0, 7.0]), Data::i64(&[1], &[k])]));
    assert_eq!(ask(2).unwrap()[0].to_f32(), [9.0, 7.0]);
    assert_eq!(ask(4).unwrap()[0].to_f32(), [9.0, 7.0, 4.0, 2.0]);
    for wrong in [5, -1, i64::MAX, i64::MIN] {
        let (status, text) = ask(wrong).unwrap_err();
        assert_eq!(status, Status::BadTensor);
        assert!(text.contains(&format!("k is {wrong}, and there are 4 values")), "{text}");
    }
}

#[test]
fn a_range_is_no_longer_than_it_may_be() {
    let graph = Graph::default()
        .input("start", INT64, &[])
        .input("limit", INT64, &[])
        .input("delta", INT64, &[])
        .node("Range", &["start", "limit", "delta"], &["y"], vec![])
        .output_without_shape("y", INT64);
    let mut rig = Rig::new(&*load(&graph, Some("max_batch_size: 0")));
    let mut ask = |bounds: [i64; 3]| rig.one(plain(bounds.map(|bound| Data::i64(&[], &[bound])).into()));
    assert_eq!(ask([1, 6, 2]).unwrap()[0].to_i64(), [1, 3, 5]);
    assert_eq!(ask([3, 0, -2]).unwrap()[0].to_i64(), [3, 1]);
    assert!(ask([3, 0, 1]).unwrap()[0].to_i64().is_empty());
    for (wrong, why) in [
        ([0, 1_000_000_000_000, 1], "there are 1000000000000 values from 0 to 1000000000000 in steps of 1"),
        ([i64::MIN, i64::MAX, 1], "where 8388608 may be"),
        ([i64::MAX, i64::MIN, -1], "where 8388608 may be"),
        ([0, 8_388_609, 1], "where 8388608 may be"),
        ([0, 5, 0], "there are no values from 0 to 5 in steps of 0"),
    ] {
        let (status, text) = ask(wrong).unwrap_err();
        assert_eq!(status, Status::BadTensor);
        assert!(text.starts_with("model \"m\": node \"y\" (Range): there are ") && text.contains(why), "{text}");
    }
}

#[test]
fn a_value_beside_a_size_is_right_or_refused() {
    for (op, of_3) in [("Mul", 12), ("Add", 7), ("Sub", 1)] {
        let graph = Graph::default()
            .input("x", FLOAT, &[D::S("K")])
            .input("n", INT64, &[D::N(1)])
            .node("Shape", &["x"], &["size"], vec![])
            .node(op, &["size", "n"], &["y"], vec![])
            .output("y", INT64, &[D::N(1)]);
        let mut rig = Rig::new(&*load(&graph, Some("max_batch_size: 0")));
        let mut ask = |n: i64| rig.one(plain(vec![Data::f32(&[4], &[1.0; 4]), Data::i64(&[1], &[n])]));
        assert_eq!(ask(3).unwrap()[0].to_i64(), [of_3]);
        assert!(ask(-3).is_ok());
        for wrong in [(1 << 32) + 2, 1 << 40, i64::MIN] {
            let (status, text) = ask(wrong).unwrap_err();
            assert!(status == Status::BadTensor && text.contains(&format!("{wrong} is put beside sizes")), "{text}");
        }
    }
}

#[test]
fn a_range_to_a_multiple_of_a_size_is_no_longer_than_it_may_be() {
    let graph = Graph::default()
        .input("x", FLOAT, &[D::S("K")])
        .input("n", INT64, &[D::N(1)])
        .int64s("zero", &[], &[0])
        .int64s("one", &[], &[1])
        .int64s("axis", &[1], &[0])
        .node("Shape", &["x"], &["size"], vec![])
        .node("Mul", &["size", "n"], &["many"], vec![])
        .node("Squeeze", &["many", "axis"], &["limit"], vec![])
        .node("Range", &["zero", "limit", "one"], &["r"], vec![])
        .node("ReduceMax", &["r"], &["y"], vec![Attr::Int("keepdims", 0)])
        .output_without_shape("y", INT64);
    let mut rig = Rig::new(&*load(&graph, Some("max_batch_size: 0")));
    let mut ask = |n: i64| rig.one(plain(vec![Data::f32(&[4], &[1.0; 4]), Data::i64(&[1], &[n])]));
    assert_eq!(ask(2).unwrap()[0].to_i64(), [7]);
    let (status, text) = ask(150_000_000).unwrap_err();
    assert!(status == Status::BadTensor && text.contains("there are 600000000 values"), "{text}");
}

#[test]
fn what_is_made_of_a_range_is_no_larger_than_what_can_be_sent() {
    let graph = Graph::default()
        .input("limit", INT64, &[])
        .int64s("zero", &[], &[0])
        .int64s("one", &[], &[1])
        .int64s("last", &[1], &[1])
        .node("Range", &["zero", "limit", "one"], &["row"], vec![])
        .node("Unsqueeze", &["row", "last"], &["column"], vec![])
        .node("Add", &["row", "column"], &["y"], vec![])
        .output_without_shape("y", INT64);
    let mut rig = Rig::new(&*load(&graph, Some("max_batch_size: 0")));
    let mut ask = |limit: i64| rig.one(plain(vec![Data::i64(&[], &[limit])]));
    assert_eq!(ask(2).unwrap()[0].to_i64(), [0, 1, 1, 2]);
    let (status, text) = ask(100_000).unwrap_err();
    assert_eq!(status, Status::BadTensor);
    assert!(text.contains("node \"y\" (Add): a tensor of [100000, 100000] with 8 bytes each"), "{text}");
}

#[test]
fn sizes_that_a_requests_values_say_are_refused_by_node() {
    for (dims, bounds) in [(D::N(4), ["at", "to"]), (D::S("K"), ["at", "to"]), (D::N(4), ["one", "to"])] {
        let graph = Graph::default()
            .input("x", FLOAT, &[dims])
            .input("at", INT64, &[D::N(1)])
            .input("to", INT64, &[D::N(1)])
            .int64s("one", &[1], &[1])
            .node("Slice", &["x", bounds[0], bounds[1]], &["y"], vec![])
            .output_without_shape("y", FLOAT);
        let text = refusal(&graph);
        assert!(text.contains("node \"y\" (Slice) cuts at places that a request's values say"), "{text}");
    }
    let body = Graph::default()
        .input("n", INT64, &[])
        .int64s("zero", &[], &[0])
        .int64s("one", &[], &[1])
        .node("Range", &["zero", "n", "one"], &["many"], vec![])
        .node("ReduceMax", &["many"], &["most"], vec![Attr::Int("keepdims", 0)])
        .output("most", INT64, &[]);
    let graph = Graph::default()
        .input("limits", INT64, &[D::N(3)])
        .node("Scan", &["limits"], &["y"], vec![Attr::Graph("body", body), Attr::Int("num_scan_inputs", 1)])
        .output_without_shape("y", INT64);
    let text = refusal(&graph);
    assert!(text.contains("(Range) is in the body of another node"), "{text}");
}

#[test]
fn a_slice_whose_bounds_follow_from_a_shape_is_computed() {
    let graph = Graph::default()
        .input("x", FLOAT, &[D::S("K")])
        .int64s("one", &[1], &[1])
        .node("Shape", &["x"], &["size"], vec![])
        .node("Sub", &["size", "one"], &["end"], vec![])
        .node("Slice", &["x", "one", "end"], &["y"], vec![])
        .output_without_shape("y", FLOAT);
    let mut rig = Rig::new(&*load(&graph, Some("max_batch_size: 0")));
    let answer = rig.one(plain(vec![Data::f32(&[4], &[1.0, 2.0, 3.0, 4.0])])).unwrap();
    assert_eq!(answer[0].to_f32(), [2.0, 3.0]);
}

#[test]
fn a_model_that_does_not_take_zeros_is_warmed_up_with_something_else() {
    let whole = [D::N(4)];
    let graph = Graph::default()
        .input("a", INT64, &whole)
        .input("b", INT64, &whole)
        .node("Div", &["a", "b"], &["y"], vec![])
        .output("y", INT64, &whole);
    let factory: Arc<dyn Factory> = load(&graph, Some("max_batch_size: 0"));
    let mut instance = Instance::new(&factory).unwrap();
    warm_up(&mut |job| job.run(&mut instance), factory.spec()).unwrap();
}

#[test]
fn what_a_model_refuses_names_the_node() {
    let graph = Graph::default()
        .input("a", INT64, &[D::N(2)])
        .input("b", INT64, &[D::N(2)])
        .node("Div", &["a", "b"], &["y"], vec![])
        .output("y", INT64, &[D::N(2)]);
    let mut rig = Rig::new(&*load(&graph, None));
    let mut ask = |by: i64| rig.one(plain(vec![Data::i64(&[2], &[6, 4]), Data::i64(&[2], &[by, 1])]));
    assert_eq!(ask(2).unwrap()[0].to_i64(), [3, 4]);
    let (status, text) = ask(0).unwrap_err();
    assert_eq!(status, Status::ModelFailed);
    assert!(text.starts_with("model \"m\": node \"y\" (Div): "), "{text}");
}

#[test]
fn every_element_type_passes_through() {
    let kinds = [
        (FLOAT, DType::Fp32),
        (UINT8, DType::Uint8),
        (3, DType::Int8),
        (4, DType::Uint16),
        (5, DType::Int16),
        (6, DType::Int32),
        (INT64, DType::Int64),
        (10, DType::Fp16),
        (11, DType::Fp64),
        (12, DType::Uint32),
        (13, DType::Uint64),
        (BOOL, DType::Bool),
    ];
    for (kind, dtype) in kinds {
        let graph = Graph::default()
            .input("x", kind, &[D::S("N"), D::N(2)])
            .node("Concat", &["x", "x"], &["y"], vec![Attr::Int("axis", 1)])
            .output("y", kind, &[D::S("N"), D::N(4)]);
        let model = load(&graph, None);
        assert_eq!(model.spec().inputs[0].dtype, dtype);
        let size = dtype.size().unwrap() as usize;
        let bytes: Vec<u8> =
            (0..2 * size).map(|i| if dtype == DType::Bool { i as u8 & 1 } else { i as u8 + 1 }).collect();
        let request = Request { rows: 1, inputs: vec![Data { dtype, dims: vec![1, 2], bytes: bytes.clone() }] };
        let answer = Rig::new(&*model).one(request).unwrap();
        assert_eq!(answer, [Data { dtype, dims: vec![1, 4], bytes: [&bytes[..], &bytes[..]].concat() }], "{dtype:?}");
    }
}

#[test]
fn a_bool_is_one_or_zero_whatever_the_client_sends() {
    let graph = Graph::default()
        .input("x", BOOL, &[D::N(4)])
        .node("Not", &["x"], &["y"], vec![])
        .node("Not", &["y"], &["z"], vec![])
        .output("y", BOOL, &[D::N(4)])
        .output("z", BOOL, &[D::N(4)]);
    let mut rig = Rig::new(&*load(&graph, None));
    let answer = rig.one(plain(vec![Data { dtype: DType::Bool, dims: vec![4], bytes: vec![0, 1, 2, 255] }])).unwrap();
    assert_eq!(answer[0].bytes, [1, 0, 0, 0]);
    assert_eq!(answer[1].bytes, [0, 1, 1, 1]);
}

#[test]
fn an_input_that_is_an_output_and_a_shape_that_is_data() {
    let graph = Graph::default()
        .input("x", FLOAT, &[D::S("a"), D::N(2)])
        .node("Identity", &["x"], &["same"], vec![])
        .node("Shape", &["x"], &["shape"], vec![])
        .output("same", FLOAT, &[D::S("a"), D::N(2)])
        .output("shape", INT64, &[D::N(2)]);
    let model = load(&graph, None);
    assert_eq!(model.spec().max_batch, 0);
    let mut rig = Rig::new(&*model);
    for rows in [1u32, 3, 3, 2] {
        let data = Data::f32(&[rows, 2], &vec![rows as f32; 2 * rows as usize]);
        let answer = rig.one(plain(vec![data.clone()])).unwrap();
        assert_eq!(answer, [data, Data::i64(&[2], &[rows.into(), 2])]);
    }
}

#[test]
fn a_reshape_between_wire_and_model() {
    let graph = Graph::default()
        .input("x", FLOAT, &[D::S("N"), D::N(1), D::N(2), D::N(2)])
        .node("Transpose", &["x"], &["y"], vec![Attr::Ints("perm", &[0, 1, 3, 2])])
        .output("y", FLOAT, &[D::S("N"), D::N(1), D::N(2), D::N(2)]);
    let config = "max_batch_size: 3
        input { name: 'x' data_type: TYPE_FP32 dims: [2, 2] reshape { shape: [1, 2, 2] } }
        output { name: 'y' data_type: TYPE_FP32 dims: 4 reshape { shape: [1, 2, 2] } }";
    let model = load(&graph, Some(config));
    assert_eq!(dims(&*model), (vec![vec![None, Some(2), Some(2)]], vec![vec![None, Some(4)]]));
    assert!(model.spec().batching.is_none());
    let request = Request { rows: 1, inputs: vec![Data::f32(&[1, 2, 2], &[1.0, 2.0, 3.0, 4.0])] };
    assert_eq!(Rig::new(&*model).one(request).unwrap(), [Data::f32(&[1, 4], &[1.0, 3.0, 2.0, 4.0])]);
}

#[test]
fn rows_that_depend_on_one_another_are_not_batched_unasked() {
    let graph = Graph::default()
        .input("x", FLOAT, &[D::S("steps"), D::N(2)])
        .node("Softmax", &["x"], &["y"], vec![Attr::Int("axis", 0)])
        .output("y", FLOAT, &[D::S("steps"), D::N(2)]);
    assert_eq!(load(&graph, None).spec().max_batch, 0);
    // Asked for in so many words, it is.
    assert_eq!(load(&graph, Some("max_batch_size: 2")).spec().max_batch, 2);
}

#[test]
fn bad_requests_leave_the_runtime_usable() {
    let graph = Graph::default()
        .input("x", FLOAT, &[D::S("n")])
        .int64s("at", &[1], &[6])
        .node("Gather", &["x", "at"], &["y"], vec![])
        .output("y", FLOAT, &[D::N(1)]);
    let model = load(&graph, None);
    let mut rig = Rig::new(&*model);
    let request = |n: u32| plain(vec![Data::f32(&[n], &(0..n).map(|i| i as f32).collect::<Vec<_>>())]);
    for _ in 0..2 {
        assert!(rig.one(request(3)).is_err());
        assert_eq!(rig.one(request(8)).unwrap(), [Data::f32(&[1], &[6.0])]);
    }
}

#[test]
fn warm_up_requests_of_the_configuration_are_computed() {
    let config = "max_batch_size: 4 model_warmup { name: 'w' batch_size: 4 count: 2
        inputs { key: 'x' value { data_type: TYPE_FP32 dims: 3 random_data: true } } }";
    assert!(load(&dense(), Some(config)).instance().is_ok());
}

#[test]
fn models_of_which_several_instances_compute_at_once() {
    let model = load(&dense(), None);
    let expected = Rig::new(&*model).one(Request { rows: 1, inputs: vec![row(4.0)] }).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut rig = Rig::new(&*model);
                for rows in [1, 3, 2, 4] {
                    let requests: Vec<_> = (0..rows).map(|_| Request { rows: 1, inputs: vec![row(4.0)] }).collect();
                    let outputs = rig.launch(&requests).unwrap().outputs;
                    assert!(outputs.iter().all(|o| *o == expected));
                }
            });
        }
    });
}

#[test]
fn a_body_that_slices_at_an_outer_constant_is_computed() {
    let body = Graph::default()
        .input("row", FLOAT, &[D::N(3)])
        .node("Slice", &["row", "one", "two"], &["cut"], vec![])
        .output("cut", FLOAT, &[D::N(1)]);
    let graph = Graph::default()
        .input("x", FLOAT, &[D::N(2), D::N(3)])
        .int64s("one", &[1], &[1])
        .int64s("two", &[1], &[2])
        .node("Scan", &["x"], &["y"], vec![Attr::Graph("body", body), Attr::Int("num_scan_inputs", 1)])
        .output_without_shape("y", FLOAT);
    let mut rig = Rig::new(&*load(&graph, Some("max_batch_size: 0")));
    let answer = rig.one(plain(vec![Data::f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])])).unwrap();
    assert_eq!(answer[0].to_f32(), [2.0, 5.0]);
}
