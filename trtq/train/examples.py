"""Training data of a graph: samples with their targets, and a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from trtq.data.ahead import ahead
from trtq.data.samples import Samples
from trtq.errors import DataError
from trtq.graph.feed import Feed
from trtq.tasks import Task
from trtq.train.objective import Objective, Part

Pair = tuple[Feed, torch.Tensor | None]


def in_steps(indices: list[int], batch: int) -> list[list[int]]:
    """Return the images of each step, ``batch`` in each but for the last.

    >>> in_steps([4, 1, 3], 2)
    [[4, 1], [3]]
    """
    return [indices[i : i + batch] for i in range(0, len(indices), batch)]


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

    Yields:
        A tensor an input, samples first, and the targets: int64 [N] or [N, H, W], None without.

    Raises:
        DataError: targets are boxes.
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
            "Say what the outputs mean: --task detection learns from the float model's answers",
        )

    yield from ahead(parts, read)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetup:
    """Training targets.

    Attributes:
        objective: the loss without a task.
        task: learns from all outputs of the teacher, in place of the objective; None for scores of
            classes, and where no task is known.
        outputs: names of the outputs, in order.
        teacher: the float model, on the device of the graph.
        train: samples to learn from.
        val: samples that every epoch is measured on; None without.
        batch: samples a step, over all processes.
        classes: outputs of the model.
        names: of its inputs, in order.
        labelled: targets of the samples to learn from count.
    """

    objective: Objective
    task: Task | None
    outputs: Sequence[str]
    teacher: fx.GraphModule
    train: Samples
    val: Samples | None
    batch: int
    classes: int
    names: Sequence[str]
    labelled: bool = True

    @property
    def teaches(self) -> bool:
        """Whether the teacher is asked."""
        return self.task is not None or self.objective.distill > 0.0

    def parts(self, answers: Feed, wanted: torch.Tensor | None, taught: Feed | None) -> list[Part]:
        """Return the terms of the loss of a batch.

        Args:
            answers: every output.
            wanted: classes; None where only the teacher is asked.
            taught: every output of the teacher; None where it is not asked.

        Raises:
            UsageError: the user's own loss is not one number.
        """
        if self.task is None:
            return self.objective.parts(answers, wanted, taught)
        assert taught is not None
        loss = self.task.loss(self.named(answers), self.named(taught))
        count = loss.new_tensor(float(max(len(t) for t in answers if t.ndim)))
        return [Part(1.0, loss.reshape(()) * count, count)]

    def named(self, answers: Feed) -> dict[str, torch.Tensor]:
        """Return outputs by name, floats in float32."""
        floats = (a.float() if a.is_floating_point() else a for a in answers)
        return dict(zip(self.outputs, floats, strict=True))

    @property
    def measure(self) -> str:
        """Definition of an epoch's score."""
        if self.task is not None:
            return self.task.label
        return "mIoU" if self.val is not None and self.val.dense else "top-1"
