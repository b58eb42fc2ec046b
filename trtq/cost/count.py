"""Count multiplications, reads and writes of each layer of a captured graph, per image."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import fx

from trtq.cost.ops import COUNTED, WEIGHTED, Kernel, Op, fuse
from trtq.graph.naming import MATMULS, NORMS, TRANSPOSED, is_softmax, node_name
from trtq.graph.normalize import CONVS, conv_groups, get_constant, operands

aten = torch.ops.aten
ALIASES = (
    operator.getitem,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
    aten.contiguous.default,
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.expand_as.default,
    aten.unflatten.int,
    aten.movedim.int,
)
POINTWISE = (aten.hardswish.default, aten.prelu.default)  # PyTorch does not tag them


class LayerCost(msgspec.Struct, frozen=True, kw_only=True):
    """One op that multiplies, or normalises.

    Attributes:
        name: as in every other record.
        kind: conv, linear, matmul, norm or softmax.
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


KINDS: Mapping[object, str] = {
    **dict.fromkeys((*CONVS, *TRANSPOSED), "conv"),
    aten.linear.default: "linear",
    **dict.fromkeys(MATMULS, "matmul"),
    **dict.fromkeys(NORMS, "norm"),
    **dict.fromkeys(ALIASES, "alias"),
    **dict.fromkeys(POINTWISE, "pointwise"),
}


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


def list_ops(graph: fx.GraphModule, example: torch.Tensor) -> list[Op]:
    """Return every call of a captured graph in order.

    Counts of convolutions respect groups; attention counts both its products.

    Args:
        graph: captured and named.
        example: one batch, float32 [N, C, H, W]; counts are divided by N.
    """
    runner, batch = _Shapes(graph), len(example)
    with torch.inference_mode():
        runner.run(example)
    constant = _constants(graph)
    found = []
    for node in graph.graph.nodes:
        if node.op == "call_function" and node in runner.shapes and node not in constant:
            found.append(_op(graph, node, runner.shapes, constant, batch))
    return found


def _constants(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose value depends on no input: an engine computes them once."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (
            node.op == "call_function" and all(i in found for i in inputs)
        ):
            found.add(node)
    return found


def _kind(node: fx.Node) -> str:
    if is_softmax(node):
        return "softmax"
    kind = KINDS.get(node.target)
    if kind is not None:
        return kind
    tags = getattr(node.target, "tags", ())
    return (
        "pointwise"
        if torch.Tag.pointwise in tags
        else str(getattr(node.target, "__name__", node.target)).split(".")[0]
    )


def _op(
    graph: fx.GraphModule,
    node: fx.Node,
    shapes: Mapping[fx.Node, torch.Size],
    constant: set[fx.Node],
    batch: int,
) -> Op:
    kind, given = _kind(node), [a for a in operands(node) if isinstance(a, fx.Node)]
    held = [c for a in given if (c := get_constant(graph, a)) is not None]
    weight = held[0] if held and kind in WEIGHTED else None
    if kind in ("conv", "linear") and weight is None:
        kind = "computed"  # its weight is computed: it is no layer
    # A transposed convolution multiplies every input value with a kernel, the others make every
    # output value from one.
    produced, per_value = given[0] if node.target in TRANSPOSED and given else node, 0
    if kind == "matmul":
        per_value = int(shapes[given[-2]][-1])  # baddbmm's first operand is what it adds
    elif weight is not None:
        per_value = weight.numel() // int(weight.shape[0])
    reads = {
        a.name: shapes[a].numel() // batch
        for a in node.all_input_nodes
        if a in shapes and a not in constant
    }
    return Op(
        name=node_name(node),
        kind=kind,
        macs=shapes[produced].numel() // batch * per_value,
        weights=0 if weight is None else weight.numel(),
        reads=reads,
        writes={node.name: shapes[node].numel() // batch},
        depthwise=kind == "conv"
        and weight is not None
        and weight.shape[1] == 1
        and weight.shape[0] > 1
        and conv_groups(node) > 1,
    )


def count_layers(ops: Sequence[Op]) -> list[LayerCost]:
    """Return the cost of every convolution, linear, matmul, norm and softmax.

    Elementwise ops fuse into them and are not counted.
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
    """Return the kernels of a captured graph."""
    return fuse(ops, [n.name for n in graph.graph.output_node().all_input_nodes])
