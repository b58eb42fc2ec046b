"""ONNX Runtime computes a Q/DQ file as it is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import trtq
from tests.support.onnx_files import model_of, random_weight
from trtq.export.ort import open_session

SCALE = np.float32(0.5)


class Pooled(nn.Module):
    """An answer that a head reads across its rows, as the pooling heads of SigLIP and CLIP do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = self.norm(x)
        return {"seen": seen, "pooled": self.mix(seen.transpose(1, 2))}


def test_an_output_in_front_of_a_transposed_pair_is_not_quantized():
    """Moved behind the pair, the Transpose would leave the output with the pair's values."""
    nodes = [
        helper.make_node("Relu", ["x"], ["seen"]),
        helper.make_node("Transpose", ["seen"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("QuantizeLinear", ["turned", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("MatMul", ["dq", "w"], ["pooled"]),
    ]
    weight = random_weight(6, 3)
    model = model_of(
        nodes,
        [("x", TensorProto.FLOAT, [2, 6, 8])],
        [("seen", TensorProto.FLOAT, [2, 6, 8]), ("pooled", TensorProto.FLOAT, [2, 8, 3])],
        {"w": weight, "scale": SCALE, "zero": np.zeros((), np.int8)},
    )
    x = np.random.default_rng(1).standard_normal((2, 6, 8)).astype(np.float32)
    seen, pooled = open_session(model).run(None, {"x": x})
    relu = np.maximum(x, 0)
    np.testing.assert_array_equal(seen, relu)
    codes = np.clip(np.rint(relu.transpose(0, 2, 1) / SCALE), -128, 127)
    np.testing.assert_allclose(pooled, (codes * SCALE) @ weight, rtol=1e-5, atol=1e-6)


def test_zeros_in_front_of_a_max_pool_stay_zeros():
    """Fused into the pool they would be a border of minus infinity (YOLOv3-tiny)."""
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["wide"]),
        helper.make_node("MaxPool", ["wide"], ["y"], kernel_shape=[2, 2]),
    ]
    model = model_of(
        nodes,
        [("x", TensorProto.FLOAT, [1, 1, 2, 2])],
        [("y", TensorProto.FLOAT, [1, 1, 2, 2])],
        {"pads": np.array([0, 0, 0, 0, 0, 0, 1, 1])},
    )
    (y,) = open_session(model).run(None, {"x": np.full((1, 1, 2, 2), -1, np.float32)})
    np.testing.assert_array_equal(y[0, 0], [[-1, 0], [0, 0]])


def test_a_head_that_reads_an_output_across_passes_the_gate(tmp_path):
    torch.manual_seed(0)
    model = trtq.load(Pooled().eval(), example={"x": torch.randn(2, 6, 8)})
    options = {"calib_images": 8, "preset_quant": "none", "calib_cache": str(tmp_path)}
    quantized = trtq.quantize(model, "random:8", calibrator="max", **options)
    seen, pooled = quantized.done.parity.answers
    assert (seen.name, seen.sqnr_db) == ("seen", None)  # no layer in front of it is quantized
    assert pooled.sqnr_db == pytest.approx(44, abs=6)
