"""The choices of a layer: how wide its weight and its input are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from trtq.errors import UsageError
from trtq.quant.placement import LayerBits

FORMS = re.compile(r"^(?:w([2-8])a([2-8]|16)|([2-8]))$")
FP16: Final = "fp16"
FP8: Final = "fp8"


class BitConfig(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One choice of bits for ``weight`` and ``input``.

    16 means float, computed as FP16; 32 is the model as it came.

    >>> read_option("4").label, read_option("w4a8").label, read_option("fp16").weight
    ('w4a4', 'w4a8', 16)
    >>> read_option("w4a16").weight_only, read_option("fp8").label, read_option("fp8").input
    (True, 'fp8', 8)
    """

    weight: int
    input: int
    fp8: bool = False

    @property
    def label(self) -> str:
        """As on the command line."""
        if self.fp8:
            return FP8
        return FP16 if self.weight == 16 else f"w{self.weight}a{self.input}"

    @property
    def quantized(self) -> bool:
        """Whether the layer has codes at all."""
        return self.weight < 16

    @property
    def computed_in(self) -> str:
        """The format that a device must multiply in for it."""
        if self.fp8:
            return "FP8"
        return "INT8" if self.quantized and self.input <= 8 else "FP16"

    @property
    def bits(self) -> LayerBits | None:
        """As placement takes it; None for a layer in float."""
        if not self.quantized:
            return None
        return LayerBits(
            self.weight, None if self.weight_only else self.input, FP8 if self.fp8 else "uniform"
        )

    @property
    def weight_only(self) -> bool:
        """Whether only the weight has codes: an engine unpacks it and multiplies in FP16."""
        return self.quantized and self.input == 16


HALF, FULL = BitConfig(weight=16, input=16), BitConfig(weight=32, input=32)


def read_option(text: str) -> BitConfig:
    """Return the option of a name.

    The forms are ``4`` (weights and inputs of 4 bits), ``w4a8``, ``w4a16`` (weights alone), ``fp8``
    and ``fp16``.

    Raises:
        UsageError: none of these forms.
    """
    named = {FP16: HALF, FP8: BitConfig(weight=8, input=8, fp8=True)}.get(text.strip())
    if named is not None:
        return named
    match = FORMS.match(text.strip())
    if match is None:
        raise UsageError(
            f"Cannot read the width {text!r}",
            "expected 2 to 8, a pair like w4a8, w4a16 for weights alone, fp8 or fp16",
            "Write it like --bits 2,4,w4a8",
        )
    weight, inputs, both = match.groups()
    return BitConfig(weight=int(weight or both), input=int(inputs or both))


def read_options(texts: Sequence[str]) -> list[BitConfig]:
    """Return the options, narrowest first; a text may hold several, as in ``2,4,8``.

    Raises:
        UsageError: one cannot be read, or is given twice.
    """
    options = [read_option(t) for text in texts for t in text.split(",")]
    twice = next((o.label for i, o in enumerate(options) if o in options[:i]), None)
    if twice is not None:
        raise UsageError(f"The width {twice} was asked for twice", hint="Name it once")
    return sorted(options)
