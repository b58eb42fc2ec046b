"""Keypoints: boxes with the points of each object, such as the joints of a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from trtq.data.boxes import Boxes
from trtq.tasks.coco_counts import Kind
from trtq.tasks.detection import overlaps_of
from trtq.tasks.detections import Detections
from trtq.tasks.instances import Instances

SIGMA = 0.07  # about COCO's mean of how exactly a keypoint can be placed


@dataclass(frozen=True, kw_only=True)
class Keypoints(Instances):
    """Boxes and keypoints of objects, judged by the similarity of keypoints (OKS)."""

    name = "keypoints"
    extra: ClassVar[str] = "keypoints"
    word: ClassVar[str] = "OKS"
    counted: ClassVar[Kind] = "keypoints"

    def _has_extra(self, boxes: Boxes) -> bool:
        return boxes.keypoints is not None

    def overlaps(self, own: Detections, theirs: Detections) -> npt.NDArray[np.float64]:
        """Return the similarity of the keypoints of each two objects, 0 of other classes.

        It is as COCO counts it, with one tolerance for all keypoints, and their boxes' area.

        Args:
            own: in one picture.
            theirs: in the same picture; their boxes give the areas.

        Returns:
            float [own, theirs], 0 to 1: the mean over keypoints of exp(-d^2 / (2 area (2
            sigma)^2)), d in pixels and sigma 0.07; overlaps of boxes where one side has no
            keypoints.
        """
        if own.keypoints is None or theirs.keypoints is None:
            return overlaps_of(own, theirs)
        a, b = own.keypoints[:, None, :, :2], theirs.keypoints[None, :, :, :2]
        far = np.square((a - b).astype(np.float64)).sum(axis=-1)
        sides = (theirs.xyxy[:, 2:] - theirs.xyxy[:, :2]).astype(np.float64)
        areas = np.maximum(sides.prod(axis=1), 1.0)[None, :, None]
        likeness = np.exp(-far / (2.0 * areas * (2.0 * SIGMA) ** 2)).mean(axis=-1)
        return np.where(own.classes[:, None] == theirs.classes[None], likeness, 0.0)
