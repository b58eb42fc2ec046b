"""Where a captured graph computes."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from trtq.errors import UsageError
from trtq.workers import Workers

CPU = torch.device("cpu")


def to_device_(graph: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Move a graph's constants, and let its ops make new tensors there; return it."""
    graph.to(device)
    for node in graph.graph.nodes:
        if isinstance(node.kwargs.get("device"), torch.device):
            node.kwargs = {**node.kwargs, "device": device}
    graph.recompile()
    return graph


def on_device(graph: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Return a graph that computes on ``device``: itself, or a copy there."""
    if device_of(graph) == device:
        return graph
    return to_device_(copy.deepcopy(graph), device)


def choose_device(asked: str, workers: Workers | None = None) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Args:
        asked: what the user wrote; ``auto`` takes a GPU where there is one.
        workers: of several processes on a machine each takes the GPU of its number.

    Raises:
        UsageError: there is no such device, or several processes would share one.
    """
    workers = workers or Workers()
    if ":" in asked and workers.world > 1:
        why = f"{workers.world} processes would share one GPU"
        raise UsageError(
            f"Cannot use {asked} with torchrun", why, "Give --device cuda: each takes its own"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and not count):
        return torch.device("cpu")
    number = int(asked.partition(":")[2] or workers.local)
    if number >= count:
        raise UsageError(
            f"Cannot use {asked}",
            f"torch sees {count} GPUs",
            "Give --device cpu, or see trtq doctor",
        )
    return torch.device("cuda", number)


def device_of(graph: nn.Module) -> torch.device:
    """Return the device that a graph computes on: that of its first tensor, else the CPU."""
    tensors = (*graph.parameters(), *graph.buffers())
    return tensors[0].device if tensors else torch.device("cpu")
