"""One batch of a model's inputs and outputs as tuples of tensors, in the order of its signature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

Feed = tuple[torch.Tensor, ...]
IMAGE_AXES = 4


def as_feed(batch: torch.Tensor | Sequence[torch.Tensor]) -> Feed:
    """Return a batch as a tuple: a model of one input may be given its tensor alone."""
    return (batch,) if isinstance(batch, torch.Tensor) else tuple(batch)


def outputs_of(answer: object) -> Feed:
    """Return what a captured graph gave as a tuple: it gives one tensor bare."""
    assert isinstance(answer, (torch.Tensor, tuple, list))
    return as_feed(answer)


def first_output(answer: object) -> torch.Tensor:
    """Return the output that a task reads."""
    return outputs_of(answer)[0]


def channels_last(feed: Feed) -> Feed:
    """Return a batch whose images lie channels last, as CPU convolutions like them.

    Depthwise convolutions above all are faster so.
    """
    return tuple(
        t.contiguous(memory_format=torch.channels_last) if t.ndim == IMAGE_AXES else t for t in feed
    )


def joined(batches: Iterable[torch.Tensor | Sequence[torch.Tensor]]) -> Feed:
    """Return all batches as one."""
    return tuple(torch.cat(parts) for parts in zip(*map(as_feed, batches), strict=True))
