"""Counting: how much each layer of a captured graph multiplies, reads and writes for one image."""

from __future__ import annotations

from collections.abc import Mapping
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


KINDS: Mapping[object, str] = {
    **dict.fromkeys((*CONVS, *TRANSPOSED), "conv"), aten.linear.default: "linear", **dict.fromkeys(MATMULS, "matmul"),
    **dict.fromkeys(NORMS, "norm"),
}  # fmt: skip


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
        kind = "softmax" if is_softmax(node) else KINDS.get(node.target)
        if kind is None or node not in runner.shapes:
            continue
        given = [a for a in operands(node) if isinstance(a, fx.Node)]
        constants = [c for a in given if (c := get_constant(graph, a)) is not None]
        weight = constants[0] if constants and kind in ("conv", "linear", "matmul") else None
        activations = [a for a in given if get_constant(graph, a) is None and a in runner.shapes]
        if kind in ("conv", "linear") and weight is None:
            continue  # its weight is computed: it is no layer
        # A transposed convolution multiplies every input value with a kernel, the others make every output value from one.
        produced = activations[0] if node.target in TRANSPOSED else node
        per_value = 0
        if kind == "matmul":
            per_value = int(runner.shapes[given[-2]][-1])  # baddbmm's first operand is what it adds
        elif kind in ("conv", "linear") and weight is not None:
            per_value = weight.numel() // int(weight.shape[0])
        found.append(
            LayerCost(
                name=node_name(node), kind=kind, macs=runner.shapes[produced].numel() // batch * per_value,
                weights=0 if weight is None else weight.numel(), reads=sum(runner.shapes[a].numel() for a in activations) // batch,
                writes=runner.shapes[node].numel() // batch,
            )
        )  # fmt: skip
    return found
