"""Stable names: every node is named after its module, never after a counter of the tracer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from trtq.graph.normalize import CONVS, module_path, operands

aten = torch.ops.aten
MATMULS = (aten.matmul.default, aten.bmm.default, aten.mm.default, aten.baddbmm.default)
TRANSPOSED = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
WEIGHTED = (*CONVS, aten.linear.default, *TRANSPOSED)
# Normalisations, and which of their operands scale and shift the result channel by channel.
NORM_AFFINE: Mapping[object, tuple[int, ...]] = {
    aten.layer_norm.default: (2, 3),
    aten.group_norm.default: (2, 3),
    aten.rms_norm.default: (2,),
    aten.instance_norm.default: (1, 2),
    aten.batch_norm.default: (1, 2),
}
NORMS = tuple(NORM_AFFINE)
LAST_AXIS = (
    aten.linear.default,
    aten.layer_norm.default,
    aten.rms_norm.default,
)  # their channels are the last axis
SOFTMAXES = (aten.softmax.int, aten._softmax.default)
# What may lie between the matmul of queries and keys and its softmax, and between softmax and the
# matmul with values.
PASS_THROUGH = (
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.add.Tensor,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.sub.Tensor,
    aten.where.self,
    aten.masked_fill.Scalar,
    aten.expand.default,
    aten.clamp.default,
)


def is_softmax(node: fx.Node) -> bool:
    """Whether a node gives the probabilities of a softmax, or of what a method put in its place."""
    return node.target in SOFTMAXES or bool(node.meta.get("trtq_is_softmax"))


def assign_names_(graph: fx.GraphModule, *, prefix: str = "") -> None:
    """Give every call a name in ``meta["trtq_name"]``, and rename the nodes of the graph after it.

    A weighted op is called after its module (``layer1.0.conv1``); any other op after its module and
    its kind (``layer1.0.add``, ``blocks.3.attn.softmax``); the two matmuls of an attention are
    ``qk`` and ``av``. A second op that would get the same name gets ``_1``.

    Args:
        graph: a normalised graph.
        prefix: cut off from every module path (the path of a wrapper).
    """
    taken: set[str] = set()
    attention = _attention_matmuls(graph)
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        path = module_path(node)
        path = "" if path.startswith("_empty_nn_module_stack") else path
        path = "" if path == prefix.rstrip(".") else path.removeprefix(prefix)
        node.meta["trtq_module"] = path
        kind = attention.get(node) or _kind(node)
        name = _weight_owner(node, prefix) or (
            path if node.target in WEIGHTED and path else f"{path}.{kind}".lstrip(".")
        )
        unique, k = name, 0
        while unique in taken:
            k += 1
            unique = f"{name}_{k}"
        taken.add(unique)
        node.meta["trtq_name"] = unique
    graph.recompile()


def node_name(node: fx.Node) -> str:
    """Return the stable name of a call, the placeholder's own name for an input."""
    return str(node.meta.get("trtq_name", node.name))


def module_name(node: fx.Node) -> str:
    """Return the path of the module a call comes from, "" for the model itself."""
    return str(node.meta.get("trtq_module", ""))


def _kind(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1].strip("_")
    return str(getattr(target, "__name__", target))


def _weight_owner(node: fx.Node, prefix: str) -> str:
    if node.target not in WEIGHTED:
        return ""
    weight = operands(node)[1]
    if (
        isinstance(weight, fx.Node)
        and weight.op == "get_attr"
        and str(weight.target).endswith(".weight")
    ):
        return str(weight.target).removeprefix(prefix).removesuffix(".weight")
    return ""


def _attention_matmuls(graph: fx.GraphModule) -> dict[fx.Node, str]:
    found: dict[fx.Node, str] = {}
    for node in graph.graph.nodes:
        if node.target not in SOFTMAXES:
            continue
        back = operands(node)[0]
        while isinstance(back, fx.Node) and back.target in PASS_THROUGH and operands(back):
            back = operands(back)[0]
        if isinstance(back, fx.Node) and back.target in MATMULS:
            found[back] = "qk"
            back.meta["trtq_softmax"] = node
        ahead = node
        while len(ahead.users) == 1 and next(iter(ahead.users)).target in PASS_THROUGH:
            ahead = next(iter(ahead.users))
        for user in ahead.users:
            if user.target in MATMULS:
                found.setdefault(user, "av")
                user.meta["trtq_softmax"] = node
    return found
