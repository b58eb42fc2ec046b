"""Shapes of inputs as texts and as a file has them: ``--shapes ids=1x8:1x64:4x128``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx

from trtq.errors import EngineError, UsageError
from trtq.export.onnx_file import get_metadata
from trtq.graph.tensor_spec import SIGNATURE, SizeRange, stored_signature
from trtq.onnx_node import names_of
from trtq.onnx_walk import axis_name, is_fixed

FORM = "NAME=MIN:OPT:MAX, such as images=1x3x320x320:1x3x640x640:8x3x1280x1280"

Span = tuple[int, int, int]  # smallest, usual, largest


class Axis(NamedTuple):
    """One axis of an input.

    Attributes:
        size: None where it is open.
        symbol: what the file calls an open axis, "" where it has no name.
        sizes: for which the model holds, of an open axis.
    """

    size: int | None
    symbol: str
    sizes: SizeRange = SizeRange()


@dataclass(frozen=True, slots=True)
class Input:
    """An input of an ONNX file.

    Attributes:
        name: as in the file.
        axes: in order; none for a scalar.
    """

    name: str
    axes: tuple[Axis, ...]

    @property
    def words(self) -> str:
        """The input as a person reads it: ``images [batch, 3, height, width]``."""
        sizes = [a.symbol or "?" if a.size is None else str(a.size) for a in self.axes]
        return f"{self.name} [{', '.join(sizes)}]"

    @property
    def is_open(self) -> bool:
        """Whether any axis is open."""
        return any(a.size is None for a in self.axes)


def inputs_of(model: onnx.ModelProto) -> list[Input]:
    """Return the inputs of a model, without initializers that old files list among them.

    Raises:
        EngineError: an input is no tensor, or has no shape.
    """
    initializers = names_of(model.graph.initializer)
    signature = stored_signature(get_metadata(model).get(SIGNATURE))
    ranges = signature.ranges if signature is not None else {}
    return [_input(i, ranges) for i in model.graph.input if i.name not in initializers]


def _input(value: onnx.ValueInfoProto, ranges: Mapping[str, SizeRange]) -> Input:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        form = str(value.type.WhichOneof("value")).removesuffix("_type")
        raise EngineError(
            f"Cannot build with the input {value.name}",
            "it has no shape" if form == "tensor" else f"it is a {form}, not a tensor",
            "Export the model with the shape of its inputs; an axis may be open",
        )
    dims = kind.shape.dim
    return Input(
        value.name,
        tuple(_axis(d, ranges) for d in dims),
    )


def split_profiles(texts: Sequence[str]) -> list[list[str]]:
    """Return texts of ``--shapes`` by profile, at least one.

    The first text of every input belongs to the first profile, the second to the second. An input
    that is given once has the same sizes in all.

    >>> split_profiles(["ids=1x8", "mask=1x8", "ids=1x64", "mask=1x64"])
    [['ids=1x8', 'mask=1x8'], ['ids=1x64', 'mask=1x64']]
    >>> split_profiles(["ids=1x8", "ids=1x64", "scale=1"])
    [['ids=1x8', 'scale=1'], ['ids=1x64', 'scale=1']]

    Raises:
        UsageError: two inputs are given more than once, and not equally often.
    """
    by_input: dict[str, list[str]] = {}
    for text in _each(texts):
        by_input.setdefault(text.rpartition("=")[0], []).append(text)
    counts = {name: len(given) for name, given in by_input.items() if len(given) > 1}
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{name} {count} times" for name, count in counts.items())
        raise UsageError(
            "Cannot make profiles of --shapes",
            f"it gives {words}",
            "Give each input once, or once for every profile",
        )
    profiles = max(counts.values(), default=1)
    return [
        [given[k] if len(given) > 1 else given[0] for given in by_input.values()]
        for k in range(profiles)
    ]


def _each(texts: Sequence[str]) -> list[str]:
    """Return one text for each input: several can be in one, separated by commas."""
    return [t for given in texts for t in re.split(r",(?=[^,=]+=)", given)]


def _axis(dim: onnx.TensorShapeProto.Dimension, ranges: Mapping[str, SizeRange]) -> Axis:
    name = axis_name(dim)
    return Axis(dim.dim_value if is_fixed(dim) else None, name, ranges.get(name, SizeRange()))


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[Span, ...]]:
    """Return the span of each axis by input from texts such as ``ids=1x8:1x64:4x128``.

    One shape fixes the axes. Several inputs can be in one text, separated by commas.

    >>> parse_shapes(["ids=1x8:1x64:4x128", "scale=1"])
    {'ids': ((1, 1, 4), (8, 64, 128)), 'scale': ((1, 1, 1),)}

    Raises:
        UsageError: a text has another form, an input is named twice, a size is 0, or MIN > OPT or
            OPT > MAX.
    """
    spans_by_input: dict[str, tuple[Span, ...]] = {}
    for text in _each(texts):
        name, equals, sizes = text.rpartition("=")
        shapes = [part.split("x") for part in sizes.split(":")]
        plain = all(d.isdecimal() for shape in shapes for d in shape)
        same = len({len(s) for s in shapes}) == 1
        if not (name and equals and plain and same and len(shapes) in (1, 3)):
            raise UsageError(
                f"Cannot read --shapes {text}",
                f"expected {FORM}, or one shape for all three",
                f"Write it like --shapes {FORM.rpartition(' ')[2]}",
            )
        if name in spans_by_input:
            raise UsageError(
                f"Cannot use --shapes {text}", f"{name} is given twice", "Give it once"
            )
        least, usual, most = shapes if len(shapes) > 1 else shapes * 3
        spans = [(int(a), int(b), int(c)) for a, b, c in zip(least, usual, most, strict=True)]
        _require_order(text, name, spans)
        spans_by_input[name] = tuple(spans)
    return spans_by_input


def _require_order(text: str, name: str, spans: Sequence[Span]) -> None:
    for axis, (least, usual, most) in enumerate(spans):
        if not 1 <= least <= usual <= most:
            raise UsageError(
                f"Cannot use --shapes {text}",
                f"axis {axis} of {name} is {least}:{usual}:{most}, expected 1 <= MIN <= OPT <= MAX",
                f"Write it like --shapes {FORM.rpartition(' ')[2]}",
            )


def shapes_text(spans: Sequence[Span]) -> str:
    """Return spans as ``--shapes`` takes them: ``1x8:1x64:4x128``, or one shape where all agree."""
    texts = ["x".join(str(s[k]) for s in spans) for k in range(3)]
    return texts[0] if len(set(texts)) == 1 else ":".join(texts)


def colons(span: Sequence[int]) -> str:
    """Return a span as ``--batch`` takes it: ``1:8:32``."""
    return ":".join(map(str, span))
