"""Figures of the report, as SVG text that reads on light and on dark paper."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#7a8290"  # readable on white and on near-black
INPUT, WEIGHT, WARN = "#2f7ed8", "#d9822b", "#d64545"
FONT: Any = {"font.size": 9, "svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "trtq"}


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context(FONT):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Title": title})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _ink(axes: Any) -> None:
    axes.tick_params(colors=INK)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.title.set_color(INK)


def sqnr_figure(quantizers: Sequence[dict[str, Any]]) -> str:
    """Return the SQNR of every quantizer in the order the model runs them."""
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(10, 3))
        axes = figure.subplots()
        for kind, color, label in ((True, WEIGHT, "weights"), (False, INPUT, "activations")):
            points = [(i, q["sqnr_db"]) for i, q in enumerate(quantizers) if (q["role"] == "weight") == kind and q["sqnr_db"] is not None]
            axes.plot([p[0] for p in points], [p[1] for p in points], "o", ms=3.5, color=color, label=label)
        axes.set_xlabel("quantizer, in the order the model runs them")
        axes.set_ylabel("SQNR, dB")
        axes.grid(axis="y", color=INK, alpha=0.25)
        axes.legend(frameon=False, labelcolor=INK, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
        _ink(axes)
    return _svg(figure, "SQNR of every quantizer")


def histogram_figure(quantizer: dict[str, Any]) -> str:
    """Return the magnitudes of one activation, log counts, with its clip point."""
    counts, limit = quantizer["histogram"], quantizer["histogram_limit"]
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(4.6, 2.1))
        axes = figure.subplots()
        width = limit / len(counts)
        axes.bar([(i + 0.5) * width for i in range(len(counts))], counts, width=width, color=INPUT, alpha=0.8)
        axes.axvline(quantizer["amax"], color=WARN, lw=1.5)
        axes.set_yscale("log", nonpositive="clip")
        top = max(counts)
        axes.text(quantizer["amax"], top, f" amax {quantizer['amax']:.3g}", color=WARN, va="top", fontsize=8)
        axes.set_xlabel("magnitude")
        axes.set_ylabel("count")
        axes.set_xlim(0, limit)
        _ink(axes)
    return _svg(figure, f"Histogram of {quantizer['name']}")
