"""Boxes around objects, the targets of detection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt

from trtq.data.outlines import Outlines, RunLengths, packed


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The objects of one image.

    Attributes:
        xyxy: left, top, right and bottom in pixels of the upright original image, float32 [N, 4].
        classes: class indices, int64 [N].
        crowd: whether a box is around a group of objects, bool [N].
        difficult: whether an object need not be found, bool [N].
        areas: pixels that each object covers, float64 [N]; None where only its box is known.
        masks: the pixels of each object; None where only boxes are known.
        keypoints: x, y in pixels and visibility (0: not labelled, 1: hidden, 2: visible),
            float32 [N, K, 3]; None without them.
    """

    xyxy: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    difficult: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64] | None = None
    masks: Outlines | None = None
    keypoints: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def content(self) -> bytes:
        """Return bytes that differ where any number does."""
        flags = (self.xyxy, self.classes, self.crowd, self.difficult)
        parts = [np.ascontiguousarray(v).tobytes() for v in flags]
        for values in (self.areas, self.keypoints):
            parts.append(b"-" if values is None else np.ascontiguousarray(values).tobytes())
        parts.append(b"-" if self.masks is None else msgspec.msgpack.encode(self.masks.of))
        return msgspec.msgpack.encode(parts)

    @classmethod
    def none(cls) -> Boxes:
        """Return the boxes of an image without objects."""
        return cls.of([], [])

    @classmethod
    def of(
        cls,
        xyxy: npt.ArrayLike,
        classes: npt.ArrayLike,
        crowd: npt.ArrayLike | None = None,
        difficult: npt.ArrayLike | None = None,
    ) -> Boxes:
        """Return boxes of plain lists; without flags every object counts.

        Args:
            xyxy: left, top, right and bottom in pixels, [N, 4].
            classes: class indices, [N].
            crowd: whether a box is around a group, [N]; None for no box.
            difficult: whether an object need not be found, [N]; None for no object.

        Raises:
            ValueError: the lengths differ.
        """
        indices = np.asarray(classes, dtype=np.int64).reshape(-1)
        return cls(
            xyxy=np.asarray(xyxy, dtype=np.float32).reshape(len(indices), 4),
            classes=indices,
            crowd=_flags(crowd, len(indices)),
            difficult=_flags(difficult, len(indices)),
        )


def is_boxed(target: object) -> bool:
    """Whether the target of a program's own sample is boxes.

    Args:
        target: :class:`Boxes`, or a mapping with ``boxes`` and ``labels``.
    """
    mapped = isinstance(target, Mapping) and set(target) >= {"boxes", "labels"}
    return mapped or isinstance(target, Boxes)


def boxes_of(target: object) -> Boxes | None:
    """Return the target of a program's own sample as boxes; None for another kind of target.

    Args:
        target: :class:`Boxes`, or a mapping with ``boxes`` [N, 4] and ``labels`` [N], and perhaps
            ``iscrowd`` [N], ``area`` [N], ``masks`` [N, H, W] of 0 and 1, and ``keypoints``
            [N, K, 3], as torchvision's models take it.

    Raises:
        ValueError: a person reads why the boxes are none.
    """
    if isinstance(target, Boxes):
        return target
    if not isinstance(target, Mapping) or not is_boxed(target):
        return None
    boxes, labels = (np.asarray(target[key]) for key in ("boxes", "labels"))
    if labels.ndim != 1 or boxes.size != 4 * len(labels):
        raise ValueError(
            f"its boxes are {list(boxes.shape)} and its labels {list(labels.shape)}, expected "
            "[N, 4] and [N]"
        )
    if not np.isfinite(boxes).all():
        raise ValueError("its boxes are not finite")
    if (labels != np.rint(labels)).any():
        raise ValueError("its labels are fractions, expected class indices")
    sides = boxes.reshape(-1, 4)
    reversed_ = (sides[:, 2:] < sides[:, :2]).any(axis=1)
    if reversed_.any():
        raise ValueError(
            f"its box {sides[reversed_][0].tolist()} ends before it begins, expected left, top, "
            "right and bottom"
        )
    target_boxes = Boxes.of(boxes, labels, crowd=target.get("iscrowd"))
    return replace(
        target_boxes,
        areas=_areas(target.get("area"), len(target_boxes)),
        masks=_masks(target.get("masks"), len(target_boxes)),
        keypoints=_keypoints(target.get("keypoints"), len(target_boxes)),
    )


def _areas(values: npt.ArrayLike | None, count: int) -> npt.NDArray[np.float64] | None:
    if values is None:
        return None
    areas = np.asarray(values, dtype=np.float64)
    if areas.shape != (count,) or not (areas >= 0).all():
        raise ValueError(f"its areas are {list(areas.shape)}, expected [{count}] from 0 on")
    return areas


def _masks(values: npt.ArrayLike | None, count: int) -> Outlines | None:
    """Return masks of pixels as run lengths.

    Raises:
        ValueError: they are not one a box, or hold more than 0 and 1.
    """
    if values is None:
        return None
    masks = np.asarray(values)
    if masks.ndim != 3 or len(masks) != count:
        raise ValueError(f"its masks are {list(masks.shape)}, expected [{count}, H, W]")
    if not np.isin(masks, (0, 1)).all():
        raise ValueError("its masks hold more than 0 and 1")
    height, width = masks.shape[1:]
    of = tuple(RunLengths.packed(runs) for runs in packed(masks.astype(np.bool_)))
    return Outlines(of=of, size=(height, width))


def _keypoints(values: npt.ArrayLike | None, count: int) -> npt.NDArray[np.float32] | None:
    if values is None:
        return None
    points = np.asarray(values, dtype=np.float32)
    if points.ndim != 3 or len(points) != count or points.shape[2] != 3:
        raise ValueError(f"its keypoints are {list(points.shape)}, expected [{count}, K, 3]")
    if not np.isfinite(points).all():
        raise ValueError("its keypoints are not finite")
    return points


def _flags(values: npt.ArrayLike | None, count: int) -> npt.NDArray[np.bool_]:
    if values is None:
        return np.zeros(count, dtype=np.bool_)
    return np.asarray(values, dtype=np.bool_).reshape(count)
