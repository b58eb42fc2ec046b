"""Formats with kernels below INT8: INT4 weights in blocks, FP8 and NVFP4."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import trtq
from tests.support.narrow import Layers, vectors
from trtq.errors import CalibrationError, EncodingsError, UsageError
from trtq.export.decompose import without_fp4
from trtq.quant.blocks import block_amax, nvfp4_amax
from trtq.quant.fake_quantize import block_scales, e2m1, fake_quantize, spread
from trtq.quant.formats import BitConfig, Format
from trtq.quant.weight_ranges import Moments


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))


# ---- numbers -----------------------------------------------------------------------------------


def test_e2m1_is_the_type_of_the_standard():
    x = torch.linspace(-7, 7, 20001)
    theirs = x.clamp(-6, 6).numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert torch.equal(e2m1(x), torch.from_numpy(theirs))
    assert e2m1(torch.tensor([0.25, 0.75, 2.5, 5.0, 100.0])).tolist() == [0.0, 1.0, 2.0, 4.0, 6.0]


def test_block_scales_are_e4m3_numbers_times_the_unit():
    unit = torch.tensor(0.5)
    x = torch.zeros(2, 32)
    x[0, 3], x[0, 20], x[1, 0] = 6.0, -3.3, 1344.0 * 2
    # 6 / 6 / 0.5 = 2; 3.3 / 6 / 0.5 = 1.1, nearest E4M3 1.125; 2688 / 6 / 0.5 = 896, at most 448
    assert block_scales(x, unit).tolist() == [[1.0, 0.5625], [224.0, 0.0]]


def test_nvfp4_of_an_activation_follows_its_own_blocks():
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1], x[0, 16], x[0, 17] = 6.0, 1.2, 0.06, 0.02
    unit = torch.tensor(6.0 / (6 * 448))
    out = fake_quantize(x, unit, None, None, -6, 6, "x", "fp4")
    small = 0.01 / unit
    code = float(small.to(torch.float8_e4m3fn).float()) * float(unit)
    assert out[0, 0] == 6.0 and out[0, 1] == 1.0
    assert float(out[0, 16]) == pytest.approx(6 * code) and float(out[0, 17]) == pytest.approx(
        2 * code
    )


def test_a_scale_of_blocks_is_spread_over_them():
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert spread(scale, torch.zeros(2, 6), 0).tolist() == [
        [1.0, 1.0, 1.0, 2.0, 2.0, 2.0],
        [3.0, 3.0, 3.0, 4.0, 4.0, 4.0],
    ]


def test_a_weights_nvfp4_scales_are_those_that_the_file_can_hold():
    torch.manual_seed(0)
    weight = torch.randn(8, 64)
    weight[3] = 0.0
    scales = nvfp4_amax(weight) / 6
    unit = weight.abs().max() / (6 * 448)
    codes = scales / unit
    assert torch.allclose(codes, codes.to(torch.float8_e4m3fn).float(), rtol=1e-6)
    assert bool((scales > 0).all()) and float(codes.max()) == pytest.approx(448.0)


def test_block_ranges_are_those_of_the_blocks_and_are_searched_by_the_energy_of_inputs():
    weight = torch.tensor([[1.0, -2.0, 0.5, 0.25], [0.0, 0.0, 7.0, 0.1]])
    assert block_amax(weight, 2, 7).tolist() == [[2.0, 0.5], [1.0, 7.0]]
    torch.manual_seed(0)
    weight = torch.randn(16, 256)
    energy = torch.rand(256).double() * 4
    seen = Moments(torch.zeros(256).double(), energy)
    plain, found = block_amax(weight, 64, 7), block_amax(weight, 64, 7, seen)

    def cost(amax):
        steps = spread(amax / 7, weight, 0)
        off = (weight / steps).round().clamp(-8, 7) * steps - weight
        return float((off.double().square() * energy).sum())

    assert cost(found) < 0.95 * cost(plain)


@pytest.mark.parametrize(
    ("text", "label", "needs", "ends"),
    [
        ("w4a16:128", "w4a16:128", "INT4 weights", "fp16"),
        ("w4a16", "w4a16", "INT8", "fp16"),
        ("fp8", "fp8", "FP8", "fp8"),
        ("nvfp4", "nvfp4", "FP4", "fp16"),
        ("w4a8", "w4a8", "INT8", "w8a8"),
    ],
)
def test_widths_know_their_name_and_what_a_target_needs(text, label, needs, ends):
    bits = BitConfig.parse(text)
    assert (bits.label, bits.needs, bits.at_ends.label) == (label, needs, ends)
    assert BitConfig.parse(bits.label) == bits


def test_formats_that_do_not_exist_are_refused():
    with pytest.raises(UsageError, match=r"NVFP4 with 8 bits and blocks of 0: it has 4 bits"):
        Format(kind="fp4")
    with pytest.raises(UsageError, match=r"Cannot read the width 'w4a16:100'.*w4a16:128"):
        BitConfig.parse("w4a16:100")


# ---- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "opset", "ops"),
    [
        ("w4a16:64", 21, {"DequantizeLinear": 2}),
        ("nvfp4", 23, {"DequantizeLinear": 8, "TRT_FP4DynamicQuantize": 2}),
        ("fp8", 20, {"QuantizeLinear": 8, "DequantizeLinear": 8}),
    ],
)
def test_a_model_is_quantized_and_its_file_computes_the_same(bits, opset, ops):
    quantized = trtq.quantize(Layers().eval(), vectors(), bits=bits)
    parity = quantized.done.parity
    assert parity.passed and parity.quantization_sqnr_db > 12
    assert parity.runtime_sqnr_db is None or parity.runtime_sqnr_db > 100
    model = quantized.export().model
    assert model.opset_import[0].version == opset
    onnx.checker.check_model(model) if bits != "nvfp4" else None
    counted = {k: sum(n.op_type == k for n in model.graph.node) for k in ops}
    assert counted == ops


def test_four_bits_are_stored_as_four_bits():
    found = {}
    for bits in ("w8a8", "w4a16:128", "nvfp4"):
        given = {"bits": bits, "preset_quant": "none"}
        model = trtq.quantize(Layers(512).eval(), vectors(), **given).export().model
        wide = [i for i in model.graph.initializer if list(i.dims) == [512, 512]]
        found[bits] = [(i.data_type, len(i.raw_data) or len(i.int32_data)) for i in wide]
    types = onnx.TensorProto
    assert found["w8a8"] == [(types.FLOAT, 4 * 512 * 512)] * 2
    assert found["nvfp4"] == [(types.FLOAT4E2M1, 512 * 512 // 2)] * 2
    assert found["w4a16:128"] == [(types.INT4, 512 * 512 // 2)] * 2


def test_the_record_says_what_is_quantized_and_what_is_not(tmp_path):
    quantized = trtq.quantize(Layers().eval(), vectors(), bits="w4a16:64")
    assert "INT4 in blocks of 64 (products in float)" in quantized.save(tmp_path).summary
    left = quantized.encodings.left_in_float
    assert "keeps the first and the last layer in float" in left["first.weight"]
    assert "quantizes the weight alone" in left["second.input"]


def test_layers_that_blocks_do_not_divide_stay_in_float():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 24, 3, padding=1)
            self.odd, self.even = nn.Linear(24, 32), nn.Linear(32, 32)
            self.mid, self.last = nn.Conv2d(24, 24, 3), nn.Linear(32, 4)

        def forward(self, x):
            x = self.mid(torch.relu(self.conv(x))).relu().mean((2, 3))
            return self.last(torch.relu(self.even(torch.relu(self.odd(x)))))

    images = [torch.rand(3, 12, 12) for _ in range(16)]
    left = trtq.quantize(Odd().eval(), images, bits="nvfp4").encodings.left_in_float
    assert "its 24 inputs are no multiple of blocks of 16" in left["odd.weight"]
    assert "blocks are for linear layers" in left["mid.weight"]
    assert "even.weight" not in left


def test_targets_without_the_format_are_refused_before_any_work():
    for bits, target, why in (
        ("nvfp4", "rtx4090", r"FP4 for GeForce RTX 4090: compute capability 8.9 has no FP4"),
        ("fp8", "orin@10.3", r"FP8 for Jetson AGX Orin: compute capability 8.7 has no FP8"),
        ("w4a16:128", "nano", r"INT4 weights for Jetson Nano"),
    ):
        with pytest.raises(UsageError, match=rf"{why}.*Give other bits"):
            trtq.quantize(Layers().eval(), vectors(), bits=bits, target=target)
    with pytest.raises(UsageError, match=r"Cannot write FP4: ONNX has it from opset 23 on"):
        trtq.quantize(Layers().eval(), vectors(), bits="nvfp4", opset=20)


def test_what_cannot_learn_is_refused_by_training(tmp_path):
    quantized = trtq.quantize(Layers().eval(), vectors(), bits="w4a16:64")
    with pytest.raises(EncodingsError, match=r"int4:64 of second.weight cannot be trained"):
        trtq.finetune(quantized, vectors(), task="tensors", augment="none", epochs=1)


def test_encodings_come_back_from_their_file(tmp_path):
    quantized = trtq.quantize(Layers().eval(), vectors(), bits="nvfp4")
    quantized.save(tmp_path)
    again = trtq.Encodings.load(tmp_path / "encodings.safetensors")
    assert again.formats == quantized.encodings.formats
    assert again.digest() == quantized.encodings.digest()
    assert again.amax["second.weight"].shape == (256, 16)


# ---- GPTQ --------------------------------------------------------------------------------------


def test_gptq_costs_the_output_less_than_the_nearest_codes():
    near = trtq.quantize(Layers().eval(), vectors(256), bits="w4a16:64", preset_quant="none")
    found = trtq.quantize(Layers().eval(), vectors(256), bits="w4a16:64")
    assert found.done.methods[0].name == "gptq"
    did = found.done.methods[0].did
    assert did["layers"] == 2 and did["better"] == 2 and did["error"] < 0.75
    gain = found.done.parity.quantization_sqnr_db - near.done.parity.quantization_sqnr_db
    assert gain > 1.0


@pytest.mark.parametrize(("bits", "least"), [("fp8", 0.3), ("nvfp4", 0.3)])
def test_gptq_is_a_default_of_the_float_formats(bits, least):
    """Their activations are rounded, too: the gain is less than that of weights alone."""
    near = trtq.quantize(Layers().eval(), vectors(256), bits=bits, preset_quant="none")
    done = trtq.quantize(Layers().eval(), vectors(256), bits=bits).done
    assert [m.name for m in done.methods][-1] == "gptq"
    assert done.methods[-1].did["error"] < 0.75
    assert done.parity.quantization_sqnr_db - near.done.parity.quantization_sqnr_db > least


def test_gptq_keeps_to_numbers_that_e4m3_has():
    from trtq.methods.gptq import rounded

    # Between 16 and 32 E4M3 counts in twos: 17.5 becomes 18, which is 0.5 too much; the second
    # weight, whose input is the same, makes up for it: 21.3 - 0.5 becomes 20.
    weight, sums = torch.tensor([[17.5, 21.3]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    fmt = Format(kind="fp8", axis=0)
    out = rounded(weight, torch.ones(1, 2), fmt, sums, 0.01)
    assert out.tolist() == [[18.0, 20.0]]  # to nearest: 18 and 22
    steps = torch.full((1, 2), 0.5)
    assert rounded(weight, steps, fmt, sums, 0.01).tolist() == [[18.0, 20.0]]
    assert rounded(torch.tensor([[500.0, 0.0]]), torch.ones(1, 2), fmt, sums, 0.01)[0, 0] == 448.0


def test_gptq_on_two_weights_is_what_hand_gives():
    from trtq.methods.gptq import rounded

    # One output, two inputs that are equal: what rounding the first costs, the second makes up for.
    weight, sums = torch.tensor([[0.4, 0.3]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    steps = torch.ones(1, 2)
    out = rounded(weight, steps, Format(bits=4, axis=0), sums, 0.01)
    assert out.tolist() == [[0.0, 1.0]]  # 0.4 -> 0, its 0.4 goes to the second: 0.7 -> 1
    with pytest.raises(
        UsageError, match=r"gptq.*no linear layer has FP8 weights or fewer than 8 bits"
    ):
        trtq.quantize(Layers().eval(), vectors(), method=("gptq",))
    # With these two alone nothing says how they share an error: it needs damping.
    with pytest.raises(CalibrationError, match=r"gptq cannot invert .*damping of 0.*damping=0\.01"):
        rounded(weight, steps, Format(bits=4, axis=0), sums, 0.0)


# ---- what ONNX Runtime is given ----------------------------------------------------------------


def test_a_file_without_fp4_is_left_as_it_is():
    model = trtq.quantize(Layers().eval(), vectors(), bits="w8a8").export().model
    assert without_fp4(model) is model


def test_the_decomposed_file_has_no_type_that_onnx_runtime_lacks():
    model = trtq.quantize(Layers().eval(), vectors(), bits="nvfp4").export().model
    plain = without_fp4(model)
    assert not any(n.domain for n in plain.graph.node)
    assert {i.data_type for i in plain.graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }
    assert math.isclose(
        sum(n.op_type == "MatMul" for n in plain.graph.node),
        sum(n.op_type == "MatMul" for n in model.graph.node),
    )


def test_an_analysis_offers_blocks_to_linear_layers_and_says_who_has_none():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.mid = nn.Conv2d(3, 32, 3), nn.Linear(32, 64)
            self.last = nn.Linear(64, 4)

        def forward(self, x):
            return self.last(torch.relu(self.mid(torch.relu(self.conv(x)).mean((2, 3)))))

    images = [torch.rand(3, 8, 8) for _ in range(16)]
    found = trtq.analyze(
        Mixed().eval(), images, bits=("8", "w4a16:32", "nvfp4", "fp8"), metric="l2"
    )
    assert [layer.name for layer in found.layers] == ["mid", "last"]
    loss = found.layers[0].loss
    assert loss["w8a8"] < loss["fp8"] < loss["nvfp4"] and loss["w4a16:32"] < loss["nvfp4"]
    (line,) = [n for n in found.notes if n.startswith("conv remains in float")]
    assert "w4a16:32 is for linear layers" in line or "nvfp4" in line


# ---- export to several targets -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "target", "opset"), [("w4a16:64", "rtx3080", 21), ("nvfp4", "rtx5090", 23)]
)
def test_export_writes_blocks_and_compares_their_scales(bits, target, opset, own, tmp_path):
    model, encodings = own(bits)
    (row,) = trtq.export_profiles(
        trtq.ExportSpec(**model, encodings=encodings, target=(target,), out=str(tmp_path / "out"))
    ).profiles
    assert (row.opset, row.pairs) == (opset, {"w4a16:64": 2, "nvfp4": 4}[bits])
    assert row.scales_ulp <= 1 and row.sqnr_db > 30 and row.findings == []


@pytest.mark.parametrize(
    ("bits", "target", "why"),
    [
        ("nvfp4", "rtx4090", r"Cannot export FP4 for GeForce RTX 4090: .*8\.9 has no FP4"),
        ("w4a16:64", "xavier@8.5", r"Cannot export INT4 weights for Jetson AGX Xavier: "),
        (
            "nvfp4",
            "rtx5090@10.13",
            r"Cannot export FP4 .*TensorRT 10.13 reads ONNX up to opset 21, expected 23",
        ),
    ],
)
def test_export_refuses_formats_that_a_target_lacks(bits, target, why, own, tmp_path):
    model, encodings = own(bits)
    with pytest.raises(UsageError, match=why):
        trtq.export_profiles(
            trtq.ExportSpec(**model, encodings=encodings, target=(target,), out=str(tmp_path / "o"))
        )


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a function that quantizes the network: how to name it, and its encodings."""
    folder = tmp_path_factory.mktemp("own")
    torch.save(Layers().state_dict(), folder / "weights.pt")
    np.savez(folder / "data.npz", x=np.stack([v.numpy() for v in vectors(16)]))
    model = {
        "model": "tests.support.narrow:Layers",
        "checkpoint": str(folder / "weights.pt"),
        "data": str(folder / "data.npz"),
        "input": ("x=1x64",),
    }

    def quantized(bits):
        out = folder / bits.replace(":", "-")
        if not out.exists():
            trtq.quantize(
                trtq.QuantizeSpec(
                    **model,
                    bits=bits,
                    preset_quant="none",
                    out=str(out),
                    calib_cache=str(folder / "cache"),
                )
            )
        return model, str(out / "encodings.safetensors")

    return quantized
