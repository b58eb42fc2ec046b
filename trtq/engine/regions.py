"""Which layers gain from INT8: two engines of one model compared region by region.

A region is the smallest set of layers that no kernel of either engine crosses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import onnx

from trtq.disjoint import Sets
from trtq.engine.audit import AUDITED, requests
from trtq.export.strip import strip_qdq
from trtq.onnx_node import label_of
from trtq.onnx_walk import QDQ, Scope, scopes

ATTENTION = "attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One kernel of an engine.

    Attributes:
        name: of the kernel.
        ms: of one call.
        nodes: labels of the ONNX nodes in it; Q/DQ nodes count for the layers that they feed.
        megabytes: read and written, None where that is not known.
    """

    name: str
    ms: float
    nodes: tuple[str, ...]
    megabytes: float | None = None


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """A region in one precision.

    Attributes:
        ms: of one call.
        kernels: names of its kernels.
        megabytes: read and written, None where that is not known.
    """

    ms: float
    kernels: list[str]
    megabytes: float | None = None

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Side:
        """Return the sum of kernels."""
        moved = [p.megabytes for p in pieces if p.megabytes is not None]
        return cls(
            ms=sum(p.ms for p in pieces),
            kernels=[p.name for p in pieces],
            megabytes=sum(moved) if moved and len(moved) == len(pieces) else None,
        )

    @property
    def words(self) -> str:
        """The side for a person."""
        moved = f", {self.megabytes:.2f} MB moved" if self.megabytes is not None else ""
        count = len(self.kernels)
        return f"{self.ms:.4f} ms in {count} kernel{'' if count == 1 else 's'}{moved}"


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """Quantized layers that are decided together.

    Attributes:
        layers: ONNX nodes with Q/DQ pairs on both operands.
        kind: of the layers, such as ``depthwise convolution``; ``head`` is added where no other
            layer follows.
        int8, fp16: its time with and without the pairs.
        saved_ms: time of a call that FP16 saves, the other layers as chosen; below 0 where INT8
            wins. New conversions beside the region are in it.
        loses: FP16 is chosen for it.
    """

    layers: list[str]
    kind: str
    int8: Side
    fp16: Side
    saved_ms: float
    loses: bool

    @property
    def words(self) -> str:
        """The region for a person."""
        more = f" and {len(self.layers) - 2} more" if len(self.layers) > 2 else ""
        return f"{', '.join(self.layers[:2])}{more} ({self.kind})"

    @property
    def why(self) -> str:
        """The two sides for a person."""
        saves = f"FP16 saves {self.saved_ms:.4f} ms" if self.loses else "INT8 stays"
        return f"INT8 {self.int8.words}; FP16 {self.fp16.words}; {saves}"


@dataclass(frozen=True, slots=True)
class Quantized:
    """The quantized layers of a Q/DQ file.

    Attributes:
        layers: labels of nodes with pairs on both operands, with their kinds.
        formats: ``int8`` or ``fp8`` of each.
        reads: tensors of the float model that each reads as codes, by node; layers and other nodes
            with a pair on an operand.
        feeds: labels of the layers behind a Q or DQ node, by its label.
        plain: the file without pairs.
        nodes: labels of the nodes of ``plain``.
    """

    layers: Mapping[str, str]
    formats: Mapping[str, str]
    reads: Mapping[str, tuple[str, ...]]
    feeds: Mapping[str, tuple[str, ...]]
    plain: onnx.ModelProto
    nodes: frozenset[str]


def read_quantized(model: onnx.ModelProto) -> Quantized:
    """Return the quantized layers of the main graph of a Q/DQ file.

    Raises:
        ExportError: its pairs cannot be taken out (:func:`trtq.export.strip.strip_qdq`).
    """
    plain = strip_qdq(model)
    scope, float_scope = scopes(model)[0], scopes(plain)[0]
    by_label = {label_of(n): n for n in plain.graph.node}
    precisions = requests(model)
    reads: dict[str, tuple[str, ...]] = {}
    feeds: dict[str, list[str]] = {}
    for node in scope.graph.node:
        if node.op_type in QDQ or label_of(node) not in by_label:
            continue
        label, twin = label_of(node), by_label[label_of(node)]
        for position, name in enumerate(node.input):
            pair = scope.pair(name) if name else None
            if pair is None:
                continue
            for half in (pair.q, pair.dq):
                if half is not None:
                    feeds.setdefault(label_of(half), []).append(label)
            if not float_scope.is_constant(twin.input[position]):
                reads[label] = (*reads.get(label, ()), twin.input[position])
    last = _last_layers(float_scope)
    layers = {
        label: _kind(node, float_scope, head=label in last)
        for label, node in by_label.items()
        if precisions.get(label) in ("int8", "fp8")
    }
    return Quantized(
        layers=layers,
        formats={n: precisions[n] for n in layers},
        reads=reads,
        feeds={k: tuple(v) for k, v in feeds.items()},
        plain=plain,
        nodes=frozenset(by_label),
    )


def _kind(node: onnx.NodeProto, scope: Scope, *, head: bool) -> str:
    weight = scope.value(node.input[1])
    if weight is None:
        kind = "product of activations"
    elif node.op_type == "Conv":
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        kind = "depthwise convolution" if groups > 1 == weight.shape[1] else "convolution"
    else:
        kind = "convolution" if node.op_type.startswith("Conv") else "linear layer"
    return f"{kind}, head" if head else kind


def _last_layers(scope: Scope) -> frozenset[str]:
    """Return the labels of layers from which no other layer is reached.

    The nodes are read from the last to the first: a layer none of whose outputs leads to a layer is
    one.
    """
    before: set[str] = set()  # tensors from which a layer is reached
    last: set[str] = set()
    for node in reversed(scope.graph.node):
        is_layer = node.op_type in AUDITED
        reaches = any(o in before for o in node.output)
        if is_layer and not reaches:
            last.add(label_of(node))
        if is_layer or reaches:
            before.update(node.input)
    return frozenset(last)


def partners(quantized: Quantized) -> Sets:
    """Return the layers that are decided together: those that read the same codes."""
    sets, readers = Sets(), dict[str, list[str]]()
    for label in quantized.layers:
        for tensor in quantized.reads.get(label, ()):
            readers.setdefault(tensor, []).append(label)
    for names in readers.values():
        sets.join(names)
    return sets


@dataclass(frozen=True, slots=True)
class Compared:
    """Two engines by region.

    Attributes:
        sides: INT8 and FP16 of each region, by its layers.
        unnamed: kernels of the two that name no node.
        missing: quantized layers that no kernel of one of the two names.
    """

    sides: Mapping[tuple[str, ...], tuple[Side, Side]]
    unnamed: list[Piece]
    missing: list[str]


def compare_pieces(quantized: Quantized, int8: Sequence[Piece], fp16: Sequence[Piece]) -> Compared:
    """Return the regions of a model that runs as two engines.

    Args:
        quantized: its layers.
        int8: kernels of the engine with the pairs.
        fp16: kernels of the one without.
    """
    engines = [[(_nodes_of(p, quantized), p) for p in pieces] for pieces in (int8, fp16)]
    sets = partners(quantized)
    for nodes, _ in (*engines[0], *engines[1]):
        sets.join(nodes)
    pieces_by_root: list[dict[str, list[Piece]]] = [{}, {}]
    for pieces, by_root in zip(engines, pieces_by_root, strict=True):
        for nodes, piece in pieces:
            if nodes:
                by_root.setdefault(sets.find(nodes[0]), []).append(piece)
    sides: dict[tuple[str, ...], tuple[Side, Side]] = {}
    missing: list[str] = []
    for layers in sets.groups(quantized.layers):
        before, after = (by_root.get(sets.find(layers[0]), []) for by_root in pieces_by_root)
        if all(any(n in layers for p in side for n in p.nodes) for side in (before, after)):
            sides[tuple(layers)] = Side.of(before), Side.of(after)
        else:
            missing += layers
    return Compared(
        sides=sides,
        unnamed=[p for pieces in engines for nodes, p in pieces if not nodes],
        missing=missing,
    )


def _nodes_of(piece: Piece, quantized: Quantized) -> list[str]:
    """Return the nodes of a kernel that the float model has, too.

    A kernel of Q/DQ nodes alone stands for the layers that they feed.
    """
    own = [n for n in piece.nodes if n in quantized.nodes]
    return own or [n for q in piece.nodes for n in quantized.feeds.get(q, ())]


def kind_of(quantized: Quantized, layers: Sequence[str]) -> str:
    """Return what the layers of a region are."""
    return " + ".join(sorted({quantized.layers[n] for n in layers}))
