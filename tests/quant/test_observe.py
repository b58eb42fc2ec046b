"""The calibration pass: statistics of one's own, on any device, without waiting for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import trtq
from trtq.errors import CalibrationError, UsageError
from trtq.graph.capture import capture
from trtq.graph.device import on_device
from trtq.quant import histogram
from trtq.quant.calibrate import summarize_all
from trtq.quant.calibrators import CALIBRATORS, Asked, find_calibrator
from trtq.quant.formats import BitConfig
from trtq.quant.histogram import (
    NUM_BINS,
    Histogram,
    _count,
    counted,
    counting_step,
    dense,
    dense_view,
)
from trtq.quant.observe import observe
from trtq.quant.placement import place
from trtq.quant.statistics import Bulk, ChannelSums, Ends, Seen

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()
OWN = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "SIGMA" in b)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).mean((2, 3)))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return capture(Net().eval(), (3, 12, 12)).module


def images(count=24):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,  # in inference mode these two are not taken apart
    torch.ops.aten.is_nonzero.default,
)


class Waits(TorchDispatchMode):
    """Counts how often a program reads a number out of a tensor: a GPU would have to finish."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in READS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", CALIBRATORS)
def test_a_pass_waits_for_the_device_once_a_batch(graph, mode):
    with Waits() as waits:
        observe(graph, place(graph, bits=BitConfig.parse("w4a4")), images().split(6), mode=mode)
    assert waits.count == 4  # batches, whatever the number of activations


@pytest.mark.parametrize("kind", ["channels of a map", "heads of an attention", "a whole map"])
def test_a_tensor_with_gaps_is_copied_once(kind):
    whole = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    heads = torch.randn(2, 5, 8, 4).transpose(1, 2)[..., :3]
    x = {"channels of a map": whole[:, :3], "heads of an attention": heads}.get(kind, whole)
    values = dense(x)
    assert torch.equal(values, x)
    assert dense_view(values).data_ptr() == values.data_ptr()
    assert (values is x) == (kind == "a whole map")


@pytest.mark.parametrize("mode", CALIBRATORS)
def test_statistics_stay_on_the_device_of_the_values(mode):
    """A fake tensor of a GPU refuses to meet one of the CPU, and to say what it holds."""
    with FakeTensorMode():
        x = torch.randn(6, 8, 5, 5, device="cuda")
        scratch = torch.empty(1 << 18, device="cuda"), torch.empty(1 << 18, device="cuda").int()
        ends, bulk, channels = Ends(), Bulk(), ChannelSums(1)
        statistic = find_calibrator(mode).gather(True)
        for _ in range(2):
            for each in (ends, bulk, channels, statistic):
                each.add(Seen.of(x, scratch))
    kept = [ends.low, ends.high, bulk.zeros, channels.sums, channels.squares]
    for each in (h for s in (bulk, statistic) for h in vars(s).values()):
        if isinstance(each, Histogram):
            kept += [each._counts, each._limit, each._amax]
    assert {t.device.type for t in kept} == {"cuda"}
    assert len(kept) == 8 + {"mse": 9, "percentile": 3, "entropy": 3}.get(mode, 0)


def test_a_value_that_is_not_finite_counts_without_an_exception():
    statistic = find_calibrator("mse").gather(True)
    scratch = torch.empty(1 << 18), torch.empty(1 << 18, dtype=torch.int32)
    for bad in (float("nan"), float("inf")):
        x = torch.tensor([[1.0, bad, -2.0]])
        statistic.add(Seen.of(x, scratch))


def test_bins_of_a_gpu_are_those_of_bincount():
    """The form for a GPU needs integers there; with floats the CPU computes the same."""
    codes = torch.randint(0, NUM_BINS, (5000,), dtype=torch.int32)
    codes[:3] = torch.tensor([0, NUM_BINS - 1, NUM_BINS - 1])
    wanted = torch.histc(codes.float(), NUM_BINS, 0, NUM_BINS).long()
    assert torch.equal(_count(codes), wanted)


def test_a_calibrator_of_one_file_with_its_own_statistic(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "own.py"
    own.write_text(OWN)
    torch.manual_seed(0)
    net, x = Net().eval(), images()
    quantized = trtq.quantize(net, x, calibrator=f"{own}:SIGMA", preset_quant="none")
    amax = quantized.encodings.amax
    sigma = float(x.double().square().mean().sqrt())
    assert float(amax["a.input"]) == pytest.approx(3 * sigma, rel=2e-3)
    own.write_text(OWN.replace("3.0 * sigma", "2.0 * sigma"))  # the cache sees the new code
    again = trtq.quantize(net, x, calibrator=f"{own}:SIGMA", preset_quant="none")
    assert float(again.encodings.amax["a.input"]) == pytest.approx(2 * sigma, rel=2e-3)


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        (
            "self.sum + seen",
            "seen.nothing + seen",
            CalibrationError,
            "raised AttributeError",
        ),
        ("energy.sum /", "1 / 0 *", CalibrationError, "raised .*division"),
        ("energy.sum /", "float('inf') * energy.sum /", CalibrationError, "chose no range: .*inf"),
        ("SIGMA = Calibrator", "SIGMA = str", UsageError, "raised"),
        (
            "SIGMA = ",
            "SIGMA = 3 or ",
            UsageError,
            "it is of type int, expected a function",
        ),
    ],
)
def test_a_calibrator_that_fails_is_named(tmp_path, monkeypatch, old, new, error, message):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "own.py"
    own.write_text(OWN.replace("min(3.0 * sigma, request.amax)", "3.0 * sigma").replace(old, new))
    with pytest.raises(error, match=rf"(?s)own\.py.*{message}"):
        trtq.quantize(Net().eval(), images(), calibrator=f"{own}:SIGMA", preset_quant="none")


def test_what_is_asked_of_a_calibrator():
    assert Asked(1.0, 8, None, 99.9).qmax == 127
    assert Asked(1.0, 4, 0, 99.9).qmax == 15


def test_a_device_that_is_not_there_is_refused_before_any_work():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(
        UsageError, match=r"Cannot use cuda: torch sees 0 GPUs: .* (?:Give --device cpu|device)"
    ):
        trtq.quantize(Net().eval(), images(), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", CALIBRATORS)
def test_ranges_of_a_gpu_are_those_of_the_cpu(graph, mode):
    placement, x = place(graph, bits=BitConfig.parse("w4a4")), images()
    here = observe(graph, placement, x.split(6), mode=mode)
    there = observe(on_device(graph, torch.device("cuda", 0)), placement, x.split(6), mode=mode)
    stats = [summarize_all(placement, seen, mode, 99.99) for seen in (here, there)]
    for name, one in stats[0].items():
        assert stats[1][name].amax == pytest.approx(one.amax, rel=1e-4)
        assert stats[1][name].bulk_rms == pytest.approx(one.bulk_rms, rel=1e-4)
    assert all(p.device.type == "cpu" for p in graph.parameters())  # the graph is not moved


def test_a_large_tensor_is_counted_in_part_whatever_the_batch():
    """Every k-th value, k prime to every size: each channel and each column has its share."""
    torch.manual_seed(0)
    x = torch.randn(3, 6, 200, 210).contiguous(memory_format=torch.channels_last)
    step = counting_step((6, 200, 210))
    assert step == 11  # 252,000 / 131,072 -> 2; 2, ..., 10 share a divisor with 6, 200 or 210
    some = counted(x)
    assert torch.equal(some, torch.cat([counted(one) for one in x.split(1)]))
    assert torch.equal(some[0], x[0].permute(1, 2, 0).reshape(-1)[::11])
    channels = torch.arange(6.0).reshape(1, 6, 1, 1).expand(1, 6, 200, 210)
    shares = torch.bincount(counted(dense(channels)).flatten().int(), minlength=6)
    assert int(shares.max() - shares.min()) <= 1
    assert counting_step((64, 32, 64)) == 1  # 131,072 values: all


def test_the_range_of_a_large_tensor_is_exact_and_its_mse_near_that_of_all_values(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(4, 8, 300, 310)
    x[2, 5, 123, 77] = 30.0  # one value alone
    scratch = torch.empty(1 << 18), torch.empty(1 << 18, dtype=torch.int32)
    chosen = []
    for most in (1 << 17, 1 << 30):
        monkeypatch.setattr(histogram, "MOST_COUNTED", most)
        ends, statistic = Ends(), find_calibrator("mse").gather(False)
        for each in (ends, statistic):
            each.add(Seen.of(x, scratch))
        assert float(ends.high) == 30.0
        chosen.append(find_calibrator("mse").choose(statistic, Asked(30.0, 8, None, 99.99)).amax)
    assert abs(chosen[0] / chosen[1] - 1.0) < 0.1
