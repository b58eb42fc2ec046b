"""Methods for attention: ranking, percentile clamp, integer softmax, EfficientQuant."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.conftest import spec
from tests.support.quantize import VIT
from tests.support.workbench import bench_of
from trtq import quantize
from trtq.errors import UsageError
from trtq.methods.integer_softmax import fit_exponential
from trtq.methods.ranking import kendall, pearson, ranking_loss
from trtq.methods.registry import get_method


def test_ranking_reports_and_does_not_lose_order(images, tmp_path):
    record = quantize(spec(images, tmp_path, model=VIT, bits="w8a3", method=["ranking"]))
    report = record.methods[0].did["attentions"]
    assert set(report) == {"blocks.0.qk", "blocks.1.qk"}
    for found in report.values():
        assert -1.0 <= found["kendall_before"] <= 1.0
        assert found["kendall_after"] >= found["kendall_before"] - 0.05


def test_ranking_formulas_by_hand():
    # Pairs: kept by 2, turned over by 3, a tie that does not count.
    wanted, got = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([2.0, 3.0, 9.0])
    assert ranking_loss(wanted, got, 0.0) == 1.5
    assert ranking_loss(wanted, got, 4.0) == pytest.approx((2.0 + 7.0) / 2)
    assert kendall(wanted, got) == 0.0
    # All-equal rows have no order and no variance: nothing to lose.
    flat = torch.ones(2, 5)
    assert (
        ranking_loss(torch.zeros(4), torch.ones(4), 1.0),
        kendall(torch.zeros(4), torch.ones(4)),
        pearson(flat, flat),
    ) == (
        0.0,
        1.0,
        1.0,
    )
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert pearson(x, 2 * x + 1) == pytest.approx(1.0)


def test_attention_can_be_asked_for_and_left_out(images, tmp_path):
    kept = quantize(spec(images, tmp_path / "a", model=VIT, attention="float"))
    assert {f.reason for f in kept.left_in_float if ".qk" in f.name} == {
        "asked for by --attention float"
    }
    (tmp_path / "sharp.py").write_text(
        "import torch\nfrom trtq.testing.models import TinyViT\ndef make():\n    "
        "torch.manual_seed(0)\n    model = TinyViT()\n"
        "    model.blocks[0].qkv.weight.data *= 12\n    return model\n"
    )
    sharp = {"model": f"{tmp_path}/sharp.py:make", "input_size": "3x64x64"}
    forced = quantize(spec(images, tmp_path / "b", attention="int8", **sharp))
    assert "blocks.0.softmax.output" in {q.name for q in forced.quantizers}


# ---- EfficientQuant, RepQ, QADS, integer softmax, ranges ---------------------------------------


def test_efficientquant_quantizes_convolutions_and_softmax_only(images, tmp_path):
    record = quantize(spec(images, tmp_path, model=VIT, method=["efficientquant"]))
    assert record.parity.passed
    by_role = {q.role: q for q in record.quantizers}
    assert set(by_role) == {"weight", "lhs"}
    assert (by_role["weight"].format, by_role["weight"].runs) == ("asymmetric-8", "simulated")
    assert by_role["weight"].computes_in == "float: the weights are stored as rounded values"
    assert (by_role["lhs"].format, by_role["lhs"].runs, by_role["lhs"].extra_ops) == (
        "log2-8",
        "ops",
        9,
    )
    assert record.methods[0].label == "simulated"
    assert "codes that no engine has a kernel for (it computes in float)" in record.summary
    assert any(
        "EfficientQuant quantizes weights of convolutions and outputs of softmax only" in f.reason
        for f in record.left_in_float
    )
    model = onnx.load(tmp_path / "model.qdq.onnx")
    kinds = [n.op_type for n in model.graph.node]
    assert "QuantizeLinear" not in kinds
    assert kinds.count("Pow") == 2
    (stored,) = [
        numpy_helper.to_array(i)
        for i in model.graph.initializer
        if i.name.startswith("patch.weight") or i.name == "patch_weight"
    ]
    assert len(np.unique(stored)) <= 256


def test_efficientquant_per_channel_and_wrong_arguments(images, tmp_path):
    by_layer = quantize(spec(images, tmp_path / "a", method=["efficientquant"]))
    by_channel = quantize(
        spec(
            images,
            tmp_path / "b",
            method=["efficientquant"],
            method_arg={"efficientquant.granularity": "channel"},
        )
    )
    assert by_channel.parity.quantization_sqnr_db > by_layer.parity.quantization_sqnr_db
    with pytest.raises(UsageError, match=r"granularity=row: expected one of layer, channel"):
        quantize(
            spec(
                images,
                tmp_path / "c",
                method=["efficientquant"],
                method_arg={"efficientquant.granularity": "row"},
            )
        )


def test_what_meets_logarithmic_codes_is_computed_in_float_and_says_so(images, tmp_path):
    record = quantize(spec(images, tmp_path, model=VIT, attention="int8", method=["repq"]))
    values = next(q for q in record.quantizers if q.name == "blocks.0.av.rhs")
    assert (values.format, values.computes_in) == (
        "int8",
        "float: what it is multiplied with has no integer codes",
    )
    assert next(q for q in record.quantizers if q.name == "blocks.0.qk.rhs").computes_in == "INT8"


@pytest.mark.parametrize("segments", [1, 2, 8])
def test_the_linear_exponential_keeps_the_order_and_gets_better(segments):
    knots, heights = fit_exponential(-12.0, segments)
    x = np.linspace(-18, 0, 1001)
    y = (np.clip((x[:, None] - knots[:-1]) / np.diff(knots), 0, 1) * heights).sum(1)
    assert (np.diff(y) >= 0).all()
    assert (heights >= 0).all()
    assert y[0] == 0.0  # what a mask hides stays hidden
    assert np.abs(y - np.exp(x)).max() < {1: 0.25, 2: 0.1, 8: 0.01}[segments]


def test_softmax_of_equal_logits_and_masked_ones_survives_the_approximation():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 8, 8, stride=8), 0.0

        def forward(self, x):
            y = self.conv(x).flatten(2).transpose(1, 2)
            mask = torch.zeros(16, 16).masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))
            scores = (y @ y.transpose(1, 2)) * self.scale + mask
            return (scores.softmax(-1) @ y).mean(1)

    context = bench_of(Masked())
    (x,) = next(iter(context.images(4)))
    wanted = context.graph(x)
    method = get_method("integer-softmax")
    done = method.run(context, method.values({"segments": 4, "images": 4}))
    assert done["softmaxes"] == 1
    torch.testing.assert_close(
        context.graph(x), wanted, rtol=1e-4, atol=1e-5
    )  # rows of equal logits stay even


def test_the_percentile_clamp_narrows_queries_keys_and_values_and_nothing_else(images, tmp_path):
    plain = quantize(spec(images, tmp_path / "a", model=VIT, attention="int8", calibrator="max"))
    clamped = quantize(
        spec(
            images,
            tmp_path / "b",
            model=VIT,
            attention="int8",
            calibrator="max",
            method=["attention-percentile"],
        )
    )
    before, after = ({q.name: q.amax for q in r.quantizers} for r in (plain, clamped))
    moved = {n for n in before if after[n] < before[n]}
    assert moved
    assert all(n.endswith((".qk.lhs", ".qk.rhs", ".av.rhs")) for n in moved)
    assert {n for n in before if after[n] > before[n]} == set()


# ---- slow: whole families, trained weights -----------------------------------------------------

HYBRIDS = (
    "mobilevit_xxs",
    "mobilevit_xs",
    "mobilevit_s",
    "mobilevitv2_050",
    "mobilevitv2_075",
    "mobilevitv2_100",
    "mobilevitv2_125",
    "mobilevitv2_150",
    "mobilevitv2_175",
    "mobilevitv2_200",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", HYBRIDS)
def test_efficientquant_on_hybrids_and_transformers(images, tmp_path, name):
    size = {"input_size": "3x224x224"} if "224" in name else {"input_size": "3x256x256"}
    own = {**size, "calib_images": 4, "batch_size": 2, "parity_images": 4}
    record = quantize(
        spec(images, tmp_path, model=f"timm:{name}", method=["efficientquant"], **own)
    )
    assert record.parity.passed
    did = record.methods[0].did
    assert did["convolutions"] == sum(q.format == "asymmetric-8" for q in record.quantizers) > 0
    assert did["softmaxes"] == sum(q.format == "log2-8" for q in record.quantizers) > 0
    # one range a layer for convolutions, and softmax on a logarithm: the paper's claim is that
    # little is lost
    assert record.parity.quantization_sqnr_db > 15


@pytest.mark.slow
def test_a_vit_with_residual_outliers_loses_less_than_a_point(trtq_data, tmp_path, monkeypatch):
    from pathlib import Path

    from trtq import EvaluateSpec, QuantizeSpec, evaluate

    monkeypatch.setenv("TRTQ_DATA", str(trtq_data))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from models import evaluation, settings

    record = quantize(
        QuantizeSpec.make(
            {**settings("vit_outliers"), "out": str(tmp_path), "calib_cache": str(tmp_path / "c")}
        )
    )
    found = {
        **evaluation("vit_outliers"),
        "input_size": "3x32x32",
        "preset": "cifar10",
        "onnx": str(tmp_path / "model.qdq.onnx"),
        "reference": str(tmp_path / "model.fp32.onnx"),
        "batch_size": 50,
        "limit": 1000,
    }
    result = evaluate(EvaluateSpec.make(found))
    assert result.reference_top1 - result.top1 < 1.0
    named = {
        f.name for f in record.left_in_float if "is set by outliers" in f.reason and f.high > 900
    }
    assert {"vit.blocks.3.add.residual", "vit.blocks.5.add_1.residual"} <= named
