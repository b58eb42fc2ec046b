"""Every form the table of ops writes, against torch.

The files run in the real ONNX Runtime, at an old and at a new opset.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trtq.export.lowering import lower
from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.export.writer import UnsupportedOpError
from trtq.graph.axes import Open
from trtq.graph.capture import capture
from trtq.graph.functional import make_functional_
from trtq.graph.naming import assign_names_
from trtq.graph.normalize import normalize_
from trtq.graph.tracing import trace

RELATIVE = torch.arange(9).reshape(3, 3)


class Call(nn.Module):
    """A function as a model, behind a 1x1 convolution so that there is always a weight."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 8, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


def graph_of(model, example, *, dynamic=True):
    opened = Open(({0: "batch"} if dynamic else {},), {})
    graph = trace(model.eval(), (example,), opened)
    normalize_(graph)
    assign_names_(graph)
    return graph


def same_in_onnxruntime(model, x, opset, *, names=()):
    example = torch.randn(2, *x.shape[1:])
    file = lower(graph_of(model, example), opset=opset)
    onnx.checker.check_model(file, full_check=True)
    assert file.opset_import[0].version == opset
    assert set(names) <= {n.op_type for n in file.graph.node}
    with torch.no_grad():
        expected = model(x).numpy()
    got = open_session(file).run(["output"], {"input": x.numpy()})[0]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


# name, function of [N, 8, 6, 6]
CASES = {
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "softplus": F.softplus,
    "glu": lambda x: F.glu(x, 1),
    "sigmoid": torch.sigmoid,
    "square": torch.square,
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "clamp": lambda x: x.clamp(-0.5, 0.25),
    "clamp_min": lambda x: x.clamp_min(0.1),
    "clamp_max": lambda x: x.clamp_max(0.1),
    "rsub": lambda x: 1 - x,
    "alpha": lambda x: torch.add(x, x, alpha=3),
    "scalar": lambda x: (x * 2 + 1) / 3 - 0.5,
    "power": lambda x: x.abs() ** 1.5,
    "power_of": lambda x: 2.0**x,
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "where": lambda x: torch.where(x > 0, x, -x),
    "where_scalar": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x < 0, -1.0),
    "maximum": lambda x: torch.maximum(x, -x),
    "compare": lambda x: (x >= 0).to(torch.float32) + (x.abs() <= 0.5).float(),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 4)),
    "reshape_as": lambda x: x.flatten(2).reshape_as(x),
    "batch_heads": lambda x: (
        x.reshape(x.shape[0] * 2, 4, 36).softmax(-1).reshape(x.shape[0], 8, 6, 6)
    ),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, -1),
    "roll": lambda x: torch.roll(x, (2, -1), (2, 3)),
    "flip": lambda x: x.flip(2),
    "slice": lambda x: x[:, 1:-1, ::2, 3:],
    "select": lambda x: x[:, -1],
    "chunk": lambda x: sum(x.chunk(3, 1)[:2]),
    "chunk of the batch": lambda x: torch.sub(*torch.cat([x, x * 2]).chunk(2)),
    "split": lambda x: x.split([3, 5], 1)[1],
    "unbind": lambda x: x.reshape(-1, 2, 4, 36).unbind(1)[1],
    "stack": lambda x: torch.stack([x, -x], 2),
    "cat": lambda x: torch.cat([x, x], -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    "token": lambda x: torch.cat([torch.ones(1, 1, 6, 6).expand(x.shape[0], -1, -1, -1), x], 1),
    "index": lambda x: x[:, :, torch.tensor([0, 2, 2])],
    "table": lambda x: torch.arange(9.0)[RELATIVE].sum() + x,
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad_value": lambda x: F.pad(x, (1, 0), value=2.0),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "mean": lambda x: x.mean((2, 3)),
    "mean_all": lambda x: x.mean(-1, keepdim=True),
    "sum": lambda x: x.sum(1),
    "amax": lambda x: x.amax((2, 3)),
    "norm": lambda x: F.normalize(x, dim=1),
    "var": lambda x: x.var((2, 3)),
    "std_free": lambda x: x.var(1, correction=0),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "einsum": lambda x: torch.einsum("bchw,bcwk->bchk", x, x),
    "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "group_norm": lambda x: F.group_norm(x, 4, torch.arange(8.0), torch.ones(8)),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "avg_pool_pad": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool_own": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_3": lambda x: F.adaptive_avg_pool2d(x, 3),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(9, 12), mode="bilinear"),
    "aligned": lambda x: F.interpolate(x, size=(9, 12), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "shuffle": lambda x: F.pixel_shuffle(x, 2),
    "identity": lambda x: x,
    "doubled_answer": lambda x: (y := x.relu(), y + y)[0],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("opset", [13, 20])
def test_an_op_computes_what_torch_computes(name, opset):
    same_in_onnxruntime(Call(CASES[name]), torch.randn(3, 4, 6, 6), opset)


MODULES = {
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5)), {"MatMul", "Add"}),
    "conv_transpose": (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), {"ConvTranspose"}),
    "grouped": (nn.Conv2d(4, 8, 3, 2, (0, 1), dilation=2, groups=2), {"Conv"}),
    "same": (nn.Conv2d(4, 3, 4, padding="same"), {"Conv"}),
    "valid": (nn.Conv2d(4, 3, 3, padding="valid"), {"Conv"}),
    "prelu": (nn.PReLU(4, 0.3), {"PRelu"}),
    "layer_norm": (nn.LayerNorm((4, 6, 6)), {"LayerNormalization"}),
    "lone_batch_norm": (nn.BatchNorm2d(4), {"Mul", "Add"}),
    "attention": (
        nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(36, 4, 64, batch_first=True)),
        {"Softmax"},
    ),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("opset", [13, 20])
def test_a_module_computes_what_torch_computes(name, opset):
    model, kinds = MODULES[name]
    kinds = kinds if opset >= 17 else kinds - {"LayerNormalization"}
    same_in_onnxruntime(model.eval(), torch.randn(3, 4, 6, 6), opset, names=kinds)


def test_a_class_token_expanded_like_another_tensor():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.conv = nn.Conv2d(4, 8, 1)

        def forward(self, x):
            y = self.conv(x).flatten(2).transpose(1, 2)
            return torch.cat([self.token.expand_as(y[:, :1]), y], 1)

    model = Token().eval()
    captured = capture(model, (4, 6, 6))
    assert captured.dynamic_batch
    same_in_onnxruntime(model, torch.randn(3, 4, 6, 6), 20)


def test_a_weight_that_is_read_otherwise_too_keeps_its_layout():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Linear(6, 6, bias=False)

        def forward(self, x):
            return self.w(x) + torch.einsum("bchw,wk->bchk", x, self.w.weight)

    same_in_onnxruntime(Tied(), torch.randn(2, 4, 6, 6), 20)


def test_parameters_called_input_and_output():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.output = (
                nn.Parameter(torch.randn(1, 4, 1, 1)),
                nn.Parameter(torch.randn(1, 4, 1, 1)),
            )

        def forward(self, x):
            return x * self.input + self.output

    same_in_onnxruntime(Named(), torch.randn(2, 4, 6, 6), 20)


def test_a_zero_pad_becomes_the_convolutions_own():
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(4, 3, 3, padding=1))
    same_in_onnxruntime(model, torch.randn(2, 4, 6, 6), 20)
    (node,) = lower(graph_of(model, torch.randn(2, 4, 6, 6)), opset=20).graph.node
    assert next(list(a.ints) for a in node.attribute if a.name == "pads") == [3, 1, 4, 2]


def test_nodes_carry_layers_and_modules():
    file = lower(
        graph_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(2, 3, 8, 8)), opset=20
    )
    assert [n.name for n in file.graph.node] == ["0/Conv", "1.relu/Relu"]
    assert [{p.key: p.value for p in n.metadata_props} for n in file.graph.node] == [
        {"module": "0"},
        {"module": "1"},
    ]
    assert [i.name for i in file.graph.initializer] == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: torch.fft.rfft(x).abs(), "aten.fft_rfft.default at fft_rfft"),
        (
            lambda x: F.avg_pool2d(x, 2, 3, 1, ceil_mode=True),
            "a mean over windows with a divisor of their own",
        ),
        (
            lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
            "the places that a pool took its values from",
        ),
        (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), "division with rounding"),
        (lambda x: x[:, torch.tensor([0, 1]), torch.tensor([1, 0])], "several tensors"),
        (lambda x: F.softplus(x, beta=2), "softplus with beta"),
        (lambda x: (x.to(torch.int64) < 0.5).float(), "0.5 beside integers"),
        (lambda x: x.sum(1, dtype=torch.float64), "a result of another type"),
    ],
)
def test_what_the_table_does_not_write_says_so(function, reason):
    with pytest.raises(UnsupportedOpError, match=reason):
        lower(graph_of(Call(function), torch.randn(2, 4, 6, 6)), opset=20)


def test_what_the_table_does_not_write_goes_through_torch_and_says_so():
    model, notes = Call(lambda x: torch.atan2(x, x + 1)).eval(), []
    captured = capture(model, (4, 6, 6))
    file = export_onnx(captured.module, note=notes.append)
    assert notes == [
        "written by torch.onnx, since trtq does not write them: aten.atan2.default at atan2"
    ]
    x = torch.randn(5, 4, 6, 6)
    with torch.no_grad():
        np.testing.assert_allclose(
            open_session(file).run(None, {"input": x.numpy()})[0],
            model(x).numpy(),
            rtol=1e-4,
            atol=1e-5,
        )


# ---- in-place calls ----------------------------------------------------------------------------


def in_place_then_read(x):
    y = x + 1
    y.relu_()
    return y * 2


def chain(x):
    return F.relu(x.add_(1.0), inplace=True).mul_(2)


def view_changed_base_dead(x):
    y = (x * 2).reshape(x.shape[0], -1)
    y.relu_()
    return y + 1


@pytest.mark.parametrize("function", [in_place_then_read, chain, view_changed_base_dead])
def test_safe_in_place_calls_become_functional_without_tracing_again(function):
    model = Call(function)
    graph = torch.export.export(model, (torch.randn(2, 4, 6, 6),), strict=False).module(
        check_guards=False
    )
    assert make_functional_(graph)
    assert not [n for n in graph.graph.nodes if str(n.target).split(".")[-2:][0].endswith("_")]
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(graph(x), model(x))


def view_read_after(x):
    y = x + 1
    part = y[:, :2]
    y.relu_()
    return part.sum((1, 2, 3))


def base_read_after(x):
    y = x + 1
    y[:, :2].zero_()
    return y


def no_grad_region(x):
    with torch.no_grad():
        y = x * 2
    return y + 1


@pytest.mark.parametrize("function", [view_read_after, base_read_after])
def test_a_view_that_is_read_later_falls_back_to_torch(function):
    model = Call(function).eval()
    graph = torch.export.export(model, (torch.randn(2, 4, 6, 6),), strict=False).module(
        check_guards=False
    )
    assert not make_functional_(graph)
    captured = capture(model, (4, 6, 6))
    x = torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        assert torch.allclose(captured.module(x), model(x), atol=1e-6)


def test_a_nested_graph_falls_back_to_torch():
    model = Call(no_grad_region).eval()
    x = torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        assert torch.allclose(capture(model, (4, 6, 6)).module(x), model(x), atol=1e-6)
