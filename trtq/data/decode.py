"""From the bytes of an image file to 8-bit pixels, and to the class indices of a mask."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from trtq.errors import first_line

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # no other decoder of Pillow is started
MAX_BYTES = 512 * 2**20  # of one file, unpacked
MAX_PIXELS = 89_478_485  # of one image: 256 MiB of RGB, where Pillow begins to warn
FULL_8 = 255
FULL_16 = 65535
DIM = 4  # 16-bit samples that reach only 1/DIM of their range are reported
# TIFF and EXIF tags.
WIDTH = 256
HEIGHT = 257
BITS = 258
PHOTOMETRIC = 262
ORIENTATION = 274
LARGEST = 281
SAMPLE_FORMAT = 339
SIGNED = 2  # a SampleFormat
RESCALE = "if they have fewer bits, rescale the file"
TURNED = (5, 6, 7, 8)  # orientations that exchange width and height
OTHERS = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"GIF8": "GIF",
    b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)",
    b"PK\x03\x04": "a zip file",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\x8aMNG": "MNG",
}
OWN = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"BM": "BMP",
}
Pixels = npt.NDArray[np.generic]


class UndecodableError(ValueError):
    """The bytes are not an image that has one right meaning as 8-bit pixels."""


@dataclass(slots=True)
class Decoded:
    """An image as 8-bit pixels.

    Attributes:
        image: mode L or RGB, upright.
        facts: what was changed or left out on the way, by kind; a person reads the texts.
    """

    image: Image.Image
    facts: dict[str, str] = field(default_factory=dict)


def decode(data: bytes) -> Decoded:
    """Return the first frame of an image file as upright 8-bit pixels.

    Raises:
        UndecodableError: it is damaged, too large, of another format, or has samples of unknown
            range.
    """
    image = open_image(data)
    try:
        return _decode(image, data)
    except UndecodableError:
        raise
    except Exception as exc:  # a damaged file can raise anything; the caller adds the file's name
        raise UndecodableError(words_of(exc)) from exc


def to_eight_bits(image: Image.Image) -> Decoded:
    """Return an image of any mode as 8-bit pixels: 16-bit samples span 0..65535, floats 0..1.

    Raises:
        UndecodableError: its samples have no known range.
    """
    return _eight_bits(image, _Samples())


def decode_mask(data: bytes) -> Pixels:
    """Return the class indices of a mask, integers [H, W], in the order they are stored.

    Args:
        data: of the file.

    Raises:
        UndecodableError: it is damaged, holds colours or fractions, or its format changes indices.
    """
    image = open_image(data)
    try:
        return _indices(image, data)
    except UndecodableError:
        raise
    except Exception as exc:  # as in decode
        raise UndecodableError(words_of(exc)) from exc


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image is stored.

    Attributes:
        orientation: of EXIF, 1 to 8.
        width, height: in pixels, before it is turned.
    """

    orientation: int
    width: int
    height: int


def read_geometry(data: bytes) -> Geometry:
    """Return how an image is stored, without decoding its pixels.

    Raises:
        UndecodableError: it is damaged or of another format.
    """
    image = open_image(data)
    try:
        return Geometry(orientation_of(image), *_stored_size(image))
    except Exception as exc:  # as in decode
        raise UndecodableError(words_of(exc)) from exc


def turn(values: Pixels, orientation: int) -> Pixels:
    """Return pixels [H, W] upright, as an EXIF orientation (1 to 8) says.

    >>> turn(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    if orientation in TURNED:
        values = values.T
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def open_image(data: bytes) -> Image.Image:
    """Return an image whose pixels are not decoded yet.

    Args:
        data: of the file; only decoders in ``FORMATS`` are tried.

    Raises:
        UndecodableError: it is empty, too large, damaged or of another format.
    """
    if not data:
        raise UndecodableError("the file is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as exc:
        raise UndecodableError(_not_an_image(data)) from exc
    except Exception as exc:  # as in decode
        raise UndecodableError(words_of(exc)) from exc
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UndecodableError(
            f"it has {width} x {height} pixels, more than the limit of {MAX_PIXELS}"
        )
    return image


def _not_an_image(data: bytes) -> str:
    """Return why no decoder takes the bytes."""
    own = _kind(data, OWN)
    if own:
        return f"it is a damaged {own}, or a {own} whose layout of samples cannot be read"
    kind = _kind(data, OTHERS) or _text_kind(data[:256].lstrip()) or "unknown"
    return f"its content is {kind}; expected {', '.join(FORMATS)}"


def _kind(data: bytes, kinds: Mapping[bytes, str]) -> str:
    return next((name for start, name in kinds.items() if data.startswith(start)), "")


def _text_kind(head: bytes) -> str:
    """Return what kind of text begins like this; empty where it is none."""
    if head.startswith(b"<"):
        return "HTML or XML"
    return "text" if head and all(32 <= b < 127 or b in b"\t\r\n" for b in head) else ""


def words_of(exc: Exception) -> str:
    """Return what a decoder's error says."""
    text = first_line(str(exc))
    return (
        text
        if text and not isinstance(exc, KeyError)
        else f"damaged ({type(exc).__name__} {text})".strip()
    )


@dataclass(frozen=True, slots=True)
class _Samples:
    """Facts about samples from their file.

    Attributes:
        bits: of one sample, as stored.
        significant: bits that carry information, where the file says so.
        signed: whether negative values can occur.
        inverted: whether 0 is white and the decoder leaves that to us.
        full: the largest possible value where neither bits nor mode give it.
    """

    bits: int | None = None
    significant: int | None = None
    signed: bool = False
    inverted: bool = False
    full: int | None = None


def _samples(image: Image.Image, data: bytes) -> _Samples:
    if image.format == "PNG":
        bits = data[24]
        deep = bits == 16
        return _Samples(
            bits=bits,
            significant=_sbit(data) if deep else None,
            full=FULL_16 if deep else None,
        )
    if image.format == "PPM" and image.mode == "I":
        return _Samples(bits=16, full=FULL_16)  # Pillow scales every maxval above 255 to this
    if image.format == "TIFF":
        return _tiff_samples(getattr(image, "tag_v2", {}))
    return _Samples()


def _tiff_samples(tags: Mapping[int, object]) -> _Samples:
    bits = max(_numbers(tags.get(BITS, 1)), default=1)
    largest = max(_numbers(tags.get(LARGEST, 0)), default=0)
    # Many writers put the largest value of this one image here: only 2^n - 1 tells a bit depth.
    is_depth = FULL_8 < largest < 2**bits - 1 and largest & (largest + 1) == 0
    return _Samples(
        bits=bits,
        significant=largest.bit_length() if is_depth else None,
        signed=SIGNED in _numbers(tags.get(SAMPLE_FORMAT, 1)),
        inverted=tags.get(PHOTOMETRIC) == 0 and bits > 8,
    )


def _numbers(value: object) -> tuple[int, ...]:
    many = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(int(v) for v in many if isinstance(v, (int, float)))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (name, content) of the chunks of a PNG before its pixels."""
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if name == b"IDAT":
            return
        yield name, data[at + 8 : at + 8 + length]
        at += 12 + length


def _sbit(data: bytes) -> int | None:
    content = next((c for name, c in _chunks(data) if name == b"sBIT"), b"")
    return max(content) if content and 0 < max(content) < 16 else None


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height in pixels before turning."""
    tags = _tags(image)
    return (int(tags[WIDTH]), int(tags[HEIGHT])) if tags is not None else image.size


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8."""
    tags = _tags(image)
    value = (image.getexif() if tags is None else tags).get(ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _tags(image: Image.Image) -> Mapping[int, Any] | None:
    """Return the tags of a TIFF; None for other formats."""
    return getattr(image, "tag_v2", None) if image.format == "TIFF" else None


def _decode(image: Image.Image, data: bytes) -> Decoded:
    samples = _samples(image, data)
    orientation = orientation_of(image)
    frames = int(getattr(image, "n_frames", 1))
    image.load()  # a TIFF is turned by this
    if orientation != 1 and image.format != "TIFF":
        image = ImageOps.exif_transpose(image)
    decoded = _eight_bits(image, samples)
    if orientation != 1:
        decoded.facts["turned"] = "its EXIF orientation was applied"
    if frames > 1:
        decoded.facts["frames"] = f"it has {frames} frames; the first is used"
    return decoded


def _eight_bits(image: Image.Image, samples: _Samples) -> Decoded:
    if (
        image.mode in ("L", "RGB")
        and "transparency" not in image.info
        and (samples.bits or 8) <= 8
        and not samples.signed
    ):
        return Decoded(image)
    facts: dict[str, str] = {}
    if samples.signed:
        raise UndecodableError("its samples are signed integers, whose range is unknown")
    if image.mode.startswith("I"):
        return Decoded(_from_integers(np.asarray(image), image.mode, samples, facts), facts)
    if image.mode == "F":
        return Decoded(_from_floats(np.asarray(image), facts), facts)
    if samples.bits == 16:
        _check_high_bytes(image, samples, facts)
    return Decoded(_colours(_without_alpha(image, facts), facts), facts)


def _from_integers(
    values: Pixels, mode: str, samples: _Samples, facts: dict[str, str]
) -> Image.Image:
    """Scale unsigned integers of more than 8 bits, one channel, by the range of their file."""
    full = _full_range(values, mode, samples)
    if int(values.max()) > full:
        raise UndecodableError(f"a sample is {values.max()}, its file allows at most {full}")
    facts["deep"] = f"its samples of 0 to {full} were scaled to 8 bits"
    if full == FULL_16 and 0 < int(values.max()) < (FULL_16 + 1) // DIM:
        facts["dim"] = (
            f"the largest of its 16-bit samples is {values.max()} of {FULL_16}; {RESCALE}"
        )
    if samples.inverted:
        values = full - values.astype(np.int64)
    return Image.fromarray(np.rint(values.astype(np.float64) * (FULL_8 / full)).astype(np.uint8))


def _full_range(values: Pixels, mode: str, samples: _Samples) -> int:
    """Return the largest possible value of integer samples.

    Raises:
        UndecodableError: the file does not say.
    """
    full = samples.full
    if full is None and mode.startswith("I;16"):
        full = 2 ** min(samples.bits or 16, 16) - 1
    bits = samples.significant
    if bits is not None and (full is None or _right_aligned(values, bits, full)):
        return (1 << bits) - 1
    if full is None:
        raise UndecodableError(
            f"its samples are 32-bit integers ({values.min()} to {values.max()}) of unknown range"
        )
    return full


def _right_aligned(values: Pixels, bits: int, full: int) -> bool:
    """Return whether samples of ``bits`` bits use the low ones of a wider integer.

    PNG wants them scaled to the full range, with the low bits zero or a copy of the high ones;
    some writers do not do that.
    """
    wide = values.astype(np.int64)
    if int(wide.max()) >= 2**bits:
        return False
    below = full.bit_length() - bits
    low, high = wide & (2**below - 1), wide >> below
    scaled = (low == 0) | (low == high >> max(bits - below, 0))
    return bool(wide.max() > 0) and not bool(scaled.all())


def _from_floats(values: Pixels, facts: dict[str, str]) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0.0 or high > 1.0:
        raise UndecodableError(
            f"its samples are floats from {low:g} to {high:g}; only 0 to 1 has a known range"
        )
    facts["float"] = "its float samples of 0 to 1 were scaled to 8 bits"
    return Image.fromarray(np.rint(values.astype(np.float64) * FULL_8).astype(np.uint8))


def _check_high_bytes(image: Image.Image, samples: _Samples, facts: dict[str, str]) -> None:
    """Report that Pillow keeps the high byte of 16-bit colours.

    Raises:
        UndecodableError: the file says that the high byte is empty.
    """
    peak = int(np.asarray(image).max())
    bits = samples.significant
    if bits is not None and 0 < peak < 2 ** max(bits - 8, 0):
        raise UndecodableError(
            f"its 16-bit colours use only the {bits} low bits; rescale them to the full range"
        )
    facts["deep"] = "the high bytes of its 16-bit colours are used"
    if 0 < peak < (FULL_8 + 1) // DIM:
        facts["dim"] = (
            f"the largest high byte of its 16-bit colours is {peak} of {FULL_8}; {RESCALE}"
        )


def _without_alpha(image: Image.Image, facts: dict[str, str]) -> Image.Image:
    bands = image.getbands()
    alpha = next((b for b in ("A", "a") if b in bands[1:] and image.mode != "LAB"), None)
    if alpha is not None:
        if int(np.asarray(image.getchannel(bands.index(alpha))).min()) < FULL_8:
            facts["alpha"] = (
                "its alpha channel is dropped; transparent pixels keep their stored colour"
            )
    elif "transparency" in image.info:
        facts["alpha"] = (
            "its transparent colour is dropped; transparent pixels keep their stored colour"
        )
        image = image.copy()
        del image.info["transparency"]
    if image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    return image


def _colours(image: Image.Image, facts: dict[str, str]) -> Image.Image:
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    if image.mode in ("CMYK", "LAB", "HSV"):
        facts["colour"] = f"{image.mode} was converted to RGB without a colour profile"
    return image.convert("RGB")


def _indices(image: Image.Image, data: bytes) -> Pixels:
    if image.format == "JPEG":
        raise UndecodableError("JPEG compression changes class indices; store masks as PNG")
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise UndecodableError(f"it has {frames} frames; a mask has one")
    samples = _samples(image, data)
    orientation = orientation_of(image)
    scaled = image.format == "PPM" and not _keeps_values(image)
    image.load()
    values = np.asarray(image)
    _require_indices(values, image.mode)
    if scaled:
        raise UndecodableError(
            "its largest value is neither 255 nor 65535, so its values are scaled"
        )
    bits = samples.bits or 8
    if image.mode == "L" and bits in (2, 4):  # Pillow scales these gray levels to 0..255
        values = values // (FULL_8 // (2**bits - 1))
    if orientation != 1 and image.format != "TIFF":
        values = turn(values, orientation)
    return values.astype(np.int64)


def _require_indices(values: Pixels, mode: str) -> None:
    if mode == "F" and not bool((values == np.rint(values)).all()):
        raise UndecodableError("its values are fractions; class indices are integers")
    if values.ndim != 2:
        raise UndecodableError(f"it holds colours: its mode is {mode}")


def _keeps_values(image: Image.Image) -> bool:
    tile = list(getattr(image, "tile", []))
    return bool(tile) and tile[0][0] == "raw"
