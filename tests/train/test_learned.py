"""What is learned beside the weights: codebooks, kept BatchNorms, falling widths.

The tests also cover what is asked of the answers, and which layers train.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import read, spec
from tests.support.quantize import CNN
from tests.support.training import asked
from trtq import AnalyzeSpec, analyze, finetune, quantize
from trtq.errors import ArtifactError, UsageError
from trtq.graph.capture import capture
from trtq.graph.device import choose_device, to_device_
from trtq.quant.encodings import Encodings
from trtq.quant.formats import Format
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize
from trtq.testing.models import tiny_cnn
from trtq.train.learned import KeptNorm, LeanMemory, LearnedCodebook, LearnedFakeQuantize, _composed
from trtq.train.training_graph import TrainingGraph
from trtq.workers import Workers


@pytest.fixture(scope="module")
def encodings(ptq: Path) -> Encodings:
    return Encodings.load(ptq / "encodings.safetensors")


# ---- quantizers --------------------------------------------------------------------------------


def test_wider_codes_for_a_while_come_back_to_the_same_step():
    x = torch.linspace(-3, 3, 101)
    for fmt in (Format(bits=4), Format(bits=3, lowest=0), Format(bits=4, lowest=-1)):
        made = LearnedFakeQuantize("q", torch.tensor(0.5), fmt, learn=True)
        before = made(x).detach()
        made.widen_(8)
        assert made.qmax - made.qmin == 255
        reach = 9.89 / {4: 5.03, 3: 3.89}[fmt.bits]
        assert 0.5 * made.factor * made.qmax == pytest.approx(0.5 * fmt.qmax * reach, rel=1e-5)
        assert len(made(x).unique()) > len(before.unique())
        assert float(made.amax) == pytest.approx(
            0.5 * fmt.qmax
        )  # what is written is the range at the own width
        made.widen_(fmt.bits)
        assert (made.qmin, made.qmax, made.factor) == (fmt.qmin, fmt.qmax, 1.0)
        assert torch.equal(made(x).detach(), before)
    eight = LearnedFakeQuantize("q", torch.tensor(0.5), Format(bits=8), learn=True)
    eight.widen_(4)  # never narrower than its own
    assert (eight.qmin, eight.factor) == (-128, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_range_does_not_cancel(dtype):
    """Nothing is clipped, and the gradient follows the input.

    Two large sums would leave noise, or in 16 bits nothing.
    """
    torch.manual_seed(0)
    x = torch.rand(4096).mul(100).to(dtype).requires_grad_()
    made = LearnedFakeQuantize("q", torch.tensor(1.0), Format(bits=8), learn=True)
    (made(x) * x.detach()).sum().backward()
    v = x.detach().double()
    wanted = float(((v.round() - v) * v).sum()) / math.sqrt(4096 * 127)
    assert made.log_step.grad is not None
    assert float(made.log_step.grad) == pytest.approx(
        wanted, rel=1e-4 if dtype == torch.float32 else 0.05
    )


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0.05, 1.0))
def test_the_compiled_form_has_the_same_values_and_gradients(values, step):
    grads = []
    for compiled in (False, True):
        made, x = (
            LearnedFakeQuantize("q", torch.tensor(step), Format(bits=4), learn=True),
            torch.tensor(values, requires_grad=True),
        )
        at = (torch.tensor(values) / made.log_step.exp() + 0.5).detach()
        if bool(((at - at.round()).abs() < 1e-4).any()):
            return  # on the edge between two codes either is right
        scale = 1 / math.sqrt(len(values) * 7)
        y = _composed(x, made.log_step.exp(), None, -8, 7, scale) if compiled else made(x)
        (y * torch.arange(1.0, len(values) + 1)).sum().backward()
        assert x.grad is not None and made.log_step.grad is not None
        grads.append((y.detach(), x.grad, made.log_step.grad))
    for eager, other in zip(*grads, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-4, atol=1e-5)


def test_lean_memory_changes_no_bit_and_keeps_no_rounded_copy(encodings: Encodings):
    captured = capture(tiny_cnn().eval(), (3, 32, 32))
    graph = TrainingGraph(captured.module, encodings, learn_amax=True)
    x, kept = torch.randn(4, 3, 32, 32), []

    class Counting(LeanMemory):
        def _pack(self, tensor):
            packed = super()._pack(tensor)
            kept.append(isinstance(packed, torch.Tensor))
            return packed

    results = []
    for lean in (False, True):
        graph.module.zero_grad()
        if lean:
            with Counting():
                y = graph.module(x)
        else:
            y = graph.module(x)
        y.square().sum().backward()
        results.append([p.grad.clone() for p in (*graph.trained, *graph.ranges)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept.count(False) >= 8  # the input and the weight of every layer
    assert LeanMemory.active is None


# ---- codebooks ---------------------------------------------------------------------------------


def test_a_codebook_finds_the_clusters_and_follows_them():
    weight = torch.tensor([[-1.0, -0.98, 0.5, 0.52], [1.0, 1.02, -0.5, -0.48]])
    book = LearnedCodebook(weight, torch.ones(2), 0, 2)
    torch.testing.assert_close(
        book.values, torch.tensor([-0.99, -0.49, 0.51, 1.01]), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(book(weight), book.snapped(weight))
    # k-means by moving averages, by hand: two members each, decay 0.99, the members have moved by
    # 0.1
    before = book.values.clone()
    book.train()
    book(weight + 0.1)
    torch.testing.assert_close(
        book.values, before + 0.1 * 0.02 / (0.99 * 2 + 0.02), rtol=0, atol=1e-5
    )
    book.eval()
    values = book.values.clone()
    book(weight - 1.0)
    assert torch.equal(values, book.values)  # evaluation moves nothing
    learning = weight.clone().requires_grad_()
    book(learning).sum().backward()
    assert torch.equal(learning.grad, torch.ones_like(weight))


@settings(max_examples=20)
@given(st.integers(2, 4), st.integers(0, 1000))
def test_a_codebook_has_no_more_values_than_it_says_and_each_weight_is_on_the_nearest(bits, seed):
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    scale = weight.abs().amax(1)
    book = LearnedCodebook(weight, scale, 0, bits)
    snapped = book.snapped(weight) / scale[:, None]
    assert len((snapped * 1e4).round().unique()) <= 1 << bits
    off = (snapped - weight / scale[:, None]).abs()
    best = (book.values[:, None, None] - weight / scale[:, None]).abs().amin(0)
    torch.testing.assert_close(off, best, rtol=1e-4, atol=1e-6)


def test_codebooks_are_exported_as_floats_and_said_to_be_simulated(
    images: Path, ptq: Path, tmp_path: Path
):
    record = finetune(asked(images, ptq, tmp_path, epochs=2, codebook=3))
    assert record.trained.codebooks == len(record.codebooks) == 5
    assert "5 weights on codebooks (simulated: engines compute them in float)" in record.summary
    after = Encodings.load(tmp_path / "encodings.safetensors")
    for name, values in record.codebooks.items():
        assert len(values) == 8
        assert name not in after.formats
        assert (
            after.left_in_float[name]
            == "a codebook of 8 values: simulated, no engine has a kernel for it"
        )
    import onnx
    from onnx import numpy_helper

    model = onnx.load(tmp_path / "model.qdq.onnx")
    stem = next(
        numpy_helper.to_array(i) for i in model.graph.initializer if i.dims == [16, 3, 3, 3]
    )
    per_channel = [len(set(map(float, channel.flatten()))) for channel in stem]
    assert max(per_channel) <= 8


# ---- kept BatchNorms ---------------------------------------------------------------------------


def test_a_kept_norm_starts_as_nothing_and_folds_exactly():
    torch.manual_seed(0)
    norm, x = (
        KeptNorm(torch.tensor([0.5, -1.0])),
        torch.randn(8, 2, 4, 4) * torch.tensor([3.0, 0.1])[:, None, None] + 2.0,
    )
    norm.seen = []
    norm(x)
    norm.adopt_statistics_()
    norm.eval()
    torch.testing.assert_close(
        norm(x), x + torch.tensor([0.5, -1.0])[:, None, None], rtol=1e-4, atol=1e-4
    )
    norm.train()
    trained = norm(x)
    torch.testing.assert_close(trained.mean((0, 2, 3)), norm.bias.detach(), rtol=1e-4, atol=1e-4)
    norm.eval()
    factor, bias = norm.folded()
    assert bool((factor > 0).all())
    torch.testing.assert_close(
        norm(x), x * factor[:, None, None] + bias[:, None, None], rtol=1e-4, atol=1e-4
    )


def test_a_graph_with_kept_norms_is_what_it_exports(encodings: Encodings):
    captured = capture(tiny_cnn().eval(), (3, 32, 32))
    graph = TrainingGraph(captured.module, encodings, learn_amax=True, keep_norms=True)
    assert sorted(graph.norms) == ["conv1", "depthwise", "stem"]
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain = TrainingGraph(captured.module, encodings, learn_amax=True).module(x)
    graph.settle_norms_([x])
    graph.module.eval()
    torch.testing.assert_close(graph.module(x), plain, rtol=1e-3, atol=1e-3)
    graph.module.train()
    optimizer = torch.optim.SGD(graph.trained, lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        graph.module(x).square().mean().backward()
        optimizer.step()
    graph.module.eval()
    learned = graph.learned()
    after = insert_fake_quantize(captured.module, placement_of(captured.module, learned), learned)(
        x
    )
    torch.testing.assert_close(after, graph.module(x), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(after, plain, atol=1e-2)


def test_averages_start_from_the_first_statistics(images: Path, ptq: Path, tmp_path: Path):
    still = {"epochs": 1, "lr": 1e-9, "lr_amax": 1e-9, "batch_norm": "kept"}
    plain, averaged = (
        finetune(asked(images, ptq, tmp_path / f"{e}", **still, ema=e)) for e in (0.0, 0.999)
    )
    assert averaged.parity.quantization_sqnr_db == pytest.approx(
        plain.parity.quantization_sqnr_db, abs=1.0
    )


def test_a_last_batch_of_one_image_and_a_large_seed(images: Path, tmp_path: Path):
    quantize(spec(images, tmp_path / "ptq", seed=20240101))
    made = finetune(
        asked(
            images,
            tmp_path / "ptq",
            tmp_path / "o",
            epochs=1,
            batch_size=31,
            batch_norm="kept",
            seed=20240101,
        )
    )
    assert made.history
    norm = KeptNorm(torch.zeros(2))
    norm(torch.ones(1, 2, 1, 1))  # one value a channel has no variance: the running one serves


@pytest.mark.slow
def test_kept_norms_bear_the_rate_that_a_folded_network_does_not(
    images: Path, ptq: Path, tmp_path: Path
):
    record = finetune(
        asked(
            images,
            ptq,
            tmp_path / "k",
            epochs=4,
            lr=0.05,
            batch_norm="kept",
            freeze_bn=3,
            distill=0.0,
        )
    )
    assert record.trained.norms == 3
    assert record.history[-1].loss < record.history[0].loss
    assert record.parity.passed
    whole = finetune(
        asked(
            images,
            ptq,
            tmp_path / "again",
            epochs=4,
            lr=0.05,
            batch_norm="kept",
            freeze_bn=3,
            distill=0.0,
        )
    )
    assert whole.history[-1].loss == record.history[-1].loss
    with pytest.raises(UsageError, match="--freeze-bn needs --batch-norm kept"):
        asked(images, ptq, tmp_path, freeze_bn=1)
    with pytest.raises(UsageError, match="Cannot keep BatchNorms: no trained convolution had one"):
        finetune(
            asked(
                images,
                ptq,
                tmp_path / "none",
                batch_norm="kept",
                freeze=("stem", "conv1", "depthwise"),
            )
        )


# ---- falling widths ----------------------------------------------------------------------------


def test_widths_fall_and_only_epochs_at_their_own_count(images: Path, ptq: Path, tmp_path: Path):
    record = finetune(asked(images, ptq, tmp_path, epochs=4, lower_bits=(8, 6)))
    assert record.best_epoch >= 2
    assert (
        Encodings.load(tmp_path / "encodings.safetensors").formats
        == Encodings.load(ptq / "encodings.safetensors").formats
    )
    for wrong, why in (
        ((6, 8), "expected falling numbers from 8 to 2"),
        ((9,), "expected falling numbers"),
        ((8, 8, 6, 6), "none at their own"),
    ):
        with pytest.raises(UsageError, match=f"Cannot use --lower-bits.*{why}"):
            asked(images, ptq, tmp_path, epochs=4, lower_bits=wrong)


# ---- which layers train ------------------------------------------------------------------------


def test_only_the_worst_layers_train(images: Path, ptq: Path, tmp_path: Path):
    ranking = tmp_path / "S.json"
    analyze(
        AnalyzeSpec.make(
            {
                "model": CNN,
                "data": str(images),
                "input_size": "3x32x32",
                "preset": "imagenet",
                "out": str(ranking),
                "metric": "l2",
                "images": 16,
                "calib_images": 24,
                "bits": ["4", "8"],
            }
        )
    )
    record = finetune(
        asked(
            images,
            ptq,
            tmp_path / "o",
            epochs=1,
            lr=0.01,
            lr_amax=0.05,
            sensitivity=str(ranking),
            worst=0.2,
        )
    )
    assert any("1 of 5 layers are trained, the worst by l2" in n for n in record.notes)
    own = {"stem": "w8a8", "head": "w8a8"}  # first and last keep 8 bits
    worst = max(
        read(ranking)["layers"], key=lambda layer: layer["loss"][own.get(layer["name"], "w4a4")]
    )["name"]
    before, after = (Encodings.load(p / "encodings.safetensors") for p in (ptq, tmp_path / "o"))
    moved = {n for n in before.amax if not torch.allclose(before.amax[n], after.amax[n], rtol=1e-4)}
    assert moved
    assert all(n.startswith(worst) for n in moved), (worst, moved)
    assert len(after.constants) <= 2
    kept = {n for n in before.amax if torch.equal(before.amax[n], after.amax[n])}
    assert kept >= set(before.amax) - moved - {
        n for n in before.amax if n.startswith(worst)
    }  # to the bit
    with pytest.raises(UsageError, match="--worst needs --sensitivity"):
        asked(images, ptq, tmp_path, worst=0.5)
    with pytest.raises(
        ArtifactError, match="Cannot rank layers by .*: trtq analyze did not write it"
    ):
        other = tmp_path / "other.json"
        other.write_text(json.dumps({"verb": "allocate"}))
        finetune(asked(images, ptq, tmp_path / "p", sensitivity=str(other)))
    changed = read(ranking)
    changed["model"]["weights_sha256"] = "0" * 64
    ranking.write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match="Cannot rank layers by .*: it is of another model"):
        finetune(asked(images, ptq, tmp_path / "p", sensitivity=str(ranking)))


# ---- where it computes -------------------------------------------------------------------------


def test_a_graph_moves_as_a_whole():
    captured = capture(tiny_cnn().eval(), (3, 32, 32))
    moved = to_device_(captured.module, torch.device("meta"))
    assert moved(torch.empty(2, 3, 32, 32, device="meta")).device.type == "meta"
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(
            UsageError,
            match=r"Cannot use cuda:1: torch sees 0 GPUs: .*(driver|without CUDA).*--device cpu",
        ):
            choose_device("cuda:1")
    for text in ("gpu", "mps", "cuda:x"):
        with pytest.raises(UsageError, match=rf"Unknown device '{text}': expected auto, cpu, cuda"):
            choose_device(text)
    with pytest.raises(
        UsageError, match=r"Cannot use cuda:0 with torchrun: 2 processes would share one GPU"
    ):
        choose_device("cuda:0", Workers(rank=0, world=2))


def test_a_codebook_leaves_parameters_that_no_layer_trains(tmp_path: Path, images: Path):
    mine = tmp_path / "net.py"
    mine.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.c = nn.Conv2d(3, 8, "
        "3, stride=4)\n"
        "        self.w = nn.Parameter(torch.randn(8, 4))\n"
        "    def forward(self, x):\n        return torch.relu(self.c(x)).mean((2, 3)) @ self.w\n"
    )
    quantize(spec(images, tmp_path / "ptq", model=f"{mine}:Net"))
    assert (
        finetune(
            asked(
                images, tmp_path / "ptq", tmp_path / "o", model=f"{mine}:Net", epochs=1, codebook=3
            )
        ).trained.codebooks
        >= 1
    )


def test_sixteen_bits_of_arithmetic(images: Path, ptq: Path, tmp_path: Path):
    plain = finetune(asked(images, ptq, tmp_path / "a", epochs=1))
    half = finetune(asked(images, ptq, tmp_path / "b", epochs=1, amp="bf16"))
    assert half.training.amp == "bf16"
    assert half.history[0].loss == pytest.approx(plain.history[0].loss, rel=0.05)
    assert half.history[0].loss != plain.history[0].loss


@pytest.mark.slow
def test_compiled_steps_learn_the_same(images: Path, ptq: Path, tmp_path: Path):
    plain = finetune(asked(images, ptq, tmp_path / "a", epochs=2))
    fused = finetune(asked(images, ptq, tmp_path / "b", epochs=2, compile=True))
    assert fused.history[-1].loss == pytest.approx(plain.history[-1].loss, rel=1e-2)
