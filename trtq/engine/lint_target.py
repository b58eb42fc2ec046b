"""The reader of an ONNX file, for the lint rules: a target and its release.

It includes what that reader computes in float, or refuses.
"""

from __future__ import annotations

import onnx

from trtq.engine.settings import Builder
from trtq.engine.targets import RTX_AHEAD_OF_TIME, Target
from trtq.engine.versions import newest_opset, shown
from trtq.errors import EngineError
from trtq.export.lint import lint
from trtq.export.lint_view import COMPUTE, Reader
from trtq.onnx_walk import scopes

NEWEST_OPSET = 25  # where the target names no release
RTX = "tensorrt-rtx"
# Rules that a build checks by itself, in words of its own.
OWN_CHECKS = ("L01", "L17", "L21")
SHOWN = 3  # errors that a message names


def reader_of(target: Target) -> Reader:
    """Return what a target reads: without a release, TensorRT for RTX where that covers it."""
    release, rtx = target.release, target.version is None and target.sm in RTX_AHEAD_OF_TIME
    runtime = (
        "TensorRT for RTX"
        if rtx
        else f"TensorRT {shown(release)}"
        if release is not None
        else "TensorRT 10 and later"
    )
    return Reader(
        version=release,
        opset=newest_opset(release) if release is not None else NEWEST_OPSET,
        formats=target.arithmetic,
        name=f"{target.device}, {runtime}",
        rtx=rtx,
    )


def reader_for(builder: Builder, target: Target) -> Reader:
    """Return what the builder reads that will build for a target."""
    rtx = builder.name == RTX
    runtime = "TensorRT for RTX" if rtx else f"TensorRT {shown(builder.version)}"
    return Reader(
        version=None if rtx else builder.version,
        opset=newest_opset(builder.version),
        formats=target.arithmetic,
        name=f"{target.device}, {runtime}",
        rtx=rtx,
    )


def refuse_errors(model: onnx.ModelProto, reader: Reader, onnx_file: str, target: str) -> None:
    """Refuse what lint calls an error.

    The builder would refuse it, too, or would compute other values than the file says.

    Raises:
        EngineError: names the first node or tensor and the rule.
    """
    found = [f for f in lint(model, reader) if f.severity == "error" and f.rule not in OWN_CHECKS]
    if not found:
        return
    first, more = found[0], f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
    why = "; ".join(f"{f.rule}, {f.where}: {f.why}" for f in found[:SHOWN])
    lines = f"trtq lint {onnx_file} --target {target}"
    hint = (
        f"Repair it: {lines} --fix FIXED.onnx"
        if all(f.repairable for f in found)
        else f"{first.mend}; see all of it: {lines}"
    )
    raise EngineError(f"Cannot build {onnx_file} for {reader.name}", why + more, hint)


def why_float(model: onnx.ModelProto, target: Target) -> dict[str, str]:
    """Return why this target computes a node or tensor in float, by its name.

    The reason is the first lint rule that says so.

    A finding at a pair also applies to the layers that read it.
    """
    reasons: dict[str, str] = {}
    found: dict[str, str] = {}
    for finding in lint(model, reader_of(target)):
        if finding.severity == "float":
            found.setdefault(finding.where, f"{finding.rule}: {finding.why}")
    for scope in scopes(model):
        for node in scope.graph.node:
            pairs = [
                p
                for n in node.input[:2]
                if node.op_type in COMPUTE and (p := scope.pair(n)) is not None
            ]
            near = [m.name for p in pairs for m in (p.q, p.dq, *p.path) if m is not None]
            why = next((found[n] for n in (node.name, *near) if n in found), None)
            if why is not None:
                reasons[node.name or node.output[0]] = why
    return found | reasons
