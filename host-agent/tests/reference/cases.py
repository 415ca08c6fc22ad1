"""The models that the reference check serves, and what they are asked: built here, or taken from the onnx package's own
backend tests. Every model is new to the repository each time, so nothing about it can have been prepared."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8

# Element types with the names of ONNX, of Triton's configuration and of numpy.
TYPES = {
    TensorProto.FLOAT: ("TYPE_FP32", np.float32),
    TensorProto.DOUBLE: ("TYPE_FP64", np.float64),
    TensorProto.FLOAT16: ("TYPE_FP16", np.float16),
    TensorProto.INT64: ("TYPE_INT64", np.int64),
    TensorProto.INT32: ("TYPE_INT32", np.int32),
    TensorProto.INT8: ("TYPE_INT8", np.int8),
    TensorProto.UINT8: ("TYPE_UINT8", np.uint8),
    TensorProto.BOOL: ("TYPE_BOOL", np.bool_),
}


@dataclass
class Case:
    """A model and the requests that are made of it. Without `config` the server must read everything off the model."""

    name: str
    model: onnx.ModelProto
    requests: list  # of {input name: array}
    config: str | None = None
    expected: list | None = None  # of {output name: array}, a request each; None asks the reference runtime
    rtol: float = 1e-4
    atol: float = 1e-5
    outputs: list = field(init=False)

    def __post_init__(self):
        self.outputs = [output.name for output in self.model.graph.output]


def value(name, kind, dims):
    return helper.make_tensor_value_info(name, kind, dims)


def constant(name, array):
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def model(name, nodes, inputs, outputs, constants=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, initializer=list(constants))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="splitrpc check")
    made.ir_version = IR_VERSION
    onnx.checker.check_model(made, full_check=True)
    return made


def config(name, made, max_batch, batching=True, delay_us=500):
    """A Triton configuration with every tensor written out."""

    def tensors(section, values):
        entries = []
        for v in values:
            dims = [d.dim_value if d.HasField("dim_value") else -1 for d in v.type.tensor_type.shape.dim]
            dims = dims[1:] if max_batch else dims
            kind = TYPES[v.type.tensor_type.elem_type][0]
            entries.append(f'  {{ name: "{v.name}" data_type: {kind} dims: [ {", ".join(map(str, dims))} ] }}')
        return f"{section} [\n" + ",\n".join(entries) + "\n]\n"

    text = f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {max_batch}\n'
    text += tensors("input", made.graph.input) + tensors("output", made.graph.output)
    if max_batch and batching:
        text += f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}\n"
    return text


def generated(rng):
    """Models of one and several inputs, batched and not, of fixed and of free dimensions, of most element types."""
    f32, f64, f16 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
    i64, i32, u8, boolean = TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.BOOL
    node = helper.make_node

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    # One input, batched; asked one row at a time and several, so that the server's batches mix both.
    linear = model(
        "linear",
        [node("Gemm", ["x", "w", "b"], ["h"]), node("Tanh", ["h"], ["y"])],
        [value("x", f32, ["n", 6])],
        [value("y", f32, ["n", 3])],
        [constant("w", normal(6, 3)), constant("b", normal(3))],
    )
    rows = [{"x": normal(n, 6)} for n in (1, 1, 2, 1, 8, 3, 1, 5)]
    yield Case("linear", linear, rows, config("linear", linear, 8))
    yield Case("linear_plain", linear, rows[:3])
    yield Case("linear_alone", linear, rows, config("linear_alone", linear, 8, batching=False))

    # Several inputs and outputs of several types, batched; the order of outputs is not the order of use.
    several = model(
        "several",
        [
            node("MatMul", ["a", "w"], ["aw"]),
            node("Cast", ["k"], ["kf"], to=f32),
            node("Add", ["aw", "kf"], ["sum"]),
            node("Where", ["keep", "sum", "zero"], ["kept"]),
            node("ReduceMax", ["kept"], ["top"], axes=[1], keepdims=1),
            node("ArgMax", ["kept"], ["where"], axis=1, keepdims=1),
        ],
        [value("a", f32, ["n", 5]), value("k", i64, ["n", 4]), value("keep", boolean, ["n", 4])],
        [value("where", i64, ["n", 1]), value("kept", f32, ["n", 4]), value("top", f32, ["n", 1])],
        [constant("w", normal(5, 4)), constant("zero", np.float32(0))],
    )
    requests = [
        {
            "a": normal(n, 5),
            "k": rng.integers(-9, 9, (n, 4)),
            "keep": rng.integers(0, 2, (n, 4)).astype(np.bool_),
        }
        for n in (1, 2, 4, 1, 3)
    ]
    yield Case("several", several, requests, config("several", several, 4))

    # Several inputs, no batch dimension at all.
    product = model(
        "product",
        [
            node("MatMul", ["left", "right"], ["m"]),
            node("Sub", ["m", "offset"], ["difference"]),
            node("ReduceSum", ["m"], ["total"], keepdims=0),
        ],
        [value("left", f32, [3, 7]), value("right", f32, [7, 2]), value("offset", f32, [2])],
        [value("difference", f32, [3, 2]), value("total", f32, [])],
    )
    requests = [{"left": normal(3, 7), "right": normal(7, 2), "offset": normal(2)} for _ in range(3)]
    yield Case("product", product, requests, config("product", product, 0))
    yield Case("product_plain", product, requests[:1])

    # Free dimensions beside the batch: rows of one request agree, requests do not.
    sequence = model(
        "sequence",
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("Relu", ["h"], ["each"]),
            node("ReduceMean", ["each"], ["mean"], axes=[1], keepdims=0),
        ],
        [value("x", f32, ["n", "steps", 4])],
        [value("each", f32, ["n", "steps", 3]), value("mean", f32, ["n", 3])],
        [constant("w", normal(4, 3))],
    )
    requests = [{"x": normal(n, steps, 4)} for n, steps in ((1, 1), (2, 9), (1, 33), (4, 9), (1, 700))]
    yield Case("sequence", sequence, requests, config("sequence", sequence, 4))

    # Free dimensions without a batch.
    grid = model(
        "grid",
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("MatMul", ["t", "x"], ["y"])],
        [value("x", f32, ["h", "w"])],
        [value("y", f32, ["w", "w"])],
    )
    requests = [{"x": normal(h, w)} for h, w in ((1, 1), (5, 3), (17, 64))]
    yield Case("grid", grid, requests, config("grid", grid, 0))

    # A small convolutional network.
    convolution = model(
        "convolution",
        [
            node("Conv", ["image", "k1", "c1"], ["f1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Relu", ["f1"], ["r1"]),
            node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", ["p1", "k2"], ["f2"], kernel_shape=[3, 3], strides=[2, 2]),
            node("Sigmoid", ["f2"], ["r2"]),
            node("GlobalAveragePool", ["r2"], ["g"]),
            node("Flatten", ["g"], ["flat"], axis=1),
            node("Gemm", ["flat", "w", "b"], ["logits"]),
            node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        [value("image", f32, ["n", 3, 32, 32])],
        [value("probabilities", f32, ["n", 10])],
        [
            constant("k1", normal(8, 3, 3, 3) / 5),
            constant("c1", normal(8)),
            constant("k2", normal(16, 8, 3, 3) / 8),
            constant("w", normal(16, 10)),
            constant("b", normal(10)),
        ],
    )
    requests = [{"image": normal(n, 3, 32, 32)} for n in (1, 3, 1, 8)]
    yield Case("convolution", convolution, requests, config("convolution", convolution, 8))

    # Many frames a request, and as many back.
    wide = model(
        "wide",
        [node("Mul", ["x", "two"], ["double"]), node("Neg", ["x"], ["negative"])],
        [value("x", f32, ["n", 50_000])],
        [value("double", f32, ["n", 50_000]), value("negative", f32, ["n", 50_000])],
        [constant("two", np.float32(2))],
    )
    requests = [{"x": normal(n, 50_000)} for n in (1, 3, 4)]
    yield Case("wide", wide, requests, config("wide", wide, 4))

    # A reply much larger than its request.
    outer = model(
        "outer",
        [node("Mul", ["column", "row"], ["table"])],
        [value("column", f32, ["h", 1]), value("row", f32, [1, "w"])],
        [value("table", f32, ["h", "w"])],
    )
    yield Case("outer", outer, [{"column": normal(600, 1), "row": normal(1, 500)}], config("outer", outer, 0))

    # Other element types, each there and back.
    for name, kind, array in (
        ("halves", f16, normal(2, 5).astype(np.float16)),
        ("doubles", f64, rng.standard_normal((2, 5))),
        ("integers", i32, rng.integers(-1000, 1000, (2, 5)).astype(np.int32)),
    ):
        sums = model(name, [node("Add", ["x", "x"], ["y"])], [value("x", kind, ["n", 5])], [value("y", kind, ["n", 5])])
        yield Case(name, sums, [{"x": array}, {"x": array[:1]}], config(name, sums, 2), rtol=1e-3)
    pixels = model(
        "pixels",
        [node("Cast", ["x"], ["f"], to=f32), node("Div", ["f", "white"], ["y"])],
        [value("x", u8, ["n", 4, 4])],
        [value("y", f32, ["n", 4, 4])],
        [constant("white", np.float32(255))],
    )
    yield Case("pixels", pixels, [{"x": rng.integers(0, 256, (3, 4, 4)).astype(np.uint8)}], config("pixels", pixels, 4))

    # Values whose exponentials no type holds, and an axis that is not the last. The answers are worked out in double precision.
    wide = np.array([88, -88, 50, 100, -50, 2, -2, 0], np.float32)
    for kind, dtype in ((f32, np.float32), (f64, np.float64), (f16, np.float16)):
        extremes = model(
            f"extremes_{np.dtype(dtype).name}",
            [
                node("LogSoftmax", ["x"], ["last"]),
                node("LogSoftmax", ["x"], ["middle"], axis=1),
                node("Softplus", ["x"], ["soft"]),
            ],
            [value("x", kind, ["n", 2, 4])],
            [value(name, kind, ["n", 2, 4]) for name in ("last", "middle", "soft")],
        )
        x = np.stack([wide, -wide, wide[::-1] * 4, wide * 0]).reshape(4, 2, 4).astype(dtype)
        exact = x.astype(np.float64)
        answer = {
            "last": exact - np.logaddexp.reduce(exact, axis=2, keepdims=True),
            "middle": exact - np.logaddexp.reduce(exact, axis=1, keepdims=True),
            "soft": np.logaddexp(exact, 0),
        }
        answer = {name: array.astype(dtype) for name, array in answer.items()}
        rtol, atol = (1e-2, 1e-2) if kind == f16 else (1e-5, 1e-5)
        yield Case(extremes.graph.name, extremes, [{"x": x}], expected=[answer], rtol=rtol, atol=atol)
    # As old files have it: over all dimensions from the axis on.
    flat = model(
        "extremes_flat",
        [node("LogSoftmax", ["x"], ["y"], axis=1)],
        [value("x", f32, [3, 2, 4])],
        [value("y", f32, [3, 2, 4])],
    )
    flat.opset_import[0].version = 11
    x = rng.standard_normal((3, 2, 4)).astype(np.float32) * 100
    answer = x - np.logaddexp.reduce(x.astype(np.float64).reshape(3, 8), axis=1).reshape(3, 1, 1)
    yield Case("extremes_flat", flat, [{"x": x}], expected=[{"y": answer.astype(np.float32)}])


# Backend tests of the onnx package: old operator sets, weights that are listed among the inputs, names made of digits.
PACKAGED = [
    "pytorch-converted/test_BatchNorm2d_eval",
    "pytorch-converted/test_Conv1d_dilated",
    "pytorch-converted/test_Conv2d_depthwise_with_multiplier",
    "pytorch-converted/test_Conv3d_stride",
    "pytorch-converted/test_ConvTranspose2d",
    "pytorch-converted/test_Embedding",
    "pytorch-converted/test_GLU_dim",
    "pytorch-converted/test_Linear",
    "pytorch-converted/test_PReLU_2d",
    "pytorch-converted/test_PixelShuffle",
    "pytorch-converted/test_softmax_functional_dim3",
    "pytorch-operator/test_operator_addmm",
    "pytorch-operator/test_operator_chunk",
    "pytorch-operator/test_operator_concat2",
    "pytorch-operator/test_operator_non_float_params",
    "pytorch-operator/test_operator_pow",
    "pytorch-operator/test_operator_symbolic_override_nested",
]
# Whole architectures of the package. They come without weights, and so get random ones.
ARCHITECTURES = ["light_squeezenet", "light_shufflenet"]


def packaged(rng):
    """Cases of the onnx package, with the inputs and the answers that it brings."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"

    def read(path):
        return numpy_helper.to_array(TensorProto.FromString(path.read_bytes()))

    for path in PACKAGED:
        made = onnx.load(data / path / "model.onnx")
        files = data / path / "test_data_set_0"
        given = {t.name: read(files / f"input_{i}.pb") for i, t in enumerate(real_inputs(made))}
        answer = {t.name: read(files / f"output_{i}.pb") for i, t in enumerate(made.graph.output)}
        yield Case(Path(path).name.removeprefix("test_"), made, [given], expected=[answer], rtol=1e-3)
    for name in ARCHITECTURES:
        made = with_weights(onnx.load(data / "light" / f"{name}.onnx"), rng)
        (image,) = real_inputs(made)
        shape = [d.dim_value for d in image.type.tensor_type.shape.dim]
        yield Case(name, made, [{image.name: rng.random(shape, np.float32)}], rtol=1e-3)


def with_weights(made, rng):
    """Replaces the constants that stand in for weights by random ones of a size that keeps activations alive."""
    shapes = {w.name: numpy_helper.to_array(w) for w in made.graph.initializer}
    for node in [n for n in made.graph.node if n.op_type == "ConstantOfShape"]:
        shape = shapes[node.input[0]]
        weights = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        # One dimension: a bias or a batch normalisation's statistics, of which the variance must be positive.
        weights = weights if len(shape) > 1 else np.abs(weights)
        made.graph.initializer.append(constant(node.output[0], weights.astype(np.float32)))
        made.graph.node.remove(node)
    return made


def real_inputs(made):
    """The inputs that a client gives: old models list their weights among the inputs too."""
    weights = {w.name for w in made.graph.initializer}
    return [tensor for tensor in made.graph.input if tensor.name not in weights]
