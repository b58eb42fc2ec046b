"""The task of a model: what was asked for, bound to the model's outputs."""

from __future__ import annotations

from collections.abc import Mapping

from trtq.data.samples import Batch, Samples
from trtq.errors import UsageError
from trtq.flow.model import Model
from trtq.flow.run import Run
from trtq.tasks import Facts, Task, find_task
from trtq.tasks.base import Outputs
from trtq.tasks.facts import IMAGE_AXES

DETECTS = "detect"  # metadata that ultralytics writes


def bind_task(asked: str | Task | None, model: Model, samples: Samples, run: Run) -> Task | None:
    """Return what the outputs of a model mean; None where nothing was asked and nothing is known.

    Samples with boxes, or a file whose maker says that it detects, make it detection where exactly
    one head fits the outputs, which is said.

    Raises:
        UsageError: an unknown task, or the model lacks the outputs that it reads.
    """
    facts = facts_of_model(model, samples)
    if asked is not None:
        return find_task(asked).bound(facts)
    if samples.boxed:
        why = f"{samples.name} has boxes"
    elif facts.task == DETECTS:
        why = f"{model.name} says that it detects"
    else:
        return None
    try:
        task = find_task("detection").bound(facts)
    except UsageError as exc:
        run.note(f"{why}, which are not looked at: {exc.message}: {exc.reason} (--task)")
        return None
    run.note(f"the task is {task.label}: {why}, and its outputs fit (--task)")
    return task


def facts_of_model(model: Model, samples: Samples) -> Facts:
    """Return what a captured model says of its answers."""
    signature = model.graph.signature
    answers = zip((t.name for t in signature.outputs), model.answers, strict=True)
    image = model.graph.examples[0] if signature.takes_one_image else None
    return Facts.of(dict(answers), image, model.metadata, samples.class_names)


def facts_of_batch(
    outputs: Outputs, batch: Batch, samples: Samples, metadata: Mapping[str, str]
) -> Facts:
    """Return what a first batch and the answers to it say."""
    first = next(iter(batch.inputs.values()))
    is_image = batch.places is not None or first.ndim == IMAGE_AXES
    return Facts.of(outputs, first if is_image else None, metadata, samples.class_names)
