"""Ranges that a quantized ONNX file has in its Q/DQ pairs, by operand of the nodes behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from trtq import ops
from trtq.errors import EncodingsError
from trtq.onnx_walk import Pair, Scope, scopes
from trtq.quant.imported_ranges import Foreign
from trtq.reader.call import OWN
from trtq.reader.values import Array

CODES = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4}
SHORTCUT = -1  # the operand of a residual add, whichever it is


@dataclass(frozen=True, slots=True)
class Range:
    """The range of one operand.

    Attributes:
        role: of the operand.
        amax: largest magnitude that the codes reach, float32 [] or [C].
        bits: of the codes.
        axis: of the operand that ``amax`` runs along; None for one value.
        asymmetric: its zero is not in the middle.
        assumed: the pair has no zero point: its codes are treated as INT8 around 0.
    """

    role: str
    amax: Array
    bits: int
    axis: int | None
    asymmetric: bool
    assumed: bool = False


def ranges_of(model: onnx.ModelProto) -> dict[str, list[Range]]:
    """Return the ranges in a model's own graph, by the name of the node that reads each.

    Branches are not looked into.

    Args:
        model: with Q/DQ pairs; nodes have names.
    """
    scope = scopes(model)[0]
    ranges_by_node = {n.name: _of_node(n, scope) for n in scope.graph.node if n.domain in OWN}
    return {name: ranges for name, ranges in ranges_by_node.items() if ranges}


def _of_node(node: onnx.NodeProto, scope: Scope) -> list[Range]:
    ranges = []
    for operand in ops.of(node).operands:
        places = (0, 1) if operand.index == SHORTCUT else (operand.index,)
        for place in places:
            pair = scope.pair(node.input[place]) if place < len(node.input) else None
            if pair is None:
                continue
            role = _role(node, operand.role, scope)
            range_ = _range(pair, role, scope)
            if range_ is not None:
                ranges.append(range_)
                break
    return ranges


def _role(node: onnx.NodeProto, role: str, scope: Scope) -> str:
    """Return what an operand is to the node: a matmul with a constant is a linear layer."""
    linear = node.op_type == "MatMul" and scope.is_weight(node.input[1])
    return {"lhs": "input", "rhs": "weight"}.get(role, role) if linear else role


def _range(pair: Pair, role: str, scope: Scope) -> Range | None:
    """Return the range of a pair, None where it is unknown or its codes are no integers.

    ``amax`` is the scale times the steps from zero to the further end of the codes, 127 for INT8
    and for UINT8 around 128, 255 for UINT8 from 0.
    """
    scale = scope.value(pair.dq.input[1])
    zero = scope.value(pair.dq.input[2]) if len(pair.dq.input) > 2 else None
    stored = scope.value(pair.dq.input[0]) if pair.q is None else None
    kind = _code_type(zero, stored)
    if scale is None or kind not in CODES:
        return None
    bits = CODES[kind]
    low = 0 if kind.startswith("u") else -(1 << (bits - 1))
    high = low + (1 << bits) - 1
    middle = low + (1 << (bits - 1))
    assumed = zero is None and kind.startswith("u")  # TensorRT means INT8, ONNX UINT8 from 0
    zeros = np.asarray(middle if assumed else 0) if zero is None else zero
    zeros = zeros.astype(np.int64)
    symmetric = bool((zeros == middle).all())
    steps = np.asarray(high - middle) if symmetric else np.maximum(high - zeros, zeros - low)
    amax = (scale.astype(np.float64) * steps).astype(np.float32)
    place = scope.channels(pair) if amax.size > 1 else None
    amax = amax.reshape(-1) if amax.size > 1 else amax.reshape(())
    axis = None if place is None else place[0]
    return Range(role, amax, bits, axis, not symmetric, assumed)


def _code_type(zero: Array | None, stored: Array | None) -> str:
    """Return the type of a pair's codes; without a zero point they are uint8 or the stored."""
    codes = zero if zero is not None else stored
    return "uint8" if codes is None else str(codes.dtype)


def foreign_of(
    ranges: dict[str, list[Range]], paths: dict[str, str], source: Path | str
) -> Foreign:
    """Return the ranges by the names of a module's layers.

    Args:
        ranges: by the names of the ONNX nodes.
        paths: of the module of each node, by its ONNX name.
        source: of the ranges, for messages.

    Returns:
        The ranges by ``layer.role``, such as ``stem.conv.input``; 1 where a range was 0.

    Raises:
        EncodingsError: there are none, or one is no positive number.
    """
    foreign_ranges = Foreign(
        tool="the ONNX file", amax={}, bits={}, axes={}, weights={}, unread={}, notes=[]
    )
    moved, assumed = list[str](), list[str]()
    for node, of_node in ranges.items():
        for one in of_node:
            if node not in paths:
                foreign_ranges.unread[f"{node}.{one.role}"] = "the node is folded into another"
                continue
            name = f"{paths[node]}.{one.role}"
            if not np.isfinite(one.amax).all() or (one.amax < 0).any():
                raise EncodingsError(
                    f"Cannot use the range of {name} in {source}",
                    "a scale must be finite and not below 0",
                )
            value = torch.from_numpy(np.array(one.amax))
            foreign_ranges.amax[name] = torch.where(value > 0, value, torch.ones_like(value))
            foreign_ranges.bits[name] = one.bits
            if one.axis is not None:
                foreign_ranges.axes[name] = 0  # weights are stored with their outputs first
            moved += [name] if one.asymmetric else []
            assumed += [name] if one.assumed else []
    if not foreign_ranges.amax:
        raise EncodingsError(
            f"There are no ranges in {source}",
            "no layer reads a Q/DQ pair that trtq has a place for",
        )
    if assumed:
        foreign_ranges.notes.append(
            f"{len(assumed)} ranges have no zero point and are read as TensorRT reads them, INT8 "
            f"around 0; ONNX means UINT8 from 0: {', '.join(assumed[:3])}"
        )
    if moved:
        foreign_ranges.notes.append(
            f"{len(moved)} ranges were asymmetric; TensorRT's codes are symmetric and reach their "
            f"largest magnitude: {', '.join(moved[:3])}"
        )
    return foreign_ranges
