"""Counting: how much each layer of a captured graph multiplies, reads and writes for one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch
from torch import fx

from trtq.graph.naming import MATMULS, is_softmax, node_name
from trtq.graph.normalize import CONVS, get_constant, operands

aten = torch.ops.aten
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
NORMS = (aten.layer_norm.default, aten.group_norm.default, aten.batch_norm.default, aten.instance_norm.default)


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


def _shared_dim(node: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> int:
    return int(shapes[operands(node)[0]][-1])


def _per_output(node: fx.Node, weight: torch.Tensor) -> int:
    return weight.numel() // int(weight.shape[0])


# Kind and multiply-accumulates of one output value (of one input value for transposed convolutions), by op.
_Rule = tuple[str, Callable[[fx.Node, Any, Mapping[fx.Node, torch.Size]], int]]
RULES: dict[object, _Rule] = {
    **dict.fromkeys(CONVS, ("conv", lambda n, w, s: _per_output(n, w))),
    **dict.fromkeys(TRANSPOSED, ("conv", lambda n, w, s: _per_output(n, w))),
    aten.linear.default: ("linear", lambda n, w, s: int(w.shape[1])),
    **dict.fromkeys(MATMULS, ("matmul", lambda n, w, s: _shared_dim(n, s))),
    **dict.fromkeys(NORMS, ("norm", lambda n, w, s: 0)),
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
        return result


def count_layers(graph: fx.GraphModule, example: torch.Tensor) -> list[LayerCost]:
    """Return the cost of every convolution, linear, matmul, norm and softmax, in graph order.

    Convolutions count their groups, attention counts both its products. What is elementwise is not counted: it fuses into what is.

    Args:
        graph: captured and named.
        example: one batch, float32 [N, C, H, W]; counts are divided by N.
    """
    runner, batch = _Shapes(graph), len(example)
    with torch.inference_mode():
        runner.run(example)
    found = []
    for node in graph.graph.nodes:
        rule = ("softmax", lambda n, w, s: 0) if is_softmax(node) else RULES.get(node.target)
        if rule is None or node not in runner.shapes:
            continue
        given = [a for a in operands(node) if isinstance(a, fx.Node)]
        constants = [c for a in given if (c := get_constant(graph, a)) is not None]
        weight = constants[0] if constants and rule[0] in ("conv", "linear", "matmul") else None
        activations = [a for a in given if get_constant(graph, a) is None and a in runner.shapes]
        produced = activations[0] if node.target in TRANSPOSED else node
        if rule[0] in ("conv", "linear") and weight is None:
            continue  # its weight is computed: it is no layer
        found.append(
            LayerCost(
                name=node_name(node), kind=rule[0], macs=runner.shapes[produced].numel() // batch * rule[1](node, weight, runner.shapes),
                weights=0 if weight is None else weight.numel(), reads=sum(runner.shapes[a].numel() for a in activations) // batch,
                writes=runner.shapes[node].numel() // batch,
            )
        )  # fmt: skip
    return found
