"""Inputs and outputs of an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch

from trtq.onnx_walk import axis_name
from trtq.reader.values import HALVES, TORCH_TYPES


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the file.

    Attributes:
        name: as in the file.
        dtype: as in the file.
        shape: sizes; an open one is a text, "" where it has no name.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


def port_of(value: onnx.ValueInfoProto) -> Port:
    """Return an input or output of a file.

    Args:
        value: a tensor of a type that torch has.
    """
    info = value.type.tensor_type
    code = info.elem_type
    dims = [d.dim_value if d.dim_value > 0 else axis_name(d) for d in info.shape.dim]
    dtype = HALVES[code] if code in HALVES else TORCH_TYPES[code]
    return Port(value.name, dtype, tuple(dims))
