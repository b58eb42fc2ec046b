"""Precision of a new engine, compared with that of its Q/DQ graph."""

from __future__ import annotations

import contextlib

import msgspec
import onnx

from trtq.engine.audit import (
    LayerRow,
    ModuleRow,
    match,
    parse_layer_info,
    read_plan_layers,
    unnamed_products,
)
from trtq.engine.lint_target import why_float
from trtq.engine.plan_text import PlanAudit, audit_plan
from trtq.engine.settings import RTX, Built
from trtq.errors import EngineError
from trtq.export.codes import codes_of, count_qdq
from trtq.platform.target import Target

CODE_NAMES = {"int8": "INT8", "fp8": "FP8", "fp4": "NVFP4"}


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How much of what was asked for an engine does.

    Attributes:
        source: where this was read.
        asked: convolutions and products with codes on both operands.
        got: of them, those that compute in codes.
        unknown: of them, those that no layer names, or inside a region that does not say.
        short: the others, with what probably keeps them in float.
        unnamed: products of the engine under names of their own (merged, fused attention), by
            precision: some of the unknown ones.
        codes: that they were asked for in, such as ``INT8`` or ``FP8``.
    """

    source: str
    asked: int
    got: int
    unknown: int
    short: list[ModuleRow]
    unnamed: dict[str, int] = {}
    codes: str = "INT8"

    @property
    def summary(self) -> str:
        """A few words for a person."""
        other = ", ".join(f"{v} {k}" for k, v in self.unnamed.items())
        rest = f"; products without a name: {other}" if other else ""
        return f"{self.got} of {self.asked} quantized layers in {self.codes}" + (
            f" ({self.unknown} cannot be told{rest})" if self.unknown else ""
        )


def cover(
    model: onnx.ModelProto, built: Built, backend: str, target: Target
) -> tuple[Coverage | None, PlanAudit | None]:
    """Return what the builder's own report or the rows of a TensorRT-RTX plan say.

    Args:
        model: with the pairs that the engine should compute.
        built: the engine.
        backend: ``tensorrt``, ``tensorrt-rtx`` or ``trtexec``.
        target: it was built for, to explain layers in float.

    Returns:
        How much of what was asked for it computes, None without a report of a known form; and the
        counts of the plan's own rows, None for other builders and unknown versions.
    """
    rtx = backend == RTX
    source = f"the plan of TensorRT-RTX {built.version}" if rtx else "the builder's layer report"
    plan_rows = audit_plan(built.plan, built.version) if rtx else None
    rows = read_plan_layers(built.plan, built.version) if rtx else _reported(built, source)
    if rows is None:
        return None, plan_rows
    modules = [m for m in match(model, rows, {}, {}) if m.requested != "float"]
    if any(m.short for m in modules):
        reasons = why_float(model, target)
        modules = [msgspec.structs.replace(m, why=reasons.get(m.node, "")) for m in modules]
    precisions = sorted({m.requested for m in modules}, key=list(CODE_NAMES).index)
    short = [m for m in modules if m.short]
    got = sum(m.actual == m.requested for m in modules)
    return Coverage(
        source=source,
        asked=len(modules),
        got=got,
        unknown=len(modules) - got - len(short),
        short=short,
        unnamed=unnamed_products(rows, modules),
        codes=" and ".join(CODE_NAMES[c] for c in precisions) or "INT8",
    ), plan_rows


def _reported(built: Built, source: str) -> list[LayerRow] | None:
    """Return the layers of the builder's report; None without one, or of no known form."""
    if built.layers is None:
        return None
    with contextlib.suppress(EngineError):
        return parse_layer_info(built.layers, source)
    return None


def require_codes(
    model: onnx.ModelProto,
    onnx_file: str,
    coverage: Coverage | None,
    rows: PlanAudit | None,
    target: Target,
) -> None:
    """Refuse a Q/DQ model when no layer of its engine is quantized: it must not be called INT8.

    Args:
        model: with the pairs that the engine should compute.
        onnx_file: its path, for the hint.
        coverage: of :func:`cover`.
        rows: of :func:`cover`.
        target: it was built for.

    Raises:
        EngineError: nothing that was asked for came.
    """
    pairs = count_qdq(model)
    if not pairs or not _none_in_codes(coverage, rows):
        return
    layers, first = "", ""
    if coverage is not None:
        layers = f" and {coverage.asked} quantized layers"
        if coverage.short:
            first = f"; the first layer in float is {coverage.short[0].node}"
    reasons = why_float(model, target)
    places = f"Lint names the layers and what to do: trtq lint {onnx_file} --target {target.name}"
    raise EngineError(
        f"The engine for {target.device} has no layer in {codes_of(model)}",
        f"the model has {pairs} Q/DQ pairs{layers}{first}" + _likely(reasons),
        places
        if reasons
        else "No lint rule explains it. Give the float file for an FP16 engine: trtq build ... "
        "--precision fp16",
    )


def _none_in_codes(coverage: Coverage | None, rows: PlanAudit | None) -> bool:
    """Whether it is known that no layer of an engine computes in codes."""
    if rows is not None:
        computed = {*rows.convolutions, *rows.products}
        return not (computed & CODE_NAMES.keys() or {"int4", "fp4"} & rows.weights.keys())
    if coverage is None:
        return False
    return coverage.asked > 0 and coverage.got == coverage.unknown == 0


def _likely(reasons: dict[str, str]) -> str:
    where, why = next(iter(reasons.items()), ("", ""))
    return f"; {where}: {why}" if why else ""
