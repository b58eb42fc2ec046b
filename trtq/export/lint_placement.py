"""Rules for where pairs are: layers that compute in float, or lose speed, because of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from trtq.export.lint_stored import readable
from trtq.export.lint_view import (
    COMPUTE,
    Finding,
    View,
    add_named,
    dequantized,
    in_blocks,
    named,
    weight_axis,
)

FLOAT_POOLS = ("AveragePool", "GlobalAveragePool")


def weight_axes(view: View) -> Iterator[Finding]:
    """L05: weight scales along the wrong axis."""
    for node in view.nodes(*COMPUTE):
        pair = view.pair(node.input[1]) if len(node.input) > 1 else None
        if pair is None or not view.is_constant(pair.source) or in_blocks(pair.dq):
            continue
        along = view.scope.channels(pair)
        if along is not None and along[0] != weight_axis(node, along[1]):
            wanted = weight_axis(node, along[1])
            why = (
                f"its weight has scales along axis {along[0]}, and {node.op_type} takes axis "
                f"{wanted}: it runs in float"
            )
            yield Finding(
                rule="L05",
                severity="float",
                where=named(node),
                why=why,
                mend=f"Quantize the weight along axis {wanted}",
            )


def concat(view: View) -> Iterator[Finding]:
    """L11: Concat of unequal scales."""
    for node in view.nodes("Concat"):
        pairs = [p for n in node.input if (p := view.pair(n)) is not None]
        scales = {
            float(np.asarray(s).reshape(-1)[0])
            for p in pairs
            if (s := view.value(p.dq.input[1])) is not None
        }
        behind = _readers_behind(view, node.output[0])
        if (
            len(pairs) == len(node.input)
            and len(scales) > 1
            and any(n.op_type in COMPUTE for n in behind)
        ):
            why = (
                f"its inputs have {len(scales)} scales and no pair follows: the layer behind it "
                "runs in float"
            )
            mend = "Give its inputs one scale, or put a pair behind it"
            yield Finding(rule="L11", severity="float", where=named(node), why=why, mend=mend)


def _readers_behind(view: View, name: str) -> list[onnx.NodeProto]:
    """Return the readers of a tensor, through ops that only move values."""
    consumers, left = list[onnx.NodeProto](), [name]
    while left:
        for node in view.readers.get(left.pop(), []):
            moves = node.output and view.scope.moved(node.output[0])[1]
            if moves and node.op_type not in COMPUTE:
                left += node.output[:1]
            else:
                consumers.append(node)
    return consumers


def average_pool(view: View) -> Iterator[Finding]:
    """L12: average pool between a pair and a layer."""
    for node in view.nodes(*FLOAT_POOLS):
        if view.pair(node.input[0]) is None:
            continue
        behind = [n for n in _readers_behind(view, node.output[0]) if n.op_type in COMPUTE]
        inputs = [n for n in behind if view.scope.moved(n.input[0])[0] == node.output[0]]
        if inputs:
            why = f"an average pool between a pair and {named(inputs[0])}, which then runs in float"
            yield Finding(
                rule="L12",
                severity="float",
                where=named(node),
                why=why,
                mend="Put a pair directly in front of that layer",
            )


def transposed(view: View) -> Iterator[Finding]:
    """L13: quantized transposed convolution."""
    for node in view.nodes("ConvTranspose"):
        if any(view.pair(n) is not None for n in node.input[:2]):
            why = "a transposed convolution never runs in INT8; its pairs cost kernels and accuracy"
            mend = "Leave it in float: --fix does that with --allow-value-changes"
            yield Finding(
                rule="L13",
                severity="float",
                where=named(node),
                why=why,
                mend=mend,
                changes_values=True,
            )


def fix_transposed(view: View) -> int:
    """Repair L13 and return at how many places."""
    done = 0
    for node in view.nodes("ConvTranspose"):
        for i, name in enumerate(node.input[:2]):
            pair = view.pair(name)
            if pair is None or pair.path:  # what moves the values reads the pair, too
                continue
            if pair.q is not None:
                node.input[i] = pair.q.input[0]
            elif view.value(pair.dq.input[0]) is not None and readable(view, pair.dq):
                node.input[i] = add_named(view, f"{name}/float", dequantized(view, pair.dq))
            else:
                continue
            done += 1
    return done


def residual(view: View) -> Iterator[Finding]:
    """L14: residual add without a pair on its shortcut."""
    for node in view.nodes("Add"):
        convs = [
            i
            for i, n in enumerate(node.input)
            if (p := view.producer.get(n)) is not None
            and p.op_type == "Conv"
            and view.pair(p.input[0])
        ]
        if len(convs) != 1 or len(node.input) != 2:
            continue
        other = node.input[1 - convs[0]]
        if not view.is_constant(other) and view.pair(other) is None:
            why = (
                "the shortcut of a residual add has no pair: the add does not fuse into its "
                "INT8 convolution"
            )
            yield Finding(
                rule="L14",
                severity="slow",
                where=named(node),
                why=why,
                mend="Quantize the shortcut, not the convolution's output",
            )


def inside_fusion(view: View) -> Iterator[Finding]:
    """L15: pair between a convolution and its activation."""
    for node in view.nodes("QuantizeLinear"):
        before = view.producer.get(node.input[0])
        if before is None or before.op_type != "Conv":
            continue
        behind = [
            r
            for d in view.readers.get(node.output[0], [])
            for r in view.readers.get(d.output[0], [])
        ]
        inside = next(
            (
                r
                for r in behind
                if r.op_type in ("Relu", "Clip", "BatchNormalization", "HardSwish", "Sigmoid")
            ),
            None,
        )
        if inside is not None:
            why = f"a pair between {named(before)} and {named(inside)}: the two no longer fuse"
            yield Finding(
                rule="L15",
                severity="slow",
                where=named(node),
                why=why,
                mend="Put the pair behind the activation",
            )


def sensitive(view: View) -> Iterator[Finding]:
    """L16: pair in front of an op that computes in float."""
    for node in view.nodes(
        "LayerNormalization", "Softmax", "Gelu", "InstanceNormalization", "GroupNormalization"
    ):
        if view.pair(node.input[0]) is not None:
            why = (
                f"a pair in front of {node.op_type}, which computes in float anyway: accuracy "
                "lost for nothing"
            )
            yield Finding(
                rule="L16", severity="slow", where=named(node), why=why, mend="Take the pair away"
            )


def halves(view: View) -> Iterator[Finding]:
    """L22: layer with a pair on one operand only."""
    for node in view.nodes(*COMPUTE):
        pairs = [view.pair(name) is not None for name in node.input[:2]]
        four = any(
            h.dtype.name in ("int4", "uint4")
            for n in node.input[:2]
            if (h := _codes(view, n)) is not None
        )
        if len(pairs) == 2 and pairs[0] != pairs[1] and not four:
            which = (
                ("input", "weight")[pairs.index(True)]
                if view.is_constant(node.input[1]) or pairs[1]
                else "one operand"
            )
            why = f"only its {which} has a pair: it computes in float"
            yield Finding(
                rule="L22",
                severity="float",
                where=named(node),
                why=why,
                mend="Quantize both operands, or neither",
            )


def _codes(view: View, name: str) -> np.ndarray | None:
    pair = view.pair(name)
    return view.value(pair.dq.input[0]) if pair is not None else None
