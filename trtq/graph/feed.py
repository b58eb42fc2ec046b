"""One batch of a model's inputs and outputs as tuples of tensors, in the order of its signature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import fx

from trtq.errors import DataError, first_line

Feed = tuple[torch.Tensor, ...]
IMAGE_AXES = 4


def as_feed(batch: torch.Tensor | Sequence[torch.Tensor]) -> Feed:
    """Return a batch as a tuple: a model of one input may be given its tensor alone."""
    return (batch,) if isinstance(batch, torch.Tensor) else tuple(batch)


def count_of(feed: Sequence[torch.Tensor]) -> int:
    """Return how many samples a batch has: the first axis of its first tensor that has axes.

    Inputs that are one number are of all samples; a batch of them alone counts as 1.
    """
    return next((len(t) for t in feed if t.ndim), 1)


def outputs_of(answer: object) -> Feed:
    """Return what a captured graph gave as a tuple: it gives one tensor bare."""
    assert isinstance(answer, (torch.Tensor, tuple, list))
    return as_feed(answer)


def computed(graph: fx.GraphModule, feed: Feed) -> Feed:
    """Return the outputs of a captured graph for the first samples, under inference mode.

    Args:
        graph: captured.
        feed: a batch of samples.

    Raises:
        DataError: the model cannot compute them: an index that it makes of their values is beyond
            its table, or their sizes do not fit each other.
    """
    try:
        with torch.inference_mode():
            return outputs_of(graph(*feed))
    except (IndexError, RuntimeError) as exc:
        raise DataError(
            "The model cannot compute the samples",
            f"{type(exc).__name__}: {first_line(exc)}",
            "Give samples with values that the model is used with",
        ) from exc


def arrays_of(answer: object) -> list[npt.NDArray[Any]]:
    """Return the tensors of a batch, or what a captured graph gave, as arrays."""
    return [t.detach().cpu().numpy() for t in outputs_of(answer)]


def first_output(answer: object) -> torch.Tensor:
    """Return the output that a task reads."""
    return outputs_of(answer)[0]


def channels_last(feed: Feed) -> Feed:
    """Return a batch whose images are channels last, as CPU convolutions like them.

    Depthwise convolutions above all are faster so.
    """
    return tuple(
        t.contiguous(memory_format=torch.channels_last) if t.ndim == IMAGE_AXES else t for t in feed
    )


def joined(batches: Iterable[torch.Tensor | Sequence[torch.Tensor]]) -> Feed:
    """Return all batches as one, in order.

    Args:
        batches: at least one; a tensor, or one an input. Inputs that are one number remain so.

    Raises:
        DataError: they are another number in each batch.
    """
    return tuple(map(_whole, zip(*map(as_feed, batches), strict=True)))


def _whole(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    first = parts[0]
    if first.ndim:
        return torch.cat(list(parts))
    if any(not torch.equal(first, part) for part in parts):
        raise DataError(
            "Cannot look at all samples at once",
            "an input that is one number has other values in other samples",
            "Leave out the method that needs all of them, or give samples of one value",
        )
    return first
