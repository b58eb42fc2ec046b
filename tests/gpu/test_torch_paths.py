"""What torch computes on a GPU is what it computes on the CPU, up to rounding."""

from __future__ import annotations

import pytest
import torch

import trtq
from tests.support.hybrid import SETTINGS, hybrid, images, options

pytestmark = pytest.mark.gpu
LEARNED = {"learned rounding"}  # each step rounds: paths part after the first near-tie


def codes(quantized, name):
    """Return the codes of a weight as the file has them."""
    encodings = quantized.encodings
    own = quantized.inputs.model.graph.module.get_parameter(
        name.removesuffix(".weight") + ".weight"
    )
    weight = encodings.constants.get(name, own.detach().cpu())
    scale = encodings.scale(name)
    return (weight.flatten(1) / scale.reshape(-1, 1)).round()


@pytest.mark.parametrize("name", SETTINGS)
def test_quantize(gpu, name, tmp_path, monkeypatch):
    here = trtq.quantize(hybrid(), images(), **options(name))
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "gpu"))
    there = trtq.quantize(hybrid(), images(), device=gpu, **options(name))
    assert there.done.parity.passed
    assert there.encodings.amax.keys() == here.encodings.amax.keys()
    for key, value in there.encodings.amax.items():
        if not value.ndim and name not in LEARNED:
            torch.testing.assert_close(value, here.encodings.amax[key], rtol=1e-4, atol=0.0)
    if name in LEARNED:
        return
    weights = [q.name for q in there.done.placement.active if q.role == "weight"]
    pairs = [(here.encodings.scale(w), there.encodings.scale(w)) for w in weights]
    equal = sum(int(torch.isclose(a, b, rtol=1e-3).sum()) for a, b in pairs)
    total = sum(a.numel() for a, _ in pairs)
    assert equal >= 0.97 * total  # the others took the neighbouring fraction of their range


def test_weight_codes(gpu, tmp_path, monkeypatch):
    plain = {"preset_quant": "none", "calibrator": "max"}
    here = trtq.quantize(hybrid(), images(), **plain)
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "gpu"))
    there = trtq.quantize(hybrid(), images(), device=gpu, **plain)
    equal = total = 0
    for name in ("stem.weight", "deep.weight", "patch.weight"):
        a, b = codes(here, name), codes(there, name)
        equal, total = equal + int((a == b).sum()), total + a.numel()
    assert equal >= 0.999 * total


@pytest.mark.parametrize("metric", ["l2", "jsd", "gradient", "hessian", "combined"])
def test_analyze(gpu, metric, tmp_path, monkeypatch):
    pairs = [(x, i % 10) for i, x in enumerate(images())]
    few = {"images": 8, "calib_images": 8, "probes": 4, "trials": 2, "bits": ("4", "8")}
    here = trtq.analyze(hybrid(), pairs, metric=metric, **few)
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "gpu"))
    there = trtq.analyze(hybrid(), pairs, metric=metric, device=gpu, **few)
    for one, other in zip(here.layers, there.layers, strict=True):
        assert other.loss["w4a4"] == pytest.approx(one.loss["w4a4"], rel=0.02, abs=1e-9)


def test_search(gpu):
    pairs = [(x, i % 10) for i, x in enumerate(images())]
    few = {"images": 8, "calib_images": 8, "rounds": 1, "metric": "l2", "bits": ("4", "8")}
    found = trtq.search(hybrid(), pairs, budget=("size=0.6",), device=gpu, **few)
    assert found.record.tries[-1].within


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_finetune(gpu, amp):
    pairs = [(x, i % 10) for i, x in enumerate(images(32))]
    start = trtq.quantize(hybrid(), images(), bits="w4a8", preset_quant="none", device=gpu)
    done = trtq.finetune(start, pairs, epochs=3, batch_size=8, device=gpu, amp=amp, lr=0.01)
    losses = [e.loss for e in done.record.history]
    assert losses[-1] < losses[0]
    assert done.quantized.done.parity.passed


def test_a_run_that_stopped_on_a_gpu_goes_on_on_the_cpu(gpu, monkeypatch):
    """The pieces of an analysis are kept by content, not by device."""
    pairs = [(x, i % 10) for i, x in enumerate(images())]
    few = {"images": 8, "calib_images": 8, "probes": 4, "metric": "hessian", "bits": ("4", "8")}
    first = trtq.analyze(hybrid(), pairs, device=gpu, **few)
    again = trtq.analyze(hybrid(), pairs, device="cpu", **few)
    assert [layer.raw for layer in again.layers] == [layer.raw for layer in first.layers]


def test_a_device_index_that_is_not_there(gpu):
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(trtq.TrtqError, match=rf"Cannot use {missing}: torch sees \d+ GPUs"):
        trtq.quantize(hybrid(), images(), device=missing)


def test_a_batch_that_does_not_fit_is_halved(gpu):
    """A GPU with little memory: the process may have a small share of it."""
    wide = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.Conv2d(64, 4, 3))
    data = torch.randn(16, 3, 256, 256)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    used = torch.cuda.memory_reserved(0)
    torch.cuda.set_per_process_memory_fraction((used + 400e6) / total)
    try:
        done = trtq.quantize(wide.eval(), data, device=gpu, batch_size=16, preset_quant="none")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any(
        "the GPU's memory is too small for 16 samples" in n for n in done.inputs.run.note.lines
    )
