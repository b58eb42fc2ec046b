"""Ops beside a quantized convolution: written and equal to torch, or refused before calibration."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from tests.conftest import spec
from trtq import quantize
from trtq.errors import ExportError
from trtq.export.borrowed import region_of
from trtq.export.ort import open_session
from trtq.export.parity import check_parity, judge, require_same_float
from trtq.export.to_onnx import export_onnx
from trtq.graph.capture import capture
from trtq.quant.calibrate import make_encodings, summarize
from trtq.quant.observe import observe
from trtq.quant.placement import place
from trtq.quant.simulate import insert_fake_quantize


class Beside(nn.Module):
    """A convolution, an op on its [N, 8, 16, 16] result."""

    def __init__(self, op) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.op = op

    def forward(self, x):
        return self.op(self.conv(x))


class Recurrent(nn.Module):
    def __init__(self, kind, **more) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = getattr(nn, kind)(8, 6, batch_first=True, **more)

    def forward(self, x):
        return self.net(x.flatten(2).transpose(1, 2)[:, :12])[0]


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.offset = nn.Conv2d(8, 18, 3, 1, 1)
        self.conv = torchvision.ops.DeformConv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x, self.offset(x) * 0.1)


def sampled(x):
    theta = torch.eye(2, 3).unsqueeze(0).expand(x.shape[0], 2, 3) * 0.9
    grid = F.affine_grid(theta, [x.shape[0], 8, 16, 16], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def rotary(x):
    tokens = x.flatten(2).transpose(1, 2)
    pairs = torch.view_as_complex(tokens.reshape(tokens.shape[0], 256, 4, 2).contiguous())
    angles = torch.arange(256.0)[:, None] * torch.arange(1.0, 5.0)[None] * 0.1
    return torch.view_as_real(pairs * torch.polar(torch.ones(256, 4), angles)).flatten(2)


class Rotations(nn.Module):
    """Two layers that share one computed complex factor, with a linear between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)[:, :16]
        angles = tokens.mean((0, 2))[:, None] * torch.arange(1.0, 5.0)[None]
        factor = torch.polar(torch.ones_like(angles), angles)

        def turned(t):
            pairs = torch.view_as_complex(t.reshape(t.shape[0], 16, 4, 2).contiguous())
            return torch.view_as_real(pairs * factor).flatten(2)

        return turned(self.linear(turned(tokens)))


def suppressed(x):
    points = x.flatten(2)[0].t()
    boxes = torch.cat([points[:, :2], points[:, :2] + points[:, 2:4].abs() + 0.1], 1)
    return boxes[torchvision.ops.nms(boxes, points[:, 4].sigmoid(), 0.5)]


def mesh(x):
    h, w = torch.meshgrid(torch.arange(16.0), torch.arange(x.shape[-1]) * 1.0, indexing="ij")
    return x + h * 0.1 + w


def assigned(x):
    y = x.clone()
    y[:, 0] = 0
    return y


# Which opset each needs at least; the table is written at 20 as well.
OPS = {
    "grid_sample": (sampled, 16),
    "topk": (lambda x: x.flatten(1).topk(5)[0], 13),
    "topk indices": (lambda x: x.flatten(1).topk(5)[1], 13),
    "argmax": (lambda x: x.argmax(1), 13),
    "argmin of all": (lambda x: x.reshape(-1).argmin() + x[:, 0, 0, 0], 13),
    "argsort": (lambda x: x.flatten(1)[:, :20].argsort(1), 13),
    "sort": (lambda x: x.flatten(1)[:, :20].sort(1, descending=True)[0], 13),
    "max": (lambda x: x.max(1)[0], 13),
    "instance_norm": (nn.InstanceNorm2d(8, affine=True), 13),
    "std": (lambda x: x.std((2, 3)), 13),
    "std_mean": (lambda x: torch.std_mean(x, (2, 3))[0], 13),
    "lstm": (Recurrent("LSTM"), 13),
    "bidirectional lstm": (Recurrent("LSTM", bidirectional=True, num_layers=2), 13),
    "lstm without biases": (Recurrent("LSTM", bias=False), 13),
    "gru": (Recurrent("GRU", bidirectional=True), 13),
    "rnn": (Recurrent("RNN", nonlinearity="relu"), 13),
    "nms": (suppressed, 18),
    "circular pad": (lambda x: F.pad(x, (2, 1, 0, 1), mode="circular"), 13),
    "rotary": (rotary, 13),
    "antialiased resize": (
        lambda x: F.interpolate(x, size=(8, 8), mode="bilinear", antialias=True),
        18,
    ),
    "uneven adaptive max": (lambda x: F.adaptive_max_pool2d(x, 5), 13),
    "even adaptive max": (lambda x: F.adaptive_max_pool2d(x, 4), 13),
    "uneven adaptive mean": (lambda x: F.adaptive_avg_pool2d(x, 5), 13),
    "meshgrid": (mesh, 13),
    "zeros": (lambda x: torch.cat([x, torch.zeros(x.shape[0], 1, 16, 16)], 1), 13),
    "ones_like": (lambda x: x * torch.ones_like(x) * 2, 13),
    "full": (lambda x: x + torch.full((x.shape[0], 1, 1, 1), 0.5), 13),
    "new_zeros": (lambda x: torch.cat([x, x.new_zeros(x.shape[0], 2, 16, 16)], 1), 13),
    "other types": (lambda x: x + torch.arange(16), 13),
    "cumsum": (lambda x: x.cumsum(1), 13),
    "unfold": (lambda x: F.unfold(x, 3, padding=1), 18),
    "fold": (lambda x: F.fold(x.reshape(x.shape[0], 32, 64), (16, 16), 2, stride=2), 18),
    "deform_conv": (Deformed(), 19),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 13),
    "floor_divide": (lambda x: x // 0.3, 13),
    "division towards 0": (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), 13),
    "remainder": (lambda x: x % 0.7, 13),
    "nearest-exact": (lambda x: F.interpolate(x, size=(24, 24), mode="nearest-exact"), 13),
    "scale factor": (lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), 13),
    "trilinear": (
        lambda x: F.interpolate(x.unflatten(1, (2, 4)), scale_factor=2.0, mode="trilinear"),
        13,
    ),
    "rms_norm": (nn.Sequential(nn.Flatten(2), nn.RMSNorm(256)), 13),
    "ne": (lambda x: (x != 0).float() + x, 13),
    "logsumexp": (lambda x: x.logsumexp(1), 13),
    "tile": (lambda x: x.tile(1, 2, 1, 1), 13),
    "prod": (lambda x: x.prod(1), 13),
    "any": (lambda x: (x > 0).any(1).float(), 13),
    "bits": (lambda x: ((x > 0) & (x < 1) | (x > 2) ^ (x < 3)).float() + x, 13),
    "scatter": (lambda x: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0), 18),
    "one_hot": (lambda x: F.one_hot(x.argmax(1), 8).float(), 13),
    "several indices": (lambda x: x[:, torch.tensor([0, 1]), torch.tensor([1, 0])], 13),
    "unpooling": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), 18),
    "pool over the edge": (lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True), 13),
    "pool with a divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), 13),
    "roi_align": (
        lambda x: torchvision.ops.roi_align(x, torch.tensor([[0.0, 1.0, 1.0, 8.0, 8.0]]), 4),
        18,
    ),
    "assignment": (assigned, 13),
    "spectrum": (lambda x: torch.fft.rfft2(x).abs(), 18),
    "stable sort": (lambda x: x.flatten(1)[:, :20].sort(dim=1, stable=True)[0], 13),
    "division of integers": (lambda x: ((x * 10).int() // -3).float(), 13),
    "product of truths": (lambda x: ((x > 0) * (x < 1)).float() + x, 13),
    "a truth of floats": (lambda x: torch.logical_and(x, x - 1).float() + x, 13),
    "root of integers": (lambda x: (x * 10).int().abs().sqrt(), 13),
    "pool without a batch": (lambda x: F.max_pool2d(x.mean(0), 2), 18),
    "places of truths": (lambda x: (x.flatten()[:20] > 0).nonzero().float(), 18),
    "two rotations": (Rotations(), 13),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), 13),
    "double": (lambda x: (x.double() * 2).float(), 13),
}


def signal_to_error(wanted, got) -> float:
    assert (wanted.shape, wanted.dtype) == (got.shape, got.dtype)
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    error = np.linalg.norm(wanted - got)
    return np.inf if error == 0 else 20 * np.log10(np.linalg.norm(wanted) / error)


@pytest.mark.parametrize("name", OPS)
def test_an_op_beside_a_quantized_convolution_is_written_and_equal(name):
    op, oldest = OPS[name]
    model = Beside(op).eval()
    captured = capture(model, (3, 32, 32))
    x = torch.randn(
        3 if captured.dynamic_batch else 1, 3, 32, 32, generator=torch.Generator().manual_seed(1)
    )
    placement = place(captured.module)
    seen = observe(captured.module, placement, [x], mode="max")
    stats = {
        q.stats_key: summarize(seen[q.source.name], "max", 99.99, 8)
        for q in placement.quantizers
        if not q.is_weight
    }
    encodings = make_encodings(captured.module, placement, stats, {})
    simulated = insert_fake_quantize(captured.module, placement, encodings)
    with torch.no_grad():
        wanted = model(x).numpy()
    notes: list[str] = []
    for opset in {oldest, 20}:
        file = export_onnx(captured.module, opset=opset, note=notes.append)
        onnx.checker.check_model(file, full_check=True)
        assert {o.version for o in file.opset_import} == {opset}
        got = open_session(file).run(None, {"input": x.numpy()})[0]
        assert signal_to_error(wanted, got) > 100.0
    file = export_onnx(simulated, opset=oldest, note=notes.append)
    onnx.checker.check_model(file, full_check=True)
    pairs = [n for n in file.graph.node if n.op_type == "QuantizeLinear"]
    assert len(pairs) >= 2
    parity, _ = check_parity(captured.module, simulated, file, [x])
    assert parity.passed, parity.reason
    assert all("torch.onnx" in n for n in notes)


def test_what_torch_writes_is_said_with_the_layer():
    notes: list[str] = []
    export_onnx(capture(Beside(lambda x: x.trunc()).eval(), (3, 32, 32)).module, note=notes.append)
    assert notes == [
        "written by torch.onnx, since trtq does not write them: aten.trunc.default at trunc"
    ]


def test_a_region_holds_the_complex_numbers_behind_it():
    captured = capture(Beside(rotary).eval(), (3, 32, 32))
    start = next(
        n for n in captured.module.graph.nodes if n.target is torch.ops.aten.view_as_real.default
    )
    region = region_of(start)
    assert {i.meta["val"].dtype for i in (*region.inputs, *region.outputs)} == {torch.float32}
    assert torch.ops.aten.complex.default in {n.target for n in region.nodes}


class Selector(nn.Module):
    """Boxes in the order of their scores, many of them nearly equal, as detectors give them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, 1, 1), nn.ReLU()) for i in range(6))
        )
        self.score, self.box = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1)
        nn.init.normal_(self.box.weight, std=30.0)

    def forward(self, x):
        y = self.body(x)
        scores, boxes = self.score(y).flatten(1), self.box(y).flatten(2)
        best = scores.topk(300, dim=1)[1]
        return boxes.gather(2, best[:, None].expand(-1, 4, -1)).transpose(1, 2)


def test_a_selection_in_another_order_is_not_another_model():
    captured = capture(Selector().eval(), (3, 64, 64))
    file = export_onnx(captured.module)
    batch = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    require_same_float(captured.module, file, batch)
    for initializer in file.graph.initializer:
        if initializer.name == "box.weight":
            initializer.CopyFrom(
                onnx.numpy_helper.from_array(
                    -onnx.numpy_helper.to_array(initializer), initializer.name
                )
            )
    with pytest.raises(
        ExportError,
        match="The float ONNX file does not compute what the model computes: outputs differ by",
    ):
        require_same_float(captured.module, file, batch)


def test_integers_and_numbers_are_judged_beyond_the_forced_images():
    rng = np.random.default_rng(0)
    whole, numbers = rng.integers(0, 10, 256), rng.normal(size=(256, 7)).astype(np.float32)
    assert judge(whole, whole, whole, None).passed
    wrong = judge(whole, whole, (whole + 1) % 10, None)
    assert (wrong.passed, wrong.reason) == (
        False,
        "only 0.00 % of the integers are equal, at least 99.5 % must be",
    )
    turned = judge(numbers, numbers, -numbers, None, "values")
    assert turned.reason == "torch and ONNX Runtime differ by more than the signal: -6.0 dB"


OWN = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return {body}
def model():
    return Net()
"""


@pytest.mark.parametrize(
    ("body", "target", "words"),
    [
        (
            "self.conv(x).flatten(2).median(2)[0]",
            None,
            "aten.median.dim at median: DispatchError: No ONNX function found for",
        ),
        (
            "nn.functional.grid_sample(self.conv(x), torch.zeros(x.shape[0], 4, 4, 2), "
            "align_corners=False).mean((2, 3))",
            "xavier@8.2",
            "of opset 13: aten.grid_sampler.default at grid_sampler",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_before_calibration(
    images, tmp_path, body, target, words
):
    (tmp_path / "own_net.py").write_text(OWN.replace("{body}", body))
    wanted = spec(
        images,
        tmp_path / "out",
        model=f"{tmp_path}/own_net.py:model",
        **({"target": target} if target else {}),
    )
    with pytest.raises(ExportError, match="Cannot write the model as ONNX") as caught:
        quantize(wanted)
    assert words in str(caught.value)
    assert not list((tmp_path / "out/cache").glob("*.safetensors")), "nothing was calibrated"
