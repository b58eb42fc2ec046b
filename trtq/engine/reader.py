"""Who reads an ONNX file, for the lint rules: a target and its release."""

from __future__ import annotations

from trtq.engine.targets import Target
from trtq.engine.versions import newest_opset, shown
from trtq.export.lint_view import Reader

NEWEST_OPSET = 25  # where the target names no release


def reader_of(target: Target) -> Reader:
    """Return what a target reads."""
    release = target.release
    name = f"{target.device}, TensorRT {shown(release)}" if release is not None else f"{target.device}, TensorRT 10 and later"
    return Reader(
        version=release, opset=newest_opset(release) if release is not None else NEWEST_OPSET, formats=target.arithmetic, name=name
    )
