"""Conditions of a model on its open axes, read from torch's refusal to leave them open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trtq.errors import CaptureError
from trtq.graph.axes import Open
from trtq.graph.feed import Feed
from trtq.graph.signature import SizeRange
from trtq.typed import present

VIOLATED = re.compile(r"Constraints violated \(([^)]*)\)")
DIVIDED = re.compile(r"// ?(\d+)")


def needed(text: str, opened: Open) -> dict[str, SizeRange]:
    """Return the ranges of all open axes with which torch may agree.

    Maps that are halved and joined again need multiples; every division needs a result above 1. For
    example, ``height = 32*_height`` in torch's suggestion makes the height a multiple of 32.

    Args:
        text: of torch's error.
        opened: the axes as they were asked for.

    Returns:
        By the name of the axis; empty where torch's text says nothing of them.
    """
    violation = VIOLATED.search(text)
    names = [n.strip() for n in violation.group(1).split(",")] if violation is not None else []
    if not names or not set(names) <= set(opened.ranges):
        return {}
    divisors = [int(v) for v in DIVIDED.findall(text)]
    ranges = dict(opened.ranges)
    for name in names:
        factor = re.search(rf"^\s*{re.escape(name)} = (\d+)\*", text, re.MULTILINE)
        multiple = max(ranges[name].multiple, int(factor.group(1)) if factor else 1)
        smallest = re.search(rf"^\s*{re.escape(name)} = Dim\(.*min=(\d+)", text, re.MULTILINE)
        least = max(
            ranges[name].least,
            2 * max([1, *divisors]),
            int(smallest.group(1)) if smallest else 1,
        )
        least = -(-least // multiple) * multiple
        largest = re.search(rf"^\s*{re.escape(name)} = Dim\(.*max=(\d+)", text, re.MULTILINE)
        limits = present((ranges[name].most, int(largest.group(1)) if largest else None))
        ranges[name] = SizeRange(least=least, most=min(limits, default=None), multiple=multiple)
    return ranges


def refusal(
    names: Sequence[str], feed: Feed, opened: Open, ranges: Mapping[str, SizeRange]
) -> CaptureError:
    """Return the error that names the sizes which the model takes, and the option that says so.

    Args:
        names: of the inputs.
        feed: the example.
        opened: the axes as they were asked for.
        ranges: of the open axes that the model takes.
    """
    changed = {n: r for n, r in ranges.items() if r != opened.ranges[n]}
    lines = []
    for name, tensor, axes in zip(names, feed, opened.names, strict=True):
        if set(changed) & set(axes.values()):
            sizes = [_axis(axes.get(i), int(d), ranges) for i, d in enumerate(tensor.shape)]
            lines.append(f"--dynamic {name}={','.join(sizes)}")
    needs = "; ".join(f"{n} must be {r.meaning}" for n, r in changed.items())
    return CaptureError(
        "The model does not take every size of its open axes", needs, f"Give {' '.join(lines)}"
    )


def _axis(name: str | None, size: int, ranges: Mapping[str, SizeRange]) -> str:
    """Return one axis as ``--dynamic`` takes it."""
    if name is None:
        return str(size)
    known = ranges[name]
    return name if known == SizeRange() else f"{name}:{known.words}"
