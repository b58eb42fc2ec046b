"""Types of tensors: torch's and ONNX's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from onnx import TensorProto

ONNX_TYPES: Mapping[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.float64: TensorProto.DOUBLE,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int16: TensorProto.INT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}
TORCH_TYPES: Mapping[int, torch.dtype] = {code: dtype for dtype, code in ONNX_TYPES.items()}
