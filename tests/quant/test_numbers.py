"""Pure maths: formats, the fake-quantize op, histograms, calibrators, metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtq.data.answers import Tally, compare_answers
from trtq.data.metrics import predictions, ratio_db, sqnr_words
from trtq.errors import UsageError
from trtq.quant.calibrate import bulk_rms
from trtq.quant.calibrators import entropy_amax, mse_amax, percentile_amax
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import fake_quantize
from trtq.quant.formats import Format
from trtq.quant.histogram import NUM_BINS, Histogram
from trtq.quant.weight_ranges import Moments, bias_floor, weight_amax
from trtq.tasks.classification import TopScore

FLOATS = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1000, 1000, width=32))


def fq(x, scale, axis=None, lo=-128, hi=127, zero=None):
    return fake_quantize(x, torch.as_tensor(scale, dtype=torch.float32), zero, axis, lo, hi, "t")


def hist_of(values, parts=1):
    hist = Histogram()
    for part in np.array_split(np.asarray(values, dtype=np.float32), parts):
        if part.size:
            hist.add(torch.from_numpy(part.copy()), float(np.abs(part).max()))
    return hist


def test_format_codes_and_refusal():
    assert (Format(bits=8).qmin, Format(bits=8).qmax) == (-128, 127)
    assert (Format(bits=2).qmin, Format(bits=2).qmax) == (-2, 1)
    assert (Format(bits=8, lowest=0).qmin, Format(bits=8, lowest=0).qmax) == (0, 255)
    assert (Format(bits=4, lowest=-3).qmin, Format(bits=4, lowest=-3).qmax) == (-3, 12)
    with pytest.raises(
        UsageError, match="Cannot start the codes of 4 bits at -9: expected -8 to 0"
    ):
        Format(bits=4, lowest=-9)
    with pytest.raises(UsageError, match="9 bits"):
        Format(bits=9)


def test_fake_quantize_by_hand():
    # scale 0.5: 0.24 -> 0, 0.25 -> tie to even 0, 0.75 -> tie to even 2, 100 clamps to 127, -100 to
    # -128
    x = torch.tensor([0.24, 0.25, 0.75, 0.76, 100.0, -100.0])
    assert fq(x, 0.5).tolist() == [0.0, 0.0, 1.0, 1.0, 63.5, -64.0]
    per_channel = fq(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), [1.0, 0.3], axis=0)
    assert torch.allclose(per_channel, torch.tensor([[1.0, 1.0], [0.9, 0.9]]))
    shifted = fq(torch.tensor([-0.1, 0.0, 2.0]), 0.1, lo=0, hi=15, zero=torch.tensor(1))
    assert torch.allclose(shifted, torch.tensor([-0.1, 0.0, 1.4]))


@given(FLOATS, st.floats(1e-3, 10.0))
def test_rounding_error_is_at_most_half_a_step_inside_the_range(values, scale):
    x = torch.from_numpy(values)
    inside = x.abs() <= 127 * scale
    error = (fq(x, scale) - x).abs()[inside]
    assert bool((error <= scale / 2 * (1 + 1e-5) + 1e-4).all())


def test_gradient_passes_inside_and_stops_where_clamped():
    x = torch.tensor([0.3, 200.0, -200.0], requires_grad=True)
    fq(x, 1.0).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0]


@given(FLOATS, st.integers(1, 7))
@settings(max_examples=60)
def test_histogram_does_not_depend_on_how_values_were_cut(values, parts):
    whole, cut = hist_of(values), hist_of(values, parts)
    assert whole.limit == cut.limit
    assert whole.amax == cut.amax
    assert (whole.counts == cut.counts).all()
    assert whole.counts.sum() == values.size


@given(FLOATS)
def test_histogram_limit_is_a_tight_power_of_two(values):
    hist = hist_of(values)
    if hist.amax > 1e-28:
        assert hist.limit / 2 <= hist.amax < hist.limit
        assert math.log2(hist.limit) == round(math.log2(hist.limit))


def test_histogram_counts_by_hand():
    hist = hist_of([0.0, 0.5, 1.0, 2.0])  # limit 4: bins of 4/4096
    assert hist.limit == 4.0
    assert hist.counts[0] == 1
    assert hist.counts[NUM_BINS // 8] == 1
    assert hist.counts[NUM_BINS // 4] == 1
    assert hist.counts[NUM_BINS // 2] == 1


def test_channels_last_counts_the_same():
    x = torch.randn(2, 3, 5, 7)
    a, b = Histogram(), Histogram()
    a.add(x, float(x.abs().max()))
    b.add(x.contiguous(memory_format=torch.channels_last), float(x.abs().max()))
    assert (a.counts == b.counts).all()


def test_percentile_by_hand():
    hist = hist_of(np.arange(1, 1001))
    assert percentile_amax(hist, 100) == 1000
    assert percentile_amax(hist, 50) == pytest.approx(500, abs=1024 / NUM_BINS)
    assert percentile_amax(hist, 99.9) == pytest.approx(999, abs=1024 / NUM_BINS)


def test_mse_keeps_a_flat_distribution_and_clips_a_rare_outlier():
    flat = np.linspace(-1, 1, 20001)
    assert mse_amax(hist_of(flat)) == pytest.approx(1.0, abs=0.02)
    spiky = np.concatenate([np.random.default_rng(0).normal(0, 1, 200_000), [60.0]])
    assert 3.0 < mse_amax(hist_of(spiky)) < 45.0


def test_entropy_clips_a_rare_outlier_but_keeps_the_bulk():
    values = np.random.default_rng(0).normal(0, 1, 100_000)
    amax = entropy_amax(hist_of(np.concatenate([values, [100.0]])))
    assert 2.0 < amax < 40.0
    assert entropy_amax(hist_of(np.zeros(10))) == 0.0


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_weight_search_never_costs_more_output_error_than_the_plain_maximum(seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 4, 3, 3, generator=g)
    moments = Moments(
        torch.rand(4, generator=g).double(), torch.rand(4, generator=g).double() + 0.1
    )
    largest = weight.abs().amax(dim=(1, 2, 3))

    def cost(amax):
        d = (fq(weight, amax / 127, axis=0) - weight).double()
        shift = (d.sum((2, 3)) * moments.mean).sum(1).square()
        return shift + (d.square().sum((2, 3)) * moments.variance).sum(1)

    found = weight_amax(weight, 0, moments=moments)
    assert bool((cost(found) <= cost(largest) * (1 + 1e-4)).all())
    assert bool((found <= largest).all())


def test_weight_amax_of_depthwise_reads_its_own_channel_and_dead_channels_get_one():
    weight = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] = 0.0
    moments = Moments(torch.ones(4).double(), torch.ones(4).double())
    amax = weight_amax(weight, 0, moments=moments, groups=4)
    assert amax[2] == 1.0
    alone = weight_amax(
        weight[1:2], 0, moments=Moments(torch.ones(1).double(), torch.ones(1).double())
    )
    assert amax[1] == alone[0]


def test_bias_floor_keeps_int32_codes_in_range():
    amax = bias_floor(torch.tensor([1e-12, 1.0]), torch.tensor([5.0, 5.0]), input_scale=0.01)
    codes = torch.tensor([5.0, 5.0]) / (0.01 * amax / 127)
    assert bool((codes.abs() <= 2.0**30 * (1 + 1e-5)).all())
    assert amax[1] == 1.0


def test_bulk_rms_leaves_outliers_and_zeros_out():
    values = np.concatenate([np.full(960, 2.0), np.full(40, 900.0), np.zeros(500)])
    assert bulk_rms(hist_of(values), 500) == pytest.approx(2.0, rel=0.1)
    assert bulk_rms(hist_of(np.zeros(4)), 4) is None


def test_scores_by_hand():
    scores = TopScore(ignore=-100)
    logits = np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 2.0]], dtype=np.float32)
    scores.add(logits, np.array([0, 0]))
    assert (scores.top1, scores.top5) == (1, 2)
    dense = Tally("output", "pixels")
    dense.add(
        np.array([[[[1, 0], [0, 0]], [[0, 0], [0, 0]]]], dtype=np.float32),
        np.zeros((1, 2, 2, 2), dtype=np.float32),
    )
    assert dense.compared == 4
    assert dense.result.agreement == 100.0
    assert ratio_db(25.0, 0.25) == pytest.approx(20.0)
    assert predictions(np.array([[0.5, -0.5], [0.0, 1.0]])).tolist() == [0, 1]


@given(
    st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=8),
    st.sampled_from([Format(), Format(bits=4), Format(kind="fp8")]),
)
def test_settled_scales_are_fp16_numbers_within_a_thousandth_or_what_they_were(values, fmt):
    amax = torch.tensor(values, dtype=torch.float32)
    held = Encodings(amax={"x": amax}, formats={"x": fmt})
    was = held.scale("x")
    held.round_scales_to_fp16_()
    now = held.scale("x")
    in_half = now.to(torch.float16).to(torch.float32) == now
    assert bool(in_half.all()) or torch.equal(now, was)
    assert bool(((now - was).abs() <= 2.0**-10 * was).all())
    again = held.amax["x"].clone()
    held.round_scales_to_fp16_()
    assert torch.equal(held.amax["x"], again)  # settled is settled
    if bool(((was >= 2.0**-14) & (was <= 65504)).all()):
        assert bool(in_half.all())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_called_exact(bad):
    assert ratio_db(25.0, bad) == ratio_db(bad, 1.0) == -math.inf
    found = compare_answers(
        "output", np.array([[1.0, 2.0]], np.float32), np.array([[1.0, bad]], np.float32)
    )
    assert found.sqnr_db is None and not found.finite and not found.exact
    assert sqnr_words(found.sqnr_db, finite=found.finite) == "NaN or infinite"
    assert (sqnr_words(None), sqnr_words(12.345)) == ("no difference", "12.35 dB")
