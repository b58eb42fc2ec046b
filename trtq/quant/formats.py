"""Number formats as values."""

from __future__ import annotations

from typing import Literal

import msgspec

from trtq.errors import UsageError


class Format(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a tensor's values are written as codes.

    Attributes:
        bits: 2 to 8.
        signed: codes are two's complement.
        symmetric: the zero point is 0.
        axis: the axis that keeps a scale of its own per index, None for one scale per tensor.
        kind: the spacing of the codes.

    >>> Format(bits=8).qmin, Format(bits=8).qmax, Format(bits=4, axis=0).granularity
    (-128, 127, 'per-channel')
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    axis: int | None = None
    kind: Literal["uniform"] = "uniform"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"Cannot use a format of {self.bits} bits", "trtq's integer formats have 2 to 8 bits")

    @property
    def qmin(self) -> int:
        """Lowest code (S1 eq. 4: -2^(b-1))."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest code (S1 eq. 4: 2^(b-1) - 1)."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def granularity(self) -> str:
        """``per-tensor`` or ``per-channel``."""
        return "per-tensor" if self.axis is None else "per-channel"

    @property
    def label(self) -> str:
        """Short name for tables, such as ``int8`` or ``int8/channel``."""
        return f"{'int' if self.signed else 'uint'}{self.bits}" + ("" if self.axis is None else "/channel")


INT8 = Format()
INT8_CHANNEL = Format(axis=0)
