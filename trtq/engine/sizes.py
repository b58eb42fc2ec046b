"""Which sizes a model is built for or run with: what ``--shapes`` and ``--batch`` say.

TensorRT builds a model with open axes for a profile: the smallest, the usual and the largest shape
of each input.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from trtq.engine.settings import Shapes
from trtq.engine.shapes import Axis, Input, Span, colons, parse_shapes, shapes_text
from trtq.errors import EngineError, UsageError, suggest
from trtq.graph.tensor_spec import SizeRange
from trtq.typed import present

DEFAULT_BATCH = (1, 8, 32)
# Sizes that a hint proposes for an axis whose size only the user knows.
PROPOSED = {True: (320, 640, 1280), False: (16, 64, 128)}  # of images; of others
IMAGE_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The requested sizes.

    Attributes:
        texts: of ``--shapes``.
        batch: of ``--batch``: the first axis of inputs that ``texts`` does not name.
        file: what the model is called in errors.
        single: one shape is wanted, to run with; else a profile to build for.
        verb: what is done with one shape, in errors.
        built: of an engine, the spans it was built for: what nothing else gives is its usual size.
    """

    texts: Sequence[str] = ()
    batch: Span | None = None
    file: str = "the model"
    single: bool = False
    verb: str = "run"
    built: Mapping[str, Sequence[Span]] = field(default_factory=dict)

    def hint(self, name: str, spans: Sequence[Span]) -> str:
        """Return an option as the user types it; of one shape, the usual sizes."""
        return (
            f"--shapes {name}={shapes_text([(s[1],) * 3 for s in spans] if self.single else spans)}"
        )


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of every input.

    Attributes:
        inputs: of the model.
        spans: of each axis of each input, fixed ones included.
        notes: what was derived, for the user.
    """

    inputs: Sequence[Input]
    spans: Mapping[str, tuple[Span, ...]]
    notes: list[str] = field(default_factory=list)

    @property
    def batch(self) -> Span:
        """The first axis of the first input that has axes."""
        return next((v[0] for v in self.spans.values() if v), (1, 1, 1))

    @property
    def shapes(self) -> Shapes:
        """Smallest, usual and largest shape of each input with open axes."""
        return {
            i.name: [[s[k] for s in self.spans[i.name]] for k in range(3)]
            for i in self.inputs
            if i.is_open
        }

    @property
    def usual(self) -> dict[str, list[int]]:
        """The usual shape of every input."""
        return {name: [s[1] for s in spans] for name, spans in self.spans.items()}


def choose_sizes(inputs: Sequence[Input], request: Request) -> Sizes:
    """Return the sizes of every input of a model.

    Axes of one name have one size: what is given for one input also counts for the others. The
    first axis is 1:8:32 where nothing gives it.

    Args:
        inputs: of the model.
        request: what the user gave, and whether one shape or a profile is wanted.

    Raises:
        UsageError: an unknown input, another size than the file has or than the engine was built
            for, an order that is wrong, or an open axis that nothing gives.
        EngineError: the model has no input.
    """
    given = parse_shapes(request.texts)
    _require_batch_order(request.batch)
    for name, spans in given.items():
        _require_fits(_named(inputs, name, request), spans, request)
    if not inputs:
        raise EngineError(f"Cannot use {request.file}", "it has no input")
    return _Solver(inputs, given, request).solve()


def _require_batch_order(batch: Span | None) -> None:
    if batch is not None and not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise UsageError(
            f"Cannot build with --batch {colons(batch)}",
            "expected 1 <= MIN <= OPT <= MAX",
            "Write it like 1:8:32",
        )


def _named(inputs: Sequence[Input], name: str, request: Request) -> Input:
    wanted = next((i for i in inputs if i.name == name), None)
    if wanted is None:
        known = [i.name for i in inputs]
        raise UsageError(
            f"Cannot use --shapes {name}=...",
            f"{request.file} has no input {name}; it has {'; '.join(i.words for i in inputs)}",
            suggest(name, known),
        )
    return wanted


def _require_fits(wanted: Input, spans: Sequence[Span], request: Request) -> None:
    """Refuse another rank or another size than the file has, and a range where one shape runs."""
    what, file = f"Cannot use --shapes {wanted.name}={shapes_text(spans)}", request.file
    if request.single and any(least != most for least, _, most in spans):
        shape = request.hint(wanted.name, spans)
        raise UsageError(what, "a request has one shape", f"Write it like {shape}")
    if len(spans) != len(wanted.axes):
        raise UsageError(
            what,
            f"it has {len(spans)} axes, {wanted.words} of {file} has {len(wanted.axes)}",
            f"Write it like {request.hint(wanted.name, _proposal(wanted, None))}",
        )
    for i, (axis, span) in enumerate(zip(wanted.axes, spans, strict=True)):
        if axis.size is not None and span != (axis.size,) * 3:
            raise UsageError(
                what,
                f"axis {i} of {wanted.name} is {axis.size} in {file}, not {shapes_text([span])}",
                f"Give {axis.size} there, or export the model with an open axis",
            )


class _Solver:
    """Finds a span for every axis: from ``--shapes``, from axes of the same name, from the batch.

    Raises:
        UsageError: one name has two spans.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        given: Mapping[str, tuple[Span, ...]],
        request: Request,
    ) -> None:
        self.inputs, self.given, self.request = inputs, given, request
        self.batch, self.file = request.batch, request.file
        self.notes: list[str] = []
        self.symbols = self._symbols()

    def solve(self) -> Sizes:
        """Return the sizes, once every axis has a span."""
        axis_spans = {i.name: self._spans(i) for i in self.inputs}
        missing = {n: [k for k, s in enumerate(v) if s is None] for n, v in axis_spans.items()}
        if any(missing.values()):
            raise self._unknown(missing)
        spans = {n: tuple(present(v)) for n, v in axis_spans.items()}
        for name, built in self.request.built.items():
            self._require_built(name, spans.get(name, ()), built)
        return Sizes(self.inputs, spans, self.notes)

    def _symbols(self) -> dict[str, Span]:
        """Return the span of each name of an axis that ``--shapes`` gives."""
        known: dict[str, tuple[Span, str]] = {}
        for one in self.inputs:
            for axis, span in zip(one.axes, self.given.get(one.name, ()), strict=False):
                if axis.size is not None or not axis.symbol:
                    continue
                before, first = known.setdefault(axis.symbol, (span, one.name))
                if before != span:
                    raise UsageError(
                        f"Cannot use --shapes for {first} and {one.name}",
                        f"{axis.symbol} is {shapes_text([before])} in {first} and "
                        f"{shapes_text([span])} in {one.name}, and it is one size in {self.file}",
                        "Give both the same",
                    )
        return {symbol: span for symbol, (span, _) in known.items()}

    def _spans(self, one: Input) -> list[Span | None]:
        """Return the span of each axis of an input, None where nothing gives it."""
        if one.name in self.given:
            self._require_same_batch(one)
            return list(self.given[one.name])
        spans = [self._span(one, k, axis) for k, axis in enumerate(one.axes)]
        if one.is_open and self.symbols.keys() & {a.symbol for a in one.axes}:
            sure = present(spans)
            self.notes.append(
                f"{one.name} takes {shapes_text(sure)}: --shapes gives axes of the same names"
            )
        return spans

    def _span(self, one: Input, place: int, axis: Axis) -> Span | None:
        if axis.size is not None:
            if place == 0 and one is self.inputs[0]:
                self._require_fixed_batch(axis.size)
            return (axis.size,) * 3
        if axis.symbol in self.symbols:
            return self.symbols[axis.symbol]
        if place == 0 and self.batch is not None:
            return self.batch
        built = self.request.built.get(one.name)
        if built is not None:
            return (built[place][1],) * 3
        return None if place else DEFAULT_BATCH

    def _require_fixed_batch(self, size: int) -> None:
        if self.batch in (None, (size,) * 3):
            return
        if self.request.single:
            raise UsageError(
                f"Cannot run {self.file} with --batch {self.batch[0] if self.batch else 0}",
                f"its batch is fixed at {size}",
                f"Use --batch {size}",
            )
        raise UsageError(
            f"Cannot build with --batch {colons(self.batch or ())}",
            f"the model has a fixed batch of {size}",
            "Leave --batch out",
        )

    def _require_same_batch(self, one: Input) -> None:
        first = self.given[one.name][:1]
        unset = (None, (1, 1, 1)) if self.request.single else (None,)
        if self.batch not in (*unset, *first) and self.batch is not None:
            raise UsageError(
                f"Cannot use --batch {shapes_text([self.batch])}",
                f"--shapes gives {shapes_text(first)} for the first axis of {one.name}",
                f"Use --batch {shapes_text(first)}" if self.request.single else "Leave --batch out",
            )

    def _require_built(self, name: str, spans: Sequence[Span], built: Sequence[Span]) -> None:
        """Refuse a size that an engine was not built for."""
        for axis, (span, (least, _, most)) in enumerate(zip(spans, built, strict=True)):
            if not least <= span[1] <= most:
                wide = [
                    (min(a, s[1]), b, max(c, s[1]))
                    for (a, b, c), s in zip(built, spans, strict=True)
                ]
                raise UsageError(
                    f"Cannot run {self.file} with {name} {shapes_text(spans)}",
                    f"axis {axis} is {span[1]}, the engine was built for {least} to {most}",
                    f"Build it for that: trtq build ... --shapes {name}={shapes_text(wide)}",
                )

    def _unknown(self, missing: Mapping[str, Sequence[int]]) -> UsageError:
        """Return the error that names every open axis that has no span, and what to type."""
        wrong = [i for i in self.inputs if missing[i.name]]
        axes = [
            f"axis {k}{f' ({i.axes[k].symbol})' if i.axes[k].symbol else ''} of {i.name}"
            for i in wrong
            for k in missing[i.name]
        ]
        batch = {i.axes[0].symbol for i in self.inputs if i.axes} - {""}
        texts = [self.request.hint(i.name, _proposal(i, self.batch, batch)) for i in wrong]
        needs = (
            "a request needs a size"
            if self.request.single
            else ("TensorRT needs the smallest, the usual and the largest size")
        )
        return UsageError(
            f"Cannot {self.request.verb if self.request.single else 'build'} {self.file}",
            f"{', '.join(axes)} {'is' if len(axes) == 1 else 'are'} open, and {needs}",
            f"Add {' '.join(texts)}, with your sizes",
        )


def _proposal(one: Input, batch: Span | None, firsts: Collection[str] = ()) -> list[Span]:
    """Return spans that a user could mean, for hints.

    Args:
        one: the input.
        batch: what was given for the batch.
        firsts: names of the batch, which may be another axis than the first.
    """
    usual = PROPOSED[len(one.axes) == IMAGE_RANK]
    return [
        (a.size,) * 3
        if a.size is not None
        else batch or DEFAULT_BATCH
        if not k or a.symbol in firsts
        else _within(a.sizes, usual)
        for k, a in enumerate(one.axes)
    ]


def _within(sizes: SizeRange, usual: Span) -> Span:
    """Return a span in the same proportions, from the smallest size on that an axis takes."""
    factor = -(-sizes.least // usual[0])
    least, middle, most = (sizes.nearest(size * max(factor, 1)) for size in usual)
    return least, middle, most
