"""Pictures of answers: boxes, masks and maps drawn on the image that they are of."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trtq.tasks.detections import Detections

SHOWN_SCORE = 0.25  # boxes below it are not shown, as detectors' own tools do
GOLDEN = 0.618033988749895  # steps of hue that remain far apart


def color_of(index: int) -> tuple[int, int, int]:
    """Return the colour of a class, the same in every picture."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1.0, 0.85, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(image: Image.Image, detections: Detections, classes: Sequence[str]) -> Image.Image:
    """Return an image with boxes, masks and points of at least 0.25, their class and score.

    Args:
        image: of any mode.
        detections: in pixels of the image.
        classes: names in index order; a class without one is a number.
    """
    shown = detections.above(SHOWN_SCORE)
    picture = image.convert("RGB")
    if shown.masks is not None:
        for mask, number in zip(shown.masks, shown.classes, strict=True):
            picture = tint(picture, mask, color_of(int(number)))
    pen = ImageDraw.Draw(picture)
    width = max(1, round(max(picture.size) / 400))
    for i, (box, number) in enumerate(zip(shown.xyxy, shown.classes, strict=True)):
        color = color_of(int(number))
        name = classes[number] if number < len(classes) else str(number)
        left, top, right, bottom = (float(v) for v in box)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)
        _label(pen, (left, top), f"{name} {shown.scores[i]:.2f}", color, 6 * width)
    if shown.keypoints is not None:
        for points in shown.keypoints:
            for x, y, seen in points:
                if seen >= SHOWN_SCORE:
                    pen.ellipse((x - width, y - width, x + width, y + width), fill=(255, 255, 0))
    return picture


def _label(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    color: tuple[int, int, int],
    size: int,
) -> None:
    """Write a line on a patch of a colour, above a place where the picture has room."""
    font = ImageFont.load_default(max(10, size))
    _, _, width, height = pen.textbbox((0, 0), text, font=font)
    left, top = place[0], place[1] - height if place[1] >= height else place[1]
    pen.rectangle((left, top, left + width, top + height), fill=color)
    pen.text((left, top), text, fill="white", font=font)


def tint(image: Image.Image, mask: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    """Return an image with half of a colour where a mask [H, W] is true.

    Args:
        image: RGB.
        mask: bool, of the size of the image.
        color: red, green and blue, 0 to 255.
    """
    pixels = np.asarray(image, dtype=np.uint8).copy()
    pixels[mask] = (pixels[mask].astype(np.uint16) + np.asarray(color)) // 2
    return Image.fromarray(pixels)
