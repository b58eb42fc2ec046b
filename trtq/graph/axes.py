"""Which axes of a model's inputs are open, and within which sizes."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import Mod, PythonMod

from trtq.errors import CaptureError
from trtq.graph.feed import Feed
from trtq.graph.flat import Call
from trtq.graph.inputs import BATCH_OF_TWO
from trtq.graph.signature import BATCH, Axes, SizeRange, TensorSpec, placeholders
from trtq.layouts import layout_of

NOT_STEPS = (Mod, PythonMod, sympy.Max, sympy.Min)  # what holds at some sizes, but not between
HUGE = 100_000_000  # larger bounds are none: a file may slice up to 999,999,999


class Open(NamedTuple):
    """The open axes of a model's inputs.

    Attributes:
        names: for each input the name of each open axis, by its position.
        ranges: the sizes of each, by name.
        asked: somebody named them; else the first axis of each input is tried.
    """

    names: tuple[Mapping[int, str], ...]
    ranges: Mapping[str, SizeRange]
    asked: bool = False

    def dims(self) -> Iterator[tuple[Any, ...]]:
        """Yield what torch.export takes for each input, what binds the model least first.

        A model that halves its maps and joins them again holds for multiples only.
        """
        if not self.asked:
            # Axes of one name have one size, such as the batch; only a named one is required to
            # take every size.
            counts = Counter(n for names in self.names for n in names.values())
            free = {n: torch.export.Dim(n) for n in self.ranges if counts[n] > 1}
            yield tuple(
                {i: free.get(n, torch.export.Dim.DYNAMIC) for i, n in names.items()}
                for names in self.names
            )
            return
        stepped = any(sizes.multiple > 1 for sizes in self.ranges.values())
        for multiples in (False, True) if stepped else (False,):
            dims = {n: _dim(n, sizes, multiples=multiples) for n, sizes in self.ranges.items()}
            yield tuple({i: dims[n] for i, n in names.items()} for names in self.names)

    @property
    def closed(self) -> Open:
        """The same inputs without an open axis."""
        return Open(tuple({} for _ in self.names), {})

    @property
    def firsts(self) -> set[str]:
        """Names of the first axes, which count samples."""
        return {names[0] for names in self.names if 0 in names}

    @property
    def of_one_sample(self) -> Open:
        """The same inputs with every axis open but those that count samples."""
        names = tuple({i: n for i, n in of.items() if n not in self.firsts} for of in self.names)
        ranges = {n: r for n, r in self.ranges.items() if n not in self.firsts}
        return self._replace(names=names, ranges=ranges)


def _dim(name: str, sizes: SizeRange, *, multiples: bool) -> Any:
    step = sizes.multiple if multiples else 1
    most = None if sizes.most is None else sizes.most // step
    dim = torch.export.Dim(name, min=-(-sizes.least // step), max=most)
    return dim if step == 1 else step * dim


def open_batch(call: Call) -> Open:
    """Return the first axis of every input, where it is as long as the first input's.

    Args:
        call: the example; scalars are ignored.
    """
    first = next((len(t) for t in call.feed if t.ndim), 0)
    names = tuple({0: BATCH} if t.ndim and len(t) == first else {} for t in call.feed)
    return Open(names, {BATCH: SizeRange()} if any(names) else {})


def open_axes(
    call: Call, axes: Axes, ranges: Mapping[str, SizeRange], *, by_user: bool = True
) -> Open:
    """Return the axes that somebody named.

    Args:
        call: the example.
        axes: the sizes of an input by its name; open ones are texts.
        ranges: of the open axes; those that are missing have no limit.
        by_user: a user named them; else a file does, and the model may fix some.

    Raises:
        CaptureError: an input has no such name, another rank or another fixed size, or the example
            is outside a range.
    """
    unknown = sorted(set(axes) - set(call.names))
    if unknown:
        raise CaptureError(
            f"There is no input {unknown[0]}", f"the inputs are {', '.join(call.names)}"
        )
    batch = _batch_of(call, axes)
    taken: dict[str, SizeRange] = {}
    names: list[dict[int, str]] = []
    for name, tensor in zip(call.names, call.feed, strict=True):
        wanted = axes.get(name)
        if wanted is None:
            names.append({0: BATCH} if tensor.ndim and len(tensor) == batch else {})
            continue
        given = list(tensor.shape)
        fits = len(wanted) == len(given) and all(
            isinstance(a, str) or a == d for a, d in zip(wanted, given, strict=True)
        )
        if not fits:
            raise CaptureError(
                f"The axes of the input {name} do not fit its example",
                f"asked for {_words(wanted)}, the example has {_words(given)}",
            )
        names.append({i: a for i, a in enumerate(wanted) if isinstance(a, str)})
        for i, axis in names[-1].items():
            taken[axis] = ranges.get(axis, SizeRange())
            if given[i] not in taken[axis]:
                raise CaptureError(
                    f"The example of the input {name} is outside its range",
                    f"{axis} is {given[i]}, expected {taken[axis].meaning}",
                    f"Give an example inside it: --input {name}={_inside(wanted, given, ranges)}",
                )
    return Open(tuple(names), taken, asked=by_user)


def _inside(
    wanted: Sequence[int | str], given: Sequence[int], ranges: Mapping[str, SizeRange]
) -> str:
    """Return sizes for ``--input``: those given, or the nearest that an axis may have."""
    spans = (ranges.get(str(axis), SizeRange(least=0)) for axis in wanted)
    return "x".join(str(r.nearest(d)) for r, d in zip(spans, given, strict=True))


def narrowest(graph: fx.GraphModule, opened: Open) -> tuple[Open, list[str]]:
    """Return the open axes with the sizes for which a traced graph holds, and what is narrower.

    A model that decides by a size is traced along one way: the graph holds on that side only.

    Args:
        graph: traced; its placeholders have symbolic sizes.
        opened: the axes that were left open for it.

    Returns:
        The axes, and a line for the user for each that is narrower than asked.
    """
    ranges, notes = dict(opened.ranges), list[str]()
    for node, names in zip(placeholders(graph), opened.names, strict=True):
        for i, name in names.items():
            own = ranges.get(name, SizeRange())
            valid_range = _held(node.meta["val"].shape[i], own)
            if valid_range != own:
                ranges[name] = valid_range
                notes.append(
                    f"the model decides by {name}: its graph holds for {valid_range.meaning}"
                )
    return opened._replace(ranges=ranges), notes


def _held(size: int | torch.SymInt, own: SizeRange) -> SizeRange:
    """Return the sizes of an axis for which a traced graph holds, within those of the axis."""
    if not isinstance(size, torch.SymInt) or size.node.shape_env is None:
        return own
    bounds = size.node.shape_env.bound_sympy(size.node.expr)
    least, most = own.least, own.most
    if bounds.lower > BATCH_OF_TWO:  # torch never traces sizes of 0 and 1 openly
        least = max(least, int(bounds.lower))
    if bounds.upper.is_finite and bounds.upper < HUGE:
        most = min(most or HUGE, int(bounds.upper))
    decided = _most(size)
    if decided is not None:
        most = min(most or HUGE, decided)
    return SizeRange(least=least, most=most, multiple=own.multiple)


def _most(size: torch.SymInt) -> int | None:
    """Return up to which size an axis gives other axes the fixed sizes that the trace gave them.

    A map that a stride shrinks to one place is such an axis: torch treats it as 1.

    Args:
        size: of an axis of an input.

    Returns:
        None without a limit.
    """
    symbol, env, least = size.node.expr, size.node.shape_env, size.node.hint
    if env is None or not isinstance(least, int):
        return None
    fixed = [
        g.expr
        for g in env.guards
        if isinstance(g.expr, sympy.Eq) and g.expr.free_symbols == {symbol}
        if any(side.is_Integer for side in g.expr.args) and not g.expr.has(*NOT_STEPS)
    ]

    def holds(number: int) -> bool:
        return all(bool(e.xreplace({symbol: sympy.Integer(number)})) for e in fixed)

    if not fixed or not holds(least) or holds(HUGE):
        return None
    beyond = HUGE
    while beyond - least > 1:
        middle = (least + beyond) // 2
        least, beyond = (middle, beyond) if holds(middle) else (least, middle)
    return least


def _batch_of(call: Call, axes: Axes) -> int | None:
    """Return the size of the axis called ``batch`` in an example, None where no input has it."""
    for name, tensor in zip(call.names, call.feed, strict=True):
        named = list(axes.get(name, ()))
        if BATCH in named and len(named) == tensor.ndim:
            return int(tensor.shape[named.index(BATCH)])
    return None


def _words(sizes: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def single(feed: Feed, opened: Open) -> Feed:
    """Return a batch of one sample: the first axes, and other axes of the same name, are 1.

    Args:
        feed: the batch.
        opened: its open axes; others keep their size.
    """
    return tuple(
        functools.reduce(
            lambda t, axis: t.narrow(axis, 0, 1),
            (i for i, n in names.items() if n in opened.firsts),
            t,
        )
        for t, names in zip(feed, opened.names, strict=True)
    )


def input_specs(names: Sequence[str], feed: Feed, opened: Open) -> list[TensorSpec]:
    """Return what each input is: its open axes by name, its other sizes as in the example.

    Args:
        names: of the inputs.
        feed: one batch of them.
        opened: their open axes.
    """
    return [
        TensorSpec(
            name=name,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(axes.get(i, int(d)) for i, d in enumerate(tensor.shape)),
            layout=(layout_of(tensor.shape) or "") if tensor.is_floating_point() else "",
        )
        for name, tensor, axes in zip(names, feed, opened.names, strict=True)
    ]
