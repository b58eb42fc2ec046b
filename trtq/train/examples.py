"""What a graph learns from: samples with their targets, and a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from trtq.data.ahead import ahead
from trtq.data.samples import Samples
from trtq.errors import DataError
from trtq.graph.feed import Feed
from trtq.train.objective import Objective

Pair = tuple[Feed, torch.Tensor | None]


def walk(
    samples: Samples,
    parts: Sequence[Sequence[int]],
    names: Sequence[str],
    *,
    labelled: bool = True,
) -> Iterator[Pair]:
    """Yield inputs and targets, one part after the other.

    The next part is read in the background.

    Args:
        samples: what is read.
        parts: positions of the samples of each step, as many in each but for the last.
        names: of the model's inputs, in order.
        labelled: targets are read.
    """
    if not parts:
        return
    chosen = samples.select([i for part in parts for i in part])
    batches = chosen.batches(len(parts[0]))

    def read(_part: Sequence[int]) -> Pair:
        batch = next(batches)
        targets = batch.targets() if labelled else None
        if targets is None or isinstance(targets, torch.Tensor):
            return batch.feed(names), targets
        raise DataError(
            f"Cannot train on the targets of {samples.name}",
            "they are boxes or texts, expected classes of samples or of pixels",
            "Give class folders or --masks, or --distill 1 to learn from the float model",
        )

    yield from ahead(parts, read)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetup:
    """What is learned.

    Attributes:
        objective: the loss.
        teacher: the float model, on the device of the graph.
        train: samples to learn from.
        val: samples that every epoch is measured on; None without.
        batch: samples a step, over all processes.
        classes: outputs of the model.
        names: of its inputs, in order.
        labelled: targets of the samples to learn from count.
    """

    objective: Objective
    teacher: fx.GraphModule
    train: Samples
    val: Samples | None
    batch: int
    classes: int
    names: Sequence[str]
    labelled: bool = True

    @property
    def measure(self) -> str:
        """What an epoch's score is."""
        return "mIoU" if self.val is not None and self.val.dense else "top-1"
