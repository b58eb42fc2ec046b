"""Number formats as values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from trtq.errors import UsageError

FP8_LARGEST = 448  # E4M3: 1.75 x 2^8
FP4_LARGEST = 6  # E2M1: 1.5 x 2^2
FP4_BLOCK = 16  # values that share a scale in NVFP4
FORMS = re.compile(r"^(?:w([2-8])a([2-8]|16)|([2-8])|w4a16:(16|32|64|128|256))$")
FP16: Final = "fp16"
FP8: Final = "fp8"
NVFP4: Final = "nvfp4"
Kind = Literal["uniform", "fp8", "fp4"]
FLOATS: Mapping[str, str] = {"fp8": "FP8", "fp4": "FP4"}  # as the catalogue of platforms says
LABELS: Mapping[str, str] = {"fp8": FP8, "fp4": NVFP4}  # as on the command line
LARGEST: Mapping[str, int] = {"fp8": FP8_LARGEST, "fp4": FP4_LARGEST}  # before the scale


class Format(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a tensor's values are written as codes.

    Attributes:
        bits: 2 to 8.
        lowest: the lowest code, -2^(bits-1) to 0; None for -2^(bits-1), two's complement. Below 8
            bits the codes live in an INT8 container, so any 2^bits neighbouring codes around 0 will
            do: 0 to 15 for a ReLU, -1 to 14 for a GELU.
        axis: the axis that keeps a scale of its own per index, None for one scale per tensor.
        block: how many values along the last axis of a matrix share a scale; unset for all of them.
        kind: the spacing of the codes. ``uniform``: equal steps, zero at code 0. ``asymmetric``:
            equal steps from the lowest value to the highest, codes 0 to 2^bits - 1. ``log2``: equal
            steps of the logarithm (S3 eq. 4), codes 0 to 2^bits - 1. ``fp8``: E4M3 without
            infinities (OCP 8-bit floating point), whose values run from -448 to 448 before the
            scale. ``fp4``: E2M1 (OCP microscaling formats), -6 to 6, in blocks of 16 whose scales
            are E4M3 numbers times one float32 of the tensor (NVFP4); an activation's blocks get
            their scales as it is computed.

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
    >>> Format(bits=4, axis=0, block=128).label, Format(bits=4, kind="fp4", block=16).label
    ('int4:128', 'nvfp4')
    """

    bits: int = 8
    lowest: int | None = None
    axis: int | None = None
    block: int | UnsetType = UNSET
    kind: Literal["uniform", "asymmetric", "log2", "fp8", "fp4"] = "uniform"

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
        if self.kind == "fp4" and (self.bits, self.block) != (4, FP4_BLOCK):
            raise UsageError(
                f"Cannot use NVFP4 with {self.bits} bits and blocks of {self.block or 0}",
                f"it has 4 bits and blocks of {FP4_BLOCK}",
            )
        if self.lowest is not None and self.kind != "uniform":
            raise UsageError(
                f"Cannot choose the lowest code of the format {self.kind}", "its codes start at 0"
            )

    @property
    def qmin(self) -> int:
        """Lowest code (S1 eq. 4: -2^(b-1)); the lowest value of FP8 and FP4."""
        if self.kind in LARGEST:
            return -LARGEST[self.kind]
        if not self.has_kernel:
            return 0
        return -(1 << (self.bits - 1)) if self.lowest is None else self.lowest

    @property
    def qmax(self) -> int:
        """Highest code (S1 eq. 4: 2^(b-1) - 1); the highest value of FP8 and FP4."""
        if self.kind in LARGEST:
            return LARGEST[self.kind]
        return self.qmin + (1 << self.bits) - 1

    @property
    def has_kernel(self) -> bool:
        """Whether TensorRT has kernels for it: equal steps around a zero point of 0, or floats."""
        return self.kind == "uniform" or self.kind in LARGEST

    @property
    def blocked(self) -> bool:
        """Whether values in blocks share a scale that is stored; an FP4 activation's are not."""
        return self.block is not UNSET and self.axis is not None

    @property
    def needs(self) -> str:
        """Ability that a target must have for it, as the catalogue of platforms calls it."""
        if self.blocked and self.kind == "uniform":
            return "INT4 weights"
        return FLOATS.get(self.kind, "INT8")

    @property
    def granularity(self) -> str:
        """``per-tensor``, ``per-channel`` or ``per-block``."""
        if self.block is not UNSET:
            return "per-block"
        return "per-tensor" if self.axis is None else "per-channel"

    @property
    def label(self) -> str:
        """Short name for tables, such as ``int8``, ``uint4``, ``int4[-1,14]`` or ``log2-8``."""
        if self.kind in LABELS:
            return LABELS[self.kind]
        if not self.has_kernel:
            return f"{self.kind}-{self.bits}"
        if self.block is not UNSET:
            return f"int{self.bits}:{self.block}"
        if self.lowest == 0:
            return f"uint{self.bits}"
        odd = self.lowest is not None and self.lowest != -(1 << (self.bits - 1))
        return f"int{self.bits}" + (f"[{self.qmin},{self.qmax}]" if odd else "")


INT8 = Format()


class BitConfig(msgspec.Struct, frozen=True, order=True):
    """The widths of a layer's ``weight`` and ``input``.

    16 means float, computed as FP16; 32 is the model as it came. Widths sort by weight, then input.

    Attributes:
        weight, input: bits.
        floating: kind of the formats where their codes are floats; "" sorts before it.
        block: how many weights along an input share a scale; 0 for all of an output channel.

    >>> BitConfig.parse("4").label, BitConfig.parse("w4a8").label, BitConfig.parse("fp16").weight
    ('w4a4', 'w4a8', 16)
    >>> BitConfig.parse("w4a16:128").weight_only, BitConfig.parse("w4a16:128").label
    (True, 'w4a16:128')
    >>> BitConfig.parse("fp8").label, BitConfig.parse("nvfp4").label
    ('fp8', 'nvfp4')
    """

    weight: int
    input: int
    floating: Literal["", "fp8", "fp4"] = ""
    block: int = 0

    @classmethod
    def parse(cls, text: str) -> BitConfig:
        """Return the widths of a name.

        The forms are ``4`` (weights and inputs of 4 bits), ``w4a8``, ``w4a16`` (weights alone),
        ``w4a16:128`` (in blocks of 128), ``fp8``, ``nvfp4`` and ``fp16``.

        Raises:
            UsageError: none of these forms.
        """
        named = NAMED.get(text.strip())
        if named is not None:
            return named
        match = FORMS.match(text.strip())
        if match is None:
            raise UsageError(
                f"Cannot read the width {text!r}",
                "expected 2 to 8, a pair like w4a8, w4a16 for weights alone, w4a16:128 for those "
                "in blocks (of 16, 32, 64, 128 or 256), fp8, nvfp4 or fp16",
                "Write it like --bits w4a8",
            )
        weight, given, both, block = match.groups()
        if block is not None:
            return cls(4, 16, block=int(block))
        return cls(int(weight or both), int(given or both))

    @property
    def label(self) -> str:
        """As on the command line."""
        if self.kind != "uniform":
            return LABELS[self.kind]
        block = f":{self.block}" if self.block else ""
        return FP16 if self.weight == 16 else f"w{self.weight}a{self.input}{block}"

    @property
    def kind(self) -> Kind:
        """The kind of its formats."""
        return self.floating or "uniform"

    @property
    def quantized(self) -> bool:
        """Whether the layer has codes at all."""
        return self.weight < 16

    @property
    def weight_only(self) -> bool:
        """Whether only the weight has codes: an engine unpacks it and multiplies in FP16."""
        return self.quantized and self.input == 16

    @property
    def in_blocks(self) -> bool:
        """Whether weights share scales in blocks, which engines have for linear layers alone."""
        return self.block > 0

    @property
    def at_ends(self) -> BitConfig:
        """Format of the first and the last layer where the others have this."""
        if not self.quantized or self.kind == "fp8":
            return self
        return HALF if self.weight_only or self.in_blocks else EIGHT

    @property
    def needs(self) -> str:
        """Ability that a target must have for it, as the catalogue of platforms calls it."""
        if self.in_blocks and self.kind == "uniform":
            return "INT4 weights"
        return FLOATS.get(self.kind, "INT8")

    @property
    def computed_in(self) -> str:
        """The format that a device must multiply in for it."""
        if self.kind != "uniform":
            return FLOATS[self.kind]
        return "INT8" if self.quantized and self.input <= 8 else "FP16"


EIGHT = BitConfig(8, 8)
HALF, FULL = BitConfig(16, 16), BitConfig(32, 32)
NAMED: Mapping[str, BitConfig] = {
    FP16: HALF,
    FP8: BitConfig(8, 8, "fp8"),
    NVFP4: BitConfig(4, 4, "fp4", FP4_BLOCK),
}


def read_options(texts: Sequence[str]) -> list[BitConfig]:
    """Return several widths, narrowest first.

    Args:
        texts: each one or several widths, as in ``2,4,8``; see :meth:`BitConfig.parse`.

    Raises:
        UsageError: one cannot be read, or is given twice.
    """
    options = [BitConfig.parse(t) for text in texts for t in text.split(",")]
    twice = next((o.label for i, o in enumerate(options) if o in options[:i]), None)
    if twice is not None:
        raise UsageError(f"The width {twice} was asked for twice", hint="Name it once")
    return sorted(options)
