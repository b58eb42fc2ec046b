"""The default methods of each family of models, and the fallbacks when they are not enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from trtq.graph.blocks import Family
from trtq.methods.registry import contradicts
from trtq.quant.formats import BitConfig
from trtq.quant.placement import Placement, attention_of, matching
from trtq.specs import QuantizeOptions

CHECK_SQNR_DB = 15.0  # above it, predictions that differ were near ties
LEAST_SQNR_DB = 10.0  # below it, equal predictions are luck: a third of the answer is noise


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One fallback; it adds to the steps before it.

    Attributes:
        name: for the record.
        method: methods added.
        high_precision: patterns added, those that match something.
        attention: replaces ``--attention``.
        worst: share of the layers, those with the lowest SQNR, that remain in float.
    """

    name: str
    method: tuple[str, ...] = ()
    high_precision: tuple[str, ...] = ()
    attention: str | None = None
    worst: float = 0.0


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """The choices for one family.

    Attributes:
        wide: methods at 8 bits.
        narrow: methods below 8 bits.
        fallback: tried in order when the quick check fails.
        high_precision: patterns of what remains in float from the start.
    """

    wide: tuple[str, ...]
    narrow: tuple[str, ...]
    fallback: tuple[Step, ...]
    high_precision: tuple[str, ...] = ()


_ANCHORS = Step(name="first and last layer in float", high_precision=("@anchors",))
_SHORTCUTS = Step(name="shortcuts of residual adds in float", high_precision=("*.residual",))
_ATTENTION = Step(name="attention in float", attention="float")
_DECODER = Step(name="decoder in float", high_precision=("@decoder",))
_CORRECT = Step(name="bias correction", method=("bias-correction",))
_SMOOTH = Step(name="smoothing", method=("smooth",))
_WORST = (
    Step(name="the worst tenth of the layers in float", worst=0.1),
    Step(name="the worst quarter in float", worst=0.25),
)

_TRANSFORMER = Preset(
    wide=("smooth",),
    narrow=("smooth", "reconstruct", "bias-correction"),
    fallback=(_ATTENTION, _SMOOTH, _ANCHORS, *_WORST),
)
# The figures behind these choices: benchmarks/results/methods.md; of detectors: detection.md.
# Learned rounding is left out of detectors': at their sizes it takes as long as a training.
PRESETS: Mapping[Family, Preset] = {
    "cnn": Preset(
        wide=(),
        narrow=("reconstruct", "bias-correction"),
        fallback=(_SHORTCUTS, _CORRECT, _ANCHORS, *_WORST),
    ),
    "mobile": Preset(
        wide=(),
        narrow=("reconstruct", "bias-correction"),
        fallback=(_CORRECT, _SHORTCUTS, _ANCHORS, *_WORST),
    ),
    "vit": _TRANSFORMER,
    "windowed": _TRANSFORMER,
    "hybrid": Preset(
        wide=(),
        narrow=("reconstruct", "bias-correction"),
        fallback=(_ATTENTION, _SHORTCUTS, _SMOOTH, _ANCHORS, *_WORST),
    ),
    "detector-conv": Preset(
        wide=(),
        narrow=("bias-correction",),
        fallback=(_CORRECT, _SHORTCUTS, _ATTENTION, *_WORST),
        high_precision=("@head",),
    ),
    "detector-transformer": Preset(
        wide=("smooth",),
        narrow=("smooth", "reconstruct", "bias-correction"),
        fallback=(_DECODER, _ATTENTION, *_WORST),
        high_precision=("@head",),
    ),
}


def start(spec: QuantizeOptions, family: Family) -> QuantizeOptions:
    """Return ``spec`` with the methods of the family's preset, and what it keeps in float.

    Args:
        spec: methods that it names are not changed, and its patterns come first.
        family: of the model.
    """
    methods = _methods(PRESETS[family], spec)
    kept = dict.fromkeys((*spec.high_precision, *PRESETS[family].high_precision))
    return msgspec.structs.replace(spec, method=spec.method or methods, high_precision=tuple(kept))


def _methods(preset: Preset, spec: QuantizeOptions) -> tuple[str, ...]:
    """Return a preset's methods for the widths that were asked for.

    An allocation of equal widths gets the methods of this width.
    """
    all_widths = [BitConfig.parse(b) for b in spec.layer_bits.values() or [spec.bits]]
    widths = [w for w in all_widths if w.quantized]
    if all(w.label == "w8a8" for w in widths):
        return preset.wide
    if all(w.weight_only for w in widths):
        return ("gptq",)
    if all(w.kind != "uniform" for w in widths):
        return (*preset.wide, "gptq")
    return preset.narrow


def add(
    spec: QuantizeOptions, step: Step, placement: Placement, sqnr: Mapping[str, float]
) -> QuantizeOptions:
    """Return ``spec`` with a fallback step added.

    When the step changes nothing on this model, ``spec`` is returned as it is.

    Args:
        spec: what was tried last.
        step: of the family's preset.
        placement: of the last attempt.
        sqnr: decibels of each quantizer in the last attempt, by name.
    """
    patterns = [*_matching(placement, step), *_worst(placement, step.worst, sqnr)]
    attends = any(attention_of(q) is not None for q in placement.active)
    # The user's setting for attention is kept.
    free = attends and spec.attention == "auto"
    attention = step.attention if step.attention and free else spec.attention
    return msgspec.structs.replace(joined(spec, step.method, patterns), attention=attention)


def joined(
    spec: QuantizeOptions, methods: Sequence[str], patterns: Sequence[str]
) -> QuantizeOptions:
    """Return ``spec`` with more methods, and with more patterns of what remains in float.

    Args:
        spec: its own methods and patterns come first.
        methods: those that contradict methods of ``spec`` are left out.
        patterns: as ``--high-precision`` takes them.
    """
    free = [m for m in methods if m not in spec.method and not contradicts(m, spec.method)]
    added = [p for p in dict.fromkeys(patterns) if p not in spec.high_precision]
    return msgspec.structs.replace(
        spec, method=(*spec.method, *free), high_precision=(*spec.high_precision, *added)
    )


def _matching(placement: Placement, step: Step) -> list[str]:
    """Return the patterns of a step that select a quantizer that quantizes."""
    active = {q.name for q in placement.active}
    return [p for p in step.high_precision if any(q.name in active for q in matching(placement, p))]


def _worst(placement: Placement, share: float, sqnr: Mapping[str, float]) -> list[str]:
    """Return the layers with the lowest SQNR, a share of all."""
    layers: dict[str, float] = {}
    for q in placement.active:
        if q.name in sqnr:
            layers[q.layer] = min(layers.get(q.layer, float("inf")), sqnr[q.name])
    count = max(1, round(share * len(layers))) if share else 0
    return sorted(layers, key=lambda name: layers[name])[:count]
