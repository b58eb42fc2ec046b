"""Values on the edges of an ONNX graph while torch runs it: tensors, or numbers that are known.

Sizes remain numbers (:class:`torch.SymInt` while torch.export traces), so that an open axis
survives a chain such as Shape, Gather, Concat, Reshape. Small constants are both: a buffer and
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto

from trtq.graph import dtypes

Array = npt.NDArray[Any]
LARGEST_HOST = 4096  # values that are kept as numbers beside the buffer
# FP16 and BF16 files are computed in float32, as every model is calibrated.
TORCH_TYPES: dict[int, torch.dtype] = {
    **dtypes.TORCH_TYPES,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
}
HALVES: dict[int, torch.dtype] = {
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}


class UnreadError(Exception):
    """A node has a form that no row of the table reads."""


def shortest(number: float) -> float:
    """Return a float32 number as the shortest decimal that rounds to it.

    A size times this decimal has the floor that ONNX gets in float32: 10 x 0.7 is 7 there, and 6.99
    where 0.7 is the float32 number in float64.

    >>> shortest(0.699999988079071)
    0.7
    """
    return float(str(np.float32(number)))


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor, numbers, or both for a small constant.

    Attributes:
        tensor: None for sizes.
        host: numbers by position, dtype object where one of them is symbolic; None for a tensor
            that is computed.
        dtype: of the numbers as a tensor.
    """

    tensor: torch.Tensor | None
    host: Array | None
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Value:
        """Return a computed tensor as a value."""
        return cls(tensor, None, tensor.dtype)

    @classmethod
    def numbers(cls, host: Any, dtype: torch.dtype = torch.int64) -> Value:
        """Return sizes or what is computed from sizes as a value.

        Args:
            host: a number, or nested lists or an array of them; symbolic ones may be among them.
            dtype: of the numbers as a tensor.
        """
        return cls(None, np.asarray(host, dtype=object), dtype)

    @property
    def shape(self) -> list[Any]:
        """The sizes of each axis."""
        if self.tensor is not None:
            return list(self.tensor.shape)
        assert self.host is not None
        return list(self.host.shape)

    def as_tensor(self, like: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tensor, made of the numbers where there is none.

        Args:
            like: a tensor on the device that the result is needed on.
        """
        if self.tensor is not None:
            return self.tensor
        assert self.host is not None
        flat = self.host.reshape(-1).tolist()
        device = like.device if like is not None else None
        if all(isinstance(v, (int, float, bool)) for v in flat):
            return torch.tensor(flat, dtype=self.dtype, device=device).reshape(self.host.shape)
        rows = [torch.scalar_tensor(v, dtype=self.dtype, device=device) for v in flat]
        return torch.stack(rows).reshape(self.host.shape)

    def known(self) -> Array:
        """Return the numbers; those of a float32 constant as :func:`shortest` decimals.

        Raises:
            UnreadError: they are computed from data.
        """
        if self.host is None:
            raise UnreadError("an operand that must be known is computed from data")
        if self.host.dtype != np.float32:
            return self.host
        flat = [shortest(v) for v in self.host.reshape(-1).tolist()]
        return np.asarray(flat, np.float64).reshape(self.host.shape)

    def ints(self) -> list[Any]:
        """Return the numbers as a flat list of plain or symbolic integers.

        Raises:
            UnreadError: they are computed from data.
        """
        return [int(v) if isinstance(v, (int, np.integer)) else v for v in self._flat()]

    def floats(self) -> list[float]:
        """Return the numbers as a flat list of floats.

        Raises:
            UnreadError: they are computed from data.
        """
        return [float(v) for v in self._flat()]

    def number(self) -> Any:
        """Return the only number.

        Raises:
            UnreadError: there are several, or it is computed from data.
        """
        flat = self._flat()
        if len(flat) != 1:
            raise UnreadError(f"{len(flat)} numbers where one is expected")
        return flat[0]

    def _flat(self) -> list[Any]:
        flat: list[Any] = self.known().reshape(-1).tolist()
        return flat
