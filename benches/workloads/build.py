#!/usr/bin/env python3
"""Makes each .ptx of this folder, or of the folders named, from the .cu of the same name, with NVRTC; no GPU and no toolkit is needed:

    pip install nvidia-cuda-nvrtc-cu12==12.4.127
    benches/workloads/build.py [FOLDER...]        (host-agent/src/runtime/image and host-agent/tests/gpu have some, too)

NVRTC 12.4 writes PTX 8.4, which drivers of CUDA 12.4 and later load, those that models of kernels need anyway. A later one
writes a later version, and drivers older than that refuse it. A test compares the hash in each .ptx, of the source and behind it the
headers of host-agent/include that it names.
"""

import ctypes
import importlib.util
import pathlib
import re
import sys

ARCHITECTURE = "compute_70"
HEADERS = pathlib.Path(__file__).parents[2] / "host-agent" / "include"


def library():
    package = importlib.util.find_spec("nvidia.cuda_nvrtc")
    folder = pathlib.Path(next(iter(package.submodule_search_locations)))
    return ctypes.CDLL(str(folder / "lib" / "libnvrtc.so.12"))


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def compiled(nvrtc, file):
    program = ctypes.c_void_p()
    source = file.read_bytes()
    names = re.findall(rb'^#include "(.+)"$', source, re.MULTILINE)
    headers = [(HEADERS / name.decode()).read_bytes() for name in names]
    texts = ctypes.c_char_p * len(names)
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source, file.name.encode(), len(names), texts(*headers), texts(*names)
    )
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={ARCHITECTURE}".encode())
    failed = nvrtc.nvrtcCompileProgram(program, len(options), options)
    what = "ProgramLog" if failed else "PTX"
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    if failed:
        raise SystemExit(f"{file}: {text.value.decode()}")
    code = text.value.decode()
    made_from = fnv1a(b"".join([source, *headers]))
    return f"// Made from {file.name} ({made_from:016x}) by build.py.\n" + code[code.index(".version"):]


nvrtc = library()
folders = [pathlib.Path(folder) for folder in sys.argv[1:]] or [pathlib.Path(__file__).parent]
for source in sorted(file for folder in folders for file in folder.glob("*.cu")):
    source.with_suffix(".ptx").write_text(compiled(nvrtc, source))
    print(source.with_suffix(".ptx"))
