"""Stable names: every node is named after its module, never after a counter of the tracer."""

from __future__ import annotations

import torch
from torch import fx

from trtq import ops
from trtq.free_names import free_name
from trtq.graph.nodes import module_path, operands

MASKS = ("where", "where_scalar", "masked_fill")


def is_softmax(node: fx.Node) -> bool:
    """Whether a node gives the probabilities of a softmax, or of what a method put in its place."""
    return ops.kind(node) == "softmax" or bool(node.meta.get("trtq_is_softmax"))


def assign_names_(graph: fx.GraphModule, *, prefix: str = "") -> None:
    """Give every call a name in ``meta["trtq_name"]``, and rename the nodes of the graph after it.

    A weighted op is called after its module (``layer1.0.conv1``), which is that of its weight where
    it alone reads it; any other op after its module and
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
        path = _own_path(node, prefix)
        node.meta["trtq_module"] = path
        kind = attention.get(node) or _call_name(node)
        own = path if ops.of(node).weighted and path else f"{path}.{kind}".lstrip(".")
        owner = _weight_owner(node, prefix)
        name = own if path and owner and _shares_weight(node) else owner or own
        unique = free_name(name, taken)
        taken.add(unique)
        node.meta["trtq_name"] = unique
    graph.recompile()


def node_name(node: fx.Node) -> str:
    """Return the stable name of a call, the name that torch gave for an input."""
    return str(node.meta.get("trtq_name", node.name))


def module_name(node: fx.Node) -> str:
    """Return the path of the module a call comes from, "" for the model itself."""
    return str(node.meta.get("trtq_module", ""))


def _call_name(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1].strip("_")
    return str(getattr(target, "__name__", target))


def _own_path(node: fx.Node, prefix: str) -> str:
    """Return the path of a call's module in the user's model."""
    path = module_path(node)
    if path.startswith("_empty_nn_module_stack") or path == prefix.rstrip("."):
        return ""
    return path.removeprefix(prefix)


def _shares_weight(node: fx.Node) -> bool:
    """Whether other calls read the weight of a weighted op, too."""
    return len(operands(node)[1].users) > 1


def _weight_owner(node: fx.Node, prefix: str) -> str:
    if not ops.of(node).weighted:
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
    """Return the two matmuls of each attention with their names, and note its softmax in them.

    They get ``meta["trtq_softmax"]``, by which placement keeps an attention together.
    """
    names: dict[fx.Node, str] = {}
    for node in graph.graph.nodes:
        if ops.kind(node) != "softmax":
            continue
        logits = _before(operands(node)[0])
        if logits is not None:
            names[logits] = "qk"
            logits.meta["trtq_softmax"] = node
        for user in _behind(node):
            names.setdefault(user, "av")
            user.meta["trtq_softmax"] = node
    return names


def _passes(node: fx.Node) -> bool:
    """Whether a call may be between the matmuls of an attention and its softmax."""
    return "attention" in ops.of(node).traits


def _before(node: object) -> fx.Node | None:
    """Return the matmul of queries and keys that the operand of a softmax comes from.

    A mask may be the first operand of what is between, such as the condition of a where.
    """
    if not isinstance(node, fx.Node):
        return None
    if ops.kind(node) == "matmul":
        return node
    sources = operands(node) if _passes(node) else ()
    return next((m for m in map(_before, sources) if m is not None), None)


def _behind(node: fx.Node) -> list[fx.Node]:
    """Return the matmuls that read the result of a softmax, also behind a mask.

    The output of a mask is marked as the probabilities of the softmax.
    """
    matmuls = list[fx.Node]()
    for user in node.users:
        if ops.kind(user) == "matmul":
            matmuls.append(user)
        elif _passes(user):
            further = _behind(user)
            if further and ops.of(user).name in MASKS:
                user.meta["trtq_is_softmax"] = True
            matmuls += further
    return matmuls
