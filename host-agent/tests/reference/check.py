#!/usr/bin/env python3
"""Serves models that the project has never seen and compares every answer with a reference runtime.

    check.py --host-agent target/release/host-agent --splitrpc target/release/splitrpc

Each request is one run of `splitrpc infer`, several at a time so that the server has something to batch, over TCP and
over UDP. Last comes the accuracy of the `digits` model on its test set, over the wire. Needs requirements.txt; the server
is started and ended here.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import cases

DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits"
DIGITS_COPY = "digits_copy"
LEAST_ACCURACY = 0.97
SEED = 20240607
READY_S = 180
INFER_S = 60
DRAIN_S = 30


class Failed(Exception):
    """A check that did not hold, in words."""


class Server:
    """`host-agent serve` on free ports of loopback; its log goes to a file."""

    def __init__(self, binary, repository, log):
        self.ports = {name: free_port(kind) for name, kind in (("tcp", "tcp"), ("udp", "udp"), ("http", "tcp"))}
        command = [binary, "serve", "--model-repository", repository]
        for name in self.ports:
            command += [f"--{name}", self.address(name)]
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)

    def address(self, name):
        return f"127.0.0.1:{self.ports[name]}"

    def wait_ready(self):
        url, end = f"http://{self.address('http')}/health/ready", time.monotonic() + READY_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Failed(f"the server ended with {self.process.returncode} before it was ready")
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise Failed(f"the server was not ready within {READY_S} s")

    def drain(self):
        """Asks it to end as an operator would, and expects it to."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"the server did not end within {DRAIN_S} s of SIGTERM") from None
        if code != 0:
            raise Failed(f"after SIGTERM the server ended with {code}")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def free_port(kind):
    with socket.socket(type=socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command, timeout):
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"no answer within {timeout} s") from None
    if done.returncode != 0:
        raise Failed(f"`splitrpc` ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


class Client:
    """The command line, one process a request."""

    def __init__(self, binary, server, scratch):
        self.binary, self.server, self.scratch = binary, server, scratch

    def models(self):
        return run([self.binary, "models", self.server.address("tcp")], INFER_S)

    def infer(self, model, inputs, outputs, transport):
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            sent, received = Path(folder, "in"), Path(folder, "out")
            sent.mkdir()
            received.mkdir()
            command = [self.binary, "infer", self.server.address(transport), model, "--transport", transport]
            command += ["--output-dir", received]
            for index, (name, array) in enumerate(inputs.items()):
                np.save(sent / f"{index}.npy", array)
                command += ["--input", f"{name}={sent / f'{index}.npy'}"]
            run(command, INFER_S)
            return {name: read_output(received, name) for name in outputs}


def read_output(folder, name):
    path = folder / f"{name.replace('/', '_')}.npy"
    if not path.is_file():
        raise Failed(f"output {name} is missing; written were {sorted(p.name for p in folder.iterdir())}")
    return np.load(path)


def compare(case, got, expected):
    for name, right in expected.items():
        found = got[name]
        if found.dtype != right.dtype or found.shape != right.shape:
            raise Failed(f"{name} is {found.dtype}{list(found.shape)}, not {right.dtype}{list(right.shape)}")
        if right.dtype.kind in "biu":
            if not np.array_equal(found, right):
                raise Failed(f"{name} differs in {int((found != right).sum())} of {right.size} elements")
        elif not np.allclose(found, right, rtol=case.rtol, atol=case.atol, equal_nan=True):
            gap = np.nanmax(np.abs(found.astype(np.float64) - right.astype(np.float64)))
            raise Failed(f"{name} differs by up to {gap:.3g}")


def expectations(case):
    """What the right answer to each request is."""
    if case.expected is not None:
        return case.expected
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(case.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [dict(zip(case.outputs, session.run(case.outputs, request), strict=True)) for request in case.requests]


def write_repository(root, all_cases):
    for case in all_cases:
        folder = root / case.name
        (folder / "1").mkdir(parents=True)
        onnx.save(case.model, folder / "1" / "model.onnx")
        if case.config is not None:
            (folder / "config.pbtxt").write_text(case.config, encoding="utf-8")
    # The built-in model's folder once more under another name, read as any other folder is.
    shutil.copytree(DIGITS, root / DIGITS_COPY)
    config = root / DIGITS_COPY / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace('"digits"', f'"{DIGITS_COPY}"'), encoding="utf-8")


class Report:
    """Counts and prints; a failure never stops the rest."""

    def __init__(self):
        self.passed = self.failed = 0

    @contextlib.contextmanager
    def check(self, name):
        start = time.monotonic()
        try:
            yield
        except Failed as failure:
            self.failed += 1
            print(f"FAIL {name}: {failure}", flush=True)
        else:
            self.passed += 1
            print(f"ok   {name} ({time.monotonic() - start:.2f} s)", flush=True)


def check_case(client, pool, case, expected, transport):
    asked = [pool.submit(client.infer, case.name, request, case.outputs, transport) for request in case.requests]
    for number, (answer, right) in enumerate(zip(asked, expected, strict=True)):
        try:
            compare(case, answer.result(), right)
        except Failed as failure:
            raise Failed(f"request {number}: {failure}") from failure


def check_builtins(client, transport):
    """The echo model's answer is its input, at any size; the null model's is always the same."""
    rng = np.random.default_rng(SEED)
    for size in (1, 1472, 70_001, 3_200_000):
        sent = rng.integers(0, 256, size).astype(np.uint8)
        got = client.infer("echo", {"INPUT": sent}, ["OUTPUT"], transport)["OUTPUT"]
        if got.dtype != np.uint8 or not np.array_equal(got, sent):
            raise Failed(f"echo of {size} bytes is {got.dtype}{list(got.shape)} or differs")
        got = client.infer("null", {"INPUT": sent}, ["OUTPUT"], transport)["OUTPUT"]
        if not np.array_equal(got, (np.arange(4000) * 7 + 13) % 251):
            raise Failed(f"the null model's answer to {size} bytes is wrong")


def check_digits(client, pool, model, transport, max_batch=16):
    images, labels = np.load(DIGITS / "images.npy"), np.load(DIGITS / "labels.npy")
    chunks = [images[first : first + max_batch] for first in range(0, len(images), max_batch)]
    asked = [pool.submit(client.infer, model, {"IMAGE": chunk}, ["LABEL"], transport) for chunk in chunks]
    found = np.concatenate([answer.result()["LABEL"].reshape(-1) for answer in asked])
    session = onnxruntime.InferenceSession(DIGITS / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (reference,) = session.run(["LABEL"], {"IMAGE": images})
    if not np.array_equal(found, reference.reshape(-1)):
        raise Failed("the labels are not the reference runtime's")
    accuracy = float((found == labels).mean())
    right = int((found == labels).sum())
    print(f"     {model} over {transport}: right on {right} of {len(labels)}: {accuracy:.2%}", flush=True)
    if accuracy < LEAST_ACCURACY:
        raise Failed(f"accuracy below {LEAST_ACCURACY:.0%}")


def check_server(options, report, scratch):
    rng = np.random.default_rng(SEED)
    all_cases = list(chain(cases.generated(rng), cases.packaged(rng)))
    expected = {case.name: expectations(case) for case in all_cases}
    repository = scratch / "models"
    write_repository(repository, all_cases)
    server = Server(options.host_agent, repository, scratch / "server.log")
    failed_before = report.failed
    try:
        with report.check("start"):
            server.wait_ready()
        if report.failed == failed_before:
            client = Client(options.splitrpc, server, scratch)
            check_answers(client, report, all_cases, expected)
            with report.check("drain"):
                server.drain()
    finally:
        server.kill()
    if report.failed > failed_before:
        print("--- the server's log, its end ---")
        print(server.log.read_text(encoding="utf-8", errors="replace")[-8000:])


def check_answers(client, report, all_cases, expected):
    with report.check("models"):
        listing = client.models().split()
        served = [case.name for case in all_cases] + ["null", "echo", "digits", DIGITS_COPY]
        missing = [name for name in served if name not in listing]
        if missing:
            raise Failed(f"not listed: {', '.join(missing)}")
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        for transport in ("tcp", "udp"):
            for case in all_cases:
                with report.check(f"{case.name}/{transport}"):
                    check_case(client, pool, case, expected[case.name], transport)
            with report.check(f"built-in models/{transport}"):
                check_builtins(client, transport)
            for model in ("digits", DIGITS_COPY):
                with report.check(f"{model}/{transport}"):
                    check_digits(client, pool, model, transport)


def binary(text):
    path = Path(text).resolve()
    if not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(f"{path} is not an executable file")
    return path


def main():
    parser = argparse.ArgumentParser(description="Compares served models with a reference runtime.")
    parser.add_argument("--host-agent", type=binary, required=True, help="the server's binary")
    parser.add_argument("--splitrpc", type=binary, required=True, help="the client's binary")
    options = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="splitrpc-reference-") as scratch:
        check_server(options, report, Path(scratch))
    print(f"{report.passed} passed, {report.failed} failed")
    sys.exit(1 if report.failed or not report.passed else 0)


if __name__ == "__main__":
    main()
