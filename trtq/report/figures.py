"""Figures of the report, as SVG text that reads on light and on dark paper."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trtq.terminal import visible

INK = "#7a8290"  # readable on white and on near-black
INPUT, WEIGHT, WARN = "#2f7ed8", "#d9822b", "#d64545"
FONT: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "svg.hashsalt": "trtq",
    "text.parse_math": False,
}


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context(FONT):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            metadata={"Date": None, "Title": title},
        )
    text = visible(buffer.getvalue(), lines=True)
    return text[text.index("<svg") :].replace(
        "<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1
    )


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
            points = [
                (i, q["sqnr_db"])
                for i, q in enumerate(quantizers)
                if (q["role"] == "weight") == kind and q["sqnr_db"] is not None
            ]
            axes.plot(
                [p[0] for p in points],
                [p[1] for p in points],
                "o",
                ms=3.5,
                color=color,
                label=label,
            )
        axes.set_xlabel("quantizer, in the order the model runs them")
        axes.set_ylabel("SQNR, dB")
        axes.grid(axis="y", color=INK, alpha=0.25)
        axes.legend(
            frameon=False, labelcolor=INK, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2
        )
        _ink(axes)
    return _svg(figure, "SQNR of every quantizer")


def sensitivity_figure(layers: Sequence[dict[str, Any]], bits: Sequence[str], metric: str) -> str:
    """Return the loss of every layer at every width, in graph order, on a log scale.

    The widest width is the lightest.
    """
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(10, 3.2))
        axes = figure.subplots()
        shown = [b for b in bits if all(b in v["loss"] for v in layers)]
        for i, label in enumerate(shown):
            values = [v["loss"][label] or math.nan for v in layers]
            axes.plot(
                range(len(layers)),
                values,
                "o-",
                ms=3.5,
                lw=0.8,
                color=INPUT,
                alpha=1.0 - 0.75 * i / max(len(shown), 1),
                label=label,
            )
        axes.set_yscale("log")
        axes.set_ylabel(f"loss by {metric}")
        step = max(1, len(layers) // 40)
        axes.set_xticks(
            range(0, len(layers), step),
            [v["name"] for v in layers[::step]],
            rotation=90,
            fontsize=6,
        )
        axes.grid(axis="y", color=INK, alpha=0.25)
        axes.legend(
            frameon=False,
            labelcolor=INK,
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(shown) or 1,
        )
        _ink(axes)
    return _svg(figure, f"Loss of every layer by {metric}")


def frontier_figure(
    points: Sequence[dict[str, Any]],
    axis: str,
    *,
    measure: str,
    chosen: str,
    limit: float | None,
    unit: str,
) -> str:
    """Return measured accuracy against one cost.

    Every point is labelled, dominated ones are grey, the chosen one is ringed, and the budget is a
    line.

    Args:
        points: with ``label``, ``accuracy``, ``costs`` and ``dominated``, the last two by axis.
        axis: name of the cost.
        measure: what accuracy is.
        chosen: label of the chosen point.
        limit: the budget, None without one.
        unit: of the axis.
    """
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(7.5, 4.2))
        axes = figure.subplots()
        front = sorted(
            (p for p in points if not p["dominated"][axis]), key=lambda p: p["costs"][axis]
        )
        axes.plot(
            [p["costs"][axis] for p in front],
            [p["accuracy"] for p in front],
            "-",
            color=INPUT,
            lw=1,
            alpha=0.6,
        )
        for i, p in enumerate(points):
            color = INK if p["dominated"][axis] else INPUT
            x, y = p["costs"][axis], p["accuracy"]
            axes.plot(x, y, "o", ms=5, color=color, alpha=0.5 if p["dominated"][axis] else 1.0)
            if p["label"] == chosen:
                axes.plot(x, y, "o", ms=12, mfc="none", color=WEIGHT, mew=1.5)
            place = (6, 5 if i % 2 else -11)
            text: dict[str, Any] = {
                "fontsize": 7,
                "color": color,
                "parse_math": False,
            }  # a label may hold a dollar
            axes.annotate(p["label"], (x, y), xytext=place, textcoords="offset points", **text)
        if limit is not None:
            axes.axvline(limit, color=WARN, lw=1, ls="--")
        axes.margins(x=0.22, y=0.15)
        axes.set_xlabel(f"{axis}, {unit}")
        axes.set_ylabel(f"{measure}, %, measured")
        axes.grid(color=INK, alpha=0.2)
        _ink(axes)
    return _svg(figure, f"Accuracy against {axis}")


def predicted_figure(
    front: Sequence[dict[str, float]], axis: str, *, at: dict[str, float], metric: str, unit: str
) -> str:
    """Return the predicted frontier, loss against one cost, with the chosen allocation on it."""
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(7.5, 3.2))
        axes = figure.subplots()
        axes.plot(
            [p["cost"] for p in front],
            [p["loss"] or math.nan for p in front],
            "-",
            color=INPUT,
            lw=1.2,
        )
        axes.plot(at["cost"], at["loss"] or math.nan, "o", ms=9, mfc="none", color=WEIGHT, mew=1.5)
        axes.set_yscale("log")
        axes.set_xlabel(f"{axis}, {unit}, predicted")
        axes.set_ylabel(f"loss by {metric}, predicted")
        axes.grid(color=INK, alpha=0.2)
        _ink(axes)
    return _svg(figure, f"Predicted frontier of {axis}")


def histogram_figure(quantizer: dict[str, Any]) -> str:
    """Return the magnitudes of one activation, log counts, with its clip point."""
    counts, limit = quantizer["histogram"], quantizer["histogram_limit"]
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(4.6, 2.1))
        axes = figure.subplots()
        width = limit / len(counts)
        axes.bar(
            [(i + 0.5) * width for i in range(len(counts))],
            counts,
            width=width,
            color=INPUT,
            alpha=0.8,
        )
        axes.axvline(quantizer["amax"], color=WARN, lw=1.5)
        axes.set_yscale("log", nonpositive="clip")
        top = max(counts)
        axes.text(
            quantizer["amax"],
            top,
            f" amax {quantizer['amax']:.3g}",
            color=WARN,
            va="top",
            fontsize=8,
        )
        axes.set_xlabel("magnitude")
        axes.set_ylabel("count")
        axes.set_xlim(0, limit)
        _ink(axes)
    return _svg(figure, f"Histogram of {quantizer['name']}")


def training_figure(history: Sequence[dict[str, float]], measure: str) -> str:
    """Return loss and score of every epoch.

    The loss is on the left axis, the score (percent) on the right one.
    """
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(7.5, 3))
        axes = figure.subplots()
        epochs = range(1, len(history) + 1)
        axes.plot(epochs, [h["loss"] for h in history], "o-", ms=4, lw=1.2, color=WEIGHT)
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=INK, alpha=0.25)
        _ink(axes)
        axes.yaxis.label.set_color(WEIGHT)
        if all("score" in h for h in history):
            right = axes.twinx()
            right.plot(epochs, [h["score"] for h in history], "o-", ms=4, lw=1.2, color=INPUT)
            right.set_ylabel(f"{measure}, %, codes in place")
            _ink(right)
            right.spines["right"].set_visible(True)
            right.yaxis.label.set_color(INPUT)
    return _svg(figure, "Loss and score of every epoch")
