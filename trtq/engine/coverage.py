"""What a new engine computes in, compared with what its Q/DQ graph asked for."""

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
from trtq.engine.settings import Built
from trtq.errors import EngineError
from trtq.export.onnx_file import count_qdq
from trtq.platform.target import Target


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
    """

    source: str
    asked: int
    got: int
    unknown: int
    short: list[ModuleRow]
    unnamed: dict[str, int] = {}

    @property
    def summary(self) -> str:
        """A few words for a person."""
        other = ", ".join(f"{v} {k}" for k, v in self.unnamed.items())
        rest = f"; products without a name: {other}" if other else ""
        return f"{self.got} of {self.asked} quantized layers in INT8" + (
            f" ({self.unknown} cannot be told{rest})" if self.unknown else ""
        )


def cover(
    model: onnx.ModelProto, built: Built, backend: str, target: Target
) -> tuple[Coverage | None, PlanAudit | None]:
    """Return what the builder's own report or the rows of a TensorRT-RTX plan say.

    A value is None where nothing can be known.
    """
    rows: list[LayerRow] | None = None
    plan_rows = audit_plan(built.plan, built.version) if backend == "tensorrt-rtx" else None
    source = f"the plan of TensorRT-RTX {built.version}"
    if backend == "tensorrt-rtx":
        rows = read_plan_layers(built.plan, built.version)
    elif built.layers is not None:
        source = "the builder's layer report"
        with contextlib.suppress(EngineError):  # a report of no known form says nothing
            rows = parse_layer_info(built.layers, source)
    if rows is None:
        return None, plan_rows
    modules = [m for m in match(model, rows, {}, {}) if m.requested != "float"]
    if any(m.short for m in modules):
        reasons = why_float(model, target)
        modules = [msgspec.structs.replace(m, why=reasons.get(m.node, "")) for m in modules]
    short = [m for m in modules if m.short]
    got = sum(m.actual == m.requested for m in modules)
    unknown, unnamed = len(modules) - got - len(short), unnamed_products(rows, modules)
    return Coverage(
        source=source, asked=len(modules), got=got, unknown=unknown, short=short, unnamed=unnamed
    ), plan_rows


def require_codes(
    model: onnx.ModelProto,
    onnx_file: str,
    coverage: Coverage | None,
    rows: PlanAudit | None,
    target: Target,
) -> None:
    """A Q/DQ model whose engine computes nothing in codes must not be called INT8.

    Raises:
        EngineError: nothing that was asked for came.
    """
    some = rows is not None and any(
        {"int8", "fp8"} & set(found) for found in (rows.convolutions, rows.products)
    )
    none_in_rows = rows is not None and not some
    none_in_report = (
        rows is None
        and coverage is not None
        and coverage.asked > 0
        and coverage.got == 0
        and coverage.unknown == 0
    )
    pairs = count_qdq(model)
    if pairs and (none_in_rows or none_in_report):
        said = (
            f"; the first layer in float is {coverage.short[0].node}"
            if coverage is not None and coverage.short
            else ""
        )
        asked = f" and {coverage.asked} quantized layers" if coverage is not None else ""
        reasons = why_float(model, target)
        places = (
            f"Lint names the layers and what to do: trtq lint {onnx_file} --target {target.name}"
        )
        raise EngineError(
            f"The engine for {target.device} computes nothing in INT8",
            f"the model has {pairs} Q/DQ pairs{asked}{said}" + _likely(reasons),
            places
            if reasons
            else "No lint rule explains it. Give the float file for an FP16 engine: trtq build "
            "... --precision fp16",
        )


def _likely(reasons: dict[str, str]) -> str:
    where, why = next(iter(reasons.items()), ("", ""))
    return f"; {where}: {why}" if why else ""
