"""Who reads an ONNX file, for the lint rules: a target and its release; and what that reader computes in float."""

from __future__ import annotations

import onnx

from trtq.engine.targets import Target
from trtq.engine.versions import newest_opset, shown
from trtq.export.lint import lint
from trtq.export.lint_view import Reader

NEWEST_OPSET = 25  # where the target names no release


def reader_of(target: Target) -> Reader:
    """Return what a target reads."""
    release = target.release
    name = f"{target.device}, TensorRT {shown(release)}" if release is not None else f"{target.device}, TensorRT 10 and later"
    return Reader(
        version=release, opset=newest_opset(release) if release is not None else NEWEST_OPSET, formats=target.arithmetic, name=name
    )


def why_float(model: onnx.ModelProto, target: Target) -> dict[str, str]:
    """Return, by node or tensor, the first lint rule that says why this target computes it in float."""
    reasons: dict[str, str] = {}
    for finding in lint(model, reader_of(target)):
        if finding.severity == "float":
            reasons.setdefault(finding.where, f"{finding.rule}: {finding.why}")
    return reasons
