"""Lint an ONNX file of any tool for one reader, and repair what is mechanical.

The rules are about what TensorRT refuses, or accepts and silently computes in float. The evidence:
facts of the ONNX parser by release, and builds whose layer reports were read (docs/targets.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx

from trtq.export import (
    lint_coverage,
    lint_forms,
    lint_pairs,
    lint_placement,
    lint_stored,
    lint_values,
)
from trtq.export.lint_view import Finding, Reader, View, drop_unread_, views
from trtq.onnx_walk import scopes

Check = Callable[[View], Iterator[Finding]]
Fix = Callable[[View], int]
RULES: tuple[tuple[str, str, Check, Fix | None], ...] = (
    ("L01", "opset newer than the parser reads", lint_coverage.opset, None),
    ("L02", "op that the release does not read", lint_coverage.ops, None),
    ("L03", "zero point other than INT8 zero", lint_pairs.zero_points, lint_pairs.fix_zero_points),
    ("L04", "activation with a scale for each channel", lint_pairs.activation_scales, None),
    ("L05", "weight scales along the wrong axis", lint_placement.weight_axes, None),
    (
        "L06",
        "scale for each channel without an axis",
        lint_pairs.missing_axis,
        lint_pairs.fix_missing_axis,
    ),
    ("L07", "axis beside a single scale (8.0)", lint_pairs.scalar_axis, lint_pairs.fix_scalar_axis),
    (
        "L08",
        "no zero point: UINT8 to ONNX, INT8 to TensorRT",
        lint_pairs.no_zero_point,
        lint_pairs.fix_no_zero_point,
    ),
    (
        "L09",
        "INT32 bias with a DequantizeLinear",
        lint_stored.int32_bias,
        lint_stored.fix_int32_bias,
    ),
    (
        "L10",
        "stored INT8 weights before TensorRT 10",
        lint_stored.stored_weights,
        lint_stored.fix_stored_weights,
    ),
    ("L11", "Concat of unequal scales", lint_placement.concat, None),
    ("L12", "average pool between a pair and a layer", lint_placement.average_pool, None),
    (
        "L13",
        "quantized transposed convolution",
        lint_placement.transposed,
        lint_placement.fix_transposed,
    ),
    ("L14", "residual add without a pair on its shortcut", lint_placement.residual, None),
    ("L15", "pair between a convolution and its activation", lint_placement.inside_fusion, None),
    ("L16", "pair in front of an op that computes in float", lint_placement.sensitive, None),
    ("L17", "dynamic axis other than the batch", lint_coverage.shapes, None),
    ("L18", "node names that clash or break reports", lint_values.names, lint_values.fix_names),
    ("L19", "scale that is no positive constant", lint_pairs.scales, None),
    ("L20", "constant beyond FP16", lint_values.half, None),
    ("L21", "codes that the hardware does not multiply in", lint_values.hardware, None),
    ("L22", "layer with a pair on one operand only", lint_placement.halves, None),
    ("L23", "tensor of a type that the release does not have", lint_coverage.types, None),
    ("L24", "form of an op that the parser refuses", lint_forms.attributes, None),
    (
        "L25",
        "activation scale of shape [1]",
        lint_pairs.single_scales,
        lint_pairs.fix_single_scales,
    ),
    ("L26", "constant that is NaN, or an infinite weight", lint_values.finite, None),
    ("L27", "op that a plugin computes", lint_coverage.plugins, None),
)


def lint(model: onnx.ModelProto, reader: Reader) -> list[Finding]:
    """Return what the rules find, in the order of the rules.

    Args:
        model: any ONNX; not changed.
        reader: who will read it (:func:`trtq.engine.lint_target.reader_of`).
    """
    looked = views(model, reader)
    return [finding for _, _, check, _ in RULES for view in looked for finding in check(view)]


def repair(
    model: onnx.ModelProto, reader: Reader, *, change_values: bool = False
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return a copy with what is mechanical repaired, and how many places each rule touched.

    Args:
        model: not changed.
        reader: who will read the copy.
        change_values: also the repairs that change values; without it values are not changed.

    Returns:
        The copy, and counts by the number of the rule, such as ``{"L09": 2}``; rules that touched
        nothing are not in it.
    """
    result, done = onnx.ModelProto(), dict[str, int]()
    result.CopyFrom(model)
    for rule, _, check, fix in RULES:
        if fix is None:
            continue
        for k in range(len(scopes(result))):
            view = View(
                result, reader, scopes(result)[k]
            )  # again: the rule before may have changed the graph
            if any(f.repairable or (change_values and f.changes_values) for f in check(view)):
                done[rule] = done.get(rule, 0) + fix(view)
    if done:
        drop_unread_(result)
    return result, done
