#!/bin/sh
# Measures this machine's first GPU within about ten minutes: every model with every arm, what it takes to bring a request
# into its memory and to launch a kernel, and urgent requests beside large ones. Needs no more than the program `benches`, a driver, and for
# ResNet-50 the script workloads/resnet50.py with PyTorch and torchvision, without which that model is left out.
#
#     benches/gpu.sh [PROGRAM [FOLDER [SECONDS]]]
#
# PROGRAM is target/release/benches unless given, FOLDER benches/results; `benches compare --gpu` gets SECONDS, 420 of them. PYTHON is the Python that
# has PyTorch, python3 unless given.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
program=${1:-$here/../target/release/benches}
folder=${2:-$here/results}
seconds=${3:-420}
python=${PYTHON:-python3}

mkdir -p "$folder"
begun=$(date +%s)

resnet=$(mktemp -d)
trap 'rm -rf "$resnet"' EXIT
if [ -n "${BENCHES_RESNET50:-}" ]; then
    echo "resnet-50: $BENCHES_RESNET50"
elif libraries=$("$python" -c 'import torch, torchvision; print(torch.__path__[0] + "/lib")' 2>/dev/null); then
    echo "resnet-50: compiling it, for about two minutes"
    "$python" "$here/workloads/resnet50.py" "$resnet"
    export BENCHES_RESNET50="$resnet" BENCHES_TORCH="$libraries" PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync
else
    echo "resnet-50 is left out: $python has no PyTorch and torchvision; name one that has in PYTHON" >&2
fi

for bytes in 65536 602112; do
    "$program" gpu-copies --bytes "$bytes" --json "$folder/gpu-copies-$bytes.json" --svg "$folder/gpu-copies-$bytes.svg"
done
"$program" gpu-launch --json "$folder/gpu-launch.json"
"$program" gpu-launch --touch 4194304 --json "$folder/gpu-launch-touch-4194304.json"
"$program" gpu-served --json "$folder/gpu-served.json"
"$program" gpu-priorities --json "$folder/gpu-priorities.json"
"$program" compare --gpu --limit "$seconds" --json "$folder/gpu-compare.json" --html "$folder/gpu-compare.html" --svg "$folder"
echo "all of it took $(($(date +%s) - begun)) s; the figures are in $folder"
