"""Channels whose ranges differ by orders of magnitude, with the defaults of ``trtq quantize``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trtq
from trtq.errors import UsageError
from trtq.flow.ptq import method_context
from trtq.methods.balance import EXTREME, find_extremes, range_ratio

TRAIN = 1200
ALL = 16  # channels of the depthwise convolution


class Net(nn.Module):
    """A depthwise convolution between two others, behind ``act``."""

    num_classes = 10

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, ALL, 3, 2, 1), nn.ReLU())
        self.dw = nn.Sequential(nn.Conv2d(ALL, ALL, 3, 1, 1, groups=ALL), act())
        self.pw = nn.Sequential(nn.Conv2d(ALL, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pw(self.dw(self.stem(x))).flatten(1))


class Scaled(nn.Module):
    """An activation of inputs multiplied by ``factors``, divided by them again."""

    def __init__(self, factors: torch.Tensor) -> None:
        super().__init__()
        self.factors = factors[:, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(x * self.factors) / self.factors


@pytest.fixture(scope="module")
def patterns() -> tuple[torch.Tensor, torch.Tensor]:
    """Ten patterns in noise."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, 3, 8, 8, generator=generator)
    labels = torch.arange(2000) % 10
    return means[labels] + 1.5 * torch.randn(2000, 3, 8, 8, generator=generator), labels


def spread(kind: str) -> torch.Tensor:
    """Return the factors of the channels, up to 10,000:1."""
    factors = torch.ones(ALL)
    factors[:7] = 1e4
    return factors if kind == "half" else torch.logspace(0, 4, ALL)


def trained(patterns, act: type[nn.Module], factors: torch.Tensor) -> nn.Module:
    images, labels = patterns
    torch.manual_seed(1)
    net = Net(act)
    if act is nn.SiLU:  # no factor passes it: the function is learned with them
        net.dw[1] = Scaled(factors)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(120):
        chosen = torch.randint(0, TRAIN, (128,))
        loss = nn.functional.cross_entropy(net(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def inject(net: nn.Module, factors: torch.Tensor) -> nn.Module:
    """Multiply output channels of the depthwise convolution, and divide the weights behind it."""
    with torch.no_grad():
        net.dw[0].weight.mul_(factors[:, None, None, None])
        net.dw[0].bias.mul_(factors)
        net.pw[0].weight.div_(factors[None, :, None, None])
    if isinstance(net.dw[1], Scaled):
        net.dw[1] = nn.SiLU()
    return net.eval()


def agreement(patterns, net: nn.Module, quantized) -> float:
    images = patterns[0][TRAIN:]
    with torch.no_grad():
        same = quantized.simulate()(images).argmax(1) == net(images).argmax(1)
    return 100 * float(same.float().mean())


def calibrated(patterns, net: nn.Module, **options):
    return trtq.quantize(net, list(patterns[0][:32]), **options)


@pytest.mark.parametrize("kind", ["half", "log"])
def test_a_ratio_of_ten_thousand_costs_under_a_point(patterns, kind: str):
    factors = spread(kind)
    net = trained(patterns, nn.ReLU, factors)
    plain = calibrated(patterns, net)
    base = agreement(patterns, net, plain)
    assert plain.done.options.method == () and "extreme" not in plain.summary
    inject(net, factors)
    assert agreement(patterns, net, calibrated(patterns, net, preset_quant="none")) < 60
    done = calibrated(patterns, net)
    assert agreement(patterns, net, done) > base - 1.0
    assert done.done.options.method == ("balance",)
    (row,) = done.preset.extremes
    assert (row.tensor, row.layers, row.action) == ("dw.1.relu", ["pw.0"], "balanced")
    assert row.ratio > 900 and row.sqnr_db < 15
    note = "the channel ranges of dw.1.relu differ "
    assert any(n.startswith(note) and "balanced, its factors move" in n for n in done.notes)
    assert "; 1 tensors with extreme channels (up to " in done.summary
    did = next(m.did for m in done.done.methods if m.name == "balance")
    assert did["balanced"]["dw.1.relu"]["after"] < did["balanced"]["dw.1.relu"]["before"] / 10


def test_behind_an_activation_that_no_factor_passes_the_layer_stays_in_float(patterns):
    factors = spread("log")
    net = inject(trained(patterns, nn.SiLU, factors), factors)
    assert agreement(patterns, net, calibrated(patterns, net, preset_quant="none")) < 60
    done = calibrated(patterns, net)
    assert agreement(patterns, net, done) > 99.0
    (row,) = done.preset.extremes
    assert (row.action, row.layers) == ("float", ["pw.0"])
    assert done.done.options.high_precision == ("pw.0",)
    assert {q.layer for q in done.placement.quantizers if q.float_reason} == {"pw.0"}


def test_a_method_that_scales_anyway_is_enough(patterns):
    factors = spread("half")
    net = inject(trained(patterns, nn.ReLU, factors), factors)
    done = calibrated(patterns, net, method=("smooth",))
    assert done.done.options.method == ("smooth",)
    assert done.preset.extremes[0].words.endswith("scaled, the method smooth scales it")


def test_channels_that_nothing_depends_on_may_have_any_range(patterns):
    """A few of them are nearly dead, as in pruned models."""
    net = trained(patterns, nn.ReLU, torch.ones(ALL))
    with torch.no_grad():
        net.dw[0].weight[:4] *= 1e-4
        net.dw[0].bias[:4] *= 1e-4
    done = calibrated(patterns, net)
    assert find_extremes(method_context(done.inputs, done.asked)) == []
    assert done.preset.extremes is not None and done.done.options.method == ()


def test_the_method_alone_says_where_it_does_not_fit(patterns):
    net = trained(patterns, nn.ReLU, torch.ones(ALL))
    with pytest.raises(UsageError, match="balance does not fit this model: no activation between"):
        calibrated(patterns, net, method=("balance",))


def test_ratios_by_hand():
    assert range_ratio(torch.tensor([100.0, 1.0, 1.0, 0.0])) == 100.0
    assert range_ratio(torch.tensor([0.0, 0.0])) == 1.0
    log = torch.logspace(0, 4, ALL)
    assert range_ratio(log) > EXTREME
