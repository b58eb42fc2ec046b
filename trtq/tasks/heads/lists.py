"""Outputs that are lists of boxes, scores and classes after the model's own suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from trtq.data.metrics import Array
from trtq.tasks.detections import Detections
from trtq.tasks.facts import Facts
from trtq.tasks.heads.base import Head, output_called, ranked

NUMBERS = ("num_dets", "num_detections", "num")
BOXES = ("boxes", "det_boxes", "detection_boxes", "nmsed_boxes")
SCORES = ("scores", "det_scores", "detection_scores", "nmsed_scores")
CLASSES = ("labels", "classes", "det_classes", "detection_classes", "nmsed_classes")
MASKS, POINTS, POINT_SCORES = ("masks",), ("keypoints",), ("keypoints_scores",)
HALF = 0.5  # share from which a pixel is of an object


@dataclass(frozen=True, kw_only=True)
class Lists(Head):
    """Boxes [N, K, 4], scores [N, K] and classes [N, K]."""

    name: ClassVar[str] = "lists"
    summary: ClassVar[str] = (
        "boxes [N, K, 4] in pixels, scores [N, K], labels [N, K] (exports of RT-DETR, D-FINE)"
    )
    by_names: ClassVar[bool] = True

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        if not by_name and _counted(facts) is not None:
            return []
        lists = _lists(facts, samples=1)
        return [] if lists is None else [cls(outputs=lists)]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        del size
        return [self._read(*lists) for lists in zip(*outputs, strict=True)]

    def _read(self, boxes: Array, scores: Array, classes: Array) -> Detections:
        return ranked(boxes, scores, classes, least=self.least_score, most=self.most)[0]


def _lists(facts: Facts, *, samples: int) -> tuple[str, str, str] | None:
    """Return the names of boxes, scores and classes; None where one is missing.

    Args:
        facts: what is known about the model.
        samples: axes of samples: 1 or 0.
    """
    boxes = output_called(facts, BOXES, rank=2 + samples)
    scores = output_called(facts, SCORES, rank=1 + samples)
    classes = output_called(facts, CLASSES, rank=1 + samples)
    if boxes is None or scores is None or classes is None or facts.outputs[boxes][-1] != 4:
        return None
    return boxes, scores, classes


def _counted(facts: Facts) -> str | None:
    """Return the name of the output that says how many detections there are."""
    return output_called(facts, NUMBERS, rank=2) or output_called(facts, NUMBERS, rank=1)


@dataclass(frozen=True, kw_only=True)
class EfficientNms(Lists):
    """TensorRT's plugin EfficientNMS, and BatchedNMS before it."""

    name: ClassVar[str] = "efficient-nms"
    summary: ClassVar[str] = (
        "num_dets [N, 1], det_boxes [N, K, 4] in pixels, det_scores [N, K], det_classes [N, K] "
        "(EfficientNMS)"
    )

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        del by_name
        lists, number = _lists(facts, samples=1), _counted(facts)
        return [] if lists is None or number is None else [cls(outputs=(*lists, number))]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        del size
        *lists, numbers = outputs
        counts = np.nan_to_num(numbers.reshape(-1), posinf=0.0, neginf=0.0).astype(np.int64)
        return [
            self._read(*(values[: max(count, 0)] for values in one))
            for count, *one in zip(counts.tolist(), *lists, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class TensorFlow(EfficientNms):
    """TensorFlow's detection models: top, left, bottom, right as shares, classes from 1."""

    name: ClassVar[str] = "tensorflow"
    summary: ClassVar[str] = (
        "num_detections [N], detection_boxes [N, K, 4] (top, left, bottom, right as shares), "
        "detection_scores [N, K], detection_classes [N, K] from 1 (TensorFlow)"
    )

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        heads = super().fitting(facts, by_name=by_name)
        return [h for h in heads if by_name or h.outputs[0].endswith("detection_boxes")]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        boxes, scores, classes, numbers = outputs
        sides = (boxes * np.asarray(size * 2, dtype=np.float32))[..., [1, 0, 3, 2]]
        return super().decode_arrays((sides, scores, classes - 1, numbers), size)


@dataclass(frozen=True, kw_only=True)
class TorchVision(Lists):
    """Torchvision's detection models on one picture; class 0 is the background.

    Attributes:
        masks: there is an output of masks.
        points: there are outputs of keypoints and their scores.
    """

    name: ClassVar[str] = "torchvision"
    summary: ClassVar[str] = (
        "boxes [K, 4] in pixels, labels [K] from 1, scores [K], of one picture (torchvision)"
    )
    masks: bool = False
    points: bool = False

    @property
    def gives(self) -> tuple[str, ...]:  # noqa: D102
        return ("masks",) * self.masks + ("keypoints",) * self.points

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        del by_name
        lists = _lists(facts, samples=0)
        if lists is None:
            return []
        masks = output_called(facts, MASKS, rank=4)
        points = output_called(facts, POINTS, rank=3)
        scores = output_called(facts, POINT_SCORES, rank=2)
        both = (points, scores) if points and scores else ()
        names = (*lists, *((masks,) if masks else ()), *both)
        return [cls(outputs=names, masks=masks is not None, points=bool(both))]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        del size
        boxes, scores, labels, *extras = outputs
        detections, kept = ranked(boxes, scores, labels - 1, least=self.least_score, most=self.most)
        if self.masks:
            detections = replace(detections, masks=extras.pop(0)[kept, 0] > HALF)
        if self.points:
            points, point_scores = (values[kept] for values in extras)
            joined = np.concatenate([points[..., :2], point_scores[..., None]], axis=-1)
            detections = replace(detections, keypoints=joined)
        return [detections]
