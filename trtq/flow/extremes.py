"""Extreme channels of a model before calibration: balanced where that is exact, else in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from trtq.flow.inputs import Inputs
from trtq.flow.ptq import method_context
from trtq.methods.balance import Extreme, find_extremes
from trtq.methods.registry import contradicts
from trtq.records.quantize import ExtremeRecord
from trtq.specs import QuantizeOptions

BALANCE = "balance"
SCALE = ("smooth", "qads")  # methods that scale channels already


def handle_extremes(
    inputs: Inputs, options: QuantizeOptions
) -> tuple[QuantizeOptions, list[ExtremeRecord]]:
    """Return options under which extreme channels cost little, and what was found.

    A tensor between two layers with scale-equivariant ops between them is balanced. Where none
    pass, the layers that read it remain in float.

    Args:
        inputs: the model and its samples.
        options: with the methods of the preset.
    """
    extremes = find_extremes(method_context(inputs, options))
    rows = [_row(extreme, options) for extreme in extremes]
    for row in rows:
        inputs.run.note(row.words)
    kept = [n for row in rows if row.action == "float" for n in row.layers]
    methods = _with_balance(options.method, rows)
    return msgspec.structs.replace(
        options,
        method=methods,
        high_precision=tuple(dict.fromkeys((*options.high_precision, *kept))),
    ), rows


def _with_balance(methods: Sequence[str], rows: Sequence[ExtremeRecord]) -> tuple[str, ...]:
    needed = any(r.action == "balanced" for r in rows) and BALANCE not in methods
    return (BALANCE, *methods) if needed else tuple(methods)


def _row(extreme: Extreme, options: QuantizeOptions) -> ExtremeRecord:
    scaled = next((m for m in SCALE if m in options.method), None)
    action: Literal["balanced", "scaled", "float"]
    exact = extreme.pair is not None and extreme.pair.restore is None
    if exact and scaled is not None:
        action, why = "scaled", f"the method {scaled} scales it"
    elif exact and not contradicts(BALANCE, options.method):
        action, why = "balanced", "its factors move into the next layer"
    else:
        action, why = "float", "the activation is not scale-equivariant"
    return ExtremeRecord(
        tensor=extreme.tensor,
        layers=list(extreme.layers),
        ratio=round(extreme.ratio, 1),
        sqnr_db=round(extreme.sqnr_db, 1),
        action=action,
        why=why,
    )
