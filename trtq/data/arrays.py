"""The adapter of ``.npz`` and ``.npy`` files: one sample a file, or one file with samples first."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from trtq.data.bands import OBJECTS
from trtq.data.decode import MAX_BYTES
from trtq.data.listing import list_folder
from trtq.data.opened import Data, Request
from trtq.data.rows import StackedRows
from trtq.data.tensor_samples import TensorSamples
from trtq.errors import ArtifactError, DataError, reason, suggest
from trtq.paths import expand_home

SUFFIXES = (".npy", ".npz")
DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError)
Array = npt.NDArray[Any]


def open_arrays(request: Request) -> Data:
    """Return the samples in a folder of files, or in one file with samples first.

    Raises:
        DataError: missing, empty, damaged, with Python objects, or of different lengths.
    """
    path = Path(expand_home(request.text, "--data"))
    if path.is_dir():
        rows: Any = ArrayFiles(request.text, *_listed(request, path))
    elif path.is_file():
        rows = stacked_file(request.text, path)
    else:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggest(path.name, siblings)
        raise DataError(
            f"Cannot read {request.text}",
            "there is no such file",
            hint if "Did you" in hint else "",
        )
    if not len(rows):
        raise DataError(f"Cannot use {request.text}", "it has no samples")
    samples = TensorSamples(request.text, rows, note=request.note)
    if request.ignore_index is not None:
        samples.ignore = request.ignore_index
    return Data.of_tensors(samples)


def _listed(request: Request, folder: Path) -> tuple[list[str], list[Path]]:
    """Return names and paths of the arrays in a folder, in the order of their names."""
    listing = list_folder(request.text, folder)
    names = sorted(n for n in listing.files if Path(n).suffix.lower() in SUFFIXES)
    others = sorted(set(listing.files) - set(names))
    request.tell(*listing.notes)
    if others:
        request.tell(
            f"{len(others)} files in {request.text} are no arrays and were ignored, such as "
            f"{others[0]}"
        )
    return names, [listing.files[n] for n in names]


class ArrayFiles:
    """One sample a file: the keys of an ``.npz`` are the inputs, an ``.npy`` is the only one."""

    def __init__(self, name: str, ids: Sequence[str], paths: Sequence[Path]) -> None:
        self.name, self.ids, self.paths = name, ids, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> object:
        return read_array_file(self.paths[index], f"{self.ids[index]} in {self.name}")


def read_array_file(path: Path, label: str) -> Array | dict[str, Array]:
    """Return the array of an ``.npy`` file, or the arrays of an ``.npz`` file by key.

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
        ValueError: it is no array.
    """
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
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


def stacked_file(name: str, path: Path) -> StackedRows | StackedArray:
    """Return the samples of one file: memory does not grow with their number.

    Raises:
        DataError: damaged, with Python objects, or arrays of different lengths.
        ArtifactError: there is no room for the unpacked arrays.
    """
    try:
        if path.suffix.lower() == ".npy":
            return StackedArray(path.open("rb"), name)
        with zipfile.ZipFile(path) as archive:
            arrays = {
                _key(info, name): StackedArray(
                    _unpacked(archive, info, name), f"{_key(info, name)!r} of {name}"
                )
                for info in _members(archive, name)
            }
    except DAMAGED as exc:
        raise _unreadable(name, exc) from exc
    return StackedRows(name, arrays)


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
