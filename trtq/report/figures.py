"""Figures of the report, as SVG text that reads on light and on dark paper."""

from __future__ import annotations

import contextlib
import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from trtq.records.analyze import AnalyzedLayer
from trtq.records.quantize import QuantizerRecord
from trtq.records.search import Predicted
from trtq.terminal import visible
from trtq.train.epoch import Epoch

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


class Point(Protocol):
    """One model on a frontier, with its accuracy in percent."""

    @property
    def label(self) -> str:
        """Its name in the figure."""

    @property
    def accuracy(self) -> float | None:
        """Percent; None is drawn nowhere."""

    @property
    def costs(self) -> dict[str, float]:
        """By axis."""

    @property
    def dominated(self) -> dict[str, bool]:
        """By axis: another point is at least as good on both counts, and better on one."""


@contextlib.contextmanager
def _drawing(width: float, height: float) -> Iterator[Any]:
    """Yield the axes of a new figure; their figure is ``axes.figure``."""
    with mpl.rc_context(FONT):
        axes = Figure(figsize=(width, height)).subplots()
        yield axes
        _ink(axes)


def _log_scale(axes: Any) -> None:
    """Make the y axis logarithmic, its numbers as plain text: TeX is not drawn in names."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))


def _legend(axes: Any, columns: int) -> None:
    axes.legend(
        frameon=False, labelcolor=INK, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns
    )


def sqnr_figure(quantizers: Sequence[QuantizerRecord]) -> str:
    """Return the SQNR of every quantizer in the order the model runs them.

    Args:
        quantizers: in graph order; those without an SQNR are not drawn.

    Returns:
        SVG text.
    """
    with _drawing(10, 3) as axes:
        for of_weights, color, label in ((True, WEIGHT, "weights"), (False, INPUT, "activations")):
            points = [
                (i, q.sqnr_db)
                for i, q in enumerate(quantizers)
                if (q.role == "weight") == of_weights and q.sqnr_db is not None
            ]
            x, y = [p[0] for p in points], [p[1] for p in points]
            axes.plot(x, y, "o", ms=3.5, color=color, label=label)
        axes.set_xlabel("quantizer, in the order the model runs them")
        axes.set_ylabel("SQNR, dB")
        axes.grid(axis="y", color=INK, alpha=0.25)
        _legend(axes, 2)
    return _svg(axes.figure, "SQNR of every quantizer")


def sensitivity_figure(layers: Sequence[AnalyzedLayer], bits: Sequence[str], metric: str) -> str:
    """Return the loss of every layer at every width, in graph order, on a log scale.

    The widest width is the lightest.

    Args:
        layers: in graph order.
        bits: labels of the widths, the narrowest first; those that a layer has no loss at are not
            drawn.
        metric: that the losses are of.

    Returns:
        SVG text; a loss of 0 is a gap.
    """
    with _drawing(10, 3.2) as axes:
        shown = [b for b in bits if all(b in v.loss for v in layers)]
        for i, label in enumerate(shown):
            axes.plot(
                range(len(layers)),
                [v.loss[label] or math.nan for v in layers],
                "o-",
                ms=3.5,
                lw=0.8,
                color=INPUT,
                alpha=1.0 - 0.75 * i / max(len(shown), 1),
                label=label,
            )
        _log_scale(axes)
        axes.set_ylabel(f"loss by {metric}")
        step = max(1, len(layers) // 40)
        names = [v.name for v in layers[::step]]
        axes.set_xticks(range(0, len(layers), step), names, rotation=90, fontsize=6)
        axes.grid(axis="y", color=INK, alpha=0.25)
        _legend(axes, len(shown) or 1)
    return _svg(axes.figure, f"Loss of every layer by {metric}")


def frontier_figure(
    points: Sequence[Point],
    axis: str,
    *,
    measure: str,
    unit: str,
    chosen: str = "",
    limit: float | None = None,
) -> str:
    """Return measured accuracy against one cost.

    Every point is labelled, dominated ones are grey, the chosen one is ringed, and the budget is a
    line.

    Args:
        points: all with a cost on the axis.
        axis: name of the cost.
        measure: what accuracy is, with its unit.
        unit: of the axis.
        chosen: label of the chosen point, "" for none.
        limit: the budget, None without one.

    Returns:
        SVG text.
    """
    with _drawing(7.5, 4.2) as axes:
        front = sorted((p for p in points if not p.dominated[axis]), key=lambda p: p.costs[axis])
        x, y = [p.costs[axis] for p in front], [p.accuracy for p in front]
        axes.plot(x, y, "-", color=INPUT, lw=1, alpha=0.6)
        for i, point in enumerate(points):
            _draw_point(axes, point, axis, ringed=point.label == chosen, above=bool(i % 2))
        if limit is not None:
            axes.axvline(limit, color=WARN, lw=1, ls="--")
        axes.margins(x=0.22, y=0.15)
        axes.set_xlabel(f"{axis}, {unit}")
        axes.set_ylabel(f"{measure}, measured")
        axes.grid(color=INK, alpha=0.2)
    return _svg(axes.figure, f"Accuracy against {axis}")


def _draw_point(axes: Any, point: Point, axis: str, *, ringed: bool, above: bool) -> None:
    beaten = point.dominated[axis]
    color, alpha = (INK, 0.5) if beaten else (INPUT, 1.0)
    place = point.costs[axis], point.accuracy
    axes.plot(*place, "o", ms=5, color=color, alpha=alpha)
    if ringed:
        axes.plot(*place, "o", ms=12, mfc="none", color=WEIGHT, mew=1.5)
    axes.annotate(
        point.label,
        place,
        xytext=(6, 5 if above else -11),
        textcoords="offset points",
        fontsize=7,
        color=color,
        parse_math=False,  # a label may hold a dollar
    )


def precision_figure(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return precision against recall of one or several models.

    Args:
        curves: recall and precision, 0 to 1, by the name of the model; the reference first.

    Returns:
        SVG text; the first two models are drawn.
    """
    with _drawing(5.0, 3.6) as axes:
        for (name, points), color in zip(curves.items(), (INK, INPUT), strict=False):
            recall, precision = zip(*points, strict=True)
            axes.plot(recall, precision, "-", color=color, lw=1.5, label=name)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("recall")
        axes.set_ylabel("precision, overlap 0.5")
        axes.grid(color=INK, alpha=0.2)
        axes.legend(frameon=False, labelcolor=INK)
    return _svg(axes.figure, "Precision against recall")


def predicted_figure(predicted: Predicted, *, unit: str) -> str:
    """Return the predicted frontier, loss against one cost, with the chosen allocation on it.

    Args:
        predicted: loss and cost of every allocation.
        unit: of the cost.

    Returns:
        SVG text; the loss is on a log scale, and one of 0 is a gap.
    """
    front, at = predicted.front, predicted.at
    with _drawing(7.5, 3.2) as axes:
        costs, losses = [p.cost for p in front], [p.loss or math.nan for p in front]
        axes.plot(costs, losses, "-", color=INPUT, lw=1.2)
        axes.plot(at.cost, at.loss or math.nan, "o", ms=9, mfc="none", color=WEIGHT, mew=1.5)
        _log_scale(axes)
        axes.set_xlabel(f"{predicted.axis}, {unit}, predicted")
        axes.set_ylabel(f"loss by {predicted.metric}, predicted")
        axes.grid(color=INK, alpha=0.2)
    return _svg(axes.figure, f"Predicted frontier of {predicted.axis}")


def histogram_figure(quantizer: QuantizerRecord) -> str:
    """Return the magnitudes of one activation, log counts, with its clip point.

    Args:
        quantizer: of an activation; ``histogram`` has counts from 0 to ``histogram_limit``.

    Returns:
        SVG text.
    """
    counts, limit, amax = quantizer.histogram, quantizer.histogram_limit, quantizer.amax
    with _drawing(4.6, 2.1) as axes:
        edges = [i * limit / len(counts) for i in range(len(counts) + 1)]
        axes.stairs(counts, edges, fill=True, color=INPUT, alpha=0.8)  # one path, not one a bar
        axes.axvline(amax, color=WARN, lw=1.5)
        _log_scale(axes)
        axes.text(amax, max(counts), f" amax {amax:.3g}", color=WARN, va="top", fontsize=8)
        axes.set_xlabel("magnitude")
        axes.set_ylabel("count")
        axes.set_xlim(0, limit)
    return _svg(axes.figure, f"Histogram of {quantizer.name}")


def training_figure(history: Sequence[Epoch], measure: str) -> str:
    """Return loss and score of every epoch.

    The loss is on the left axis, the score (percent) on the right one.

    Args:
        history: one entry an epoch. The score is drawn where every epoch has one.
        measure: what the score is.

    Returns:
        SVG text.
    """
    epochs = range(1, len(history) + 1)
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(7.5, 3))
        axes = figure.subplots()
        axes.plot(epochs, [h.loss for h in history], "o-", ms=4, lw=1.2, color=WEIGHT)
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=INK, alpha=0.25)
        _ink(axes)
        axes.yaxis.label.set_color(WEIGHT)
        scores = [h.score for h in history if h.score is not None]
        if len(scores) == len(history):
            right = axes.twinx()
            right.plot(epochs, scores, "o-", ms=4, lw=1.2, color=INPUT)
            right.set_ylabel(f"{measure}, %, quantized")
            _ink(right)
            right.spines["right"].set_visible(True)
            right.yaxis.label.set_color(INPUT)
    return _svg(figure, "Loss and score of every epoch")
