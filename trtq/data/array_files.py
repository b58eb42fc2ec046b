"""Files of arrays: ``.npy`` and ``.npz``, whole or one sample at a time."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from trtq.data.bands import OBJECTS
from trtq.data.decode import MAX_BYTES
from trtq.errors import ArtifactError, DataError, reason

DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError)
Array = npt.NDArray[Any]


def read_array_file(path: Path, label: str) -> Array | dict[str, Array]:
    """Return the array of an ``.npy`` file, or the arrays of an ``.npz`` file by key.

    Args:
        path: of the file; other suffixes than ``.npy`` are read as ``.npz``.
        label: what errors call it.

    Returns:
        Arrays as they are stored: their own shapes, types and byte order.

    Raises:
        DataError: it is damaged, too large, empty, or holds Python objects.
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                _header(file, label, limit=MAX_BYTES)
                file.seek(0)
                array: Array = np.load(file, allow_pickle=False)
                return array
        with zipfile.ZipFile(path) as archive:
            return {
                _key(info, label): _member(archive, info, label)
                for info in _members(archive, label)
            }
    except DAMAGED as exc:
        raise _unreadable(label, exc) from exc


def _unreadable(label: str, exc: BaseException) -> DataError:
    return DataError(f"Cannot read {label}", f"it is damaged ({reason(exc)})", "Write it again")


def _members(archive: zipfile.ZipFile, label: str) -> list[zipfile.ZipInfo]:
    infos = archive.infolist()
    names = [i.filename for i in infos]
    if not infos or len(set(names)) < len(names):
        raise DataError(
            f"Cannot read {label}",
            "two of its arrays have one name" if infos else "it holds no arrays",
            "Write it with numpy.savez",
        )
    return infos


def _key(info: zipfile.ZipInfo, label: str) -> str:
    if not info.filename.endswith(".npy"):
        raise DataError(
            f"Cannot read {label}",
            f"{info.filename!r} in it is no array",
            "Write it with numpy.savez",
        )
    return info.filename.removesuffix(".npy")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, label: str) -> Array:
    with archive.open(info) as file:
        _header(file, f"{_key(info, label)!r} of {label}", limit=MAX_BYTES)
    with archive.open(info) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _header(
    file: IO[bytes], label: str, *, limit: int | None = None
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the first axis varies fastest, and type; no value is read.

    Raises:
        DataError: Python objects, or more than ``limit`` bytes.
        ValueError: it is no array, or a size is negative.
    """
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {list(shape)}")
    if dtype.hasobject:
        raise DataError(
            f"Cannot read {label}", OBJECTS, "Save arrays of numbers: array.astype(numpy.float32)"
        )
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if limit is not None and size > limit:
        raise DataError(
            f"Cannot read {label}",
            f"one sample has {size} bytes, the limit is {limit}",
            "Give one sample a file, or one file with samples first",
        )
    return shape, fortran, dtype


class StackedArray:
    """An array in a file with samples first, of which one sample at a time is read.

    Args:
        file: open, at its beginning.
        label: for errors.
    """

    def __init__(self, file: IO[bytes], label: str) -> None:
        weakref.finalize(self, file.close)
        self.label = label
        self.shape, fortran, self.dtype = _header(file, label)
        if not self.shape or (fortran and len(self.shape) > 1):
            raise DataError(
                f"Cannot read {label}",
                "it is one number" if not self.shape else "its axes are in Fortran's order",
                "Save it with samples first: numpy.ascontiguousarray(array)",
            )
        self.file, self.start = file, file.tell()
        self.count = int(np.prod(self.shape[1:], dtype=np.int64))
        self.lock = threading.Lock()
        size = file.seek(0, 2) - self.start
        wanted = self.count * self.shape[0] * self.dtype.itemsize
        if size < wanted:
            raise DataError(
                f"Cannot read {label}",
                f"it is damaged: {size} of {wanted} bytes are there",
                "Write it again",
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Array:
        size = self.count * self.dtype.itemsize
        with self.lock:
            self.file.seek(self.start + index * size)
            data = self.file.read(size)
        return np.frombuffer(bytearray(data), dtype=self.dtype).reshape(self.shape[1:])


def stacked_arrays(name: str, path: Path) -> StackedArray | dict[str, StackedArray]:
    """Return the array of an ``.npy`` file, or those of an ``.npz`` file by key, samples first.

    Memory does not grow with the number of samples.

    Args:
        name: of the data, for errors.
        path: of the file.

    Returns:
        Arrays of which ``array[i]`` reads one sample. Those of an ``.npz`` file are unpacked into
        unnamed temporary files, which close with the arrays.

    Raises:
        DataError: damaged, or with Python objects.
        ArtifactError: there is no room for the unpacked arrays.
    """
    try:
        if path.suffix.lower() == ".npy":
            return StackedArray(path.open("rb"), name)
        with zipfile.ZipFile(path) as archive:
            return {
                _key(info, name): StackedArray(
                    _unpacked(archive, info, name), f"{_key(info, name)!r} of {name}"
                )
                for info in _members(archive, name)
            }
    except DAMAGED as exc:
        raise _unreadable(name, exc) from exc


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> IO[bytes]:
    """Return one array of a zip as an unnamed file of its own."""
    try:
        target = tempfile.TemporaryFile()  # noqa: SIM115 - it is returned open
        with archive.open(info) as source:
            shutil.copyfileobj(source, target, 2**20)
    except OSError as exc:
        raise ArtifactError(
            f"Cannot unpack {info.filename} of {name}",
            reason(exc),
            "Set TMPDIR to a folder with space, or give one sample a file",
        ) from exc
    target.seek(0)
    return target
