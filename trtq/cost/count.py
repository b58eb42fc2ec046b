"""Count multiplications, reads and writes of each layer of a captured graph, per image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import torch
from torch import fx

from trtq import ops as operators
from trtq.cost.contractions import einsum_macs, recurrent_macs
from trtq.cost.ops import COUNTED, WEIGHTED, Kernel, Op, fuse
from trtq.graph.feed import Feed, count_of
from trtq.graph.naming import is_softmax, node_name
from trtq.graph.nodes import conv_groups, get_constant, operands
from trtq.graph.post_norm import is_restore


class LayerCost(msgspec.Struct, frozen=True, kw_only=True):
    """One op that multiplies, or normalises.

    Attributes:
        name: as in every other record.
        kind: conv, linear, matmul, einsum, recurrent, norm or softmax.
        macs: multiply-accumulates for one image; a norm or a softmax has none by convention.
        weights: values of its weight, the bias not counted.
        reads: values of its activation operands for one image.
        writes: values of its result for one image.
    """

    name: str
    kind: str
    macs: int
    weights: int
    reads: int
    writes: int


class _Shapes(fx.Interpreter):
    """Runs the graph once and keeps every tensor's shape."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.shapes = dict[fx.Node, torch.Size]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = result.shape
        elif isinstance(result, (list, tuple)) and result and isinstance(result[0], torch.Tensor):
            self.shapes[n] = torch.Size(
                [sum(v.numel() for v in result)]
            )  # of a split: its parts are aliases
        return result


def list_ops(graph: fx.GraphModule, feed: Feed) -> list[Op]:
    """Return every call of a captured graph in order, without those on constants alone.

    Counts of convolutions respect groups; attention counts both its products.

    Args:
        graph: captured and named.
        feed: one batch, a tensor an input; it is run once, and counts are divided by its samples.
    """
    runner = _Shapes(graph)
    with torch.inference_mode():
        runner.run(*feed)
    constant = _constants(graph)
    reader = _Reader(graph, runner.shapes, constant, count_of(feed))
    return [
        reader.op(node)
        for node in graph.graph.nodes
        if node.op == "call_function" and node in runner.shapes and node not in constant
    ]


def _constants(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose value depends on no input: an engine computes them once."""
    constants: set[fx.Node] = set()
    for node in graph.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (
            node.op == "call_function" and all(i in constants for i in inputs)
        ):
            constants.add(node)
    return constants


def _kind(node: fx.Node) -> str:
    """Return what a call counts as: as the table of operators says, else as torch tags it."""
    if is_softmax(node):
        return "softmax"
    if is_restore(node):  # of a float model: no file has it
        return "alias"
    cost = operators.of(node).cost
    if cost:
        return cost
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return "pointwise"
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads calls of a graph.

    Attributes:
        graph: captured.
        shapes: of every tensor.
        constant: nodes that depend on no input.
        batch: what counts are divided by.
    """

    graph: fx.GraphModule
    shapes: Mapping[fx.Node, torch.Size]
    constant: set[fx.Node]
    batch: int

    def values(self, node: fx.Node) -> int:
        """Return the values of a tensor for one image."""
        return self.shapes[node].numel() // self.batch

    def op(self, node: fx.Node) -> Op:
        """Return one call with its counts."""
        kind = _kind(node)
        weight = self.weight(node) if kind in WEIGHTED else None
        if kind in ("conv", "linear") and weight is None:
            kind = "computed"  # its weight is computed: it is no layer
        reads = [n for n in node.all_input_nodes if n in self.shapes and n not in self.constant]
        return Op(
            name=node_name(node),
            kind=kind,
            macs=self.macs(node, kind, weight),
            weights=self.weights(node, kind, weight),
            reads={n.name: self.values(n) for n in reads},
            writes={node.name: self.values(node)},
            depthwise=kind == "conv" and weight is not None and _is_depthwise(node, weight),
        )

    def weights(self, node: fx.Node, kind: str, weight: torch.Tensor | None) -> int:
        """Return the values of a call's weight, of a recurrent layer those of all its matrices."""
        if kind == "recurrent":
            return sum(shape.numel() for shape in self._matrices(node))
        return 0 if weight is None else weight.numel()

    def _matrices(self, node: fx.Node) -> list[torch.Size]:
        """Return the shapes of a recurrent layer's weights, biases not counted."""
        shapes = (self.shapes[n] for n in node.all_input_nodes[1:] if n in self.constant)
        return [shape for shape in shapes if len(shape) == 2]

    def weight(self, node: fx.Node) -> torch.Tensor | None:
        """Return the first constant that a call reads."""
        constants = (get_constant(self.graph, n) for n in operands(node))
        return next((c for c in constants if c is not None), None)

    def macs(self, node: fx.Node, kind: str, weight: torch.Tensor | None) -> int:
        """Return the multiply-accumulates of a call for one image."""
        if kind == "einsum":
            equation, tensors, *_ = cast(tuple[str, list[fx.Node]], node.args)
            return einsum_macs(equation, [self.shapes[n] for n in tensors]) // self.batch
        if kind == "recurrent":
            positions = self.shapes[node.all_input_nodes[0]][:2].numel()
            return recurrent_macs(positions, self._matrices(node)) // self.batch
        given = [a for a in operands(node) if isinstance(a, fx.Node)]
        if kind == "matmul":  # baddbmm's first operand is what it adds
            return self.values(node) * int(self.shapes[given[-2]][-1])
        sizes = self.shapes.get(given[1]) if kind == "computed" else None
        if weight is not None:
            sizes = weight.shape
        if sizes is None:
            return 0
        # A transposed convolution multiplies every input value with a kernel, the others make every
        # output value from one.
        produced = given[0] if operators.kind(node) == "conv_transpose" else node
        return self.values(produced) * math.prod(sizes[1:])


def _is_depthwise(node: fx.Node, weight: torch.Tensor) -> bool:
    return bool(weight.shape[1] == 1 and weight.shape[0] > 1 and conv_groups(node) > 1)


def count_layers(ops: Sequence[Op]) -> list[LayerCost]:
    """Return the cost of every convolution, linear, matmul, norm and softmax, in order.

    Elementwise ops fuse into them and are not counted.

    Args:
        ops: from :func:`list_ops` or :func:`trtq.cost.onnx_file.list_onnx_ops`.
    """
    return [
        LayerCost(
            name=op.name,
            kind=op.kind,
            macs=op.macs,
            weights=op.weights,
            reads=sum(op.reads.values()),
            writes=sum(op.writes.values()),
        )
        for op in ops
        if op.kind in COUNTED
    ]


def list_kernels(graph: fx.GraphModule, ops: Sequence[Op]) -> list[Kernel]:
    """Return the kernels of a captured graph.

    Args:
        graph: captured.
        ops: from :func:`list_ops`.
    """
    return fuse(ops, [n.name for n in graph.graph.output_node().all_input_nodes])
