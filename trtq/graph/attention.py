"""Normalisation of attention: matmul, scale, mask, softmax and matmul as calls of their own."""

from __future__ import annotations

import math

import torch
from torch import fx

from trtq.graph.nodes import add_constant, get_constant, insert_call, like, operands

aten = torch.ops.aten


def split_attention(graph: fx.GraphModule) -> int:
    """Split scaled_dot_product_attention into matmul, scale, (mask), softmax, matmul.

    A boolean mask becomes 0 and -inf. A row without a key gives 0, as in torch.

    Returns:
        How many attentions were split.
    """
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
        out = like(insert_call(graph, node, aten.matmul.default, probs, value), node)
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

    The answer of a row without a key is 0, as in torch's scaled dot product; a softmax over -inf
    alone would give NaN. Its bias becomes 0, so that no intermediate value is NaN either.

    Returns:
        The bias, float32, broadcasting to [..., queries, keys], None for none; and bool
        [..., queries, 1], None where all rows have a key.
    """
    given = operands(node)
    mask = given[3] if len(given) > 3 else node.kwargs.get("attn_mask")
    if given[5] if len(given) > 5 else node.kwargs.get("is_causal"):
        sizes = [n.meta["val"].shape[-2] for n in given[:2]]
        if not all(isinstance(size, int) for size in sizes):
            return _open_causal(graph, node), None
        return add_constant(graph, "causal_mask", _causal(*sizes), before=node), None
    if not isinstance(mask, fx.Node):
        return None, None
    known = get_constant(graph, mask)
    if known is not None:
        return _constant_bias(graph, node, mask, known)
    if mask.meta["val"].dtype == torch.bool:
        mask = insert_call(graph, node, aten.where.Scalar, mask, 0.0, -math.inf)
    best = insert_call(graph, node, aten.amax.default, mask, [-1], True)
    attends = insert_call(graph, node, aten.gt.Scalar, best, -math.inf)
    return insert_call(graph, node, aten.where.ScalarOther, attends, mask, 0.0), attends


def _open_causal(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the bias that hides later keys where a length is open, [..., queries, keys].

    A sum of ones numbers the queries and the keys; a query sees keys up to its own number.
    """
    query, key = (
        insert_call(graph, node, aten.cumsum.default, ones, -2)
        for ones in (
            insert_call(graph, node, aten.full_like.default, first, 1.0)
            for first in (
                insert_call(graph, node, aten.slice.Tensor, n, -1, 0, 1) for n in operands(node)[:2]
            )
        )
    )
    columns = insert_call(graph, node, aten.transpose.int, key, -2, -1)
    seen = insert_call(graph, node, aten.le.Tensor, columns, query)
    return insert_call(graph, node, aten.where.Scalar, seen, 0.0, -math.inf)


def _causal(rows: int, cols: int) -> torch.Tensor:
    """Return the bias that hides later keys, [queries, keys]."""
    hidden = ~torch.ones(rows, cols).tril().bool()
    return torch.zeros(rows, cols).masked_fill_(hidden, -math.inf)


def _constant_bias(
    graph: fx.GraphModule, node: fx.Node, mask: fx.Node, known: torch.Tensor
) -> tuple[fx.Node, fx.Node | None]:
    """Return the bias of a mask that is a constant, and which rows have a key."""
    bias = known
    if known.dtype == torch.bool:
        bias = torch.zeros(known.shape).masked_fill_(~known, -math.inf)
    reached = (bias > -math.inf).any(-1, keepdim=True)
    if bool(reached.all()):
        if known is bias:
            return mask, None
        return add_constant(graph, "attention_bias", bias, before=node), None
    safe = torch.where(reached, bias, 0.0)
    return (
        add_constant(graph, "attention_bias", safe, before=node),
        add_constant(graph, "attends", reached, before=node),
    )
