"""Where an image is in the input of a model."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


class ImagePlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image is in the model's input: ``input = original * scale + offset``, in pixels.

    Attributes:
        scale: horizontal and vertical.
        offset: left and top; negative where a part of the image was cut off.
        size: width and height of the upright original image.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[int, int]

    def to_original(self, xyxy: Floats) -> Floats:
        """Return boxes [N, 4] of the input in pixels of the original image, cut at its borders."""
        boxes = (xyxy - np.tile(self.offset, 2)) / np.tile(self.scale, 2)
        return np.asarray(np.clip(boxes, 0.0, np.tile(self.size, 2)))
