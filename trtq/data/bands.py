"""Images of any number of channels: alpha, several pages, arrays in ``.npy`` files."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import ImageOps

from trtq.data.decode import UndecodableError, open_image, orientation_of, to_eight_bits, words_of

Pixels = npt.NDArray[np.generic]
FULL_8 = 255.0
FULL_16 = 65535.0
EIGHT_BITS = ("L", "LA", "RGB", "RGBA", "RGBX")  # modes whose bands are channels as they are
OBJECTS = "it holds Python objects, which only pickle can read; trtq never loads pickle"


@dataclass(slots=True)
class Bands:
    """All channels of an image.

    Attributes:
        pixels: [H, W, C] of values 0 to 255, uint8 or float32.
        facts: what was changed on the way, by kind; a person reads the texts.
    """

    pixels: Pixels
    facts: dict[str, str] = field(default_factory=dict)


def require_channels(bands: Bands, channels: int) -> None:
    """Refuse an image of another number of channels.

    Args:
        bands: the image.
        channels: that the model takes.

    Raises:
        UndecodableError: names both numbers.
    """
    own = bands.pixels.shape[2]
    if own != channels:
        raise UndecodableError(
            f"it has {own} channels (alpha and pages count), the model takes {channels}"
        )


def decode_bands(data: bytes) -> Bands:
    """Return every channel of every page of an image file, upright.

    Args:
        data: of the file.

    Returns:
        [H, W, C] with the channels of all pages in order: uint8, 16-bit and float samples scaled to
        8 bits.

    Raises:
        UndecodableError: it is damaged, or its samples have no known range.
    """
    image = open_image(data)
    facts: dict[str, str] = {}
    pages: list[Pixels] = []
    try:
        orientation = orientation_of(image)
        turned = orientation != 1 and image.format != "TIFF"
        for page in range(int(getattr(image, "n_frames", 1))):
            if page:
                image.seek(page)
            image.load()
            upright = ImageOps.exif_transpose(image) if turned else image
            if upright.mode not in EIGHT_BITS:
                decoded = to_eight_bits(upright)
                facts.update(decoded.facts)
                upright = decoded.image
            pages.append(np.atleast_3d(np.asarray(upright)))
    except UndecodableError:
        raise
    except Exception as exc:  # a damaged file can raise anything; the caller adds the file's name
        raise UndecodableError(words_of(exc)) from exc
    if len({p.shape[:2] for p in pages}) > 1:
        raise UndecodableError("its pages have different sizes")
    if orientation != 1:
        facts["turned"] = "its EXIF orientation was applied"
    return Bands(np.concatenate(pages, axis=2), facts)


def decode_array(data: bytes) -> Bands:
    """Return the image in a ``.npy`` file: [H, W] or [H, W, C].

    uint8 is 0 to 255, uint16 is 0 to 65535, floats are 0 to 1.

    Args:
        data: of the file.

    Returns:
        [H, W, C] of values 0 to 255: uint8 as stored, others float32.

    Raises:
        UndecodableError: it is damaged, of another type or form, or holds Python objects.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as exc:  # a damaged file can raise anything
        raise UndecodableError(OBJECTS if "pickle" in str(exc) else words_of(exc)) from exc
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or not array.size:
        shape = list(getattr(array, "shape", ()))
        raise UndecodableError(f"its shape is {shape}, expected [H, W] or [H, W, channels]")
    return Bands(_in_range(np.atleast_3d(array)))


def _in_range(array: Pixels) -> Pixels:
    """Return an array as values of 0 to 255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.multiply(array, FULL_8 / FULL_16, dtype=np.float32)
    if array.dtype.kind != "f":
        raise UndecodableError(
            f"its values are {array.dtype}; expected uint8, uint16, or floats of 0 to 1"
        )
    values = array.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):
        raise UndecodableError(f"its floats are {low:g} to {high:g}; only 0 to 1 has a known range")
    return np.multiply(values, FULL_8, dtype=np.float32)
