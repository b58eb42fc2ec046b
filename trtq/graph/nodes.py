"""Nodes of a captured graph: their operands, their constants, and calls put beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from trtq import ops
from trtq.graph.device import device_of


def operands(node: fx.Node) -> tuple[Any, ...]:
    """Return a node's positional arguments, typed as those of an ATen call.

    They are nodes, numbers and lists.
    """
    return node.args


def conv_groups(node: fx.Node) -> int:
    """Return the groups of a convolution call, 1 where it does not say.

    Args:
        node: a call of ``conv1d`` to ``conv3d`` or ``convolution``.
    """
    position = 8 if ops.as_written(node).name == "convolution" else 6
    given = operands(node)
    groups = given[position] if len(given) > position else node.kwargs.get("groups", 1)
    return groups if isinstance(groups, int) else 1


def same_sizes(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Return whether two shapes of a captured graph are equal for every batch.

    torch takes ``==`` of an open size and a number for a decision: the graph then holds for that
    size only. Texts are compared instead.

    Args:
        a: numbers and symbolic sizes.
        b: the other shape.
    """
    return [str(d) for d in a] == [str(d) for d in b]


def zero_pad(node: fx.Node) -> Sequence[Any] | None:
    """Return the amounts of a pad with zeros; None for any other node.

    Returns:
        In front of and behind each axis, from the last axis on, as ``torch.nn.functional.pad`` has
        them.
    """
    if ops.kind(node) != "pad":
        return None
    _, amounts, *rest = operands(node)
    # constant_pad_nd gives its value in the place of a mode.
    mode, value = (*rest, "constant", None)[:2] if len(rest) != 1 else (rest[0], None)
    return amounts if mode in ("constant", 0, 0.0) and value in (None, 0, 0.0) else None


def get_constant(graph: fx.GraphModule, node: object) -> torch.Tensor | None:
    """Return the tensor a ``get_attr`` node stands for, detached; None for any other node.

    Args:
        graph: the node's own.
        node: anything that an operand may be.
    """
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: object = graph
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value.detach() if isinstance(value, torch.Tensor) else None


def add_constant(
    graph: fx.GraphModule, name: str, value: torch.Tensor, *, before: fx.Node
) -> fx.Node:
    """Register ``value`` as a buffer and return a ``get_attr`` node for it.

    Args:
        graph: changed; recompile it when all is done.
        name: of the buffer; dots become underscores, and a number makes it unique.
        value: copied to the device of the graph.
        before: the node that the new one is in front of.
    """
    flat = name.replace(".", "_")
    unique, k = flat, 1
    while hasattr(graph, unique):
        unique, k = f"{flat}_{k}", k + 1
    graph.register_buffer(unique, value.detach().to(device_of(graph), copy=True))
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(unique)
    node.meta["val"] = value.cpu()  # as all example values
    return node


def set_constant_(graph: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Replace the tensor behind a ``get_attr`` node; a parameter remains one, without a gradient.

    Args:
        graph: the node's own.
        node: every reader of the same name reads the new value.
        value: moved to the device of the graph.
    """
    owner, leaf = _owner(graph, str(node.target))
    is_parameter = isinstance(getattr(owner, leaf), torch.nn.Parameter)
    value = value.to(device_of(graph))
    replacement = torch.nn.Parameter(value, requires_grad=False) if is_parameter else value
    setattr(owner, leaf, replacement)


def drop_unused_constants_(graph: fx.GraphModule) -> None:
    """Delete the parameters and buffers that no node reads."""
    used = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    for name in [n for n, _ in (*graph.named_parameters(), *graph.named_buffers())]:
        if name not in used:
            delattr(*_owner(graph, name))


def _owner(graph: fx.GraphModule, path: str) -> tuple[torch.nn.Module, str]:
    """Return the module that holds a constant, and its name there."""
    parent, _, leaf = path.rpartition(".")
    return graph.get_submodule(parent), leaf


def like(new: fx.Node, old: fx.Node) -> fx.Node:
    """Give ``new`` the origin (module path, value) of the node it stands for, and return it.

    Entries of ``new`` itself are kept.
    """
    for key in ("nn_module_stack", "stack_trace", "val"):
        if key in old.meta:
            new.meta.setdefault(key, old.meta[key])
    return new


def insert_call(
    graph: fx.GraphModule, origin: fx.Node, target: Callable[..., object], *args: Any
) -> fx.Node:
    """Insert a call in front of ``origin``.

    It has the module path of ``origin`` and its own example value, where its operands have one.

    Args:
        graph: changed; recompile it when all is done.
        origin: the node that it is part of.
        target: an ATen overload.
        args: its positional arguments.
    """
    with graph.graph.inserting_before(origin):
        node = graph.graph.call_function(target, args)
    if "nn_module_stack" in origin.meta:
        node.meta["nn_module_stack"] = origin.meta["nn_module_stack"]
    if not any(isinstance(a, fx.Node) and a.meta.get("val") is None for a in args):
        values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in args]
        _set_example(node, target, values)
    return node


def _set_example(node: fx.Node, target: Callable[..., object], values: list[Any]) -> None:
    """Compute a call's example value, where one of its operands has a fake mode."""
    mode = next((v.fake_mode for v in values if hasattr(v, "fake_mode")), None)
    if mode is None:
        return
    with mode:
        fakes = [
            mode.from_tensor(v)
            if isinstance(v, torch.Tensor) and not hasattr(v, "fake_mode")
            else v
            for v in values
        ]
        node.meta["val"] = target(*fakes)


def module_path(node: fx.Node) -> str:
    """Return the dotted path of the module a node was traced in, "" for the top."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]).split("@")[0] if stack else ""
