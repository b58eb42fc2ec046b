"""Figures that are not laid out: their texts only."""

from __future__ import annotations

import html
from typing import IO, Any

from matplotlib.figure import Figure
from matplotlib.text import Text

DRAW = Figure.savefig


def save_outline(figure: Figure, file: IO[str], **options: Any) -> None:
    """Write an SVG with the figure's labels, without numbers on the axes.

    Other formats are drawn.
    """
    if options.get("format") != "svg":
        DRAW(figure, file, **options)
        return
    labels = (html.escape(t.get_text()) for t in figure.findobj(Text))
    texts = "".join(f"<text>{label}</text>" for label in labels)
    file.write(f'<svg xmlns="http://www.w3.org/2000/svg">{texts}</svg>')
