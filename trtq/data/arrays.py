"""The adapter of ``.npz`` and ``.npy`` files: one sample a file, or one file with samples first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtq.data.array_files import read_array_file, stacked_arrays
from trtq.data.listing import list_folder
from trtq.data.opened import Data, Request
from trtq.data.rows import StackedRows
from trtq.data.tensor_samples import TensorSamples
from trtq.errors import DataError, suggest
from trtq.paths import expand_home

SUFFIXES = (".npy", ".npz")


def open_arrays(request: Request) -> Data:
    """Return the samples in a folder of files, or in one file with samples first.

    Args:
        request: what was asked for; its ``text`` names the data.

    Raises:
        DataError: missing, empty, damaged, with Python objects, or of different lengths.
    """
    path = Path(expand_home(request.text, "--data"))
    if path.is_dir():
        rows: Any = ArrayFiles(request.text, *_listed(request, path))
    elif path.is_file():
        arrays = stacked_arrays(request.text, path)
        rows = StackedRows(request.text, arrays) if isinstance(arrays, dict) else arrays
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
    """One sample a file: the keys of an ``.npz`` are the inputs, an ``.npy`` is the only one.

    Args:
        name: of the data, for errors.
        ids: relative paths, one a sample.
        paths: of the files, in the same order.
    """

    def __init__(self, name: str, ids: Sequence[str], paths: Sequence[Path]) -> None:
        self.name, self.ids, self.paths = name, ids, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> object:
        return read_array_file(self.paths[index], f"{self.ids[index]} in {self.name}")
