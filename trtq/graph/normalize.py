"""Normalisation passes over a captured graph.

The passes run in order; each returns how many places it changed.

After them the graph has no BatchNorm, no dropout, no fused attention, no view that depends on
memory layout, and no computation on constants alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from trtq import ops
from trtq.graph.attention import split_attention
from trtq.graph.batch_norm import fold_batch_norm
from trtq.graph.nodes import (
    add_constant,
    drop_unused_constants_,
    get_constant,
    insert_call,
    like,
    module_path,
    operands,
)
from trtq.graph.post_norm import hold_restores

aten = torch.ops.aten


def normalize_(graph: fx.GraphModule) -> dict[str, int]:
    """Run every pass on ``graph`` in place.

    Args:
        graph: functional, as traced.

    Returns:
        How many places each pass changed, by its name; passes that changed none are left out.
    """
    report: dict[str, int] = {}
    for name, run in PASSES:
        touched = run(graph)
        if touched:
            report[name] = touched
            graph.graph.eliminate_dead_code()
            graph.graph.lint()
    graph.delete_all_unused_submodules()
    drop_unused_constants_(graph)
    graph.recompile()
    return report


def _remove_no_ops(graph: fx.GraphModule) -> int:
    """Remove dropout in eval mode, aliases, copies and empty pads.

    The graph is functional, so a copy changes nothing.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)
        elif _is_no_op(node):
            node.replace_all_uses_with(operands(node)[0])
            graph.graph.erase_node(node)
            count += 1
    return count


def _is_no_op(node: fx.Node) -> bool:
    """Whether a call gives its operand."""
    given, row = operands(node), ops.of(node)
    if row.name == "dropout":
        return not (len(given) > 2 and given[2])  # in training it is none
    if row.kind == "pad":
        return not any(given[1])
    if node.target is aten.to.dtype:
        return bool(node.meta["val"].dtype == given[0].meta["val"].dtype)
    return "no_op" in row.traits


def _rewrite_(node: fx.Node, target: Callable[..., Any], *args: Any) -> None:
    """Let a node call something else."""
    node.target, node.args, node.kwargs = target, args, {}


def _free_views(graph: fx.GraphModule) -> int:
    """Replace views, which need one memory layout, by reshapes, and linears by vectors.

    The graph must also run on channels-last tensors.
    """
    return sum(_free_view(graph, node) for node in graph.graph.nodes)


def _free_view(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Replace one view; return whether it was one."""
    if node.target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default
    elif node.target is aten.view_as_complex.default:  # reads pairs that are side by side
        source = operands(node)[0]
        parts = [insert_call(graph, node, aten.select.int, source, -1, i) for i in (0, 1)]
        _rewrite_(node, aten.complex.default, *parts)
    elif ops.of(node).name == "flatten":
        sizes = _sizes(node.meta["val"])
        if sizes is None:
            return False
        _rewrite_(node, aten.reshape.default, operands(node)[0], sizes)
    elif ops.of(node).name == "linear" and operands(node)[1].meta["val"].ndim == 1:
        _rewrite_(node, aten.matmul.default, *operands(node)[:2])  # it has no bias
    elif node.target is aten.expand_as.default and _expands_as_known(node):
        _rewrite_(node, aten.expand.default, operands(node)[0], _sizes(node.meta["val"]))
    else:
        return False
    return True


def _expands_as_known(node: fx.Node) -> bool:
    """Whether expand can write the sizes: all are fixed, or the open one is the operand's own."""
    before, after = operands(node)[0].meta["val"].shape, node.meta["val"].shape
    opens = [i for i, d in enumerate(after) if isinstance(d, torch.SymInt)]
    if not opens:
        return True
    return (
        len(before) == len(after) and len(opens) == 1 and isinstance(before[opens[0]], torch.SymInt)
    )


def _sizes(value: torch.Tensor) -> list[int] | None:
    """Return a shape as plain numbers with -1 for the one open dimension.

    Returns None when more than one is open.
    """
    sizes = [-1 if isinstance(d, torch.SymInt) else int(d) for d in value.shape]
    return sizes if sizes.count(-1) <= 1 else None


def _unify_splits(graph: fx.GraphModule) -> int:
    """Write chunk and split as split_with_sizes, and unbind as selects.

    Every later stage then sees one form of each.
    """
    return sum(_unify_split(node) for node in list(graph.graph.nodes))


def _unify_split(node: fx.Node) -> bool:
    """Unify one split; return whether it was one."""
    if node.target in (aten.split.Tensor, aten.chunk.default):
        source, dim = operands(node)[0], _axis(node, 2)
        sizes = [v.shape[dim] for v in node.meta["val"]]
        if any(isinstance(d, torch.SymInt) for d in sizes):
            return False
        _rewrite_(node, aten.split_with_sizes.default, source, sizes, dim)
        return True
    if node.target is aten.unbind.int:
        source, dim = operands(node)[0], _axis(node, 1)
        for user in list(node.users):
            _rewrite_(user, aten.select.int, source, dim, operands(user)[1])
        return True
    return False


def _axis(node: fx.Node, position: int) -> int:
    """Return the axis that a call names, 0 where it names none."""
    given = operands(node)
    axis: Any = given[position] if len(given) > position else node.kwargs.get("dim", 0)
    return int(axis)


NAMED_PADDING: dict[object, Callable[..., Any]] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def _spell_out_padding(graph: fx.GraphModule) -> int:
    """Replace padding="same" and "valid" by numbers."""
    convolutions = [n for n in graph.graph.nodes if n.target in NAMED_PADDING]
    for node in convolutions:
        _spell_out(graph, node)
    return len(convolutions)


def _spell_out(graph: fx.GraphModule, node: fx.Node) -> None:
    """Replace the padding of one convolution.

    Where the two sides differ, a separate pad is inserted.
    """
    given, defaults = list(operands(node)), [None, None, None, 1, "valid", 1, 1]
    x, weight, bias, stride, padding, dilation, groups = given + defaults[len(given) :]
    dims = weight.meta["val"].ndim - 2
    steps = _per_axis(dilation, dims)
    totals = [0] * dims
    if padding == "same":
        kernel = weight.meta["val"].shape[2:]
        totals = [d * (int(k) - 1) for d, k in zip(steps, kernel, strict=True)]
    if any(t % 2 for t in totals):  # torch pads the odd one on the right
        amounts = [v for t in reversed(totals) for v in (t // 2, t - t // 2)]
        x = insert_call(graph, node, aten.constant_pad_nd.default, x, amounts)
        totals = [0] * dims
    node.target = NAMED_PADDING[node.target]
    strides = _per_axis(stride, dims)
    node.args = (x, weight, bias, strides, [t // 2 for t in totals], steps, groups)


def _per_axis(value: int | list[int], dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else (list(value) * dims)[:dims]


def _fold_constants(graph: fx.GraphModule) -> int:
    """Fold everything that depends on weights alone into constants.

    Examples are standardised weights, position-bias tables and re-parameterised branches.
    """
    known: dict[fx.Node, Any] = {}
    count = 0
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = get_constant(graph, node)
            if value is not None:
                known[node] = value
        elif _can_fold(node) and all(i in known for i in node.all_input_nodes):
            known[node] = _result(node, known)
            count += 1
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and any(u not in known for u in node.users):
            _replace_by_constant(graph, node, known.get(node))
    return count


def _result(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """Compute a call whose operands are known."""
    args, kwargs = fx.map_arg((operands(node), node.kwargs), known.__getitem__)
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)


def _replace_by_constant(graph: fx.GraphModule, node: fx.Node, value: object) -> None:
    """Let the readers of a call read its value, where it is known and a tensor."""
    if isinstance(value, torch.Tensor):
        path = module_path(node)
        name = f"{path}.{node.name}" if path else node.name
        constant = add_constant(graph, name, value, before=node)
        node.replace_all_uses_with(like(constant, node))


def _can_fold(node: fx.Node) -> bool:
    """Whether fixed operands fix the node's result (a tensor or a tuple of them)."""
    if node.op != "call_function" or _is_random(node):
        return False
    if node.target is aten.batch_norm.default and operands(node)[3] and operands(node)[5]:
        return False  # in training it would change its statistics
    value = node.meta.get("val")
    if not all(_is_static(t) for t in (value if isinstance(value, (tuple, list)) else [value])):
        return False
    return bool(node.all_input_nodes) or isinstance(node.target, torch._ops.OpOverload)


def _is_static(value: object) -> bool:
    """Whether a value is a tensor of fixed shape."""
    sizes = value.shape if isinstance(value, torch.Tensor) else None
    return sizes is not None and not any(isinstance(s, torch.SymInt) for s in sizes)


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


PASSES: tuple[tuple[str, Callable[[fx.GraphModule], int]], ...] = (
    ("no-ops removed", _remove_no_ops),
    ("views freed", _free_views),
    ("splits unified", _unify_splits),
    ("padding spelled out", _spell_out_padding),
    ("constants folded", _fold_constants),
    ("attention split", split_attention),
    ("batch norm folded", fold_batch_norm),
    ("restores held", hold_restores),
)
