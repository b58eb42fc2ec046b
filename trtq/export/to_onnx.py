"""From a captured graph, simulated or float, to ONNX."""

from __future__ import annotations

import logging
from collections.abc import Callable

import onnx
import torch
from torch import fx

from trtq.errors import ExportError
from trtq.export.lowering import lower
from trtq.export.writer import UnsupportedOpError
from trtq.specs import OPSET

logger = logging.getLogger(__name__)
OLDEST_OF_TORCH = 18


def export_onnx(
    simulated: fx.GraphModule,
    example: torch.Tensor,
    *,
    dynamic_batch: bool,
    opset: int = OPSET,
    int4: bool = False,
    note: Callable[[str], None] = logger.info,
) -> onnx.ModelProto:
    """Return the ONNX model of a captured graph, with Q/DQ pairs where it has fake-quantize calls.

    Weights stay float in front of their Q/DQ pair, per-channel pairs say their axis, biases are float, inputs and outputs are
    called ``input`` and ``output``, node names start with the layer they come from. A graph with an op that trtq does not
    write itself goes through torch's exporter, and ``note`` is told. With ``int4`` weights of 4 bits are stored as INT4.

    Raises:
        ExportError: torch cannot write an op of the model as ONNX either; names the op and the module.
    """
    try:
        return lower(simulated, opset=opset, int4=int4)
    except UnsupportedOpError as exc:
        if opset < OLDEST_OF_TORCH:
            raise ExportError(
                f"Cannot write the model as ONNX of opset {opset}",
                f"trtq does not write {exc}, and torch's exporter starts at opset {OLDEST_OF_TORCH}",
                "Give --opset 20, or write that part with other ops",
            ) from exc
        from trtq.export.torch_exporter import export_with_torch

        note(f"exported by torch.onnx, since trtq does not write {exc}")
        return export_with_torch(simulated, example, opset=opset, dynamic_batch=dynamic_batch)
