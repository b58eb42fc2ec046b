"""Digests of models: weights and structure."""

from __future__ import annotations

import hashlib

import torch
from torch import fx

from trtq.graph.naming import node_name
from trtq.graph.nodes import get_constant


def weights_digest(graph: fx.GraphModule) -> str:
    """Return a SHA-256 in hex over every constant that a captured graph reads, by name.

    Constants are parameters, buffers and plain tensors.
    """
    total, constants = hashlib.sha256(), dict[str, torch.Tensor]()
    for node in graph.graph.nodes:
        value = get_constant(graph, node)
        if value is not None:
            constants[str(node.target)] = value
    for name, tensor in sorted(constants.items()):
        update_with_tensor(total, name, tensor)
    return total.hexdigest()


def update_with_tensor(total: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    """Let a digest continue over a tensor: its name, type, shape and values.

    Args:
        total: of SHA-256; changed in place.
        name: of the tensor.
        tensor: on any device.
    """
    total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
    total.update(tensor.detach().cpu().contiguous().numpy().tobytes())


def structure_digest(graph: fx.GraphModule) -> str:
    """Return a SHA-256 in hex over the calls of a captured graph.

    They are names, ops, operands and the names of constants, not their values.
    """
    total = hashlib.sha256()
    for node in graph.graph.nodes:
        total.update(
            f"{node_name(node)} {node.op} {node.target} {node.args} {node.kwargs}\n".encode()
        )
    return total.hexdigest()
