#!/usr/bin/env python3
"""Checks what a run of `compare` has left behind: check_report.py JSON HTML. Needs only Python.

That all arms ran, every answer was right, every run has its fields, and payload was copied as often as its path says.
Not how fast anything was: that depends on the machine, and is what the report is for.
"""

import json
import re
import sys
from numbers import Real

FLOORS = {"floor-tcp", "floor-tcp-again", "floor-udp", "floor-udp-again"}
CARDS = {"smartnic-tcp", "smartnic-udp"}
ARMS = FLOORS | CARDS | {"bundled-tcp", "commodity-tcp", "commodity-udp"}
LATENCIES = ("p50", "p90", "p99", "p999", "mean", "max", "p10_of_medians")

number = lambda value: isinstance(value, Real) and not isinstance(value, bool) and value >= 0
whole = lambda value: number(value) and value == int(value)
text = lambda value: isinstance(value, str) and value != ""
nothing = lambda value: value is None
either = lambda *kinds: lambda value: any(kind(value) for kind in kinds)
mapping = lambda value: isinstance(value, dict) and bool(value)

FIELDS = {
    "arm": lambda value: value in ARMS,
    "emulated": lambda value: isinstance(value, bool),
    "model": lambda value: value == "null",
    "request_bytes": whole,
    "response_bytes": whole,
    "concurrency": lambda value: whole(value) and value >= 1,
    "offered_rps": either(nothing, number),
    "wait": lambda value: value in ("spin", "adaptive", "block"),
    "requests": lambda value: whole(value) and value > 0,
    "errors": whole,
    "latency_us": lambda value: mapping(value) and all(number(value.get(name)) for name in LATENCIES),
    "throughput_rps": lambda value: number(value) and value > 0,
    "cpu_us_per_request": lambda value: (
        mapping(value)
        and number(value.get("client"))
        and number(value.get("server"))
        and either(nothing, number)(value.get("nic", "missing"))
    ),
    "stages_us": either(nothing, mapping),
    "path": either(nothing, mapping),
    "crossed": lambda value: value == "loopback",
}


def run_faults(run):
    for name, holds in FIELDS.items():
        if name not in run:
            yield f"has no {name}"
        elif not holds(run[name]):
            yield f"has {name} = {json.dumps(run[name])[:200]}"
    if run.get("errors") and not run.get("drop"):
        yield f"has {run['errors']} errors: {run.get('error_kinds')}"
    ordered = [run.get("latency_us", {}).get(name) for name in ("p50", "p90", "p99", "p999", "max")]
    if all(number(value) for value in ordered) and ordered != sorted(ordered):
        yield f"has percentiles out of order: {ordered}"
    arm, path = run.get("arm", ""), run.get("path")
    if run.get("emulated") is not (arm in CARDS):
        yield f"says emulated = {run.get('emulated')}, where there is no card"
    if (run.get("cpu_us_per_request", {}).get("nic") is not None) is not (arm in CARDS):
        yield "does not tell the CPU time of its card, or has none"
    if arm.startswith("commodity-") or arm in CARDS:
        if not path or not run.get("stages_us"):
            yield "does not tell its path and stages"
        elif arm == "commodity-tcp" and abs(path["cpu_copies"] - 1) > 0.001:
            yield f"copied each payload byte {path['cpu_copies']} times on the CPU, not once"


def faults(report, page):
    if not mapping(report.get("machine")):
        yield "the file has no machine"
    runs = report.get("runs", [])
    for run in runs:
        label = f"{run.get('arm')} {run.get('request_bytes')} B x{run.get('concurrency')} {run.get('wait')}"
        yield from (f"run {label} {fault}" for fault in run_faults(run))
    missing = ARMS - {run.get("arm") for run in runs}
    if missing:
        yield f"no run of {', '.join(sorted(missing))}"
    sizes = {run.get("request_bytes") for run in runs}
    if not {64, 602_112} <= sizes:
        yield f"request sizes are {sorted(sizes)}"
    unmarked = [arm for arm in CARDS if f"{arm} (emulated)" not in page]
    if unmarked:
        yield f"the page does not say that {', '.join(sorted(unmarked))} were emulated"
    if "<svg" not in page:
        yield "the page has no plot"
    outside = re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//[^"'\s>]+""", page)
    if outside:
        yield f"the page is not self-contained: {outside.group()}"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        report = json.load(file)
    with open(sys.argv[2], encoding="utf-8") as file:
        page = file.read()
    found = list(faults(report, page))
    for fault in found:
        print(f"FAIL {fault}")
    print(f"{len(report.get('runs', []))} runs in {report.get('elapsed_s')} s, {len(found)} faults")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
