"""Detections in one picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from trtq.data.image_place import ImagePlace


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The objects that a model found in one picture, best first.

    Attributes:
        xyxy: left, top, right and bottom in pixels, float32 [N, 4].
        scores: float32 [N].
        classes: class indices, int64 [N].
        masks: the pixels of each object, bool [N, H, W]; None where the model gives none.
        keypoints: x and y in pixels and a score, float32 [N, K, 3]; None where the model gives
            none.
    """

    xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_] | None = None
    keypoints: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def none(cls) -> Detections:
        """Return the detections of a picture in which nothing was found."""
        return cls.of([], [], [])

    @classmethod
    def of(
        cls,
        xyxy: npt.ArrayLike,
        scores: npt.ArrayLike,
        classes: npt.ArrayLike,
        *,
        masks: npt.ArrayLike | None = None,
        keypoints: npt.ArrayLike | None = None,
    ) -> Detections:
        """Return detections of plain lists.

        Args:
            xyxy: left, top, right and bottom in pixels, [N, 4].
            scores: 0 to 1, [N], best first.
            classes: class indices, [N].
            masks: pixels of each object, [N, H, W].
            keypoints: x, y and score, [N, K, 3].

        Raises:
            ValueError: the lengths differ.
        """
        numbers = np.asarray(classes, dtype=np.int64).reshape(-1)
        return cls(
            xyxy=np.asarray(xyxy, dtype=np.float32).reshape(len(numbers), 4),
            scores=np.asarray(scores, dtype=np.float32).reshape(len(numbers)),
            classes=numbers,
            masks=None if masks is None else np.asarray(masks, dtype=np.bool_),
            keypoints=None if keypoints is None else np.asarray(keypoints, dtype=np.float32),
        )

    def at(self, rows: npt.NDArray[Any]) -> Detections:
        """Return some of the detections.

        Args:
            rows: positions, int64 [M], or a choice, bool [N].
        """
        return Detections(
            xyxy=self.xyxy[rows],
            scores=self.scores[rows],
            classes=self.classes[rows],
            masks=None if self.masks is None else self.masks[rows],
            keypoints=None if self.keypoints is None else self.keypoints[rows],
        )

    def above(self, score: float) -> Detections:
        """Return the detections with at least this score."""
        return self.at(self.scores >= score)

    def finite(self) -> Detections:
        """Return the detections without a number that is NaN or infinite."""
        sound = np.isfinite(self.scores) & np.isfinite(self.xyxy).all(axis=1)
        if self.keypoints is not None:
            sound &= np.isfinite(self.keypoints).all(axis=(1, 2))
        return self if sound.all() else self.at(sound)

    def moved(self, place: ImagePlace) -> Detections:
        """Return the detections in pixels of the original image instead of the model's input.

        Boxes are cut at the borders of the image. A pixel of a mask is that of the input under its
        centre; pixels that were cut off before the model saw them are empty.

        Args:
            place: where the image is in the model's input.
        """
        return replace(
            self,
            xyxy=place.to_original(self.xyxy).astype(np.float32),
            masks=None if self.masks is None else _masks_moved(self.masks, place),
            keypoints=None if self.keypoints is None else _points_moved(self.keypoints, place),
        )


def _points_moved(points: npt.NDArray[np.float32], place: ImagePlace) -> npt.NDArray[np.float32]:
    moved = points.astype(np.float32)
    xy = (points[..., :2] - np.asarray(place.offset)) / np.asarray(place.scale)
    moved[..., :2] = xy
    return moved


def _masks_moved(masks: npt.NDArray[np.bool_], place: ImagePlace) -> npt.NDArray[np.bool_]:
    (columns, in_width), (rows, in_height) = (
        _sources(original, masks.shape[axis], scale, offset)
        for original, axis, scale, offset in zip(
            place.size, (2, 1), place.scale, place.offset, strict=True
        )
    )
    moved = masks[:, rows[:, None], columns[None, :]]
    moved &= in_height[:, None] & in_width[None, :]
    return moved


def _sources(
    original: int, given: int, scale: float, offset: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return for each pixel of an axis of the original the one of the input, and if it has one."""
    at = np.floor((np.arange(original) + 0.5) * scale + offset).astype(np.int64)
    return np.clip(at, 0, given - 1), (at >= 0) & (at < given)
