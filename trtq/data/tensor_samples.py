"""Samples of a program's own: tensors, lists, Datasets, DataLoaders, iterables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch

from trtq.artifact import digest_of
from trtq.data.ahead import ahead
from trtq.data.boxes import Boxes, boxes_of, is_boxed
from trtq.data.fitting import Fitting
from trtq.data.model_inputs import InputNeeds, parts_of, split
from trtq.data.rows import Rows, read_row, rows_of
from trtq.data.samples import Batch, Samples, Targets, bytes_of
from trtq.errors import DataError

SHOWN = 3
BATCH_OF_TWO = 2
Note = Callable[[str], None]
Pad = Callable[[Sequence[Mapping[str, torch.Tensor]]], list[dict[str, torch.Tensor]]]
Sample = tuple[dict[str, torch.Tensor], object]


class TensorSamples(Samples):
    """Tensors of a program's own, one or several a sample, with or without a target.

    Args:
        name: what to call them.
        rows: the raw samples: a tensor or array, a tuple of inputs with a target behind them, a
            mapping by name, or a pair of a mapping and a target; read again in every pass.
        needs: what the model takes; None where it is not known yet: values are not changed.
        order: positions of the samples in ``rows``.
        note: receives a line for each kind of cast.

    Attributes:
        varies: whether a sample may differ from what an earlier pass read, as training allows;
            elsewhere that is an error, because results would depend on chance.
    """

    varies = False

    def __init__(
        self,
        name: str,
        rows: Rows,
        *,
        needs: InputNeeds | None = None,
        order: Sequence[int] | None = None,
        note: Note | None = None,
    ) -> None:
        self.name = name
        self.rows = rows
        self.order = list(range(len(rows))) if order is None else list(order)
        self.ids = [self._id(i) for i in self.order]
        self.needs = needs
        self.note = note
        self.fitting = Fitting(name=name, needs=needs, note=note)
        self.seen: dict[int, str] = {}
        self.expected: tuple[int, str] | None = None
        self.facts: dict[str, object] = {}

    def _id(self, index: int) -> str:
        """Return the id of a sample: the rows' own, or its position."""
        own = getattr(self.rows, "ids", None)
        return f"{index:06d}" if own is None else str(own[index])

    @cached_property
    def _target(self) -> object:
        """The target of the first sample as the program gives it; None without.

        It is read before another thread reads: a program's own data may allow one reader only.
        """
        return self._sample(self.order[0])[1] if self.order else None

    @cached_property
    def _first_target(self) -> torch.Tensor | None:
        target: Any = self._target
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

    @cached_property
    def boxed(self) -> bool:
        """Whether the first target is boxes."""
        return self._target is not None and is_boxed(self._target)

    @property
    def class_targets(self) -> bool:
        """Whether the first target is one whole number, or one a pixel."""
        target = self._first_target
        whole = target is not None and not target.is_floating_point() and target.ndim in (0, 2)
        return whole and target is not None and target.dtype != torch.bool

    def expect(self, classes: int, model: str) -> None:  # noqa: D102
        self.expected = (classes, model)

    def bound(self, needs: InputNeeds) -> TensorSamples:
        """Return the samples as the inputs of a model; its names decide what is a target.

        Args:
            needs: what the model takes.

        Raises:
            DataError: the first sample does not fit the model.
        """
        samples = self._with(order=self.order, needs=needs)
        fit_rows: Callable[[InputNeeds], Rows] | None = getattr(self.rows, "bound", None)
        samples.rows = self.rows if fit_rows is None else fit_rows(needs)
        _ = samples._target  # it must fit
        return samples

    def _with(self, *, order: Sequence[int], needs: InputNeeds | None) -> TensorSamples:
        samples = TensorSamples(self.name, self.rows, needs=needs, order=order, note=self.note)
        samples.ignore = self.ignore
        samples.classes = self.classes
        samples.drawn = self.drawn
        samples.facts = self.facts
        samples.varies, samples.expected = self.varies, self.expected
        if needs is self.needs:
            samples.seen, samples.fitting = self.seen, self.fitting
            if "_target" in vars(self):
                vars(samples)["_target"] = self._target
        return samples

    def first_batch(self, names: Sequence[str] = ()) -> object:
        """Return the first two samples as one batch: the only input, or a mapping by name.

        Floats are float32, as the parameters of models are.

        Args:
            names: of the model's inputs, such as the parameters of ``forward``, for samples that
                are tuples; with none a tuple is an input and a target.

        Raises:
            DataError: a sample cannot be read, or its parts do not fit the names.
        """
        rows = [self._named(i, names) for i in (*self.order, *self.order)[:BATCH_OF_TWO]]
        if rows[0].keys() != rows[-1].keys():
            raise DataError(
                f"Cannot use the samples of {self.name}",
                f"one has the inputs {', '.join(rows[0])}, another {', '.join(rows[-1])}",
                "Give every sample the same inputs",
            )
        if any(
            a.shape != b.shape for a, b in zip(rows[0].values(), rows[-1].values(), strict=False)
        ):
            rows = [rows[0]] * BATCH_OF_TWO
        batch = _stacked(rows)
        nested = self._nested(batch)
        if nested is not None:
            return nested
        return next(iter(batch.values())) if len(batch) == 1 else batch

    def _nested(self, batch: Mapping[str, torch.Tensor]) -> dict[str, object] | None:
        """Return a batch in the structures of the first sample, None where it has none."""
        row = read_row(self.rows, self.order[0], self.name)
        raw = row[0] if isinstance(row, (tuple, list)) and row else row
        if not isinstance(raw, Mapping) or all(parts_of(v) is None for v in raw.values()):
            return None
        firsts = {n.partition(".")[0] for n in batch} | {*batch}
        return {str(k): _shaped(str(k), v, batch) for k, v in raw.items() if str(k) in firsts}

    def _named(self, index: int, names: Sequence[str]) -> dict[str, torch.Tensor]:
        row = read_row(self.rows, index, self.name)
        parts = names if isinstance(row, (tuple, list)) and len(names) > 1 else None
        values, _ = self._split(index, row, parts)
        tensors = Fitting(name=self.name).fit(index, values)
        return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}

    def batches(self, size: int, *, count: int | None = None) -> Iterator[Batch]:
        """Yield the first ``count`` samples in batches of at most ``size``, read ahead.

        Samples of different shapes, where the model takes them, are in different batches; so are
        samples with other values of an input that is one number for a whole batch.

        Args:
            size: samples in a batch, at most; one for models whose first axes do not hold samples.
            count: how many samples; None for all.

        Raises:
            DataError: a sample cannot be read, does not fit, or differs from an earlier pass.
        """
        chosen = self.order[:count]
        _ = self._target  # read before the thread starts
        size = 1 if self.needs is not None and self.needs.one_at_a_time else size
        parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        for part, rows in zip(parts, ahead(parts, self._read), strict=True):
            start = 0
            for end in self._ends(rows):
                group = rows[start:end]
                yield Batch(
                    inputs=_stacked([x for x, _ in group], self._scalars, self.needs),
                    ids=[self._id(i) for i in part[start:end]],
                    targets=partial(self._targets, [t for _, t in group]),
                )
                start = end

    @property
    def _scalars(self) -> list[str]:
        """The inputs that are one number for a whole batch."""
        return [] if self.needs is None else [s.name for s in self.needs.inputs if not s.shape]

    def _read(self, part: Sequence[int]) -> list[Sample]:
        rows = [self._sample(i) for i in part]
        pad: Pad | None = getattr(self.rows, "padded", None)
        if pad is None or self.needs is None:
            return rows
        padded = pad([inputs for inputs, _ in rows])
        return [(inputs, target) for inputs, (_, target) in zip(padded, rows, strict=True)]

    def _ends(self, rows: Sequence[Sample]) -> list[int]:
        """Return where the batches of samples with equal shapes and numbers end.

        Raises:
            DataError: shapes differ although the model takes one, or is not known.
        """
        shapes = [{n: tuple(x.shape) for n, x in inputs.items()} for inputs, _ in rows]
        if self.needs is None or not any(map(self.needs.is_open, self.needs.inputs)):
            self._require_equal(shapes)
        numbers = [[inputs[n].item() for n in self._scalars] for inputs, _ in rows]
        kinds = list(zip(shapes, numbers, strict=True))
        changes = [i for i in range(1, len(rows)) if kinds[i] != kinds[i - 1]]
        return [*changes, len(rows)]

    def _require_equal(self, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
        """Refuse samples of different shapes for a model that takes one."""
        for name in shapes[0]:
            own = {s.get(name, ()) for s in shapes}
            if len(own) > 1 or any(s.keys() != shapes[0].keys() for s in shapes):
                raise DataError(
                    f"Cannot use the samples of {self.name}",
                    f"inputs have the shapes {', '.join(str(list(s)) for s in sorted(own)[:SHOWN])}"
                    f" ({name})",
                    "Resize or crop all of them to the size that the model takes",
                )

    def _targets(self, rows: Sequence[object]) -> Targets:
        if self.boxed:
            return [self._boxes(t) for t in rows]
        if all(isinstance(t, str) for t in rows):
            return [str(t) for t in rows]
        targets = _stacked_targets(self.name, rows)
        counts = targets is not None and not targets.is_floating_point()
        if targets is not None and counts and self.expected is not None:
            self._require_known(targets, *self.expected)
        return targets

    def _boxes(self, target: object) -> Boxes:
        try:
            boxes = Boxes.none() if target is None else boxes_of(target)
        except (ValueError, TypeError, RuntimeError) as exc:
            raise DataError(
                f"Cannot use the targets of {self.name}",
                str(exc),
                "Give trtq.data.boxes.Boxes, or boxes and labels in pixels of the input",
            ) from exc
        if boxes is None:
            raise DataError(
                f"Cannot use the targets of {self.name}",
                f"the first target has boxes, another is a {type(target).__name__}",
            )
        return boxes

    def _require_known(self, targets: torch.Tensor, classes: int, model: str) -> None:
        """Refuse class indices that a model does not have."""
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
        return self._with(order=[self.order[int(i)] for i in draw[:count]], needs=self.needs)

    def select(self, positions: Sequence[int]) -> TensorSamples:  # noqa: D102
        return self._with(order=[self.order[i] for i in positions], needs=self.needs)

    def describe(self) -> dict[str, object]:  # noqa: D102
        return {**super().describe(), **self.facts}

    def _parts(self, index: int, names: Sequence[str] | None) -> tuple[dict[str, object], object]:
        return self._split(index, read_row(self.rows, index, self.name), names)

    def _split(
        self, index: int, row: object, names: Sequence[str] | None
    ) -> tuple[dict[str, object], object]:
        try:
            return split(row, names)
        except ValueError as exc:
            inputs = listed_inputs(names)
            raise self.fitting.refuse(
                index, str(exc), f"Give {inputs}, and a target as the last part or as 'target'"
            ) from exc

    def _sample(self, index: int) -> Sample:
        values, target = self._parts(index, None if self.needs is None else self.needs.names)
        inputs = self.fitting.fit(index, values)
        now = _content(inputs)
        before = self.seen.setdefault(index, now)
        if before != now and not self.varies:
            raise DataError(
                f"Sample {index} of {self.name} is not the same in every pass",
                "its values differ from those that an earlier pass read",
                "Turn random augmentation off in the dataset that calibrates and evaluates",
            )
        return inputs, target


def _shaped(name: str, value: object, batch: Mapping[str, torch.Tensor]) -> object:
    """Return the part of a batch that a value of a sample became, in the value's own structure."""
    parts = parts_of(value)
    if parts is None:
        return batch[name]
    inner = {k: _shaped(f"{name}.{k}", v, batch) for k, v in parts.items()}
    if isinstance(value, Mapping):
        return inner
    return tuple(inner.values()) if isinstance(value, tuple) else list(inner.values())


def listed_inputs(names: Sequence[str] | None) -> str:
    """Return what one sample must have, as a hint says it."""
    if names is None or len(names) == 1:
        return "one input"
    return f"the {len(names)} inputs in this order or by name"


def _content(inputs: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the inputs of a sample, 64 hex digits.

    The name counts where there are several.
    """
    content = hashlib.sha256()
    for name, value in inputs.items():
        label = f"{name} " if len(inputs) > 1 else ""
        content.update(f"{label}{value.dtype} {list(value.shape)}\0".encode())
        content.update(bytes_of(value))
    return content.hexdigest()


def _stacked(
    rows: Sequence[Mapping[str, torch.Tensor]],
    scalars: Collection[str] = (),
    needs: InputNeeds | None = None,
) -> dict[str, torch.Tensor]:
    """Return samples side by side; an input without axes is one number for all of them."""
    axes = {} if needs is None else needs.axes
    return {
        name: rows[0][name]
        if name in scalars
        else torch.stack([r[name] for r in rows], axes.get(name, 0))
        for name in rows[0]
    }


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


def samples_of(
    data: Any, *, limit: int | None = None, name: str = "", note: Note | None = None
) -> Samples:
    """Return a program's own data as samples.

    Args:
        data: a tensor or array with samples first, a mapping of them by name, a list of samples, a
            Dataset, a DataLoader (the samples that it gives, in the order that trtq chooses), or
            any iterable of samples, which is read once and kept, on disk where it is large.
        limit: keep at most so many samples of what can be read only once.
        name: what to call the data; default: its type.
        note: receives what a user should know.

    Raises:
        DataError: it is empty, or no such thing.
    """
    if isinstance(data, Samples):
        return data
    label = name or f"{type(data).__name__} of the program"
    rows = rows_of(data, label, limit, note)
    if not len(rows):
        raise DataError(f"Cannot use {label}", "it has no samples")
    return TensorSamples(label, rows, note=note)
