"""The score of a graph in training: hits, or what its task says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from trtq.data.metrics import hit_rate, mean_overlap
from trtq.data.samples import Batch, target_array
from trtq.graph.device import device_of
from trtq.graph.feed import Feed, first_output, outputs_of
from trtq.tasks import Figure, Task
from trtq.train.examples import TrainingSetup, in_steps, walk
from trtq.workers import Workers

DIVERGENCE = "divergence"


def task_score(setup: TrainingSetup, student: nn.Module, placed: Callable[[Feed], Feed]) -> Figure:
    """Return the first score of a task on the validation samples.

    Without targets it is what the task says of the answers against the teacher's, and for a task
    that compares numbers only the mean divergence of the outputs.

    Args:
        setup: what is learned; it has a task and validation samples.
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


def hits_of(
    setup: TrainingSetup,
    student: nn.Module,
    placed: Callable[[Feed], Feed],
    workers: Workers,
) -> float:
    """Return top-1 or mIoU on the validation images in percent, over all processes.

    Args:
        setup: what is learned.
        student: the graph in training.
        placed: brings inputs to its device.
        workers: the processes; each counts its share.
    """
    val, classes = setup.val, setup.classes
    assert val is not None
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=device_of(student))
    parts = in_steps(list(workers.share(range(len(val)))), setup.batch)
    for feed, wanted in walk(val, parts, setup.names):
        assert wanted is not None
        predicted = first_output(student(*placed(feed))).argmax(dim=1)
        targets = wanted.to(counts.device)
        seen = targets != val.ignore
        pairs = targets[seen] * classes + predicted[seen]
        counts += torch.bincount(pairs, minlength=classes * classes)
    total = workers.sum_(counts).reshape(classes, classes).cpu().numpy()
    return mean_overlap(total) if val.dense else hit_rate(total)


def _decoded(task: Task, outputs: dict[str, torch.Tensor], batch: Batch) -> object:
    return task.decode({n: t.cpu().numpy() for n, t in outputs.items()}, batch.places)


def _targets(task: Task, batch: Batch) -> object:
    targets = batch.targets() if task.takes_targets else None
    return None if targets is None else target_array(targets)
