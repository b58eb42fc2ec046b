"""Where a captured graph computes."""

from __future__ import annotations

import torch
from torch import fx

from trtq.errors import UsageError


def to_device_(graph: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Move a graph's constants, and let its ops make new tensors there; return it."""
    graph.to(device)
    for node in graph.graph.nodes:
        if isinstance(node.kwargs.get("device"), torch.device):
            node.kwargs = {**node.kwargs, "device": device}
    graph.recompile()
    return graph


def choose_device(asked: str, local: int = 0) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Args:
        asked: what the user wrote; ``auto`` takes a GPU where there is one.
        local: of this process among several on one machine: it takes the GPU of that number.

    Raises:
        UsageError: there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and not count):
        return torch.device("cpu")
    number = int(asked.partition(":")[2] or local) if asked != "auto" else local
    if number >= count:
        raise UsageError(f"Cannot train on {asked}", f"torch sees {count} GPUs", "Give --device cpu, or see trtq doctor")
    return torch.device("cuda", number)
