#!/usr/bin/env python3
"""Trains the `digits` model and writes everything that lies beside this script except its texts.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python train.py

Two runs on one machine with the same library versions give the same bytes: every seed is fixed, and the linear algebra
is held to one thread, so that sums are added in one order. Other versions or processors may differ in the last bits.
`--check` trains into a temporary folder and compares with what is here instead of replacing it.
"""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy is imported

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier

SPLIT_SEED = 0
TRAIN_SEED = 0
FOLD_SEED = 1
TEST_IMAGES = 360
LEAST_ACCURACY = 0.97
HIDDEN = (256, 128)
EPOCHS = 40
WEIGHT_DECAY = 0.1
INK = 16.0  # grey levels of the data set: 0 (paper) to 16 (ink)
OPSET = 17
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))


def shifted(images, down, right):
    """The images moved by at most one pixel, with paper coming in at the edge."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 - down : 9 - down, 1 - right : 9 - right]


def fit(images, labels):
    """Trains on the images and their copies moved by a pixel in each direction."""
    rows = np.concatenate([shifted(images, *shift) for shift in SHIFTS]).reshape(-1, 64) / INK
    network = MLPClassifier(HIDDEN, alpha=WEIGHT_DECAY, max_iter=EPOCHS, random_state=TRAIN_SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed on purpose
        return network.fit(rows, np.tile(labels, len(SHIFTS)))


def score(network, images, labels):
    return network.score(images.reshape(-1, 64) / INK, labels)


def to_onnx(network):
    """The trained network as an ONNX graph that takes raw grey levels."""
    constants = [numpy_helper.from_array(np.array(1 / INK, np.float32), "scale")]
    nodes = [
        helper.make_node("Flatten", ["IMAGE"], ["pixels"], axis=1),
        helper.make_node("Mul", ["pixels", "scale"], ["layer0"]),
    ]
    last = len(network.coefs_) - 1
    for i, (weights, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        constants.append(numpy_helper.from_array(weights.astype(np.float32), f"weights{i}"))
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"bias{i}"))
        linear = "LOGITS" if i == last else f"linear{i}"
        nodes.append(helper.make_node("Gemm", [f"layer{i}", f"weights{i}", f"bias{i}"], [linear]))
        if i != last:
            nodes.append(helper.make_node("Relu", [linear], [f"layer{i + 1}"]))
    nodes.append(helper.make_node("ArgMax", ["LOGITS"], ["LABEL"], axis=1, keepdims=1))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("IMAGE", TensorProto.FLOAT, ["batch", 8, 8])],
        [
            helper.make_tensor_value_info("LOGITS", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("LABEL", TensorProto.INT64, ["batch", 1]),
        ],
        initializer=constants,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, producer_name="splitrpc digits/train.py", opset_imports=[opset])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def train(folder):
    """Trains, writes model and test set below `folder`, and returns the accuracy of the file that was written."""
    data = load_digits()
    images, labels = data.images.astype(np.float32), data.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_IMAGES, stratify=labels, random_state=SPLIT_SEED
    )
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(to_onnx(fit(train_images, train_labels)), path)
    np.save(folder / "images.npy", test_images)
    np.save(folder / "labels.npy", test_labels)

    logits, label = ReferenceEvaluator(str(path)).run(None, {"IMAGE": test_images})
    assert np.array_equal(label, logits.argmax(axis=1, keepdims=True))
    right = int((label[:, 0] == test_labels).sum())
    accuracy = right / len(test_labels)
    print(f"trained on {len(train_labels)} images; right on {right} of {len(test_labels)} held out: {accuracy:.2%}")
    return accuracy


def print_estimates():
    """Two more figures: the one by which the settings above were chosen, and a harder one."""
    data = load_digits()
    images, labels = data.images.astype(np.float32), data.target
    known, _, known_labels, _ = train_test_split(
        images, labels, test_size=TEST_IMAGES, stratify=labels, random_state=SPLIT_SEED
    )
    folds = StratifiedKFold(4, shuffle=True, random_state=FOLD_SEED).split(known, known_labels)
    scores = [score(fit(known[a], known_labels[a]), known[b], known_labels[b]) for a, b in folds]
    print(f"four folds of the training images: {np.mean(scores):.2%} ({min(scores):.2%} to {max(scores):.2%})")
    # The data set is ordered by writer, so its end holds hands that its beginning does not.
    first, last = slice(None, -TEST_IMAGES), slice(-TEST_IMAGES, None)
    unseen = score(fit(images[first], labels[first]), images[last], labels[last])
    print(f"trained on all but the last {TEST_IMAGES} images, tried on those (mostly unseen writers): {unseen:.2%}")


def main():
    parser = argparse.ArgumentParser(description="Trains the digits model.")
    parser.add_argument("--check", action="store_true", help="compare with the files here instead of replacing them")
    parser.add_argument("--estimates", action="store_true", help="also print cross-validated and unseen-writer accuracy")
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    if options.estimates:
        print_estimates()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.check else here
        accuracy = train(folder)
        if accuracy < LEAST_ACCURACY:
            sys.exit(f"accuracy below {LEAST_ACCURACY:.0%}")
        if options.check:
            names = ("1/model.onnx", "images.npy", "labels.npy")
            differing = [name for name in names if (folder / name).read_bytes() != (here / name).read_bytes()]
            if differing:
                sys.exit(f"not the same bytes as here: {', '.join(differing)} (other library versions or processor?)")
            print("the same bytes as here")


if __name__ == "__main__":
    main()
