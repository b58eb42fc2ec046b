"""The answers of an engine on a board against those of the ONNX file on the same images here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx

from trtq.data.answers import kind_in, kind_of_array
from trtq.data.metrics import Array, predictions
from trtq.data.opened import Data
from trtq.data.preprocess import Preprocess
from trtq.data.samples import Batch, Samples, target_array
from trtq.deploy.record import Accuracy
from trtq.engine.agreement import answers, check_agreement
from trtq.engine.meaning import meaning_of
from trtq.engine.runner import OnnxRunner
from trtq.errors import BoardError, UsageError
from trtq.export.feeds import AnyArray, Given, InputSlot, count_of
from trtq.tasks import Figure, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The models behind an engine.

    Attributes:
        judged: what the engine's answers are compared with.
        built_from: what the engine was built from.
        metadata: of the file that was sent.
        yardstick: what ``judged`` is, in words.
        name: path of the file.
        data: the images, as the user named them.
    """

    judged: onnx.ModelProto
    built_from: onnx.ModelProto
    metadata: Mapping[str, Any]
    yardstick: str
    name: str
    data: str


def compare_on_images(
    compared: Compared,
    given: Data,
    indices: Sequence[int],
    size: int,
    run: Callable[[Array], dict[str, Array]],
) -> Accuracy:
    """Return how far the engine's answers are those of the ONNX file.

    Args:
        compared: the models.
        given: the images, with their labels or boxes.
        indices: of those that are used.
        size: images in a batch.
        run: returns the engine's outputs by name for float32 [N, C, H, W].

    Raises:
        BoardError: the file does not say how images become its input.
    """
    stored = compared.metadata.get("preprocess")
    if stored is None:
        raise BoardError(
            f"Cannot run the images of {compared.data}",
            f"{compared.name} does not say how images become its input",
        )
    samples = given.make(None, msgspec.convert(stored, Preprocess)).select(indices)
    shown = list(samples.batches(size))
    images = [b.input.numpy() for b in shown]
    outputs = run(np.concatenate(images))
    agreement = check_agreement(
        compared.judged,
        compared.built_from,
        images,
        engine=_Answered(outputs),
        rebuild=_not_there,
        missing=[],
        yardstick=compared.yardstick,
    )
    top1, reference_top1, scores = None, None, next(iter(outputs.values()))
    is_classes = kind_of_array(scores, kind_in(compared.metadata)) == "classes"
    labels = given.source.labels if given.source is not None else None
    meaning = meaning_of(compared.judged, images[0], outputs, None)
    scored = meaning is not None and meaning.task.takes_targets and samples.has_targets
    here = answers(OnnxRunner(compared.judged), images) if scored or labels is not None else {}
    if labels is not None and is_classes:
        wanted = np.asarray([labels[i] for i in indices])
        top1 = _hits(scores.astype(np.float64), wanted)
        reference_top1 = _hits(here[next(iter(here))], wanted)
    figures = dict[str, list[Figure]]()
    if meaning is not None and scored and not is_classes:
        sides = {"figures": outputs, "reference_figures": here}
        figures = {k: _scores(meaning.task, side, shown, samples) for k, side in sides.items()}
    return Accuracy(
        images=len(indices),
        data=compared.data,
        top1=top1,
        reference_top1=reference_top1,
        agreement=agreement,
        task=msgspec.UNSET if meaning is None else meaning.task.label,
        figures=figures.get("figures", msgspec.UNSET),
        reference_figures=figures.get("reference_figures", msgspec.UNSET),
    )


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
        targets = batch.targets()
        if targets is None:
            continue
        answer, values = task.decode(part, batch.places), target_array(targets)
        mismatch = task.mismatch(answer, values)
        if mismatch:
            raise UsageError(f"Cannot score {task.label} on {samples.name}", mismatch)
        counts.add(answer, values)
    return counts.figures


def _hits(scores: Array, labels: Array) -> float:
    """Return the share of right predictions, percent."""
    return 100.0 * float((predictions(scores) == labels).mean())


class _Answered:
    """A runner with precomputed answers, in the order of the batches."""

    label = "the board"
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
