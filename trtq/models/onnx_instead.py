"""What to do with an ONNX file where a PyTorch model was expected."""

from __future__ import annotations

import shlex
from pathlib import Path

import onnx

from trtq.onnx_walk import QDQ, all_nodes, all_tensors


def onnx_instead(path: Path) -> tuple[str, str]:
    """Return why an ONNX file cannot be quantized, and commands that work on it as it is."""
    why = "it is an ONNX file, and quantization starts from the PyTorch model"
    if not path.is_file():
        hint = (
            "Give that: timm:NAME, torchvision:NAME or path/to/file.py:factory. Commands for "
            "ONNX files: trtq import-calib, trtq build"
        )
        return f"{why}; there is no such file", hint
    file = shlex.quote(str(path))
    build = (
        f"trtq build {file} --target rtx4090 --out {shlex.quote(str(path.with_suffix('.engine')))}"
    )
    try:
        model = onnx.load(path, load_external_data=False)
    except (
        Exception
    ):  # protobuf's DecodeError is not public; whatever it is, other commands say what
        return (
            f"{why}; this one cannot be read",
            f"See what it is: trtq lint {file} --target rtx4090",
        )
    if any(n.op_type in QDQ for n in all_nodes(model)):
        return "it is an ONNX file with Q/DQ pairs: it is quantized already", f"Build it: {build}"
    if any(t.data_type == onnx.TensorProto.FLOAT16 for t in all_tensors(model)):
        return (
            f"{why}; its weights are FP16",
            f"Give the PyTorch model, or build it as it is: {build}",
        )
    cache = f"trtq import-calib CACHE --onnx {file} --out {shlex.quote(str(path.with_suffix('')))}"
    return (
        why,
        f"Give that. An FP16 engine of the file: {build} --precision fp16. With ranges of a "
        f"calibration cache: {cache}",
    )
