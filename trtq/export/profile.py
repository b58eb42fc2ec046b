"""The ONNX file for one generation of TensorRT.

The graph and the scales are the same for each; the form is the one that the release reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from trtq.onnx_walk import QDQ
from trtq.quant.encodings import Encodings


@dataclass(frozen=True, slots=True)
class Profile:
    """How a file is written.

    Attributes:
        opset: of the ONNX.
        quantized: with Q/DQ pairs.
        half: the graph has FP16 types.
        int4: weights of 4 bits as INT4.
    """

    opset: int
    quantized: bool
    half: bool
    int4: bool


def furthest_scale(model: onnx.ModelProto, encodings: Encodings) -> tuple[int, int]:
    """Compare the scales of a file with the encodings.

    Returns how many quantizers of the file are among the encodings, and the largest distance of
    their scales in units in the last place.
    """
    constants = {i.name: i for i in model.graph.initializer}
    compared, furthest = 0, 0
    for node in model.graph.node:
        name = next((p.value for p in node.metadata_props if p.key == "quantizer"), None)
        if node.op_type not in QDQ or name not in encodings.amax or node.input[1] not in constants:
            continue
        ours = (
            encodings.scale(name)
            .to(torch.float32)
            .numpy()
            .reshape(-1)
            .view(np.int32)
            .astype(np.int64)
        )
        held = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32).reshape(-1)
        compared += node.op_type == "DequantizeLinear"
        furthest = max(furthest, int(np.abs(held.view(np.int32).astype(np.int64) - ours).max()))
    return compared, furthest
