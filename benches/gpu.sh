#!/bin/sh
# Measures this machine's first GPU within about ten minutes: every model with every arm, what it takes to bring a request
# into its memory and to launch a kernel, and urgent requests beside large ones. Needs no more than the program `benches` and a driver.
#
#     benches/gpu.sh [PROGRAM [FOLDER [SECONDS]]]
#
# PROGRAM is target/release/benches unless given, FOLDER benches/results; `benches compare --gpu` gets SECONDS, 480 of them.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
program=${1:-$here/../target/release/benches}
folder=${2:-$here/results}
seconds=${3:-480}

mkdir -p "$folder"
for bytes in 65536 602112; do
    "$program" gpu-copies --bytes "$bytes" --json "$folder/gpu-copies-$bytes.json"
done
"$program" gpu-launch --json "$folder/gpu-launch.json"
"$program" gpu-served --json "$folder/gpu-served.json"
"$program" gpu-priorities --json "$folder/gpu-priorities.json"
"$program" compare --gpu --limit "$seconds" --json "$folder/gpu-compare.json" --html "$folder/gpu-compare.html" --svg "$folder"
