"""One row per layer: precision, loss, sensitivity and share of the work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from trtq.records.quantize import QuantizerRecord
from trtq.report.contents import SearchFolder
from trtq.report.summary import RunSummary, bits_of
from trtq.typed import present

WIDTH, TRACK, GAP, LEFT = 1000.0, 34.0, 16.0, 2.0
SHORT = {"int8": "INT8", "fp8": "FP8", "nvfp4": "NVFP4", "float": "float"}


class LayerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A layer.

    Attributes:
        name: as in every record.
        precision: format of its weight (of its first operand where it has none), ``float`` where
            nothing is quantized.
        runs: what an engine computes it in.
        sqnr_db: lowest of its quantizers, dB; None where all are exact or there are none.
        loss: of the sensitivity analysis at the narrowest width that was looked at; None without
            one.
        share: of the work, 0 to 1; None where it is not known.
    """

    name: str
    precision: str
    runs: str
    sqnr_db: float | None
    loss: float | None
    share: float | None

    @property
    def kind(self) -> str:
        """Class of its colour: ``int8``, ``below``, ``fp8``, ``nvfp4`` or ``float``."""
        if self.precision in SHORT.values():
            return self.precision.lower()
        return "int8" if bits_of(self.precision.lower()) == 8 else "below"


class Layers(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, and what the figures are.

    Attributes:
        rows: quantized layers in the order the model runs them, then those left in float.
        sensitivity: metric and width of ``loss``, "" where nothing was analyzed.
        work: what ``share`` is a share of.
    """

    rows: list[LayerRow]
    sensitivity: str
    work: str

    @property
    def strip(self) -> str:
        """All layers on one axis, as SVG."""
        return draw_strip(self)


def layers_of(run: RunSummary) -> Layers:
    """Return the layers of a run: quantized ones, and those left in float.

    Args:
        run: its records. Shares are of measured time where the Q/DQ file was profiled, else where
            the float file was; else of multiply-adds, else of weights.
    """
    quantizers: dict[str, list[QuantizerRecord]] = {}
    for q in run.quantize.quantizers:
        quantizers.setdefault(q.layer, []).append(q)
    for f in run.quantize.left_in_float:
        quantizers.setdefault(f.layer, [])
    losses, sensitivity = _losses(run.search)
    shares, work = _shares(run)
    rows = [
        LayerRow(
            name=name,
            precision=_precision(of_layer),
            runs=" and ".join(sorted({q.computes_in for q in of_layer})) or "float",
            sqnr_db=min((q.sqnr_db for q in of_layer if q.sqnr_db is not None), default=None),
            loss=losses.get(name),
            share=shares.get(name),
        )
        for name, of_layer in quantizers.items()
    ]
    return Layers(rows=rows, sensitivity=sensitivity, work=work)


def _losses(search: SearchFolder | None) -> tuple[dict[str, float | None], str]:
    """Return the loss of each layer at the narrowest width, and what it is."""
    if search is None:
        return {}, ""
    analysis, narrowest = search.analysis, search.analysis.bits[0]
    losses = {v.name: v.loss.get(narrowest) for v in analysis.layers}
    return losses, f"loss by {analysis.metric} at {narrowest}"


def _precision(quantizers: Sequence[QuantizerRecord]) -> str:
    if not quantizers:
        return "float"
    label = next((q for q in quantizers if q.role == "weight"), quantizers[0]).format
    return SHORT.get(label, label.upper() if label.startswith(("int", "uint")) else label)


def _shares(run: RunSummary) -> tuple[dict[str, float], str]:
    """Return the share of each layer.

    It is a share of measured time where there is a profile, else of counted work.
    """
    for key, what in (("qdq", ""), ("fp32", "the float file's ")):
        row = run.bench[key].rows[0] if key in run.bench else None
        if row is not None and row.layers:
            shares: dict[str, float] = {}
            for layer in row.layers:
                shares[layer.module] = shares.get(layer.module, 0.0) + layer.share
            return shares, f"share of {what}time on the {row.device}, profiled"
    layers = run.search.analysis.layers if run.search is not None else []
    macs = {v.name: v.cost.macs for v in layers if v.cost.macs}
    if macs:
        return _normalized(macs), "share of the multiply-adds, counted"
    values = run.model.weight_values
    return _normalized(values), "share of the weights, counted" if values else ""


def _normalized(values: Mapping[str, float]) -> dict[str, float]:
    total = sum(values.values())
    return {k: v / total for k, v in values.items()} if total else {}


def draw_strip(layers: Layers) -> str:
    """Return precision, sensitivity, SQNR and share of work of every layer on one axis.

    There is one path per colour, so a thousand layers remain light.

    Args:
        layers: one column each, in their order.

    Returns:
        SVG text; a track without figures is left out.
    """
    step = WIDTH / max(len(layers.rows), 1)
    tracks = _tracks(layers, step)
    height = len(tracks) * (TRACK + GAP)
    parts = [_track(i * (TRACK + GAP), label, body) for i, (label, body) in enumerate(tracks)]
    return (
        f'<svg class="strip" viewBox="0 0 {WIDTH:g} {height:g}" preserveAspectRatio="none" '
        'role="img" '
        f'aria-label="{len(layers.rows)} layers: {_escaped("; ".join(t for t, _ in tracks))}. The '
        'table below has the numbers.">'
        f'{"".join(parts)}<path class="cursor" d="" data-step="{step:g}" '
        f'data-height="{height:g}"/></svg>'
    )


def _tracks(layers: Layers, step: float) -> list[tuple[str, str]]:
    """Return label and SVG of each track that there are figures for."""
    rows = layers.rows
    tracks = [("precision", _blocks(rows, step))]
    if layers.sensitivity:
        label = f"{layers.sensitivity}, log scale"
        tracks.append((label, _bars([_log(r.loss) for r in rows], step, "loss")))
    highest = max((r.sqnr_db for r in rows if r.sqnr_db is not None), default=None)
    if highest is not None:
        top = max(highest, 1.0)
        label = f"lowest SQNR of its tensors, 0 to {top:.0f} dB"
        ratios = [None if r.sqnr_db is None else max(r.sqnr_db, 0.0) / top for r in rows]
        tracks.append((label, _bars(ratios, step, "sqnr")))
    most = max((r.share for r in rows if r.share is not None), default=0.0)
    if most:
        label = f"{layers.work}, up to {100 * most:.1f} %"
        shares = [None if r.share is None else r.share / most for r in rows]
        tracks.append((label, _bars(shares, step, "share")))
    return tracks


def _track(top: float, label: str, body: str) -> str:
    return (
        f'<text x="{LEFT:g}" y="{top + 11:g}">{_escaped(label)}</text><g '
        f'transform="translate(0 {top + GAP:g})">'
        f'<path class="base" d="M0 {TRACK:g}h{WIDTH:g}"/>{body}</g>'
    )


def _log(loss: float | None) -> float | None:
    return None if loss is None or loss <= 0 else math.log10(loss)


def _blocks(rows: Sequence[LayerRow], step: float) -> str:
    paths: dict[str, list[str]] = {}
    for i, row in enumerate(rows):
        paths.setdefault(row.kind, []).append(
            f"M{i * step:.2f} 4h{step * 0.86:.2f}v{TRACK - 4:g}h-{step * 0.86:.2f}z"
        )
    return "".join(f'<path class="{kind}" d="{"".join(d)}"/>' for kind, d in paths.items())


def _bars(values: Sequence[float | None], step: float, kind: str) -> str:
    """Return bars from the baseline up.

    Values are shares of the track, or logarithms that are spread over it.
    """
    known = present(values)
    if not known:
        return ""
    low = min(known) if kind == "loss" else 0.0
    span = (max(known) - low) or 1.0
    d = []
    for i, v in enumerate(values):
        if v is not None:
            height = max(
                1.0, (TRACK - 2) * (0.06 + 0.94 * (v - low) / span if kind == "loss" else v)
            )
            d.append(
                f"M{i * step:.2f} {TRACK:g}h{step * 0.86:.2f}v-{height:.1f}h-{step * 0.86:.2f}z"
            )
    return f'<path class="{kind}" d="{"".join(d)}"/>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
