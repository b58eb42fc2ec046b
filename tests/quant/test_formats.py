"""Ranges, intervals, and formats with two ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trtq.errors import EncodingsError, UsageError
from trtq.quant.calibrators import best_interval
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import fake_quantize
from trtq.quant.formats import Format
from trtq.quant.histogram import Histogram


def histogram(values):
    hist = Histogram()
    x = torch.as_tensor(values, dtype=torch.float32)
    hist.add(x, float(x.abs().max()))
    return hist


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
        error = float(
            (x - (x / step).round().clamp(lowest, lowest + (1 << bits) - 1) * step).square().mean()
        )
        assert error < {2: 0.16, 3: 0.05}[bits]
    # Four values on the four codes of 2 bits: nothing is lost.
    amax, lowest = best_interval(histogram([0.0, 1.0, 2.0]), histogram([0.0, 1.0]), 2)
    assert lowest == -1
    assert amax == pytest.approx(2.0, rel=0.02)


@given(
    st.integers(2, 7),
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=50).filter(
        lambda v: max(map(abs, v)) > 1e-3
    ),
)
def test_the_interval_always_holds_zero_and_is_finite(bits, values):
    x = torch.tensor(values, dtype=torch.float32)
    amax, lowest = best_interval(histogram(x.clamp_min(0)), histogram((-x).clamp_min(0)), bits)
    assert -(1 << (bits - 1)) <= lowest <= 0
    assert np.isfinite(amax)
    assert amax > 0


# ---- number formats ----------------------------------------------------------------------------


def test_s3s_printed_equations_do_not_invert_and_ours_do_to_half_a_step():
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.05
    low, high = weight.min(), weight.max()
    step, zero = (high - low) / 255, (-low / ((high - low) / 255)).round()
    printed = (
        ((weight - low) / step + zero).round().clamp(0, 255) - zero
    ) * step  # S3 eq. 2, then eq. 3
    encodings = Encodings(
        amax={"w": high}, amin={"w": low}, formats={"w": Format(kind="asymmetric")}
    )
    ours = fake_quantize(
        weight, encodings.scale("w"), encodings.zero_point("w"), None, 0, 255, "w", "asymmetric"
    )
    assert float((printed - weight).abs().max()) > 100 * float(step)
    assert float((ours - weight).abs().max()) <= 0.5001 * float(step) + 0.5 * float(
        step
    )  # the ends may lose what rounding Z moves
    inner = (weight > low + step) & (weight < high - step)
    assert float((ours - weight)[inner].abs().max()) <= 0.5001 * float(step)

    probs = torch.softmax(
        torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(1)) * 3, -1
    )
    a_min, a_max = probs.min() + 1e-5, probs.max() + 1e-5
    step = (a_max.log2() - a_min.log2()) / 255
    zero = (-a_min.log2() / step).round()
    printed = torch.exp2(
        ((-(probs + 1e-5).log2() / step + zero).round().clamp(0, 255) - zero) * step
    )  # S3 eq. 5, then eq. 6
    encodings = Encodings(amax={"a": a_max}, amin={"a": a_min}, formats={"a": Format(kind="log2")})
    ours = fake_quantize(
        probs, encodings.scale("a"), encodings.zero_point("a"), None, 0, 255, "a", "log2"
    )
    assert float((printed.log2() - (probs + 1e-5).log2()).abs().max()) > 100 * float(step)
    assert float((ours.log2() - (probs + 1e-5).log2()).abs().max()) <= 1.001 * float(step)
    inner = (probs + 1e-5 > a_min * 1.1) & (probs + 1e-5 < a_max / 1.1)
    assert float((ours.log2() - (probs + 1e-5).log2())[inner].abs().max()) <= 0.501 * float(step)


@given(
    st.lists(st.floats(-100, 100, allow_nan=False, width=32), min_size=1, max_size=40),
    st.integers(2, 8),
)
def test_an_asymmetric_code_is_within_a_step_of_any_value(values, bits):
    x = torch.tensor(values)
    encodings = Encodings(
        amax={"w": x.max()},
        amin={"w": x.min()},
        formats={"w": Format(bits=bits, kind="asymmetric")},
    )
    scale, zero = encodings.scale("w"), encodings.zero_point("w")
    out = fake_quantize(x, scale, zero, None, 0, (1 << bits) - 1, "w", "asymmetric")
    assert float((out - x).abs().max()) <= 1.01 * float(scale) * (float(x.max() > x.min()) + 1e-6)


def test_formats_that_cannot_be():
    with pytest.raises(
        UsageError, match="Cannot choose the lowest code of the format log2: its codes start at 0"
    ):
        Format(kind="log2", lowest=-1)
    broken = Encodings(
        amax={"a": torch.tensor(0.5)},
        amin={"a": torch.tensor(0.0)},
        formats={"a": Format(kind="log2")},
    )
    with pytest.raises(
        EncodingsError, match="the lowest value of a log2 format must be greater than 0"
    ):
        broken.scale("a")
    with pytest.raises(EncodingsError, match="amin must be finite and no larger than amax"):
        Encodings(
            amax={"a": torch.tensor(0.5)},
            amin={"a": torch.tensor(0.7)},
            formats={"a": Format(kind="log2")},
        ).scale("a")


def test_encodings_with_two_ends_come_back_from_the_file(tmp_path):
    made = Encodings(
        amax={"w": torch.tensor([1.0, 2.0])},
        amin={"w": torch.tensor([-0.5, 0.1])},
        formats={"w": Format(kind="asymmetric", axis=0)},
    )
    back = Encodings.load(made.save(tmp_path / "e.safetensors"))
    assert back.digest() == made.digest()
    assert torch.equal(back.scale("w"), made.scale("w"))
    assert torch.equal(back.zero_point("w"), torch.tensor([85.0, -13.0]))
