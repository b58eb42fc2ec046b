"""The ONNX file for one generation of TensorRT.

The graph and the scales are the same for each; the form is the one that the release reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from trtq.onnx_node import integer
from trtq.onnx_walk import QDQ
from trtq.quant.encodings import Encodings

Numbers = npt.NDArray[Any]


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

    Args:
        model: whose Q/DQ nodes name their quantizer in their metadata, as trtq writes them.
        encodings: of the same quantizers.

    Returns:
        How many quantizers of the file are among the encodings, and the largest distance of their
        scales in units in the last place of float32: 0 where all are equal bit by bit.
    """
    initializers = {i.name: i for i in model.graph.initializer}
    pairs = {n.output[0]: n for n in model.graph.node if n.op_type in QDQ}
    of_scales = {n.input[1] for n in pairs.values()}  # the pairs that make the scales of NVFP4
    compared, furthest = 0, 0
    for node in pairs.values():
        name = next((p.value for p in node.metadata_props if p.key == "quantizer"), None)
        theirs = None if node.output[0] in of_scales else _scale(node, initializers, pairs)
        if name not in encodings.amax or theirs is None:
            continue
        compared += node.op_type == "DequantizeLinear"
        in_rows = integer(node, "block_size", 0) and integer(node, "axis", 1) == 0
        theirs = theirs.T if in_rows else theirs  # a linear's weight is stored transposed
        furthest = max(furthest, _apart(encodings.scale(name).numpy(), theirs))
    return compared, furthest


def _scale(
    node: onnx.NodeProto,
    initializers: Mapping[str, onnx.TensorProto],
    pairs: Mapping[str, onnx.NodeProto],
) -> Numbers | None:
    """Return the scale of a pair, None where it is computed.

    That of NVFP4 is made of stored numbers and their unit, or of the unit alone where it follows
    the activation.
    """
    name = node.input[1]
    if name in initializers:
        return _numbers(initializers[name])
    maker = pairs.get(name)
    if maker is None or maker.input[1] not in initializers:
        return None
    unit, stored = _numbers(initializers[maker.input[1]]), initializers.get(maker.input[0])
    return unit if stored is None else _numbers(stored) * unit


def _numbers(tensor: onnx.TensorProto) -> Numbers:
    return numpy_helper.to_array(tensor).astype(np.float32)


def _apart(ours: Numbers, theirs: Numbers) -> int:
    """Return the largest distance in units in the last place."""
    a, b = (np.ascontiguousarray(v, np.float32).reshape(-1).view(np.int32) for v in (ours, theirs))
    return int(np.abs(a.astype(np.int64) - b.astype(np.int64)).max())
