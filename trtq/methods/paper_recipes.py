"""Recipes of papers, as components that are tried one after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from trtq.methods.presets import joined
from trtq.specs import QuantizeOptions


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a recipe; it is added to the parts that were kept.

    Attributes:
        name: for the record.
        source: of the idea.
        method: methods added.
        high_precision: patterns added.
        calibrator: replaces ``--calibrator``.
        percentile: replaces ``--percentile``.
        widths: how a width for every layer is chosen, at the bytes and the energy of the one width:
            a strategy of ``trtq allocate``; None for one width.
    """

    name: str
    source: str
    method: tuple[str, ...] = ()
    high_precision: tuple[str, ...] = ()
    calibrator: str | None = None
    percentile: float | None = None
    widths: Literal["percentile", "milp"] | None = None

    def added(self, options: QuantizeOptions) -> QuantizeOptions:
        """Return options with this component; unchanged where it adds nothing.

        Methods that contradict those that are there are left out.

        Args:
            options: that were kept.
        """
        return msgspec.structs.replace(
            joined(options, self.method, self.high_precision),
            calibrator=self.calibrator or options.calibrator,
            percentile=options.percentile if self.percentile is None else self.percentile,
        )


class PaperRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe.

    Attributes:
        source: the paper.
        bits: the one width that it is compared with, in place of w8a8; "" for any.
        components: in the order of the paper.
    """

    source: str
    bits: str = ""
    components: tuple[Component, ...]


RECIPES: Mapping[str, PaperRecipe] = {
    "qaof": PaperRecipe(
        source="S2",
        components=(
            Component(
                name="first and last layer in float",
                source="S2, mixed-precision mapping: stem and head in FP16",
                high_precision=("@anchors",),
            ),
            Component(
                name="percentile clipping",
                source="S2 Table III: the 99.9th percentile of magnitudes",
                calibrator="percentile",
                percentile=99.9,
            ),
            Component(
                name="clamped queries, keys and values",
                source="S2 eq. 1",
                method=("attention-percentile",),
            ),
            Component(
                name="moving average of LayerNorm ranges",
                source="S2, dynamic range estimation for LayerNorm",
                method=("layernorm-ema",),
            ),
            Component(name="QADS", source="S2 section QADS", method=("qads",)),
            Component(
                name="integer-only softmax",
                source="S2, integer-only linear softmax",
                method=("integer-softmax",),
            ),
        ),
    ),
    "energy-aware": PaperRecipe(
        source="S1",
        bits="w6a6",
        components=(
            Component(
                name="widths by the percentile rule",
                source="S1 eq. 5 and 6: 25 %, 50 % and 25 % of the layers get three widths",
                widths="percentile",
            ),
            Component(
                name="widths by an exact program",
                source="trtq allocate --strategy milp by jsd, in place of the rule of S1",
                widths="milp",
            ),
            Component(
                name="ranking-aware ranges of queries and keys",
                source="S1 section 4.6",
                method=("ranking",),
            ),
        ),
    ),
}
