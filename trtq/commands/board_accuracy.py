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
from trtq.data.preprocess import Preprocess, batches
from trtq.data.source import Source
from trtq.deploy.record import Accuracy
from trtq.engine.agreement import answers, check_agreement
from trtq.engine.runner import OnnxRunner
from trtq.errors import BoardError
from trtq.export.feeds import AnyArray, Given, InputSlot, count_of


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
    source: Source,
    indices: Sequence[int],
    size: int,
    run: Callable[[Array], dict[str, Array]],
) -> Accuracy:
    """Return how far the engine's answers are those of the ONNX file.

    Args:
        compared: the models.
        source: the images.
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
    preprocess = msgspec.convert(stored, Preprocess)
    images = [b.numpy() for b in batches(source, list(indices), preprocess, size)]
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
    if source.labels is not None and is_classes:
        labels = np.asarray([source.labels[i] for i in indices])
        here = answers(OnnxRunner(compared.judged), images)
        top1 = _hits(scores.astype(np.float64), labels)
        reference_top1 = _hits(here[next(iter(here))], labels)
    return Accuracy(
        images=len(indices),
        data=compared.data,
        top1=top1,
        reference_top1=reference_top1,
        agreement=agreement,
    )


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
