"""Maps of answers: another size, and as pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from trtq.data.metrics import Array
from trtq.tasks.drawing import color_of

# Dark blue, blue, green, yellow, red: from the lowest value to the highest.
COLORS = np.asarray(
    [[48, 18, 59], [70, 107, 227], [40, 187, 180], [164, 252, 60], [251, 126, 33], [122, 4, 3]],
    dtype=np.float32,
)


def resized(maps: Array, size: tuple[int, int]) -> Array:
    """Return maps [N, C, h, w] in another size, bilinear between the centres of pixels.

    Args:
        maps: of any float type; NaN spreads to its neighbours.
        size: height and width.
    """
    if maps.shape[2:] == size:
        return maps
    import torch
    from torch.nn.functional import interpolate

    given = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))
    return np.asarray(interpolate(given, size=size, mode="bilinear", align_corners=False).numpy())


def draw_classes(image: Image.Image, classes: npt.NDArray[np.int64]) -> Image.Image:
    """Return an image half covered by the colour of each pixel's class, [H, W].

    Args:
        image: of any mode.
        classes: class indices of pixels, 0 or more; resized to the image, nearest.
    """
    numbers = Image.fromarray(classes.astype(np.int32)).resize(image.size, Image.Resampling.NEAREST)
    class_map = np.asarray(numbers, dtype=np.int64)
    palette = np.asarray([color_of(i) for i in range(int(class_map.max(initial=0)) + 1)])
    pixels = np.asarray(image.convert("RGB"), dtype=np.uint16)
    return Image.fromarray(((pixels + palette[class_map]) // 2).astype(np.uint8))


def draw_values(size: tuple[int, int], values: Array) -> Image.Image:
    """Return a map [H, W] as colours, with its range in a corner; NaN and infinity are black.

    Args:
        size: width and height of the picture.
        values: the map.
    """
    sound = np.isfinite(values)
    low, high = (np.min(values[sound]), np.max(values[sound])) if sound.any() else (0.0, 0.0)
    share = np.where(sound, (values - low) / max(float(high - low), 1e-12), 0.0)
    steps = np.linspace(0.0, 1.0, len(COLORS))
    bands = [np.interp(share, steps, COLORS[:, i]) for i in range(3)]
    pixels = np.where(sound[..., None], np.stack(bands, axis=-1), 0.0).astype(np.uint8)
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    ImageDraw.Draw(picture).text((3, 1), f"{low:.3g} to {high:.3g}", fill="white")
    return picture


def caption(image: Image.Image, text: str) -> Image.Image:
    """Return an image with a line of text on a dark strip at its lower edge.

    Args:
        image: of any mode.
        text: one line.
    """
    picture = image.convert("RGB")
    pen = ImageDraw.Draw(picture)
    top = max(0, picture.height - 14)
    pen.rectangle((0, top, picture.width, picture.height), fill=(0, 0, 0))
    pen.text((3, top), text, fill="white")
    return picture
