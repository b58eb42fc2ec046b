"""The score of a graph in training as its task says, on samples with or without targets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from trtq.data.samples import Batch, target_array
from trtq.graph.feed import Feed, outputs_of
from trtq.tasks import Figure, Task
from trtq.train.examples import TrainingSetup

DIVERGENCE = "divergence"


def task_score(setup: TrainingSetup, student: nn.Module, placed: Callable[[Feed], Feed]) -> Figure:
    """Return the first score of a task on the validation samples.

    Without targets it is what the task says of the answers against the teacher's, and for a task
    that compares numbers only the mean divergence of the outputs.

    Args:
        setup: what is learned.
        student: the graph in training.
        placed: brings inputs to its device.
    """
    task, val = setup.task, setup.val
    assert task is not None
    assert val is not None
    score, alike = task.score(ignore=val.ignore), task.agreement()
    apart = list[float]()
    for batch in val.batches(setup.batch):
        feed = placed(batch.feed(setup.names))
        ours = setup.named(outputs_of(student(*feed)))
        theirs = setup.named(outputs_of(setup.teacher(*feed)))
        apart += task.divergence(ours, theirs).tolist()
        answer = _decoded(task, ours, batch)
        score.add(answer, _targets(task, batch))
        if alike is not None:
            alike.add(answer, _decoded(task, theirs, batch))
    figures = score.figures or ([] if alike is None else alike.figures)
    numbers = Figure(name=DIVERGENCE, value=float(np.mean(apart)), unit="", better="lower")
    return next((f for f in figures if f.value is not None), numbers)


def _decoded(task: Task, outputs: dict[str, torch.Tensor], batch: Batch) -> object:
    return task.decode({n: t.cpu().numpy() for n, t in outputs.items()}, batch.places)


def _targets(task: Task, batch: Batch) -> object:
    targets = batch.targets() if task.takes_targets else None
    return None if targets is None else target_array(targets)
