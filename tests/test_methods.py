"""Bit widths below 8 and the quantization methods, through the verb and by hand-worked values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from tests.conftest import run_cli, spec
from trtq import BlocksSpec, blocks, quantize
from trtq.errors import CalibrationError, UsageError
from trtq.graph.blocks import identify_blocks
from trtq.graph.capture import capture
from trtq.methods.base import Workbench
from trtq.methods.equalize import equalizing_factors
from trtq.methods.pairs import find_pairs, fold_factors
from trtq.methods.ranking import kendall, pearson, ranking_loss
from trtq.methods.reconstruct import LearnedRange, SoftRounding
from trtq.methods.registry import METHODS, choose, get_method
from trtq.methods.smooth import smoothing_factors
from trtq.quant.calibrators import best_interval
from trtq.quant.encodings import Encodings
from trtq.quant.histogram import Histogram
from trtq.quant.placement import place
from trtq.testing.models import tiny_cnn, tiny_vit

CNN, VIT = "trtq.testing.models:tiny_cnn", "trtq.testing.models:tiny_vit"


def histogram(values):
    hist = Histogram()
    x = torch.as_tensor(values, dtype=torch.float32)
    hist.add(x, float(x.abs().max()))
    return hist


def bench_of(model, images=None):
    graph = capture(model.eval(), (3, 32, 32)).module
    batch = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) if images is None else images
    return Workbench(
        graph=graph, placement=place(graph), images=lambda limit: iter([batch[:limit]]), note=print,
        begin=lambda *a: None, advance=lambda n: None,
    )  # fmt: skip


# ---- widths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["w8a8", "w6a6", "w4a8", "w4a4", "w2a8", "w3a5"])
@pytest.mark.parametrize("model", [CNN, VIT])
def test_torch_and_onnxruntime_agree_at_every_width(images, tmp_path, bits, model):
    record = quantize(spec(images, tmp_path, model=model, bits=bits))
    assert record.parity.passed
    assert record.parity.first_divergence is None
    weight_bits, input_bits = (int(v) for v in bits[1:].split("a"))
    narrow = [q for q in record.quantizers if q.layer not in ("stem", "patch", "head") and q.role != "residual"]
    assert {q.format for q in narrow if q.role == "weight"} == {f"int{weight_bits}"}
    assert all(f"int{input_bits}" in q.format for q in narrow if q.role == "input")
    weights = [q.sqnr_db for q in narrow if q.role == "weight"]
    assert all(v is not None and 4 < v < 7 * weight_bits for v in weights)
    assert {q.format for q in record.quantizers if q.layer in ("stem", "patch", "head")} == {"int8"}


def test_codes_below_eight_bits_are_exact_in_their_container(images, tmp_path):
    quantize(spec(images, tmp_path, bits="w4a4"))
    model = onnx.load(tmp_path / "model.qdq.onnx")
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    by_name = {n.name: n for n in model.graph.node}
    pair = by_name["conv1.weight/QuantizeLinear"]
    codes = constants[pair.input[0]] / constants[pair.input[1]].reshape(-1, 1, 1, 1)
    assert np.allclose(codes, codes.round(), atol=1e-4)
    assert codes.min() >= -8.01
    assert codes.max() <= 7.01
    clip = by_name["conv1.input/Clip"]
    step = constants[by_name["conv1.input/QuantizeLinear"].input[1]]
    low, high = (constants[name] for name in clip.input[1:])
    assert (low, high) == (0.0, np.float32(15) * step)  # a ReLU's output takes the unsigned codes
    assert "conv1.weight/Clip" not in by_name
    plain = {i.name: numpy_helper.to_array(i) for i in onnx.load(tmp_path / "model.fp32.onnx").graph.initializer}
    assert len(np.unique(plain["conv1.weight"])) > 1000


def test_fewer_bits_cost_more(images, tmp_path):
    sqnr = [quantize(spec(images, tmp_path / b, bits=b)).parity.quantization_sqnr_db for b in ("w8a8", "w6a6", "w4a4", "w2a4")]
    assert sqnr == sorted(sqnr, reverse=True)


def test_the_interval_follows_the_values():
    gelu = nn.functional.gelu(torch.randn(20000, generator=torch.Generator().manual_seed(0)))
    amax, lowest = best_interval(histogram(gelu.clamp_min(0)), histogram((-gelu).clamp_min(0)), 4)
    assert lowest in (-1, -2)
    assert 1.5 < amax < float(gelu.max())
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    assert best_interval(histogram(x.clamp_min(0)), histogram((-x).clamp_min(0)), 4)[1] in (-8, -7)
    assert best_interval(histogram(x.abs()), Histogram(), 4)[1] == 0
    for bits in (2, 3):  # both sides of 0 are kept at the smallest widths, too
        x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
        amax, lowest = best_interval(histogram(x.clamp_min(0)), histogram((-x).clamp_min(0)), bits)
        assert lowest < 0
        step = amax / (lowest + (1 << bits) - 1)
        error = float((x - (x / step).round().clamp(lowest, lowest + (1 << bits) - 1) * step).square().mean())
        assert error < {2: 0.16, 3: 0.05}[bits]
    # Four values on the four codes of 2 bits: nothing is lost.
    amax, lowest = best_interval(histogram([0.0, 1.0, 2.0]), histogram([0.0, 1.0]), 2)
    assert lowest == -1
    assert amax == pytest.approx(2.0, rel=0.02)


@given(st.integers(2, 7), st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=50).filter(lambda v: max(map(abs, v)) > 1e-3))
def test_the_interval_always_holds_zero_and_is_finite(bits, values):
    x = torch.tensor(values, dtype=torch.float32)
    amax, lowest = best_interval(histogram(x.clamp_min(0)), histogram((-x).clamp_min(0)), bits)
    assert -(1 << (bits - 1)) <= lowest <= 0
    assert np.isfinite(amax)
    assert amax > 0


def test_bits_outside_their_range_are_refused(images, tmp_path):
    for bits in ("w1a8", "w4a9", "8", "w4"):
        with pytest.raises(UsageError, match=f"Cannot use .*bits.*|Cannot use these settings.*{bits}|bits"):
            spec(images, tmp_path, bits=bits)


# ---- methods through the verb ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "bits", "method"),
    [
        (VIT, "w8a8", "smooth"),
        (VIT, "w4a8", "smooth"),
        (CNN, "w8a8", "equalize"),
        (CNN, "w4a4", "bias-correction"),
        (VIT, "w4a4", "ranking"),
        (CNN, "w4a4", "reconstruct"),
        (VIT, "w4a8", "reconstruct"),
    ],
)
def test_a_method_alone_passes_parity_and_is_in_the_record(images, tmp_path, model, bits, method):
    arguments = {"reconstruct.steps": "20"} if method == "reconstruct" else {}
    record = quantize(spec(images, tmp_path, model=model, bits=bits, method=[method], method_arg=arguments))
    assert record.parity.passed
    (done,) = record.methods
    assert (done.name, done.label) == (method, "folded")
    assert done.source
    encodings = Encodings.load(tmp_path / "encodings.safetensors")
    assert bool(encodings.constants) == (method != "ranking")
    assert encodings.origin["methods"] == method


def test_methods_together_and_again(images, tmp_path):
    asked = spec(
        images, tmp_path, model=VIT, bits="w4a4", method=["reconstruct", "bias-correction", "smooth"], method_arg={"reconstruct.steps": 10}
    )
    first = quantize(asked)
    assert [m.name for m in first.methods] == ["smooth", "reconstruct", "bias-correction"]
    digest = Encodings.load(tmp_path / "encodings.safetensors").digest()
    second = quantize(asked)
    assert second.calibration["cache"].startswith("used: ")
    assert Encodings.load(tmp_path / "encodings.safetensors").digest() == digest


def test_the_float_file_does_not_depend_on_methods(images, tmp_path):
    plain = quantize(spec(images, tmp_path / "a", model=VIT))
    smoothed = quantize(spec(images, tmp_path / "b", model=VIT, method=["smooth"]))
    assert plain.files["model.fp32.onnx"].sha256 == smoothed.files["model.fp32.onnx"].sha256
    assert plain.files["model.qdq.onnx"].sha256 != smoothed.files["model.qdq.onnx"].sha256


def test_learned_rounding_beats_rounding_to_nearest(images, tmp_path):
    nearest = quantize(spec(images, tmp_path / "a", bits="w3a8")).parity.quantization_sqnr_db
    learned = quantize(
        spec(images, tmp_path / "b", bits="w3a8", method=["reconstruct"], method_arg={"reconstruct.steps": 150})
    ).parity.quantization_sqnr_db
    assert learned > nearest + 1.0


def test_the_report_says_where_each_method_runs(images, tmp_path):
    from trtq.report.page import write_page

    record = quantize(spec(images, tmp_path, model=VIT, bits="w4a8", method=["smooth"]))
    text = write_page(tmp_path, tmp_path / "report.html", title="t").read_text()
    assert "W4A8 (in INT8 containers) with smooth" in text
    assert "folded into the numbers: nothing more runs" in text
    assert "--bits w4a8 --method smooth" in text
    assert "tensors in W4A8, INT8 containers" in record.summary


# ---- folding is exact --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny_cnn, tiny_vit])
def test_folding_any_factors_leaves_the_function_alone(model):
    bench = bench_of(model())
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = bench.graph(x)
        pairs, _ = find_pairs(bench)
        assert pairs
        for pair in pairs:
            fold_factors(bench, pair, torch.rand(pair.channels) * 4 + 0.1)
        after = bench.graph(x)
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())
    assert bench.folded


def test_nothing_folds_through_silu_and_the_record_says_why():
    class Two(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.a, self.b, self.act = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), act

        def forward(self, x):
            return self.b(self.act(self.a(x)))

    pairs, refused = find_pairs(bench_of(Two(nn.SiLU())))
    assert not pairs
    assert refused == ["b: silu.default lets no factor through"]
    for act in (nn.ReLU6(), nn.GELU(), nn.Hardswish()):
        assert not find_pairs(bench_of(Two(act)))[0]
    assert len(find_pairs(bench_of(Two(nn.ReLU())))[0]) == 1


class Chain(nn.Module):
    """A producer, something between, a consumer."""

    def __init__(self, first, between, last):
        super().__init__()
        self.first, self.last, self.between = first, last, between

    def forward(self, x):
        return self.last(self.between(self.first(x)))


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        # A linear over the width of a map, as many wide as it has channels: another axis.
        (Chain(nn.Conv2d(3, 32, 3, padding=1), torch.relu, nn.Linear(32, 8)), False),
        # Token mixing: the norm's channels are last, the convolution's are axis 1.
        (Chain(nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.Flatten(2), nn.LayerNorm(16)), lambda x: x, nn.Conv1d(16, 16, 1)), False),
        # A mean over channels and height leaves the width.
        (Chain(nn.Conv2d(3, 32, 3, padding=1), lambda x: torch.relu(x).mean((1, 2)), nn.Linear(32, 5)), False),
        (Chain(nn.Conv2d(3, 32, 3), lambda x: torch.relu(x).mean((2, 3)), nn.Linear(32, 5)), True),
        # Transposed weights have their output channels on another axis.
        (Chain(nn.ConvTranspose2d(3, 3, 2), torch.relu, nn.Conv2d(3, 4, 1)), False),
        (Chain(nn.GroupNorm(1, 3), nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3)), True),
        (Chain(nn.GroupNorm(1, 3), lambda x: nn.functional.pad(x, (1, 1), value=1.0), nn.Conv2d(3, 4, 3)), False),
    ],
)
def test_factors_move_only_along_the_channels(model, fits):
    bench = bench_of(model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = bench.graph(x)
        pairs, _ = find_pairs(bench)
        assert bool(pairs) == fits
        for pair in pairs:
            fold_factors(bench, pair, torch.rand(pair.channels) * 4 + 0.1)
        assert float((bench.graph(x) - before).abs().max()) < 1e-4 * float(before.abs().max())


def test_a_method_that_moves_the_function_is_stopped(images, tmp_path, monkeypatch):
    from trtq.methods import smooth

    def wrong(bench, pair, factors):
        node = pair.consumers[0].args[1]
        bench.fold(node, bench.graph.get_parameter(str(node.target)).detach() * 1.5)

    monkeypatch.setattr(smooth, "fold_factors", wrong)
    with pytest.raises(CalibrationError, match=r"The method smooth changed what the model computes: outputs moved by"):
        quantize(spec(images, tmp_path, model=VIT, method=["smooth"], method_arg={"smooth.strength": 0.5}))


def test_a_model_of_one_image_at_a_time_is_refused_where_batches_are_needed(images, tmp_path):
    (tmp_path / "one.py").write_text(
        "import torch\nclass M(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.c = (torch.nn.Conv2d(i, o, 3, 2) for i, o in ((3, 8), (8, 8), (8, 8)))\n"
        "    def forward(self, x):\n        y = self.c(self.b(self.a(x)))\n"
        "        return torch.stack([y[i].mean((1, 2)) for i in range(int(x.shape[0]))])\n"
        "def make():\n    torch.manual_seed(0)\n    return M()\n"
    )
    for method in ("bias-correction", "reconstruct"):
        with pytest.raises(UsageError, match=f"{method} does not fit this model: the model takes one image at a time"):
            quantize(spec(images, tmp_path / method, model=f"{tmp_path}/one.py:make", bits="w4a4", method=[method]))


def test_shared_tensors_learn_one_range(images, tmp_path):
    (tmp_path / "fork.py").write_text(
        "import torch\nclass M(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.stem, self.a, self.b, self.last = (torch.nn.Conv2d(i, 8, 3) for i in (3, 8, 8, 8))\n"
        "    def forward(self, x):\n        y = torch.relu(self.stem(x))\n        return self.last(self.a(y) * self.b(y)).mean((2, 3))\n"
        "def make():\n    torch.manual_seed(0)\n    return M()\n"
    )
    asked = spec(
        images, tmp_path / "o", model=f"{tmp_path}/fork.py:make", bits="w4a4", method=["reconstruct"], method_arg={"reconstruct.steps": 10}
    )
    plain = {q.name: q.amax for q in quantize(spec(images, tmp_path / "p", model=f"{tmp_path}/fork.py:make", bits="w4a4")).quantizers}
    learned = {q.name: q.amax for q in quantize(asked).quantizers}
    assert learned["a.input"] == learned["b.input"] != plain["a.input"]


def test_a_residual_reader_stops_the_fold():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            y = torch.relu(self.a(x))
            return y + self.b(y)

    assert not find_pairs(bench_of(Residual()))[0]


def test_grouped_and_depthwise_consumers_take_their_own_channels_factors():
    class Grouped(nn.Module):
        def __init__(self, groups):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=groups)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    for groups in (1, 2, 8):
        bench = bench_of(Grouped(groups))
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            before = bench.graph(x)
            get_method("equalize").run(bench, {"rounds": 10})
            after = bench.graph(x)
        assert torch.allclose(before, after, atol=1e-4)
        first, second = (bench.graph.get_parameter(f"{n}.weight") for n in "ab")
        left = first.flatten(1).abs().amax(1)
        per_group = second.reshape(groups, 16 // groups, 8 // groups, 9)
        right = per_group.abs().amax((1, 3)).flatten()
        assert torch.allclose(left, right, rtol=1e-2)


# ---- formulas ----------------------------------------------------------------------------------------------------------


def test_smoothing_factors_by_hand():
    assert smoothing_factors(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 1.0]), 0.5).tolist() == [2.0, 0.5]
    # A dead channel and one that nothing reads keep 1.
    assert smoothing_factors(torch.tensor([0.0, 4.0, 4.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5).tolist() == [1.0, 1.0, 1.0]


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), min_size=1, max_size=20))
def test_factors_are_always_usable(channels):
    left, right = (torch.tensor(v, dtype=torch.float32) for v in zip(*channels, strict=True))
    for factors in (equalizing_factors(left, right), smoothing_factors(left, right, 0.7)):
        assert bool(torch.isfinite(factors).all())
        assert bool((factors > 0).all())


def test_soft_rounding_starts_at_the_weight_and_ends_on_a_code():
    weight = torch.tensor([[0.26, -0.74, 0.5, 9.0]])
    soft = SoftRounding(weight, torch.tensor(0.5), -8, 7)
    assert torch.allclose((soft.floor + soft.up())[0, :2] * 0.5, weight[0, :2], atol=1e-3)
    soft().sum().backward()
    assert bool((soft.logits.grad[0, :3] != 0).all())
    assert soft.logits.grad[0, 3] == 0.0
    assert soft.hard().tolist() == [[0.5, -0.5, 0.5, 3.5]]
    with torch.no_grad():
        soft.logits.fill_(20.0)
    assert soft.hard()[0, 0] == 0.5
    # What runs while learning is what is kept, and the gradient still flows.
    assert torch.equal(soft(), soft.hard())


def test_a_learned_range_has_lsqs_gradient():
    # LSQ eq. 3: d out / d step is round(v) - v inside the codes and the outermost code outside; times step in the log domain.
    learned = LearnedRange(torch.tensor(0.5), -8, 7)
    x = torch.tensor([0.6, 100.0, -100.0])
    learned(x, 1.0).sum().backward()
    assert learned.log_step.grad.item() == pytest.approx(((1.0 - 1.2) + 7.0 - 8.0) * 0.5, abs=1e-5)


def test_bias_correction_keeps_the_channel_means(images, tmp_path):
    errors = []
    for methods in ([], ["bias-correction"]):
        out = tmp_path / str(len(methods))
        quantize(spec(images, out, bits="w3a4", method=methods))
        from trtq.export.ort import open_session

        x = np.random.default_rng(0).normal(size=(64, 3, 32, 32)).astype(np.float32)
        plain, quantized = (open_session(out / f"model.{k}.onnx").run(None, {"input": x})[0] for k in ("fp32", "qdq"))
        errors.append(float(np.abs((quantized - plain).mean(0)).max()))
    assert errors[1] < errors[0]


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
    assert (ranking_loss(torch.zeros(4), torch.ones(4), 1.0), kendall(torch.zeros(4), torch.ones(4)), pearson(flat, flat)) == (
        0.0,
        1.0,
        1.0,
    )
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert pearson(x, 2 * x + 1) == pytest.approx(1.0)


def test_attention_can_be_asked_for_and_left_out(images, tmp_path):
    kept = quantize(spec(images, tmp_path / "a", model=VIT, attention="float"))
    assert {f.reason for f in kept.left_in_float if ".qk" in f.name} == {"asked for by --attention float"}
    (tmp_path / "sharp.py").write_text(
        "import torch\nfrom trtq.testing.models import TinyViT\ndef make():\n    torch.manual_seed(0)\n    model = TinyViT()\n"
        "    model.blocks[0].qkv.weight.data *= 12\n    return model\n"
    )
    sharp = {"model": f"{tmp_path}/sharp.py:make", "input_size": "3x64x64"}
    forced = quantize(spec(images, tmp_path / "b", attention="int8", **sharp))
    assert "blocks.0.softmax.output" in {q.name for q in forced.quantizers}


# ---- what a model is made of -------------------------------------------------------------------------------------------


def test_blocks_by_name_and_kind():
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 1), "attn": nn.Identity(), "fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    found = identify_blocks(model)
    assert (found.cnn, found.transformer) == (["stem"], ["attn", "fc"])
    layer = identify_blocks(nn.Sequential(nn.TransformerEncoderLayer(8, 2), nn.Conv2d(3, 3, 1)))
    assert layer.cnn == ["1"]
    assert {"0", "0.self_attn", "0.linear1"} <= set(layer.transformer)


@pytest.mark.parametrize(
    ("name", "family"), [(CNN, "cnn"), (VIT, "vit"), ("timm:mobilenetv2_100", "mobile"), ("timm:mobilevit_xxs", "hybrid")]
)
def test_the_family_of_a_model(name, family):
    record = blocks(BlocksSpec(model=name, input_size=(3, 64, 64)))
    assert record.family == family
    assert "convolutions" in record.reason


def test_blocks_on_the_command_line():
    shown = run_cli("blocks", VIT, "--input-size", "3x32x32")
    assert shown.returncode == 0, shown.stderr
    assert "vit (1 convolutions" in shown.stdout
    assert "blocks.0.qkv" in shown.stdout
    assert run_cli("blocks").returncode == 2


# ---- asking wrongly ----------------------------------------------------------------------------------------------------


def test_wrong_requests():
    with pytest.raises(UsageError, match=r"Unknown method 'smoth'.*smooth"):
        choose(["smoth"], {})
    with pytest.raises(UsageError, match="asked for twice"):
        choose(["smooth", "smooth"], {})
    with pytest.raises(UsageError, match=r"expected NAME\.K=V"):
        choose(["smooth"], {"strength": 1})
    with pytest.raises(UsageError, match="is for a method that was not asked for: *|Add --method equalize"):
        choose(["smooth"], {"equalize.rounds": 1})
    with pytest.raises(UsageError, match=r"has no argument 'strenth'.*strength"):
        choose(["smooth"], {"smooth.strenth": 1})
    with pytest.raises(UsageError, match=r"Cannot use smooth.strength=much: expected float"):
        choose(["smooth"], {"smooth.strength": "much"})


def test_a_method_that_does_not_fit_says_so_before_calibration(images, tmp_path):
    with pytest.raises(UsageError, match="The method reconstruct does not fit this model: every quantizer has 8 bits"):
        quantize(spec(images, tmp_path, method=["reconstruct"]))
    with pytest.raises(UsageError, match="ranking does not fit this model: it has no attention with quantized queries and keys"):
        quantize(spec(images, tmp_path, method=["ranking"]))
    with pytest.raises(UsageError, match="equalize does not fit this model: no two convs or linears have only ReLU"):
        quantize(spec(images, tmp_path, model="trtq.testing.models:dict_output", method=["equalize"]))
    with pytest.raises(UsageError, match="smooth does not fit this model: no norm, conv or linear hands its channels on"):
        quantize(spec(images, tmp_path, model="trtq.testing.models:dict_output", method=["smooth"]))
    assert not list(tmp_path.glob("*.onnx"))


def test_the_list_names_every_method_with_its_label():
    shown = run_cli("methods")
    assert shown.returncode == 0
    for name in METHODS:
        assert f"{name}  [{get_method(name).label}]" in shown.stdout
