"""Reading the raw samples of a program's own data again and again, in any container."""

from __future__ import annotations

import pickle
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from trtq.errors import ArtifactError, DataError, reason, said_by

DRAWS = 4  # at most, for each sample of a dataset
MOST_STREAMED = 100_000  # samples of an iterable that does not say how many it gives
IN_MEMORY = 16 * 2**20  # bytes of kept samples; what is more is kept on disk
Note = Callable[[str], None]


class Rows(Protocol):
    """Raw samples by position; every pass gives the same."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> object: ...


def rows_of(data: object, name: str, limit: int | None, note: Note | None) -> Rows:
    """Return data of a program as samples that can be read again and again.

    Args:
        data: a tensor or array with samples first, a mapping of them, a list of samples, a Dataset,
            a DataLoader or an iterable, which is read once and kept.
        name: of the data, for errors.
        limit: keep at most so many samples of what can be read once only.
        note: receives what a user should know.

    Raises:
        DataError: it is empty, or no such thing.
    """
    stream = isinstance(getattr(data, "dataset", data), IterableDataset)
    if isinstance(data, Mapping):
        return StackedRows(name, data)
    if isinstance(data, DataLoader) and not stream and _indexed(data.dataset):
        return LoaderRows(name, data)
    if not stream and _indexed(data):
        own: Any = data
        rows: Rows = own
        return rows
    if not hasattr(data, "__iter__"):
        raise DataError(
            f"Cannot use {name} as data",
            "it is no tensor, list, Dataset, DataLoader or iterable",
            "Give one of them, or the text of a folder of images",
        )
    return _kept(data, name, limit, note)


def _indexed(data: object) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def read_row(rows: Rows, index: int, name: str) -> object:
    """Return one raw sample.

    Args:
        rows: the samples.
        index: position, from 0.
        name: of the data, for errors.

    Raises:
        DataError: the code that reads it raised, or the data end before their length says.
    """
    try:
        return rows[index]
    except DataError:
        raise
    except (IndexError, StopIteration) as exc:
        raise DataError(
            f"{name} ends at sample {index}",
            f"its length is {len(rows)}, and reading that sample raised {said_by(exc)}",
            "Repair __len__ or __getitem__ of the dataset",
        ) from exc
    except Exception as exc:  # the code is the user's own
        raise DataError(
            f"Cannot read sample {index} of {name}", f"reading it raised {said_by(exc)}"
        ) from exc


class StackedRows:
    """Arrays with samples first, by name.

    Args:
        name: of the data, for errors.
        arrays: of equal length, samples first.

    Raises:
        DataError: lengths differ, or an array has no length.
    """

    def __init__(self, name: str, arrays: Mapping[Any, Any]) -> None:
        self.arrays = {str(k): v for k, v in arrays.items()}
        counts = {}
        for key, array in self.arrays.items():
            try:
                counts[key] = len(array)
            except TypeError as exc:
                raise DataError(
                    f"Cannot use {name}",
                    f"{key!r} is a {type(array).__name__} without samples on its first axis",
                    "Give arrays with samples first, all of the same length",
                ) from exc
        if len(set(counts.values())) > 1:
            words = ", ".join(f"{count} of {key!r}" for key, count in counts.items())
            raise DataError(
                f"Cannot use {name}",
                f"its arrays have different numbers of samples: {words}",
                "Samples are on the first axis of every array",
            )
        self.count = next(iter(counts.values()), 0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> object:
        return {key: array[index] for key, array in self.arrays.items()}


class LoaderRows:
    """The samples that a DataLoader gives in one pass, each once, in a fixed order.

    A sampler that gives some of the samples is heeded, its order and repetitions are not.

    Args:
        name: of the data, for errors.
        loader: over a dataset with a length.

    Raises:
        DataError: its sampler gives other samples in every pass.
    """

    def __init__(self, name: str, loader: DataLoader[Any]) -> None:
        self.name = name
        self.dataset: Any = loader.dataset
        self.collate = None if loader.batch_sampler is None else loader.collate_fn
        self.order = _sampled(name, loader)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> object:
        sample = self.dataset[self.order[index]]
        if self.collate is None:
            return sample
        rows = batch_rows(self.collate([sample]), self.name)
        if len(rows) != 1:
            raise DataError(
                f"Cannot use a batch of {self.name}",
                f"its collate function makes {len(rows)} samples of one",
                "Give the dataset itself, or a collate function that keeps the number of samples",
            )
        return rows[0]


def _sampled(name: str, loader: DataLoader[Any]) -> Sequence[int]:
    """Return the positions in the dataset that a loader reads, each once, in their order."""
    dataset: Any = loader.dataset
    size = len(dataset)
    own_batches = loader.batch_sampler
    if own_batches is not None and type(own_batches) is not BatchSampler:
        batches: Any = own_batches
        return _repeatable(
            name, batches, lambda: (int(i) for batch in batches for i in batch), size
        )
    sampler: Any = loader.sampler
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and sampler.num_samples >= size
        and not sampler.replacement
    )
    if whole:
        return range(size)
    return _repeatable(name, sampler, lambda: (int(i) for i in sampler), size)


def _repeatable(
    name: str, sampler: object, draw: Callable[[], Iterable[int]], size: int
) -> list[int]:
    """Return the positions that a sampler gives, drawn from a fixed seed.

    Raises:
        DataError: it gives other positions every time although the seed is fixed.
    """
    generator = getattr(sampler, "generator", None)
    before = generator.get_state() if isinstance(generator, torch.Generator) else None
    drawn = []
    for _ in range(2):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            drawn.append(sorted(set(islice(draw(), DRAWS * size))))
        if before is not None and generator is not None:
            generator.set_state(before)
    if drawn[0] != drawn[1]:
        raise DataError(
            f"The sampler of {name} gives other samples in every pass",
            f"{len(set(drawn[0]) ^ set(drawn[1]))} positions differ between two passes",
            "Give the dataset, a Subset of it, or a sampler with a fixed generator",
        )
    return drawn[0]


def batch_rows(batch: object, name: str) -> list[object]:
    """Return the samples of a batch: a tensor, a pair of tensors, or a dict of them.

    Args:
        batch: what a DataLoader gave.
        name: of the data, for errors.

    Returns:
        One sample an item, in the form of the batch: a tensor, a tuple or a dict.

    Raises:
        DataError: it is none of them, or its parts have different lengths.
    """
    try:
        if isinstance(batch, (torch.Tensor, np.ndarray)):
            return list(batch)
        if isinstance(batch, Mapping):
            return _part_rows(batch, _stacked_count(batch.values()))
        if isinstance(batch, (tuple, list)) and batch:
            count = _stacked_count(batch)
            parts = [_part_rows(part, count) for part in batch]
            return [tuple(row) for row in zip(*parts, strict=True)]
    except (TypeError, ValueError) as exc:
        raise DataError(
            f"Cannot use a batch of {name}",
            f"its parts are not lists of as many samples ({reason(exc)})",
            "Give the dataset itself, or a collate function that stacks every part",
        ) from exc
    raise DataError(
        f"Cannot use a batch of {name}",
        f"it is a {type(batch).__name__}, expected a tensor, a pair or a dict of tensors",
        "Give the dataset itself, or a collate function that returns one of them",
    )


def _stacked_count(parts: Iterable[object]) -> int | None:
    """Return the number of samples in the first stacked part of a batch, None without one."""
    for part in parts:
        inner = _stacked_count(part.values()) if isinstance(part, Mapping) else None
        count = len(part) if isinstance(part, (torch.Tensor, np.ndarray)) else inner
        if count is not None:
            return count
    return None


def _part_rows(part: Any, count: int | None) -> list[object]:
    """Return the rows of one part of a batch; structures of stacked parts give structures.

    Args:
        part: a stacked tensor, a list with an item a sample, or a structure of them.
        count: the number of samples, where a stacked part says it.
    """
    if isinstance(part, Mapping):
        parts = {k: _part_rows(v, count) for k, v in part.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    listed = isinstance(part, (tuple, list)) and count not in (None, len(part))
    if listed and all(_stacked_count([p]) == count for p in part):
        return list(zip(*(_part_rows(p, count) for p in part), strict=True))
    return list(part)


def _kept(data: Any, name: str, limit: int | None, note: Note | None) -> Rows:
    """Read an iterable once and keep its samples.

    Raises:
        DataError: it has no end and there is no limit, or it ends before its length says.
    """
    kept = KeptRows(name)
    known = _length(data)
    most = limit if limit is not None else known if known is not None else MOST_STREAMED
    ended = True
    for row in _single(data, name):
        if len(kept) >= most:
            ended = False
            break
        kept.add(row)
    if known is None and limit is None and not ended:
        raise DataError(
            f"{name} has not ended after {most} samples",
            "it can be read once only, and it does not say how many samples it has",
            "Give a limit: trtq.samples(data, limit=N), or --limit N",
        )
    if ended and known is not None and limit is None and len(kept) < known:
        raise DataError(
            f"{name} ends early",
            f"it gave {len(kept)} samples, its length says {known}",
            "Repair its __len__ or __iter__",
        )
    if not ended and note is not None:
        note(f"{name} can be read once only: its first {len(kept)} samples are used")
    return kept


def _single(data: Any, name: str) -> Iterator[object]:
    """Yield the samples of an iterable one by one; a DataLoader that collates gives batches."""
    batched = isinstance(data, DataLoader) and data.batch_size is not None
    items = iter(data)
    count = 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as exc:  # the code is the user's own
            raise DataError(
                f"Cannot read sample {count} of {name}", f"reading it raised {said_by(exc)}"
            ) from exc
        for row in batch_rows(item, name) if batched else [item]:
            count += 1
            yield row


def _length(data: Any) -> int | None:
    """Return how many samples an iterable says it has; None where it does not."""
    if isinstance(data, DataLoader):
        data = data.dataset
    try:
        return len(data)
    except TypeError:
        return None


class KeptRows:
    """Samples of data that can be read once only: in memory, and on disk beyond some size.

    Args:
        name: of the data, for errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # It has no name on disk, so nobody else writes what is read from it.
        self.file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - kept open
        weakref.finalize(self, self.file.close)
        self.places: list[tuple[int, int]] = []
        self.end = 0
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.places)

    def add(self, row: object) -> None:
        """Keep one sample: its values now, regardless of later changes of the program's buffers.

        Args:
            row: one sample: tensors, arrays, numbers, and lists, tuples and dicts of them.

        Raises:
            DataError: it cannot be copied.
            ArtifactError: the disk is full.
        """
        try:
            data = pickle.dumps(_owned(row), protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as exc:  # any object can refuse
            raise DataError(
                f"Cannot keep sample {len(self)} of {self.name}",
                f"it can be read once only, and copying it raised {said_by(exc)}",
                "Give tensors, arrays and numbers, or a Dataset",
            ) from exc
        try:
            self.file.seek(self.end)
            self.file.write(data)
        except OSError as exc:
            raise ArtifactError(
                f"Cannot keep the samples of {self.name} on disk",
                reason(exc),
                "Set TMPDIR to a folder with space, or give fewer samples (--calib-images)",
            ) from exc
        self.places.append((self.end, len(data)))
        self.end += len(data)

    def __getitem__(self, index: int) -> object:
        start, size = self.places[index]
        with self.lock:
            self.file.seek(start)
            data = self.file.read(size)
        return pickle.loads(data)  # noqa: S301 - written by this process into an unnamed file


def _owned(value: object) -> object:
    """Return a value whose tensors are small copies: a row of a batch would keep the whole."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {k: _owned(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_owned(v) for v in value]
    return value
