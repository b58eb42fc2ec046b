"""The answers of an engine on a board against those of the ONNX file on the same samples here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
import torch

from trtq.commands.board_samples import feeds
from trtq.data.answers import kind_in, kind_of_array
from trtq.data.metrics import Array, predictions
from trtq.data.samples import Batch, Samples, target_array
from trtq.deploy.record import Accuracy
from trtq.engine.agreement import answers, check_agreement
from trtq.engine.job import Job
from trtq.engine.meaning import meaning_of
from trtq.engine.runner import OnnxRunner
from trtq.errors import BoardError
from trtq.export.feeds import AnyArray, Given, Inputs, InputSlot, count_of
from trtq.export.onnx_file import get_metadata
from trtq.flow.task import fitting_targets
from trtq.tasks import Figure, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The models behind an engine.

    Attributes:
        judged: what the engine's answers are compared with.
        built_from: what the engine was built from.
        yardstick: what ``judged`` is, in words.
        job: the build.
        data: the samples, as the user named them.
        task: what the outputs mean; default: what the file says.
    """

    judged: onnx.ModelProto
    built_from: onnx.ModelProto
    yardstick: str
    job: Job
    data: str
    task: str | None


def compare_on_samples(
    compared: Compared,
    samples: Samples,
    size: int,
    run: Callable[[Sequence[Inputs]], dict[str, AnyArray]],
) -> Accuracy:
    """Return how far the engine's answers are those of the ONNX file.

    Args:
        compared: the models.
        samples: with their labels or boxes.
        size: samples in a batch.
        run: returns the engine's outputs by name, over all batches of arrays by input name.

    Raises:
        BoardError: the engine lacks an output of the file.
        UsageError: the outputs are not those of the task.
    """
    pairs = list(feeds(compared.job, samples, size))
    shown, given = [b for b, _ in pairs], [fed for _, fed in pairs]
    outputs = run(given)
    _require_outputs(compared, outputs)
    agreement = check_agreement(
        compared.judged,
        compared.built_from,
        given,
        engine=_Answered(outputs),
        rebuild=_not_there,
        missing=[],
        yardstick=compared.yardstick,
        task=compared.task,
    )
    # An engine may have its outputs in another order than the file.
    first = compared.judged.graph.output[0].name
    top1, reference_top1, scores = None, None, outputs[first]
    metadata = get_metadata(compared.judged)
    is_classes = kind_of_array(scores, kind_in(metadata)) == "classes"
    meaning = meaning_of(compared.judged, given[0], outputs, None, compared.task)
    scored = meaning is not None and meaning.task.takes_targets and samples.has_targets
    labels = _labels(shown) if is_classes and samples.has_targets else None
    here = answers(OnnxRunner(compared.judged), given) if scored or labels is not None else {}
    if labels is not None:
        top1 = _hits(scores.astype(np.float64), labels)
        reference_top1 = _hits(here[first], labels)
    figures = dict[str, list[Figure]]()
    if meaning is not None and scored and not is_classes:
        sides = {"figures": outputs, "reference_figures": here}
        figures = {k: _scores(meaning.task, side, shown, samples) for k, side in sides.items()}
    return Accuracy(
        images=sum(len(b) for b in shown),
        data=compared.data,
        top1=top1,
        reference_top1=reference_top1,
        agreement=agreement,
        task=msgspec.UNSET if meaning is None else meaning.task.label,
        figures=figures.get("figures", msgspec.UNSET),
        reference_figures=figures.get("reference_figures", msgspec.UNSET),
    )


def _require_outputs(compared: Compared, outputs: Mapping[str, AnyArray]) -> None:
    """Refuse an engine that lacks outputs of the file.

    Raises:
        BoardError: names them.
    """
    missing = [o.name for o in compared.judged.graph.output if o.name not in outputs]
    if missing:
        reads = f", which the task {compared.task} reads" if compared.task else ""
        raise BoardError(
            "Cannot compare the engine on the board",
            f"it lacks the outputs {', '.join(missing)}{reads}; it answers with "
            f"{', '.join(outputs)}",
            "Rebuild it: --force",
        )


def _labels(shown: Sequence[Batch]) -> Array | None:
    """Return the classes of samples; None where their targets are no classes."""
    targets = [b.targets() for b in shown]
    if not all(isinstance(t, torch.Tensor) and t.ndim == 1 for t in targets):
        return None
    return np.concatenate([target_array(t) for t in targets if t is not None])


def _scores(
    task: Task, outputs: Mapping[str, Array], shown: Sequence[Batch], samples: Samples
) -> list[Figure]:
    """Return the scores of outputs over all batches against the targets.

    Raises:
        UsageError: the targets are of another kind than the task's.
    """
    counts, place = task.score(ignore=samples.ignore), 0
    for batch in shown:
        part = {n: v[place : place + len(batch)] for n, v in outputs.items()}
        place += len(batch)
        answer = task.decode(part, batch.places)
        values = fitting_targets("the board's answers", task, answer, batch, samples)
        if values is not None:
            counts.add(answer, values)
    return counts.figures


def _hits(scores: Array, labels: Array) -> float:
    """Return the share of right predictions, percent."""
    return 100.0 * float((predictions(scores) == labels).mean())


class _Answered:
    """A runner with precomputed answers, in the order of the batches."""

    label = "the board"
    notes: Sequence[str] = ()
    inputs: Sequence[InputSlot] = ()  # not known here

    def __init__(self, outputs: dict[str, Array]) -> None:
        self.outputs, self.place = outputs, 0

    def run(self, given: Given) -> dict[str, AnyArray]:
        """Return the answers to the next batch."""
        start = self.place
        self.place += count_of(given) if isinstance(given, Mapping) else len(given)
        return {k: v[start : self.place] for k, v in self.outputs.items()}

    @property
    def input_shape(self) -> list[int | None]:
        """The input shape is not known here."""
        return []


def _not_there(_: Any) -> Any:
    raise BoardError("tensors on the way are not looked at on boards")
