"""Draws the pictures of the pages from data: boxes, arrows between them, and a number line.

``hooks.py`` puts each in place of its mark, ``<!-- picture: NAME -->``; ``extra.css`` has the
colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

WIDTH, LINE = 920, 17  # of a picture; from a line of text to the next


class Box(NamedTuple):
    """A box with its lines centred; all but the first are soft."""

    x: float
    y: float
    width: float
    text: str

    @property
    def height(self) -> float:
        """Its height, pixels."""
        return 18 + LINE * len(self.text.splitlines())

    @property
    def svg(self) -> str:
        """The box and its lines."""
        middle = self.x + self.width / 2
        lines = (
            _text(middle, self.y + 22 + LINE * i, line, soft=i > 0)
            for i, line in enumerate(self.text.splitlines())
        )
        size = f'width="{self.width:g}" height="{self.height:g}"'
        rect = f'<rect class="box" x="{self.x:g}" y="{self.y:g}" {size} rx="6"/>'
        return rect + "".join(lines)


class Arrow(NamedTuple):
    """An arrow from the right side of a box to the left side of another, its label above."""

    source: str
    target: str
    label: str = ""


class Flow(NamedTuple):
    """Boxes by name and arrows between them."""

    title: str
    boxes: dict[str, Box]
    arrows: tuple[Arrow, ...]

    @property
    def height(self) -> float:
        """Its height, pixels."""
        return max(box.y + box.height for box in self.boxes.values()) + 6

    @property
    def parts(self) -> Iterator[str]:
        """Its elements as SVG."""
        for arrow in self.arrows:
            yield _arrow(self.boxes[arrow.source], self.boxes[arrow.target], arrow.label)
        for box in self.boxes.values():
            yield box.svg


class Line(NamedTuple):
    """A number line from -limit to limit, with the quantized values of a range in the middle."""

    title: str
    limit: float
    amax: float
    bits: int = 8

    @property
    def height(self) -> float:
        """Its height, pixels."""
        return 116

    @property
    def parts(self) -> Iterator[str]:
        """Its elements as SVG."""
        high = 2 ** (self.bits - 1) - 1
        ends = [self._place(v) for v in (-self.limit, -self.amax, self.amax, self.limit)]
        kinds = (("orange", "clipped"), ("blue", ""), ("orange", "clipped"))
        for (kind, label), left, right in zip(kinds, ends, ends[1:], strict=False):
            yield f'<rect class="{kind}" x="{left:g}" y="56" width="{right - left:g}" height="8"/>'
            yield _text((left + right) / 2, 110, label, soft=True)
        for value, name in ((-1, "-amax"), (0, "0"), (1, "amax")):
            x = self._place(value * self.amax)
            yield f'<path class="line" d="M{x:g} 50v20"/>'
            yield _text(x, 42, name) + _text(x, 88, f"code {value * high}", soft=True)
        yield _text(self._place(0), 110, f"one step is scale = amax / {high}", soft=True)

    def _place(self, value: float) -> float:
        return WIDTH / 2 + value / self.limit * (WIDTH / 2 - 40)


PICTURES: dict[str, Flow | Line] = {
    "chain": Flow(
        "model, capture, calibrate, encodings, then one Q/DQ file and one engine for each target",
        {
            "module": Box(5, 42, 110, "nn.Module\nown weights"),
            "graph": Box(180, 42, 110, "graph\nBN folded"),
            "encodings": Box(365, 42, 125, "encodings\nscales, by name"),
            "new": Box(560, 16, 160, "Q/DQ ONNX, opset 20"),
            "old": Box(560, 86, 160, "Q/DQ ONNX, opset 16"),
            "rtx": Box(775, 7, 140, "RTX 4090\nTensorRT for RTX"),
            "xavier": Box(775, 77, 140, "Xavier\nTensorRT 8.5"),
        },
        (
            Arrow("module", "graph", "capture"),
            Arrow("graph", "encodings", "calibrate"),
            Arrow("encodings", "new", "export"),
            Arrow("encodings", "old"),
            Arrow("new", "rtx", "build"),
            Arrow("old", "xavier", "build"),
        ),
    ),
    "scale": Line(
        "a number line from minus amax to amax with codes between; values outside are clipped",
        limit=1.4,
        amax=1.0,
    ),
    "pairs": Flow(
        "Q and DQ pairs on both operands of a convolution become one INT8 kernel; an operand "
        "without a pair leaves it in float",
        {
            "input": Box(5, 10, 80, "input"),
            "weight": Box(5, 80, 80, "weight"),
            "q": Box(125, 10, 60, "Q"),
            "wq": Box(125, 80, 60, "Q"),
            "dq": Box(225, 10, 60, "DQ"),
            "wdq": Box(225, 80, 60, "DQ"),
            "conv": Box(345, 36, 110, "Conv\nin the file"),
            "kernel": Box(620, 36, 180, "one INT8 kernel\nin the engine"),
        },
        (
            Arrow("input", "q"),
            Arrow("weight", "wq"),
            Arrow("q", "dq"),
            Arrow("wq", "wdq"),
            Arrow("dq", "conv"),
            Arrow("wdq", "conv"),
            Arrow("conv", "kernel", "build"),
        ),
    ),
}


def draw(name: str) -> str:
    """Return a picture as HTML.

    >>> draw("scale").count("<svg"), draw("scale").count("code 127")
    (1, 1)
    """
    picture = PICTURES[name]
    view = f'viewBox="0 0 {WIDTH} {picture.height:g}"'
    head = f'<svg {view} role="img" aria-label="{escape(picture.title)}">'
    return f'<div class="trtq-picture">{head}{"".join(picture.parts)}</svg></div>'


def _text(x: float, y: float, text: str, *, soft: bool = False) -> str:
    kind = ' class="soft"' if soft else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle"{kind}>{escape(text)}</text>'


def _arrow(source: Box, target: Box, label: str) -> str:
    x, y = source.x + source.width, source.y + source.height / 2
    to_x, to_y = target.x - 3, target.y + target.height / 2
    head = f"M{to_x - 8:g} {to_y - 5:g}l8 5l-8 5"
    line = f'<path class="line" d="M{x:g} {y:g}L{to_x:g} {to_y:g}{head}"/>'
    above = (y + to_y) / 2 - 8 - abs(to_y - y) / 4
    return line + (_text((x + to_x) / 2, above, label, soft=True) if label else "")
