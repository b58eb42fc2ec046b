"""Number formats as values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from trtq.errors import UsageError

FP8_LARGEST = 448  # E4M3: 1.75 x 2^8
FORMS = re.compile(r"^(?:w([2-8])a([2-8]|16)|([2-8]))$")
FP16: Final = "fp16"
FP8: Final = "fp8"


class Format(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a tensor's values are written as codes.

    Attributes:
        bits: 2 to 8.
        lowest: the lowest code, -2^(bits-1) to 0; None for -2^(bits-1), two's complement. Below 8
            bits the codes live in an INT8 container, so any 2^bits neighbouring codes around 0 will
            do: 0 to 15 for a ReLU, -1 to 14 for a GELU.
        axis: the axis that keeps a scale of its own per index, None for one scale per tensor.
        kind: the spacing of the codes. ``uniform``: equal steps, zero at code 0. ``asymmetric``:
            equal steps from the lowest value to the highest, codes 0 to 2^bits - 1. ``log2``: equal
            steps of the logarithm (S3 eq. 4), codes 0 to 2^bits - 1. ``fp8``: E4M3 without
            infinities (OCP 8-bit floating point), whose values run from -448 to 448 before the
            scale.

    >>> Format(bits=8).qmin, Format(bits=8).qmax, Format(bits=4, axis=0).granularity
    (-128, 127, 'per-channel')
    >>> Format(bits=4, lowest=-1).qmax, Format(bits=4, lowest=-1).label
    (14, 'int4[-1,14]')
    >>> Format(bits=4, lowest=0).label, Format(bits=8, kind="log2").label
    ('uint4', 'log2-8')
    >>> Format(kind="asymmetric").qmax, Format(kind="asymmetric").has_kernel
    (255, False)
    >>> Format(kind="fp8").label, Format(kind="fp8").qmax, Format(kind="fp8").has_kernel
    ('fp8', 448, True)
    """

    bits: int = 8
    lowest: int | None = None
    axis: int | None = None
    kind: Literal["uniform", "asymmetric", "log2", "fp8"] = "uniform"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(
                f"Cannot use a format of {self.bits} bits",
                "trtq's integer formats have 2 to 8 bits",
            )
        if self.lowest is not None and not -(1 << (self.bits - 1)) <= self.lowest <= 0:
            raise UsageError(
                f"Cannot start the codes of {self.bits} bits at {self.lowest}",
                f"expected {-(1 << (self.bits - 1))} to 0",
            )
        if self.kind == "fp8" and self.bits != 8:
            raise UsageError(f"Cannot use FP8 with {self.bits} bits", "it has 8")
        if self.lowest is not None and self.kind != "uniform":
            raise UsageError(
                f"Cannot choose the lowest code of the format {self.kind}", "its codes start at 0"
            )

    @property
    def qmin(self) -> int:
        """Lowest code (S1 eq. 4: -2^(b-1)); the lowest value of FP8."""
        if self.kind == "fp8":
            return -FP8_LARGEST
        if not self.has_kernel:
            return 0
        return -(1 << (self.bits - 1)) if self.lowest is None else self.lowest

    @property
    def qmax(self) -> int:
        """Highest code (S1 eq. 4: 2^(b-1) - 1); the highest value of FP8."""
        if self.kind == "fp8":
            return FP8_LARGEST
        return self.qmin + (1 << self.bits) - 1

    @property
    def has_kernel(self) -> bool:
        """Whether TensorRT has kernels for it: equal steps around a zero point of 0, or FP8."""
        return self.kind in ("uniform", "fp8")

    @property
    def granularity(self) -> str:
        """``per-tensor`` or ``per-channel``."""
        return "per-tensor" if self.axis is None else "per-channel"

    @property
    def label(self) -> str:
        """Short name for tables, such as ``int8``, ``uint4``, ``int4[-1,14]`` or ``log2-8``."""
        if self.kind == "fp8":
            return "fp8"
        if not self.has_kernel:
            return f"{self.kind}-{self.bits}"
        if self.lowest == 0:
            return f"uint{self.bits}"
        odd = self.lowest is not None and self.lowest != -(1 << (self.bits - 1))
        return f"int{self.bits}" + (f"[{self.qmin},{self.qmax}]" if odd else "")


INT8 = Format()


class BitConfig(msgspec.Struct, frozen=True, order=True):
    """The widths of a layer's ``weight`` and ``input``.

    16 means float, computed as FP16; 32 is the model as it came.

    >>> BitConfig.parse("4").label, BitConfig.parse("w4a8").label, BitConfig.parse("fp16").weight
    ('w4a4', 'w4a8', 16)
    >>> BitConfig.parse("w4a16").weight_only, BitConfig.parse("fp8").label
    (True, 'fp8')
    """

    weight: int
    input: int
    fp8: bool = False

    @classmethod
    def parse(cls, text: str) -> BitConfig:
        """Return the widths of a name.

        The forms are ``4`` (weights and inputs of 4 bits), ``w4a8``, ``w4a16`` (weights alone),
        ``fp8`` and ``fp16``.

        Raises:
            UsageError: none of these forms.
        """
        named = {FP16: HALF, FP8: cls(8, 8, fp8=True)}.get(text.strip())
        if named is not None:
            return named
        match = FORMS.match(text.strip())
        if match is None:
            raise UsageError(
                f"Cannot read the width {text!r}",
                "expected 2 to 8, a pair like w4a8, w4a16 for weights alone, fp8 or fp16",
                "Write it like --bits 2,4,w4a8",
            )
        weight, given, both = match.groups()
        return cls(int(weight or both), int(given or both))

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
    def weight_only(self) -> bool:
        """Whether only the weight has codes: an engine unpacks it and multiplies in FP16."""
        return self.quantized and self.input == 16

    @property
    def computed_in(self) -> str:
        """The format that a device must multiply in for it."""
        if self.fp8:
            return "FP8"
        return "INT8" if self.quantized and self.input <= 8 else "FP16"

    @property
    def kind(self) -> Literal["uniform", "fp8"]:
        """The kind of its formats."""
        return "fp8" if self.fp8 else "uniform"


EIGHT = BitConfig(8, 8)
HALF, FULL = BitConfig(16, 16), BitConfig(32, 32)


def read_options(texts: Sequence[str]) -> list[BitConfig]:
    """Return several widths, narrowest first; a text may hold several, as in ``2,4,8``.

    Raises:
        UsageError: one cannot be read, or is given twice.
    """
    options = [BitConfig.parse(t) for text in texts for t in text.split(",")]
    twice = next((o.label for i, o in enumerate(options) if o in options[:i]), None)
    if twice is not None:
        raise UsageError(f"The width {twice} was asked for twice", hint="Name it once")
    return sorted(options)
