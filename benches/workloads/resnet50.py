"""Writes ResNet-50 as a model folder for the agent, with a request and its answer: torchvision's network in half precision, with random
weights, compiled ahead of time for this machine's GPU.

    python3 benches/workloads/resnet50.py FOLDER [MAX_BATCH]

Needs PyTorch 2.7 or later with CUDA, torchvision, and a C++ compiler that links the C++ library that PyTorch has (CXX, or g++).
Makes FOLDER/config.pbtxt, FOLDER/1/model.pt2, FOLDER/request.bin and FOLDER/answer.bin. The answer is that of the network as PyTorch
runs it without compiling it.
"""

import os
import pathlib
import sys

os.environ.setdefault("CXX", "g++")

import torch
import torch.fx.experimental._config
import torchvision
from torch.export import Dim, export

CONFIG = """platform: "torch_aoti"
max_batch_size: {most}
input {{ name: "image" data_type: TYPE_FP16 dims: [ 3, 224, 224 ] }}
output {{ name: "scores" data_type: TYPE_FP16 dims: [ 1000 ] }}
"""


def main(folder: pathlib.Path, most: int) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval().half().cuda()
    request = torch.rand(1, 3, 224, 224).half()
    shapes = {"x": {0: Dim("batch", min=1, max=most)}} if most > 1 else None
    example = torch.rand(2 if shapes else 1, 3, 224, 224).half().cuda()
    (folder / "1").mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        answer = model(request.cuda()).cpu()
        # Without this an exporter takes a batch of one for a size of its own, and what it compiles takes none of one.
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):
            program = export(model, (example,), dynamic_shapes=shapes)
            torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "1" / "model.pt2"))
    # A package for one image takes the whole tensor, batch dimension and all.
    config = CONFIG.format(most=most)
    if not shapes:
        config = config.replace("max_batch_size: 1\n", "").replace("[ 3,", "[ 1, 3,").replace("[ 1000", "[ 1, 1000")
    (folder / "config.pbtxt").write_text(config)
    (folder / "request.bin").write_bytes(request.numpy().tobytes())
    (folder / "answer.bin").write_bytes(answer.numpy().tobytes())


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 1)
