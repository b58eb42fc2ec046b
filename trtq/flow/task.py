"""The task of a model: what was asked for, bound to the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch

from trtq.data.samples import Batch, Samples, target_array
from trtq.errors import UsageError
from trtq.flow.model import Model
from trtq.flow.run import Run
from trtq.graph.feed import Feed
from trtq.layouts import IMAGE_AXES
from trtq.tasks import BY_MAKER, Facts, Task, find_task
from trtq.tasks.base import Outputs, Tensors


def bind_task(
    task_or_name: str | Task | None, model: Model, samples: Samples, run: Run
) -> Task | None:
    """Return what the outputs of a model mean; None where nothing was asked and nothing is known.

    A file whose maker says that it finds boxes, masks or keypoints has that task, and samples with
    boxes make it detection, where exactly one head fits the outputs, with a note.

    Args:
        task_or_name: name or task; None for what is known.
        model: captured.
        samples: that it is used with.
        run: receives notes.

    Raises:
        UsageError: an unknown task, or the model lacks the outputs that it reads.
    """
    facts = facts_of_model(model, samples)
    if task_or_name is not None:
        return find_task(task_or_name).bound(facts)
    name = "detection"
    if samples.boxed:
        why = f"{samples.name} has boxes"
    elif facts.task in BY_MAKER:
        name, why = BY_MAKER[facts.task], f"{model.name} says that its task is {facts.task}"
    else:
        return None
    try:
        task = find_task(name).bound(facts)
    except UsageError as exc:
        run.note(f"{why}, which are not looked at: {exc.message}: {exc.reason} (--task)")
        return None
    run.note(f"the task is {task.label}: {why}, and its outputs fit (--task)")
    return task


def facts_of_model(model: Model, samples: Samples) -> Facts:
    """Return what a captured model says of its answers.

    Args:
        model: captured.
        samples: whose class names count.
    """
    signature = model.graph.signature
    answers = zip((t.name for t in signature.outputs), model.answers, strict=True)
    image = model.graph.examples[0] if signature.takes_one_image else None
    return Facts.of(dict(answers), image, model.metadata, samples.class_names)


def by_names(
    measure: Callable[[Tensors, Tensors], torch.Tensor],
    names: Sequence[str],
    answers: Feed,
    wanted: Feed,
) -> torch.Tensor:
    """Return what a task measures of outputs that are given in order.

    Args:
        measure: of the task.
        names: of the outputs.
        answers: outputs, samples first.
        wanted: the same of the float model.
    """
    return measure(dict(zip(names, answers, strict=True)), dict(zip(names, wanted, strict=True)))


def facts_of_batch(
    outputs: Outputs, batch: Batch, samples: Samples, metadata: Mapping[str, str]
) -> Facts:
    """Return what a first batch and the answers to it say.

    Args:
        outputs: of the model by name.
        batch: what was answered.
        samples: whose class names count.
        metadata: of the ONNX file.
    """
    first = next(iter(batch.inputs.values()))
    is_image = batch.places is not None or first.ndim == IMAGE_AXES
    return Facts.of(outputs, first if is_image else None, metadata, samples.class_names)


def fitting_targets(
    name: str, task: Task, answer: Any, batch: Batch, samples: Samples
) -> npt.NDArray[Any] | None:
    """Return the targets of a batch, once they are known to fit a model's answer; None without.

    Args:
        name: of the model, in errors.
        task: what the answer means.
        answer: as the task decodes it.
        batch: what was answered.
        samples: the batch is of them.

    Raises:
        UsageError: the targets are of another kind, or of other classes.
    """
    targets = batch.targets() if task.takes_targets else None
    if targets is None:
        return None
    values = target_array(targets)
    mismatch = task.mismatch(answer, values)
    if mismatch:
        kind = "masks" if samples.dense else "boxes" if samples.boxed else "labels"
        raise UsageError(f"Cannot compare {name} with {kind}", mismatch)
    return values
