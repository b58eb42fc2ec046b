"""Digests of models: weights and structure."""

from __future__ import annotations

import hashlib

from torch import fx

from trtq.graph.naming import node_name


def weights_digest(graph: fx.GraphModule) -> str:
    """Return a SHA-256 over every parameter and buffer of a captured graph, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(graph.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        total.update(tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def structure_digest(graph: fx.GraphModule) -> str:
    """Return a SHA-256 over the calls of a captured graph: names, ops, operands and constants."""
    total = hashlib.sha256()
    for node in graph.graph.nodes:
        total.update(f"{node_name(node)} {node.op} {node.target} {node.args} {node.kwargs}\n".encode())
    return total.hexdigest()
