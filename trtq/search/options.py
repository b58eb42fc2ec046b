"""The choices of a layer: how wide its weight and its input are."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from trtq.errors import UsageError

FORMS = re.compile(r"^(?:w([2-8])a([2-8])|([2-8]))$")
FP16 = "fp16"


class Option(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One choice. ``weight`` and ``input`` are bits; 16 means that the layer stays in float, computed as FP16.

    >>> read_option("4").label, read_option("w4a8").label, read_option("fp16").weight
    ('w4a4', 'w4a8', 16)
    """

    weight: int
    input: int

    @property
    def label(self) -> str:
        """As on the command line."""
        return FP16 if self.weight == 16 else f"w{self.weight}a{self.input}"

    @property
    def quantized(self) -> bool:
        """Whether the layer has codes at all."""
        return self.weight < 16


def read_option(text: str) -> Option:
    """Return the option called ``4`` (weights and inputs of 4 bits), ``w4a8`` or ``fp16``.

    Raises:
        UsageError: none of these forms.
    """
    found = FORMS.match(text.strip())
    if text.strip() == FP16:
        return Option(weight=16, input=16)
    if found is None:
        raise UsageError(f"Cannot read the width {text!r}", "expected 2 to 8, a pair like w4a8, or fp16", "Write it like --bits 2,4,w4a8")
    weight, given, both = found.groups()
    return Option(weight=int(weight or both), input=int(given or both))


def read_options(texts: Sequence[str]) -> list[Option]:
    """Return the options, narrowest first.

    Raises:
        UsageError: one cannot be read, or stands there twice.
    """
    options = [read_option(t) for t in texts]
    twice = next((o.label for i, o in enumerate(options) if o in options[:i]), None)
    if twice is not None:
        raise UsageError(f"The width {twice} was asked for twice", mend="Name it once")
    return sorted(options)
