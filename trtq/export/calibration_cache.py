"""TensorRT's calibration cache: one text line per tensor, read by releases up to 10.16.

TensorRT 11 no longer reads it.

The first line is ``TRT-<version>-<algorithm>``, every other line ``<tensor>: <hex>``: the bits of a
big-endian float32 without leading zeros, whose value is the scale, amax / 127. The cache holds
activations only; TensorRT takes the ranges of weights from the weights.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from trtq.errors import EncodingsError, reason

ALGORITHMS = ("EntropyCalibration2", "MinMaxCalibration", "EntropyCalibration", "LegacyCalibration")
HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)")
ENTROPY_2 = ALGORITHMS[0]  # the only one trtexec reads


class CalibrationCacheText(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of a calibration cache.

    Attributes:
        number: of the release that wrote it, down to the patch, such as 8502.
        version: (major, minor) of it.
        algorithm: of its calibrator.
        scales: by tensor name, float32 values; 0 for a tensor that was never active.
    """

    number: int
    version: tuple[int, int]
    algorithm: str
    scales: dict[str, float]


def cache_number(version: tuple[int, int], patch: int = 0) -> int:
    """Return the release number in the header.

    It is major * 1000 + minor * 100 + patch up to major version 9, and major * 10000 + minor * 100
    + patch from 10 on.

    Args:
        version: (major, minor).
        patch: the third number.

    >>> cache_number((8, 5), 2), cache_number((10, 3))
    (8502, 100300)
    """
    return version[0] * (1000 if version[0] < 10 else 10000) + version[1] * 100 + patch


def version_of(number: int) -> tuple[int, int]:
    """Return (major, minor) of such a number, as found in headers and trtexec's first line.

    >>> version_of(8502), version_of(100300)
    ((8, 5), (10, 3))
    """
    unit = 1000 if number < 10000 else 10000
    return number // unit, number % unit // 100


def write_cache(scales: Mapping[str, float], number: int, algorithm: str = ENTROPY_2) -> str:
    """Return the text of a cache.

    Args:
        scales: by tensor name.
        number: in the header, of the exact release: TensorRT ignores a cache of another one.
        algorithm: of the calibrator, for the header.

    Raises:
        EncodingsError: a name has a line break, or a scale is not a finite number of at least 0.

    >>> print(write_cache({"input": 1 / 127}, 8502), end="")
    TRT-8502-EntropyCalibration2
    input: 3c010204
    """
    lines = [f"TRT-{number}-{algorithm}"]
    for name, scale in scales.items():
        if "\n" in name or "\r" in name:
            raise EncodingsError(
                "Cannot write a calibration cache",
                f"the tensor name {name!r} has a line break",
                "Rename it in the ONNX file",
            )
        if not math.isfinite(scale) or scale < 0:
            raise EncodingsError(
                "Cannot write a calibration cache",
                f"the scale of {name} is {scale}",
                "Calibrate it again",
            )
        lines.append(f"{name}: {struct.unpack('>I', struct.pack('>f', scale))[0]:x}")
    return "\n".join(lines) + "\n"


def read_cache(text: str, name: str) -> CalibrationCacheText:
    """Return what a cache says.

    Args:
        text: of the file.
        name: for messages.

    Raises:
        EncodingsError: a wrong header, a line without a colon, or hex that is no usable number;
            names the line.
    """
    lines = text.splitlines()
    header = HEADER.fullmatch(lines[0].strip()) if lines else None
    if header is None or header.group(2) not in ALGORITHMS:
        first_line = lines[0][:60] if lines else "nothing"
        raise EncodingsError(
            f"{name} is no calibration cache of TensorRT",
            f"its first line is {first_line!r}",
            "Expected TRT-8502-EntropyCalibration2 or the like",
        )
    number = int(header.group(1))
    scales: dict[str, float] = {}
    for i, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        tensor, value = _read_line(line, i, name)
        if scales.setdefault(tensor, value) != value:
            raise EncodingsError(
                f"Cannot use {name}",
                f"line {i} names {tensor} again with another scale",
                "Remove one of the two lines",
            )
    return CalibrationCacheText(
        number=number, version=version_of(number), algorithm=header.group(2), scales=scales
    )


def read_cache_file(path: str) -> CalibrationCacheText:
    """Return what a file says.

    Args:
        path: of the cache.

    Raises:
        EncodingsError: it cannot be read, or is no cache.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise EncodingsError(f"Cannot read the calibration cache {path}", reason(exc)) from exc
    return read_cache(text, path)


def _read_line(line: str, number: int, name: str) -> tuple[str, float]:
    """Return the tensor and the scale of one line.

    Raises:
        EncodingsError: as :func:`read_cache`.
    """
    tensor, colon, digits = line.rpartition(":")
    digits = digits.strip()
    if not colon or not tensor or not re.fullmatch(r"[0-9a-fA-F]{1,8}", digits):
        raise EncodingsError(
            f"Cannot read line {number} of {name}",
            f"found {line[:80]!r}",
            "Expected NAME: and up to eight hex digits",
        )
    value = struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0]
    if not math.isfinite(value) or value < 0:
        raise EncodingsError(
            f"Cannot use line {number} of {name}",
            f"its scale is {value}",
            "A scale is a finite number of at least 0",
        )
    return tensor, value


def amax_of(scale: float) -> float:
    """Return the range of a scale: ``amax / 127`` in float32 is the scale again, bit by bit.

    scale * 127 in float32 can be one unit in the last place off; of it and its two neighbours the
    one is returned that divides back to the scale.
    """
    wanted, levels = np.float32(scale), np.float32(127.0)
    amax = np.float32(wanted * levels)
    near = (amax, np.nextafter(amax, np.float32(0)), np.nextafter(amax, np.float32(np.inf)))
    return float(next((a for a in near if np.float32(a / levels) == wanted), amax))
