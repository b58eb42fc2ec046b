"""The reader of an ONNX file, for the lint rules: a target and its release.

It includes what that reader computes in float, or refuses.
"""

from __future__ import annotations

import onnx

from trtq.engine.settings import Builder, runtime_of
from trtq.errors import EngineError
from trtq.export.lint import lint
from trtq.export.lint_view import COMPUTE, Reader
from trtq.onnx_node import label_of
from trtq.onnx_walk import Scope, scopes
from trtq.platform.releases import Runtime
from trtq.platform.target import Target

# Rules that a build checks by itself, in words of its own.
OWN_CHECKS = ("L01", "L17", "L21")
SHOWN = 3  # errors that a message names


def reader_of(target: Target) -> Reader:
    """Return what a target reads: without a release, TensorRT for RTX where that covers it."""
    return _reader(target, target.runtime)


def reader_for(builder: Builder, target: Target) -> Reader:
    """Return what the builder reads that will build for a target."""
    return _reader(target, runtime_of(builder))


def _reader(target: Target, runtime: Runtime) -> Reader:
    return Reader(runtime, target.formats, f"{target.device}, {runtime.title}")


def refuse_errors(model: onnx.ModelProto, reader: Reader, onnx_file: str, target: Target) -> None:
    """Refuse what lint calls an error.

    The builder would refuse it, too, or would compute other values than the file says. Rules of
    :data:`OWN_CHECKS` do not count: a build checks them by itself.

    Args:
        model: to be built.
        reader: what the builder reads.
        onnx_file: its path, for the message.
        target: for the hint.

    Raises:
        EngineError: names the first findings and their rules.
    """
    findings = [
        f for f in lint(model, reader) if f.severity == "error" and f.rule not in OWN_CHECKS
    ]
    if not findings:
        return
    first, more = (
        findings[0],
        f" (and {len(findings) - SHOWN} more)" if len(findings) > SHOWN else "",
    )
    why = "; ".join(f"{f.rule}, {f.where}: {f.why}" for f in findings[:SHOWN])
    lines = f"trtq lint {onnx_file} --target {target.text}"
    hint = (
        f"Repair it: {lines} --fix FIXED.onnx"
        if all(f.repairable for f in findings)
        else f"{first.mend}; see all of it: {lines}"
    )
    raise EngineError(f"Cannot build {onnx_file} for {reader.name}", why + more, hint)


def why_float(model: onnx.ModelProto, target: Target) -> dict[str, str]:
    """Return why this target computes a node or tensor in float, by its name.

    The reason is the first lint rule that says so.

    A finding at a pair also applies to the layers that read it.
    """
    place_reasons: dict[str, str] = {}
    for finding in lint(model, reader_of(target)):
        if finding.severity == "float":
            place_reasons.setdefault(finding.where, f"{finding.rule}: {finding.why}")
    reasons = {
        label_of(node): place_reasons[where]
        for scope in scopes(model)
        for node in scope.graph.node
        for where in _first(place_reasons, [node.name, *_pair_names(scope, node)])
    }
    return place_reasons | reasons


def _first(reasons: dict[str, str], names: list[str]) -> list[str]:
    return [name for name in names if name in reasons][:1]


def _pair_names(scope: Scope, node: onnx.NodeProto) -> list[str]:
    """Return the names of the nodes between a layer and what its pairs quantize."""
    if node.op_type not in COMPUTE:
        return []
    pairs = [p for name in node.input[:2] if (p := scope.pair(name)) is not None]
    return [n.name for p in pairs for n in (p.q, p.dq, *p.path) if n is not None]
