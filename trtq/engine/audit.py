"""Precision of each module of an engine.

The source is TensorRT's own layer report, or the rows inside a TensorRT-RTX plan.

Layer reports differ between 8.2 and 11 (facts: keys, type texts, fused names). Layers are found by
the names of their ONNX nodes, inside fused names and metadata, never by equality.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx

from trtq import ops
from trtq.artifact import decode_json
from trtq.engine.plan_kernels import read_plan_kernels
from trtq.errors import EngineError, reason
from trtq.export.lint_view import COMPUTE
from trtq.onnx_node import FLOAT_CODES, FP4_DYNAMIC, label_of
from trtq.onnx_walk import Scope, all_nodes, scopes

AUDITED = (*COMPUTE, *ops.onnx_types("conv_transpose"))
PRODUCTS = ("conv", "linear", "matmul")
UNKNOWN = "unknown"
# Type texts of old (long) and new (short) reports, in the order that tells them apart: bfloat16
# contains float16 contains float.
TYPES = (
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("e4m3", "fp8"),
    ("fp4", "fp4"),
    ("e2m1", "fp4"),
    ("bf16", "bf16"),
    ("bfloat", "bf16"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("float16", "fp16"),
    ("fp32", "fp32"),
    ("float", "fp32"),
)
CODES = ("fp4", "fp8", "int8")
FOREIGN = re.compile(r"\{ForeignNode\[(.+?)\.\.\.(.+?)\]\}")


class LayerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of an engine.

    Attributes:
        name: as the engine calls it.
        precision: type of its inputs and weights; ``unknown`` where the report has names alone.
        text: everything that may contain the names of its ONNX nodes.
        moves: it only changes a layout or a type.
        product: it is known to be a convolution or a product.
    """

    name: str
    precision: str
    text: str
    moves: bool = False
    product: bool = False


class ModuleRow(msgspec.Struct, frozen=True, kw_only=True):
    """One convolution or product of the ONNX file.

    Attributes:
        node: its name there.
        requested: ``int8`` or ``fp8`` where both operands have Q/DQ pairs, else ``float``.
        actual: what the engine computes it in; None when no layer of the engine names it.
        layer: of the engine.
        macs: for one image; 0 where they cannot be counted.
        why: what probably keeps it from what was requested.
    """

    node: str
    requested: str
    actual: str | None
    layer: str
    macs: int
    why: str = ""

    @property
    def short(self) -> bool:
        """Whether it computes in something else than requested."""
        return self.requested != "float" and self.actual not in (self.requested, None, UNKNOWN)


def classify(text: str) -> str:
    """Return the precision that a type text of any release means.

    >>> classify("Thirty-two wide channel vectorized row major Int8 format"), classify("BFloat16")
    ('int8', 'bf16')
    >>> classify("Float16"), classify("Float")
    ('fp16', 'fp32')
    """
    lowered = text.lower()
    return next((kind for word, kind in TYPES if word in lowered), UNKNOWN)


def read_layer_info(path: Path) -> list[LayerRow]:
    """Return the layers of a layer report of TensorRT 8.2 to 11.

    ``trtexec --exportLayerInfo`` or the engine inspector wrote it.

    Raises:
        EngineError: it is no such report.
    """
    try:
        return parse_layer_info(path.read_bytes(), str(path))
    except OSError as exc:
        raise EngineError(f"Cannot read the layer report {path}", reason(exc)) from exc


def parse_layer_info(report: bytes, name: str) -> list[LayerRow]:
    """Return the layers of a report that was read.

    Args:
        report: JSON with a list ``Layers``, of dicts or, without detailed verbosity, of names.
        name: of the file, for errors.

    Raises:
        EngineError: it is no such report.
    """
    try:
        data = decode_json(report, Any)
    except msgspec.DecodeError as exc:
        raise EngineError(f"Cannot read the layer report {name}", reason(exc)) from exc
    layers = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(layers, list) or not layers:
        raise EngineError(
            f"{name} is no layer report of TensorRT",
            'it has no list called "Layers"',
            "Make it with trtexec --exportLayerInfo",
        )
    # An engine of several profiles lists its layers again for each but the first.
    return [row for row in map(_row, layers) if not re.search(r" \[profile [1-9]\d*\]$", row.name)]


def _row(layer: Any) -> LayerRow:
    if not isinstance(layer, dict):  # built without --profilingVerbosity=detailed
        return LayerRow(
            name=str(layer),
            precision=UNKNOWN,
            text=str(layer),
            moves=str(layer).startswith("Reformat"),
        )
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    weights = layer.get("Weights")
    types = [classify(_type(t)) for t in layer.get("Inputs", ()) if isinstance(t, dict)]
    if isinstance(weights, dict) and weights.get("Type"):
        types.append(classify(str(weights["Type"])))
    known = [t for t in types if t != UNKNOWN]
    # A layer with an INT8 input and FP16 weights is not an INT8 layer: the widest of them decides.
    order = ("fp32", "bf16", "fp16", "fp8", "int8", "fp4")
    precision = min(known, key=order.index) if known else UNKNOWN
    moves = kind in ("Reformat", "NoOp", "Quantize", "Dequantize", "Shuffle") or name.startswith(
        "Reformatting"
    )
    return LayerRow(
        name=name, precision=precision, text=f"{name} {layer.get('Metadata', '')}", moves=moves
    )


def _type(tensor: Mapping[str, Any]) -> str:
    """Return the type text of a tensor: one field up to 10, two from 11 on."""
    return str(
        tensor.get("Format/Datatype") or tensor.get("Datatype") or tensor.get("DataType") or ""
    )


def read_plan_layers(plan: bytes, version: str) -> list[LayerRow] | None:
    """Return the layers of a TensorRT-RTX plan, convolutions and products first.

    Args:
        plan: the engine file.
        version: of the builder, such as ``1.7.1``.

    Returns:
        None where its undocumented rows are not as known.
    """
    kernels = read_plan_kernels(plan, version, 1)
    if kernels is None:
        return None
    rows = [
        LayerRow(
            name=k.name,
            precision=k.precision,
            text=" ".join((k.name, *k.layers)),
            product=k.kind in PRODUCTS,
        )
        for k in kernels
    ]
    # A pointwise kernel can carry the name of the product it follows.
    return sorted(rows, key=lambda r: not r.product)


def requests(model: onnx.ModelProto) -> dict[str, str]:
    """Return the requested precision of every convolution and product, by node name.

    It is ``int8``, ``fp8`` or ``fp4`` where both operands have Q/DQ pairs (of two kinds the first
    of :data:`CODES`), else ``float``. Nodes in branches are included.
    """
    precisions: dict[str, str] = {}
    for scope in scopes(model):
        for node in scope.graph.node:
            if node.op_type in AUDITED:
                pairs = [scope.pair(name) for name in node.input[:2]]
                operand_codes = [_codes(scope, p.dq) for p in pairs if p is not None]
                precisions[label_of(node)] = (
                    "float" if len(operand_codes) < 2 else min(operand_codes, key=CODES.index)
                )
    return precisions


def _codes(scope: Scope, dq: onnx.NodeProto) -> str:
    """Return what a pair rounds to."""
    maker = scope.maker(dq.input[0])
    if maker is not None and maker.op_type == FP4_DYNAMIC:
        return "fp4"
    names = [dq.input[2]] if len(dq.input) > 2 and dq.input[2] else []
    constants = [h for n in (*names, dq.input[0]) if (h := scope.constant(n)) is not None]
    return next((FLOAT_CODES[h.data_type] for h in constants if h.data_type in FLOAT_CODES), "int8")


def match(
    model: onnx.ModelProto,
    layers: Sequence[LayerRow],
    macs: Mapping[str, int],
    reasons: Mapping[str, str],
) -> list[ModuleRow]:
    """Return a row for every convolution and product of an ONNX file.

    Args:
        model: with Q/DQ pairs or without.
        layers: of the engine.
        macs: by node name.
        reasons: by node name, what probably keeps it in float.
    """
    order = {label_of(n): i for i, n in enumerate(all_nodes(model))}
    spans = [(layer, _spans(layer.text, order)) for layer in layers if not layer.moves]
    rows = []
    for node, requested in requests(model).items():
        layer, direct = _named(node, spans, order[node])
        # A region says of its inputs what they are, not of every product inside.
        actual = None if layer is None else layer.precision if direct else UNKNOWN
        rows.append(
            ModuleRow(
                node=node,
                requested=requested,
                actual=actual,
                layer=layer.name if layer is not None else "",
                macs=macs.get(node, 0),
                why=reasons.get(node, ""),
            )
        )
    return rows


def unnamed_products(layers: Sequence[LayerRow], rows: Sequence[ModuleRow]) -> dict[str, int]:
    """Return the products of an engine that no row was matched with: counts by precision.

    Merged products and fused attention lose the names of their nodes.
    """
    named = {r.layer for r in rows}
    return dict(
        Counter(layer.precision for layer in layers if layer.product and layer.name not in named)
    )


def _spans(text: str, order: Mapping[str, int]) -> list[tuple[int, int]]:
    """Return the ranges of nodes that a Myelin region names by its first and last."""
    return [(order[a], order[b]) for a, b in FOREIGN.findall(text) if a in order and b in order]


def _named(
    node: str, layers: Iterable[tuple[LayerRow, list[tuple[int, int]]]], position: int
) -> tuple[LayerRow | None, bool]:
    """Return the layer of a node, and whether its text has the node's name as a whole.

    The second value is False where the layer's region spans the node.
    """
    whole = re.compile(rf"(?<![\w./-]){re.escape(node)}(?![\w./-])")
    spanned = None
    for layer, spans in layers:
        if whole.search(layer.text):
            return layer, True
        if any(first <= position <= last for first, last in spans):
            spanned = spanned or layer
    return spanned, False
