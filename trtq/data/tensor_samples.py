"""Samples of a program's own: tensors, lists, Datasets, DataLoaders, iterables."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from trtq.artifact import digest_of
from trtq.data.samples import INPUT, Batch, Samples
from trtq.errors import DataError

SHOWN = 3
DRAWS = 4  # at most, for each sample of a dataset
TARGET_KEYS = ("target", "label", "labels", "y")


class TensorSamples(Samples):
    """Tensors of a program's own, one a sample, with or without a target.

    Args:
        name: what to call them.
        count: how many there are.
        read: returns sample ``i``: a tensor or array, a pair with a target, or a dict of inputs;
            called again in every pass.

    Attributes:
        varies: whether a sample may differ from what an earlier pass read, as training allows;
            elsewhere that is an error, because results would depend on chance.
    """

    varies = False

    def __init__(
        self,
        name: str,
        count: int,
        read: Callable[[int], object],
        *,
        order: Sequence[int] | None = None,
        seen: dict[int, str] | None = None,
    ) -> None:
        self.name = name
        self.read = read
        self.order = list(range(count)) if order is None else list(order)
        self.ids = [f"{i:06d}" for i in self.order]
        self.seen: dict[int, str] = {} if seen is None else seen
        self.expected: tuple[int, str] | None = None

    @cached_property
    def _first_target(self) -> torch.Tensor | None:
        target = self._sample(self.order[0])[1] if self.order else None
        try:
            return None if target is None else torch.as_tensor(target)
        except (TypeError, ValueError, RuntimeError):  # text, boxes: some task may read them
            return torch.empty(0)

    @property
    def has_targets(self) -> bool:
        """Whether the first sample has a target."""
        return self._first_target is not None

    @property
    def dense(self) -> bool:
        """Whether the first target is one class a pixel."""
        target = self._first_target
        return target is not None and target.ndim == 2 and not target.is_floating_point()

    def expect(self, classes: int, model: str) -> None:  # noqa: D102
        self.expected = (classes, model)

    def batches(self, size: int, *, count: int | None = None) -> Iterator[Batch]:  # noqa: D102
        chosen = self.order[:count]
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            rows = [self._sample(i) for i in part]
            yield Batch(
                inputs={INPUT: _stacked(self.name, [x for x, _ in rows])},
                ids=[f"{i:06d}" for i in part],
                targets=partial(self._targets, [t for _, t in rows]),
            )

    def _targets(self, rows: Sequence[object]) -> torch.Tensor | None:
        targets = _stacked_targets(self.name, rows)
        counts = targets is not None and not targets.is_floating_point()
        if targets is not None and counts and self.expected is not None:
            classes, model = self.expected
            counted = targets[targets != self.ignore]
            highest = int(counted.max()) if counted.numel() else 0
            lowest = int(counted.min()) if counted.numel() else 0
            if highest >= classes or lowest < 0:
                word, index = ("highest", highest) if highest >= classes else ("lowest", lowest)
                raise DataError(
                    f"The targets of {self.name} do not fit {model}",
                    f"the {word} class index is {index}, the model has {classes} classes",
                    "Give the index that is not counted: trtq.samples(data, ignore_index=...)",
                )
        return targets

    def contents(self) -> list[str]:  # noqa: D102
        for i in self.order:
            if i not in self.seen:
                self._sample(i)
        return [self.seen[i][:16] for i in self.order]

    def digest(self) -> str:  # noqa: D102
        self.contents()
        return digest_of([self.seen[i] for i in self.order])

    def take(self, count: int, seed: int) -> TensorSamples:  # noqa: D102
        draw = torch.randperm(len(self.order), generator=torch.Generator().manual_seed(seed))
        return self.select([int(i) for i in draw[:count]])

    def select(self, positions: Sequence[int]) -> TensorSamples:  # noqa: D102
        order = [self.order[i] for i in positions]
        chosen = TensorSamples(self.name, len(order), self.read, order=order, seen=self.seen)
        chosen.ignore, chosen.expected, chosen.varies = self.ignore, self.expected, self.varies
        return chosen

    def _sample(self, index: int) -> tuple[torch.Tensor, object]:
        value, target = _split(self.name, self.read(index))
        content = hashlib.sha256(f"{value.dtype} {list(value.shape)}\0".encode())
        content.update(value.contiguous().numpy().tobytes())
        now = content.hexdigest()
        before = self.seen.setdefault(index, now)
        if before != now and not self.varies:
            raise DataError(
                f"Sample {index} of {self.name} is not the same in every pass",
                "its values differ from those that an earlier pass read",
                "Turn random augmentation off in the dataset that calibrates and evaluates",
            )
        return value, target


def _split(name: str, sample: object) -> tuple[torch.Tensor, object]:
    """Return the input and the target of one sample of a program's own data."""
    target: object = None
    if isinstance(sample, Mapping):
        named = {str(k): v for k, v in sample.items()}
        key = next((k for k in TARGET_KEYS if k in named), None)
        target = None if key is None else named.pop(key)
        if len(named) != 1:
            raise DataError(
                f"Cannot use the samples of {name}",
                f"a sample has the inputs {', '.join(named) or 'none'}, expected one",
                "Give samples with one input, and the target as 'target'",
            )
        (value,) = named.values()
    elif isinstance(sample, (tuple, list)):
        if not 1 <= len(sample) <= 2:
            raise DataError(
                f"Cannot use the samples of {name}",
                f"a sample has {len(sample)} parts, expected an input and at most a target",
                "Give (input, target) or the input alone",
            )
        value = sample[0]
        target = sample[1] if len(sample) > 1 else None
    else:
        value = sample
    return _input(name, value), target


def _input(name: str, value: object) -> torch.Tensor:
    """Return an input as float32 on the CPU."""
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as exc:
        raise DataError(
            f"Cannot use the samples of {name}",
            f"an input is a {type(value).__name__}, expected a tensor or an array",
            "Apply the model's preprocessing first (ToTensor, Normalize)",
        ) from exc
    if not tensor.is_floating_point():
        raise DataError(
            f"Cannot use the samples of {name}",
            f"an input is {str(tensor.dtype).removeprefix('torch.')}, the model takes float32",
            "Apply the model's preprocessing first: scale to [0, 1], subtract the mean",
        )
    return tensor.to(torch.float32)


def _stacked(name: str, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(r.shape) for r in rows}
    if len(shapes) != 1:
        raise DataError(
            f"Cannot use the samples of {name}",
            f"inputs have the shapes {', '.join(str(list(s)) for s in sorted(shapes)[:SHOWN])}",
            "Resize or crop all of them to the size that the model takes",
        )
    return torch.stack(list(rows))


def _stacked_targets(name: str, rows: Sequence[object]) -> torch.Tensor | None:
    """Return targets, integers as int64; None where no sample has one."""
    try:
        given = [torch.as_tensor(t) for t in rows if t is not None]
    except (TypeError, ValueError, RuntimeError) as exc:
        first = next(t for t in rows if t is not None)
        raise DataError(
            f"Cannot use the targets of {name}",
            f"a target is a {type(first).__name__}, expected a class index or an array",
            "Give task='tensors', or targets that are numbers",
        ) from exc
    if not given:
        return None
    if len(given) != len(rows) or len({tuple(t.shape) for t in given}) != 1:
        raise DataError(
            f"Cannot use the targets of {name}", "samples have targets of different forms"
        )
    stacked = torch.stack(given)
    return stacked if stacked.is_floating_point() else stacked.to(torch.int64)


class _Kept:
    """Samples of data that can be read once only, kept in memory."""

    def __init__(self, rows: Sequence[object]) -> None:
        self.rows = rows

    def __call__(self, index: int) -> object:
        return self.rows[index]


def samples_of(data: object, *, limit: int | None = None, name: str = "") -> Samples:
    """Return a program's own data as samples.

    Args:
        data: a tensor or array with samples first, a list of samples, a Dataset, a DataLoader (the
            samples that it gives, in the order that trtq chooses), or any iterable of samples,
            which is read once and kept in memory.
        limit: keep at most so many samples of what can be read only once.
        name: what to call the data; default: its type.

    Raises:
        DataError: it is empty, or no such thing.
    """
    if isinstance(data, Samples):
        return data
    label = name or f"{type(data).__name__} of the program"
    count, read = _reader(data, label, limit)
    if not count:
        raise DataError(f"Cannot use {label}", "it has no samples")
    return TensorSamples(label, count, read)


def _reader(data: object, name: str, limit: int | None) -> tuple[int, Callable[[int], object]]:
    """Return how many samples the data have and what reads one."""
    stream = isinstance(getattr(data, "dataset", data), IterableDataset)
    if isinstance(data, DataLoader) and not stream and _indexed(data.dataset):
        return _loader_reader(data)
    if not stream and _indexed(data):
        sized: Any = data
        return len(sized), sized.__getitem__
    if not hasattr(data, "__iter__"):
        raise DataError(
            f"Cannot use {name} as data",
            "it is no tensor, list, Dataset, DataLoader or iterable",
            "Give one of them, or the text of a folder of images",
        )
    loader = isinstance(data, DataLoader)
    rows: list[object] = []
    for item in data:
        # A program may fill the same buffer again for the next item.
        rows += copy.deepcopy(_rows(item) if loader else [item])
        if limit is not None and len(rows) >= limit:
            break
    rows = rows[:limit]
    return len(rows), _Kept(rows)


def _loader_reader(loader: DataLoader[Any]) -> tuple[int, Callable[[int], object]]:
    """Return how many samples a loader gives in one pass and what reads one, in a fixed order.

    A sampler that gives some of the samples is heeded, its order and repetitions are not.
    """
    dataset: Any = loader.dataset
    collate = loader.collate_fn
    order = _sampled(loader)

    def read(index: int) -> object:
        sample = dataset[order[index]]
        return sample if loader.batch_sampler is None else _only_row(collate([sample]))

    return len(order), read


def _sampled(loader: DataLoader[Any]) -> Sequence[int]:
    """Return the positions in the dataset that a loader reads, each once, in their order."""
    whole = (SequentialSampler, RandomSampler)
    own_batches = loader.batch_sampler
    most = DRAWS * len(loader.dataset)  # type: ignore[arg-type] # a sampler may never end
    if own_batches is not None and type(own_batches) is not BatchSampler:
        drawn = (int(i) for batch in own_batches for i in batch)
        return sorted(set(islice(drawn, most)))
    if isinstance(loader.sampler, whole):
        return range(len(loader.dataset))  # type: ignore[arg-type]
    return sorted({int(i) for i in islice(loader.sampler, most)})


def _indexed(data: object) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, dict)


def _only_row(batch: object) -> object:
    """Return the one sample of a collated batch."""
    (row,) = _rows(batch)
    return row


def _rows(batch: object) -> list[object]:
    """Return the samples of a batch: a tensor, a pair of tensors, or a dict of them."""
    if isinstance(batch, torch.Tensor):
        return list(batch)
    if isinstance(batch, Mapping):
        parts = {k: list(v) for k, v in batch.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    if isinstance(batch, (tuple, list)) and batch:
        return [tuple(row) for row in zip(*(list(part) for part in batch), strict=True)]
    raise DataError(
        "Cannot use a batch of the DataLoader",
        f"it is a {type(batch).__name__}, expected a tensor, a pair or a dict of tensors",
    )
