"""Operands of several types, sizes below 0, and names that end in numbers, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.graph.axes import Open
from trtq.graph.naming import assign_names_
from trtq.graph.normalize import normalize_
from trtq.graph.tracing import trace


class Behind(nn.Module):
    """A function of what a convolution gives, [N, 4, H, 8]."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


def check(model: nn.Module, height: int, *, opset: int = 17, tolerance: float = 1e-5) -> list[str]:
    """Compare with torch at another height than the graph was captured with; return the notes."""
    notes, other = list[str](), torch.randn(1, 3, height, 8)
    with torch.no_grad():
        opened = Open(({0: "batch", 2: "height"},), {})
        graph = trace(model.eval(), (torch.randn(2, 3, 66, 8),), opened)
        wanted = model(other).numpy()
    normalize_(graph)
    assign_names_(graph)
    session = open_session(export_onnx(graph, opset=opset, note=notes.append))
    got = session.run(None, {"input": other.numpy()})[0]
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    return notes


def up_to_a_multiple(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (0, 0, 0, -(x.shape[2] // -32) * 32 - x.shape[2]))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean((1, 2, 3)) + x.shape[2] // -32,
        lambda x: x.mean((1, 2, 3)) + (3 - x.shape[2]) // 2,
        up_to_a_multiple,  # written by torch, whose own // rounds towards zero
    ],
    ids=["divisor", "dividend", "by torch"],
)
def test_a_size_is_divided_with_rounding_down(function):
    check(Behind(function), 67)
    check(Behind(function), 64)


def test_a_size_that_cannot_be_negative_takes_no_remainder():
    """Mod is read from TensorRT 8.5 on."""
    model = Behind(lambda x: x[:, :, : x.shape[2] // 2])
    check(model, 9)
    with torch.no_grad():
        graph = trace(model.eval(), (torch.randn(2, 3, 66, 8),), Open(({2: "height"},), {}))
    normalize_(graph)
    assign_names_(graph)
    kinds = {n.op_type for n in export_onnx(graph, opset=13).graph.node}
    assert "Div" in kinds
    assert "Mod" not in kinds


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x > 0, x, (x > 1).to(torch.int64)),
        lambda x: torch.cat([x, (x > 1).to(torch.int64)], 1),
        lambda x: torch.stack([x, (x > 1).to(torch.int32)], 1),
        lambda x: torch.clamp((x * 10).to(torch.int64), 0.0, 6.0),
        lambda x: (x * 10).abs().to(torch.uint8) == 300,
        lambda x: F.layer_norm(x.double(), (8,)),
        lambda x: F.pixel_shuffle(x.unsqueeze(1), 2),
    ],
    ids=["where", "cat", "stack", "clamp", "beyond a byte", "float64", "five axes"],
)
@pytest.mark.parametrize("opset", [17, 20])
def test_operands_of_several_types_compute_what_torch_computes(function, opset):
    check(Behind(function), 7, opset=opset)


def test_normalizations_without_weights_have_constants_of_their_operand():
    assert check(Behind(lambda x: F.layer_norm(x.half(), (8,))), 5, tolerance=2e-3) == []
    assert check(Behind(lambda x: F.group_norm(x[:, :, :2].half(), 2)), 5, tolerance=2e-3) == []


class Numbered(nn.Module):
    """A parameter that is called as another one is renamed to, beside an input of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.input, self.input_1 = (nn.Parameter(torch.tensor(v)) for v in (2.0, 3.0))

    def forward(self, x):
        return self.conv(x) * self.input + self.input_1


def test_no_parameter_takes_the_place_of_another():
    check(Numbered(), 4)
