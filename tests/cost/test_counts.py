"""MACs, parameters and bytes of models."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper
from torch import nn

from tests.conftest import run_cli
from tests.support.onnx_files import model_of
from tests.support.quantize import CNN, VIT, analysis
from trtq import AllocateSpec, CostSpec, allocate, analyze, cost
from trtq.cost.count import count_layers, list_ops
from trtq.cost.onnx_file import list_onnx_ops
from trtq.graph.capture import capture
from trtq.testing.models import tiny_vit

FLOAT = TensorProto.FLOAT

# ---- counting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "published"),
    # torchvision's documentation (ResNets), Sandler et al. 2018 (300 M), fvcore's count that timm
    # publishes, Mehta and Rastegari 2022
    [
        ("resnet18", 224, 1.814e9),
        ("resnet50", 224, 4.089e9),
        ("mobilenetv2_100", 224, 300.8e6),
        pytest.param("deit_tiny_patch16_224", 224, 1.258e9, marks=pytest.mark.slow),
        pytest.param("mobilevit_s", 256, 2.0e9, marks=pytest.mark.slow),
    ],
)
def test_counts_are_the_published_ones(name, size, published):
    import timm

    captured = capture(timm.create_model(name).eval(), (3, size, size))
    assert sum(
        v.macs for v in count_layers(list_ops(captured.module, captured.examples))
    ) == pytest.approx(published, rel=0.01)


def test_counts_by_hand():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped, self.up = (
                nn.Conv2d(4, 8, 3, padding=1, groups=2),
                nn.ConvTranspose2d(8, 3, 2, stride=2),
            )
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

        def forward(self, x):
            y = self.up(self.grouped(x))
            return self.head(self.norm(y)).softmax(-1)

    captured = capture(Net().eval(), (4, 8, 8))
    rows = {r.name: r for r in count_layers(list_ops(captured.module, captured.examples))}
    assert (rows["grouped"].macs, rows["grouped"].weights) == (8 * 64 * 2 * 9, 8 * 2 * 9)
    assert (rows["up"].macs, rows["up"].reads, rows["up"].writes) == (
        8 * 64 * 3 * 4,
        8 * 64,
        3 * 256,
    )
    assert (rows["head"].macs, rows["head"].kind) == (3 * 16 * 16 * 5, "linear")
    assert [r.kind for r in rows.values()] == ["conv", "conv", "norm", "linear", "softmax"]


def test_attention_counts_both_products():
    captured = capture(tiny_vit().eval(), (3, 32, 32))
    rows = {r.name: r for r in count_layers(list_ops(captured.module, captured.examples))}
    tokens, dim = 16, 32
    assert rows["blocks.0.qk"].macs == rows["blocks.0.av"].macs == tokens * tokens * dim


def test_cost_at_widths_and_on_the_command_line(tmp_path):
    full, narrow = (
        cost(CostSpec(model=CNN, input_size=(3, 32, 32), bits=b)) for b in ("fp32", "w4a8")
    )
    assert (full.relative.bitops, full.relative.energy) == (1.0, 1.0)
    assert narrow.relative.bitops == pytest.approx(32 / 1024, rel=1e-6)
    assert 0.1 < narrow.relative.energy < 0.25
    assert "predicted" in narrow.summary
    done = run_cli("cost", CNN, "--input-size", "3x32x32", "--bits", "w8a8")
    assert done.returncode == 0, done.stderr
    assert "conv1" in done.stdout
    assert "(predicted)" in done.stdout


def test_cost_takes_the_checkpoint_the_allocation_was_made_for(images, tmp_path):
    from safetensors.torch import save_file

    save_file(tiny_vit().state_dict(), tmp_path / "w.safetensors")
    own = {"model": VIT, "checkpoint": str(tmp_path / "w.safetensors")}
    analyze(analysis(images, tmp_path, **own, metric="l2"))
    allocate(
        AllocateSpec(
            analysis=str(tmp_path / "S.json"), out=str(tmp_path / "A.json"), budget=("size=0.2",)
        )
    )
    record = cost(CostSpec(**own, input_size=(3, 32, 32), allocation=str(tmp_path / "A.json")))
    widths = {r.layer.name: (r.weight_bits, r.input_bits) for r in record.rows}
    assert widths["blocks.0.qk"] == (8, 8)
    assert widths["norm.layer_norm" if "norm.layer_norm" in widths else "norm"] == (16, 16)
    assert record.relative.bitops < 0.1


def test_folded_and_shared_weights_count_once(images, tmp_path):
    (tmp_path / "tied.py").write_text(
        "import torch\nfrom torch import nn\nclass M(nn.Module):\n    def __init__(self):\n     "
        "   super().__init__()\n"
        "        self.stem, self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), "
        "nn.Linear(8, 4)\n"
        "        self.w = nn.Parameter(torch.randn(8, 8, 3, 3))\n"
        "    def forward(self, x):\n        y = "
        "self.a(torch.relu(self.a(torch.relu(self.stem(x)))))\n"
        "        y = nn.functional.conv2d(torch.relu(y), self.w / self.w.std())\n        return "
        "self.head(y.mean((2, 3)))\n"
        "def make():\n    torch.manual_seed(0)\n    return M()\n"
    )
    record = analyze(analysis(images, tmp_path, model=f"{tmp_path / 'tied.py'}:make", metric="l2"))
    weights = (
        3 * 8 * 9 + 8 * 8 * 9 + 8 * 8 * 9 + 8 * 4
    )  # the tied one once, the standardised one, too
    assert sum(v.cost.weights for v in record.layers) == weights
    assert record.other_bytes == 4 * (8 + 8 + 4)  # biases


class Generated(nn.Module):
    """A convolution whose kernel follows from the input."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Linear(4, 5 * 4 * 9)

    def forward(self, x):
        kernel = self.kernel(x.mean((0, 2, 3))).reshape(5, 4, 3, 3)
        return nn.functional.conv2d(x, kernel)


def test_a_kernel_that_is_computed_multiplies_like_any_other():
    captured = capture(Generated().eval(), (4, 8, 8))
    ops = {op.kind: op.macs for op in list_ops(captured.module, captured.examples)}
    by_hand = 5 * 36 * 4 * 9
    assert ops["computed"] == by_hand
    given = [("x", FLOAT, [1, 4, 8, 8]), ("w", FLOAT, [5, 4, 3, 3])]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    (conv,) = list_onnx_ops(model_of([node], given, [("y", FLOAT, [1, 5, 6, 6])]), "model.onnx")
    assert (conv.kind, conv.macs, conv.weights) == ("conv", by_hand, 0)
