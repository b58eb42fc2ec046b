"""From a captured graph, simulated or float, to ONNX."""

from __future__ import annotations

import logging
from collections.abc import Callable

import onnx
from torch import fx

from trtq.export.borrowed import Borrower
from trtq.export.lowering import lower, lower_into
from trtq.specs import OPSET

logger = logging.getLogger(__name__)


def export_onnx(
    simulated: fx.GraphModule,
    *,
    opset: int = OPSET,
    int4: bool = False,
    note: Callable[[str], None] = logger.info,
) -> onnx.ModelProto:
    """Return the ONNX model of a captured graph, with Q/DQ pairs where it has fake-quantize calls.

    Weights stay float in front of their Q/DQ pair, per-channel pairs say their axis, biases are float, inputs and outputs are
    called ``input`` and ``output``, node names start with the layer they come from. Single ops that trtq does not write itself
    go through torch's exporter, and ``note`` is told. With ``int4`` weights of 4 bits are stored as INT4.

    Raises:
        ExportError: torch cannot write an op of the model as ONNX either, or this opset cannot; names the op and the cause.
    """
    borrower = Borrower(simulated, lower_into)
    model = lower(simulated, opset=opset, int4=int4, borrower=borrower)
    if borrower.borrowed:
        note(f"written by torch.onnx, since trtq does not write them: {'; '.join(dict.fromkeys(borrower.borrowed))}")
    return model
