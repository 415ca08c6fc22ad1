use super::*;

fn fails(text: &str) -> String {
    let error = parse(text).unwrap_err();
    format!("{}: {error}", error.line)
}

const FULL: &str = r#"
# A configuration with everything that is honoured.
name: "dense"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 224 ] reshape { shape: [ 1, 3, 224, 224 ] } },
  { name: "length" data_type: TYPE_INT64 dims: -1 optional: false }
]
output { name: "fc" data_type: 11 dims: [ 1000 ] }
version_policy: { specific: { versions: [ 2 ] } }
dynamic_batching {
  preferred_batch_size: [ 4, 2, 4 ]
  max_queue_delay_microseconds: 100
  preserve_ordering: false
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { max_queue_size: 64 timeout_action: REJECT allow_timeout_override: false }
}
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_AUTO name: "x" } ]
default_model_filename: "net.onnx"
model_warmup {
  name: "zeroes" batch_size: 4 count: 3
  inputs { key: "data_0" value: { data_type: TYPE_FP32 dims: [ 3, 224, 224 ] zero_data: true } }
  inputs { key: "length" value: { data_type: TYPE_INT64 dims: 1 random_data: true } }
}
parameters { key: "owner" value: { string_value: "vision" } }
optimization {}
response_cache { enable: false }
model_transaction_policy { decoupled: false }
"#;

#[test]
fn everything_that_is_honoured() {
    let config = parse(FULL).unwrap();
    assert_eq!(config.name.as_deref(), Some("dense"));
    assert_eq!(config.max_batch_size, Some(8));
    assert_eq!(
        config.inputs,
        [
            TensorConfig {
                name: "data_0".into(),
                dtype: DType::Fp32,
                dims: vec![Some(3), Some(224), Some(224)],
                reshape: Some(vec![1, 3, 224, 224]),
                line: 7,
            },
            TensorConfig { name: "length".into(), dtype: DType::Int64, dims: vec![None], reshape: None, line: 8 },
        ]
    );
    assert_eq!(config.outputs[0].dtype, DType::Fp32);
    assert_eq!(config.version_policy, VersionPolicy::Specific(vec![2]));
    assert_eq!(
        config.dynamic_batching,
        Some(DynamicBatching {
            batching: BatchingSpec { max_queue_delay_us: 100, preferred: vec![2, 4], max_queue: 64 },
            priority_levels: 3,
            default_priority: 2,
        })
    );
    assert_eq!(config.instances, 3);
    assert_eq!(config.default_model_filename.as_deref(), Some("net.onnx"));
    let warmup = &config.warmup[0];
    assert_eq!((warmup.batch_size, warmup.count, warmup.inputs.len()), (4, 3, 2));
    assert!(!warmup.inputs[0].random && warmup.inputs[1].random);
    assert_eq!(config.parameters["owner"], "vision");
}

#[test]
fn an_empty_file_says_nothing() {
    assert_eq!(parse("").unwrap(), ModelConfig::default());
    assert_eq!(parse("dynamic_batching {}").unwrap().dynamic_batching, Some(DynamicBatching::default()));
    assert_eq!(parse("version_policy { all {} }").unwrap().version_policy, VersionPolicy::All);
    assert_eq!(
        parse("version_policy { latest { num_versions: 2 } }").unwrap().version_policy,
        VersionPolicy::Latest(2)
    );
    assert_eq!(parse("instance_group {}").unwrap().instances, 1);
}

#[test]
fn unsupported_fields_are_refused_by_name() {
    let cases = [
        ("\n\nsequence_batching { max_sequence_idle_microseconds: 1 }", "3: sequence_batching is not supported"),
        ("ensemble_scheduling {}", "1: ensemble_scheduling is not supported"),
        ("input { name: 'x'\n allow_ragged_batch: true }", "2: input.allow_ragged_batch is not supported"),
        ("output { label_filename: 'l' }", "1: output.label_filename is not supported"),
        ("optimization { cuda { graphs: true } }", "1: optimization.cuda is not supported"),
        ("response_cache { enable: true }", "1: response_cache.enable is not supported"),
        ("model_transaction_policy { decoupled: 1 }", "1: model_transaction_policy.decoupled is not supported"),
        ("dynamic_batching { preserve_ordering: true }", "1: dynamic_batching.preserve_ordering is not supported"),
        (
            "dynamic_batching { priority_queue_policy { key: 1 value {} } }",
            "1: dynamic_batching.priority_queue_policy is not supported",
        ),
        (
            "dynamic_batching { default_queue_policy { timeout_action: DELAY } }",
            "1: dynamic_batching.default_queue_policy.timeout_action is one of REJECT; DELAY is not supported",
        ),
        (
            "dynamic_batching { default_queue_policy { default_timeout_microseconds: 5 } }",
            "1: dynamic_batching.default_queue_policy.default_timeout_microseconds is not supported; \
             requests bring their own deadline",
        ),
        (
            "instance_group { kind: KIND_TPU }",
            "1: instance_group.kind is one of KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL; KIND_TPU is not supported",
        ),
        ("instance_group { gpus: [0] }", "1: instance_group.gpus is not supported"),
        ("instance_group { rate_limiter {} }", "1: instance_group.rate_limiter is not supported"),
        (
            "backend: 'tensorflow'",
            "1: backend \"tensorflow\" is not supported, only onnxruntime and tract and cuda and pytorch",
        ),
        (
            "platform: 'tensorrt_plan'",
            "1: platform \"tensorrt_plan\" is not supported, only onnxruntime_onnx and torch_aoti",
        ),
        (
            "parameters { key: 'intra_op_thread_count' value { string_value: '2' } }",
            "1: parameters[\"intra_op_thread_count\"] is not supported",
        ),
        (
            "model_warmup { inputs { key: 'x' value { input_data_file: 'f' } } }",
            "1: model_warmup.inputs[\"x\"].input_data_file is not supported",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(fails(text), expected);
    }
}

#[test]
fn unknown_and_doubled_fields_are_refused() {
    assert_eq!(fails("max_batch: 4"), "1: max_batch is not a field of the model configuration");
    assert_eq!(fails("input { nam: 'x' }"), "1: input.nam is not a field of the model configuration");
    assert_eq!(
        fails("version_policy { newest {} }"),
        "1: version_policy.newest is not a field of the model configuration"
    );
    assert_eq!(
        fails("dynamic_batching {\n default_queue_policy {\n max_queue: 1 } }"),
        "3: dynamic_batching.default_queue_policy.max_queue is not a field of the model configuration"
    );
    assert_eq!(fails("name: 'a'\nname: 'b'"), "2: name is given twice");
    assert_eq!(fails("version_policy { all {} latest {} }"), "1: version_policy.latest is a second policy");
}

#[test]
fn values_out_of_range_are_refused() {
    assert_eq!(fails("max_batch_size: -1"), "1: max_batch_size must be a whole number from 0 to 65535");
    assert_eq!(fails("max_batch_size: '4'"), "1: max_batch_size must be a whole number from 0 to 65535");
    assert_eq!(fails("name: dense"), "1: name must be a string in quotes");
    assert_eq!(fails("name: '\\xff'"), "1: name must be a string in UTF-8");
    assert_eq!(fails("input: 3"), "1: input must be a message in braces");
    assert_eq!(fails("input { data_type: TYPE_INT8 }"), "1: input has no name");
    assert_eq!(fails("input { name: 'x' }"), "1: input \"x\" has no data_type");
    assert_eq!(
        fails("input { name: 'x' data_type: TYPE_INT8 dims: 0 }"),
        "1: input.dims must be at least 1, or -1 where it varies"
    );
    assert!(fails("input { name: 'x' data_type: TYPE_FP8 }").ends_with("TYPE_BF16; TYPE_FP8 is not supported"));
    assert_eq!(
        fails("input { name: 'x' data_type: TYPE_INT8 dims: 4 format: FORMAT_NHWC }"),
        "1: input \"x\" has an image format, which needs 3 dims"
    );
    assert_eq!(
        fails("input { name: 'x' data_type: TYPE_INT8 dims: 4\n reshape { shape: [2, 3] } }"),
        "2: input.reshape [2, 3] has not as many elements as dims [4]"
    );
    assert_eq!(
        fails("input { name: 'x' data_type: TYPE_INT8 dims: -1 reshape { shape: 1 } }"),
        "1: input.reshape is not supported where dims vary"
    );
    assert_eq!(
        fails("default_model_filename: '../x'"),
        "1: default_model_filename must be a file name without folders"
    );
    assert_eq!(
        fails("max_batch_size: 0\ndynamic_batching {}"),
        "2: dynamic_batching needs a max_batch_size of at least 1"
    );
    assert_eq!(
        fails("dynamic_batching { preferred_batch_size: 8 }\nmax_batch_size: 4"),
        "1: dynamic_batching.preferred_batch_size 8 exceeds max_batch_size 4"
    );
    assert_eq!(
        fails("dynamic_batching { priority_levels: 2 default_priority_level: 3 }"),
        "1: dynamic_batching has 2 priority_levels and no default_priority_level among them"
    );
    assert_eq!(
        fails("dynamic_batching { default_priority_level: 1 }"),
        "1: dynamic_batching has a default_priority_level and no priority_levels"
    );
    assert_eq!(
        fails("model_warmup { inputs { key: 'x' value { data_type: TYPE_INT8 } } }"),
        "1: model_warmup.inputs[\"x\"] has neither zero_data nor random_data"
    );
    assert_eq!(fails("parameters { key: 'x' }"), "1: parameters has no value for \"x\"");
}

#[test]
fn syntax_errors_bring_their_column() {
    let error = parse("name: \"x\ny").unwrap_err();
    assert_eq!((error.line, error.column), (1, Some(7)));
}
