"""Normalisation passes over a captured graph.

The passes run in order; each returns how many places it changed.

After them the graph has no BatchNorm, no dropout, no fused attention, no view that depends on
memory layout, and no computation on constants alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default)
PADS = (aten.pad.default, aten.constant_pad_nd.default)
BATCH_NORMS = (
    aten._native_batch_norm_legit_no_training.default,
    aten.batch_norm.default,
)


def normalize_(graph: fx.GraphModule) -> dict[str, int]:
    """Run every pass on ``graph`` in place and return how many places each of them changed."""
    report: dict[str, int] = {}
    for name, run in PASSES:
        touched = run(graph)
        if touched:
            report[name] = touched
            graph.graph.eliminate_dead_code()
            graph.graph.lint()
    graph.delete_all_unused_submodules()
    _drop_unused_constants(graph)
    graph.recompile()
    return report


def operands(node: fx.Node) -> tuple[Any, ...]:
    """Return a node's positional arguments, typed as those of an ATen call.

    They are nodes, numbers and lists.
    """
    return node.args


def conv_groups(node: fx.Node) -> int:
    """Return the groups of a convolution call, 1 where it does not say."""
    position, given = 8 if node.target is aten.convolution.default else 6, operands(node)
    groups = given[position] if len(given) > position else node.kwargs.get("groups", 1)
    return groups if isinstance(groups, int) else 1


def get_constant(graph: fx.GraphModule, node: object) -> torch.Tensor | None:
    """Return the tensor a ``get_attr`` node stands for, or None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: object = graph
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value.detach() if isinstance(value, torch.Tensor) else None


def add_constant(
    graph: fx.GraphModule, name: str, value: torch.Tensor, *, before: fx.Node
) -> fx.Node:
    """Register ``value`` as a buffer and return a ``get_attr`` node in front of ``before``.

    The buffer is called ``name``, made unique.
    """
    flat = name.replace(".", "_")
    unique, k = flat, 1
    while hasattr(graph, unique):
        unique, k = f"{flat}_{k}", k + 1
    graph.register_buffer(unique, value.detach().clone())
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(unique)
    node.meta["val"] = value
    return node


def set_constant_(graph: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Replace the tensor behind a ``get_attr`` node, keeping its name."""
    owner: object = graph
    *parents, leaf = str(node.target).split(".")
    for part in parents:
        owner = getattr(owner, part)
    assert isinstance(owner, torch.nn.Module)
    old = getattr(owner, leaf)
    setattr(
        owner,
        leaf,
        torch.nn.Parameter(value, requires_grad=False)
        if isinstance(old, torch.nn.Parameter)
        else value,
    )


def _drop_unused_constants(graph: fx.GraphModule) -> None:
    used = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    for name in [n for n, _ in (*graph.named_parameters(), *graph.named_buffers())]:
        if name not in used:
            owner: object = graph
            *parents, leaf = name.split(".")
            for part in parents:
                owner = getattr(owner, part)
            delattr(owner, leaf)


def _like(new: fx.Node, old: fx.Node) -> fx.Node:
    """Give ``new`` the origin (module path, value) of the node it stands for."""
    for key in ("nn_module_stack", "stack_trace", "val"):
        if key in old.meta:
            new.meta.setdefault(key, old.meta[key])
    return new


def insert_call(
    graph: fx.GraphModule, origin: fx.Node, target: Callable[..., object], *args: object
) -> fx.Node:
    """Insert a call in front of ``origin``.

    It has the module path of ``origin`` and its own example value.
    """
    with graph.graph.inserting_before(origin):
        node = graph.graph.call_function(target, args)  # type: ignore[arg-type]
    if "nn_module_stack" in origin.meta:
        node.meta["nn_module_stack"] = origin.meta["nn_module_stack"]
    vals = [a.meta.get("val") if isinstance(a, fx.Node) else a for a in args]
    if not any(v is None and isinstance(a, fx.Node) for v, a in zip(vals, args, strict=True)):
        fake = next((v.fake_mode for v in vals if hasattr(v, "fake_mode")), None)
        if fake is not None:
            with fake:
                node.meta["val"] = target(
                    *[fake.from_tensor(v) if _is_plain(v) else v for v in vals]
                )
    return node


def _is_plain(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not hasattr(value, "fake_mode")


def _remove_no_ops(graph: fx.GraphModule) -> int:
    """Remove dropout in eval mode, aliases, copies and empty pads.

    The graph is functional, so a copy changes nothing.
    """
    gone = {
        aten.dropout.default,
        aten.alias.default,
        aten.clone.default,
        aten.detach.default,
        aten.detach_.default,
        aten.lift_fresh_copy.default,
        aten.contiguous.default,
        aten.feature_dropout.default,
    }
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)
            continue
        training = (
            node.target in (aten.dropout.default, aten.feature_dropout.default)
            and len(operands(node)) > 2
            and operands(node)[2]
        )
        empty_pad = node.target in PADS and not any(operands(node)[1])
        same_type = (
            node.target is aten.to.dtype
            and node.meta["val"].dtype == operands(node)[0].meta["val"].dtype
        )
        if (
            node.op == "call_function"
            and (node.target in gone or empty_pad or same_type)
            and not training
        ):
            node.replace_all_uses_with(operands(node)[0])
            graph.graph.erase_node(node)
            count += 1
    return count


def _free_views(graph: fx.GraphModule) -> int:
    """Replace views, which need one memory layout, by reshapes.

    The graph must also run on channels-last tensors.
    """
    count = 0
    for node in graph.graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.target is aten.view_as_complex.default:  # reads pairs that lie side by side
            parts = [
                insert_call(graph, node, aten.select.int, operands(node)[0], -1, i) for i in (0, 1)
            ]
            node.target, node.args = aten.complex.default, tuple(parts)
        elif node.target in (
            aten.flatten.using_ints,
            aten.unflatten.int,
            aten.reshape_as.default,
            aten.view_as.default,
        ):
            sizes = _sizes(node.meta["val"])
            if sizes is None:
                continue
            node.target, node.args, node.kwargs = (
                aten.reshape.default,
                (operands(node)[0], sizes),
                {},
            )
        elif node.target is aten.expand_as.default and not any(
            isinstance(d, torch.SymInt) for d in node.meta["val"].shape
        ):
            node.target, node.args = (
                aten.expand.default,
                (operands(node)[0], [int(d) for d in node.meta["val"].shape]),
            )
        elif node.target is aten.expand_as.default and _open_as_before(node):
            node.target, node.args = (
                aten.expand.default,
                (operands(node)[0], _sizes(node.meta["val"])),
            )
        else:
            continue
        count += 1
    return count


def _open_as_before(node: fx.Node) -> bool:
    """Whether the one open size of an expansion is the operand's own, which expand writes as -1."""
    before, after = operands(node)[0].meta["val"].shape, node.meta["val"].shape
    opens = [i for i, d in enumerate(after) if isinstance(d, torch.SymInt)]
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
    count = 0
    for node in list(graph.graph.nodes):
        if node.target in (aten.split.Tensor, aten.chunk.default):
            dim = int(operands(node)[2] if len(operands(node)) > 2 else node.kwargs.get("dim", 0))
            sizes = [v.shape[dim] for v in node.meta["val"]]
            if any(isinstance(d, torch.SymInt) for d in sizes):
                continue
            node.target, node.args, node.kwargs = (
                aten.split_with_sizes.default,
                (operands(node)[0], sizes, dim),
                {},
            )
            count += 1
        elif node.target is aten.unbind.int:
            dim = int(operands(node)[1] if len(operands(node)) > 1 else node.kwargs.get("dim", 0))
            for user in list(node.users):
                user.target, user.args = (
                    aten.select.int,
                    (operands(node)[0], dim, operands(user)[1]),
                )
            count += 1
    return count


def _spell_out_padding(graph: fx.GraphModule) -> int:
    """Replace padding="same" and "valid" by numbers.

    Where the two sides differ, a separate pad is inserted.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if node.target not in NAMED_PADDING:
            continue
        given, defaults = list(operands(node)), [None, None, None, 1, "valid", 1, 1]
        x, weight, bias, stride, padding, dilation, groups = given + defaults[len(given) :]
        dims = weight.meta["val"].ndim - 2
        steps = [dilation] * dims if isinstance(dilation, int) else (list(dilation) * dims)[:dims]
        totals = [
            d * (int(k) - 1) if padding == "same" else 0
            for d, k in zip(steps, weight.meta["val"].shape[2:], strict=True)
        ]
        if any(t % 2 for t in totals):  # torch pads the odd one on the right
            amounts = [v for t in reversed(totals) for v in (t // 2, t - t // 2)]
            x, totals = (
                insert_call(graph, node, aten.constant_pad_nd.default, x, amounts),
                [0] * dims,
            )
        node.target = NAMED_PADDING[node.target]
        strides = [stride] * dims if isinstance(stride, int) else (list(stride) * dims)[:dims]
        node.args = (x, weight, bias, strides, [t // 2 for t in totals], steps, groups)
        count += 1
    return count


NAMED_PADDING = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def _split_attention(graph: fx.GraphModule) -> int:
    """Split scaled_dot_product_attention into matmul, scale, (mask), softmax, matmul."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        query, key, value = operands(node)[:3]
        key, value = _repeat_heads(graph, node, query, key, value)
        key_t = insert_call(graph, node, aten.transpose.int, key, -2, -1)
        logits = insert_call(graph, node, aten.matmul.default, query, key_t)
        scale = node.kwargs.get("scale")
        scale = (
            float(scale) if scale is not None else 1.0 / math.sqrt(int(query.meta["val"].shape[-1]))
        )
        logits = insert_call(graph, node, aten.mul.Tensor, logits, scale)
        bias, attends = _attention_bias(graph, node)
        if bias is not None:
            logits = insert_call(graph, node, aten.add.Tensor, logits, bias)
        probs = insert_call(graph, node, aten.softmax.int, logits, -1)
        if attends is not None:
            probs = insert_call(graph, node, aten.where.ScalarOther, attends, probs, 0.0)
            probs.meta["trtq_is_softmax"] = True
        out = _like(insert_call(graph, node, aten.matmul.default, probs, value), node)
        node.replace_all_uses_with(out)
        graph.graph.erase_node(node)
        count += 1
    return count


def _repeat_heads(
    graph: fx.GraphModule, node: fx.Node, query: fx.Node, key: fx.Node, value: fx.Node
) -> tuple[fx.Node, fx.Node]:
    """Return key and value with as many heads as the query, where they have fewer."""
    if not node.kwargs.get("enable_gqa"):
        return key, value
    times = int(query.meta["val"].shape[-3]) // int(key.meta["val"].shape[-3])
    first, second = (
        insert_call(graph, node, aten.repeat_interleave.self_int, n, times, -3)
        for n in (key, value)
    )
    return first, second


def _attention_bias(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """Return the bias on an attention's logits, and which of its rows have a key.

    The latter is None where all rows have one.

    The answer of a row without a key is 0, as in torch's scaled dot product; a softmax over -inf
    alone would give NaN. Its bias becomes 0, so that no intermediate value is NaN either.
    """
    given = operands(node)
    mask = given[3] if len(given) > 3 else node.kwargs.get("attn_mask")
    if (given[5] if len(given) > 5 else node.kwargs.get("is_causal")) or False:
        rows, cols = int(given[0].meta["val"].shape[-2]), int(given[1].meta["val"].shape[-2])
        causal = torch.zeros(rows, cols).masked_fill_(
            ~torch.ones(rows, cols).tril().bool(), -math.inf
        )
        return add_constant(graph, "causal_mask", causal, before=node), None
    if not isinstance(mask, fx.Node):
        return None, None
    known = get_constant(graph, mask)
    if known is not None:
        bias = (
            torch.zeros(known.shape).masked_fill_(~known, -math.inf)
            if known.dtype == torch.bool
            else known
        )
        reached = (bias > -math.inf).any(-1, keepdim=True)
        if bool(reached.all()):
            return mask if known is bias else add_constant(
                graph, "attention_bias", bias, before=node
            ), None
        return (
            add_constant(graph, "attention_bias", torch.where(reached, bias, 0.0), before=node),
            add_constant(graph, "attends", reached, before=node),
        )
    if mask.meta["val"].dtype == torch.bool:
        mask = insert_call(graph, node, aten.where.Scalar, mask, 0.0, -math.inf)
    best = insert_call(graph, node, aten.amax.default, mask, [-1], True)
    attends = insert_call(graph, node, aten.gt.Scalar, best, -math.inf)
    return insert_call(graph, node, aten.where.ScalarOther, attends, mask, 0.0), attends


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
            with torch.no_grad():
                known[node] = node.target(
                    *fx.map_arg(operands(node), known.__getitem__),
                    **fx.map_arg(node.kwargs, known.__getitem__),
                )
            count += 1
    for node in list(graph.graph.nodes):
        value = known.get(node)
        if (
            node.op == "call_function"
            and isinstance(value, torch.Tensor)
            and any(u not in known for u in node.users)
        ):
            path = module_path(node)
            constant = _like(
                add_constant(
                    graph, f"{path}.{node.name}" if path else node.name, value, before=node
                ),
                node,
            )
            node.replace_all_uses_with(constant)
    return count


def _can_fold(node: fx.Node) -> bool:
    """Whether fixed operands fix the node's result (a tensor or a tuple of them)."""
    if node.op != "call_function" or _is_random(node):
        return False
    if (
        node.target is aten.batch_norm.default
        and operands(node)[3] is not None
        and operands(node)[5]
    ):
        return False  # in training it would change its statistics
    value = node.meta.get("val")
    tensors = value if isinstance(value, (tuple, list)) else [value]
    if not all(
        isinstance(t, torch.Tensor) and not any(isinstance(s, torch.SymInt) for s in t.shape)
        for t in tensors
    ):
        return False
    return bool(node.all_input_nodes) or isinstance(node.target, torch._ops.OpOverload)


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def module_path(node: fx.Node) -> str:
    """Return the dotted path of the module a node was traced in, "" for the top."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]).split("@")[0] if stack else ""


def _fold_batch_norm(graph: fx.GraphModule) -> int:
    """Fold a batch normalisation into the convolution or linear before it.

    Its formula is y = (x - mean) / sqrt(var + eps) * w + b. Where it cannot be folded, it is
    written as x * s + t.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if node.target not in BATCH_NORMS:
            continue
        if node.target is aten.batch_norm.default:
            source, weight, bias, mean, var, _, _, eps = operands(node)[:8]
            outputs = [node]
        else:
            source, weight, bias, mean, var, _, eps = operands(node)[:7]
            outputs = [
                u for u in node.users if u.target is operator.getitem and operands(u)[1] == 0
            ]
        mu, sigma2 = get_constant(graph, mean), get_constant(graph, var)
        if mu is None or sigma2 is None:
            continue
        gamma = get_constant(graph, weight)
        beta = get_constant(graph, bias)
        scale = torch.rsqrt(sigma2.double() + float(eps)) * (
            1.0 if gamma is None else gamma.double()
        )
        shift = (0.0 if beta is None else beta.double()) - mu.double() * scale
        folded = _fold_into(graph, source, scale, shift)
        if folded is not None:
            folded.meta["batch_norm"] = module_path(node)  # training may take it up again
        if folded is None:
            shape = [1, -1] + [1] * (source.meta["val"].ndim - 2)
            path = module_path(node) or "bn"
            s = add_constant(graph, f"{path}.scale", scale.float().reshape(shape), before=node)
            t = add_constant(graph, f"{path}.shift", shift.float().reshape(shape), before=node)
            folded = insert_call(graph, node, aten.mul.Tensor, source, s)
            folded = _like(insert_call(graph, node, aten.add.Tensor, folded, t), node)
            folded.meta["val"] = source.meta["val"]
        for output in outputs:
            output.replace_all_uses_with(folded)
            if output is not node:
                graph.graph.erase_node(output)
        if not node.users:
            graph.graph.erase_node(node)
        count += 1
    return count


def _fold_into(
    graph: fx.GraphModule, source: fx.Node, scale: torch.Tensor, shift: torch.Tensor
) -> fx.Node | None:
    """Scale and shift the output channels of ``source`` inside its weights.

    Returns None where that would not be exact.
    """
    if len(source.users) != 1 or source.target not in (*CONVS, aten.linear.default):
        return None
    if source.target is aten.convolution.default and operands(source)[6]:
        return None  # transposed: output channels are not axis 0
    if source.target is aten.linear.default and source.meta["val"].ndim != 2:
        return None  # BatchNorm1d normalises axis 1, linear's channels are last
    weight_node = operands(source)[1]
    weight = get_constant(graph, weight_node)
    bias_node = operands(source)[2] if len(operands(source)) > 2 else None
    bias = get_constant(graph, bias_node)
    if weight is None or len(weight_node.users) != 1 or (bias_node is not None and bias is None):
        return None
    new_weight = (weight.double() * scale.reshape([-1] + [1] * (weight.ndim - 1))).float()
    new_bias = ((0.0 if bias is None else bias.double() * scale) + shift).float()
    set_constant_(graph, weight_node, new_weight)
    if bias_node is not None and len(bias_node.users) == 1:
        set_constant_(graph, bias_node, new_bias)
    else:
        base = str(weight_node.target).removesuffix("weight").rstrip("._")
        constant = add_constant(graph, f"{base}.bias", new_bias, before=source)
        args = list(operands(source))
        args[2:3] = [constant]
        source.args = tuple(args)
    return source


PASSES: tuple[tuple[str, Callable[[fx.GraphModule], int]], ...] = (
    ("no-ops removed", _remove_no_ops),
    ("views freed", _free_views),
    ("splits unified", _unify_splits),
    ("padding spelled out", _spell_out_padding),
    ("constants folded", _fold_constants),
    ("attention split", _split_attention),
    ("batch norm folded", _fold_batch_norm),
)
