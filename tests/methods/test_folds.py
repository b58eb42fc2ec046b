"""Factors that move between layers: equalisation, SmoothQuant, QADS, RepQ."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from tests.support.workbench import bench_of
from trtq.methods.equalize import equalizing_factors
from trtq.methods.pairs import _flat, find_pairs, fold_factors
from trtq.methods.qads import search_factors
from trtq.methods.registry import get_method
from trtq.methods.scaling import output_error
from trtq.methods.smooth import best_strength, smoothing_factors
from trtq.testing.models import tiny_cnn, tiny_vit

# ---- folding is exact --------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny_cnn, tiny_vit])
def test_folding_any_factors_leaves_the_function_alone(model):
    context = bench_of(model())
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = context.graph(x)
        pairs, _ = find_pairs(context)
        assert pairs
        for pair in pairs:
            fold_factors(context, pair, torch.rand(pair.channels) * 4 + 0.1)
        after = context.graph(x)
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())
    assert context.folded


def test_nothing_folds_through_silu_and_the_record_says_why():
    class Two(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.a, self.b, self.act = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), act

        def forward(self, x):
            return self.b(self.act(self.a(x)))

    pairs, refused = find_pairs(bench_of(Two(nn.SiLU())))
    assert not pairs
    assert refused == ["b: silu.default is not scale-equivariant"]
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
        (
            Chain(
                nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.Flatten(2), nn.LayerNorm(16)),
                lambda x: x,
                nn.Conv1d(16, 16, 1),
            ),
            False,
        ),
        # A mean over channels and height leaves the width.
        (
            Chain(
                nn.Conv2d(3, 32, 3, padding=1),
                lambda x: torch.relu(x).mean((1, 2)),
                nn.Linear(32, 5),
            ),
            False,
        ),
        (Chain(nn.Conv2d(3, 32, 3), lambda x: torch.relu(x).mean((2, 3)), nn.Linear(32, 5)), True),
        # Transposed weights have their output channels on another axis.
        (Chain(nn.ConvTranspose2d(3, 3, 2), torch.relu, nn.Conv2d(3, 4, 1)), False),
        (Chain(nn.GroupNorm(1, 3), nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3)), True),
        (
            Chain(
                nn.GroupNorm(1, 3),
                lambda x: nn.functional.pad(x, (1, 1), value=1.0),
                nn.Conv2d(3, 4, 3),
            ),
            False,
        ),
    ],
)
def test_factors_move_only_along_the_channels(model, fits):
    context = bench_of(model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = context.graph(x)
        pairs, _ = find_pairs(context)
        assert bool(pairs) == fits
        for pair in pairs:
            fold_factors(context, pair, torch.rand(pair.channels) * 4 + 0.1)
        assert float((context.graph(x) - before).abs().max()) < 1e-4 * float(before.abs().max())


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
        context = bench_of(Grouped(groups))
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            before = context.graph(x)
            get_method("equalize").run(context, get_method("equalize").values({"rounds": 10}))
            after = context.graph(x)
        assert torch.allclose(before, after, atol=1e-4)
        first, second = (context.graph.get_parameter(f"{n}.weight") for n in "ab")
        left = first.flatten(1).abs().amax(1)
        per_group = second.reshape(groups, 16 // groups, 8 // groups, 9)
        right = per_group.abs().amax((1, 3)).flatten()
        assert torch.allclose(left, right, rtol=1e-2)


# ---- formulas ----------------------------------------------------------------------------------


def test_smoothing_factors_by_hand():
    assert smoothing_factors(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 1.0]), 0.5).tolist() == [
        2.0,
        0.5,
    ]
    # A dead channel and one that nothing reads keep 1.
    assert smoothing_factors(
        torch.tensor([0.0, 4.0, 4.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5
    ).tolist() == [1.0, 1.0, 1.0]


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), min_size=1, max_size=20))
def test_factors_are_always_usable(channels):
    left, right = (torch.tensor(v, dtype=torch.float32) for v in zip(*channels, strict=True))
    for factors in (equalizing_factors(left, right), smoothing_factors(left, right, 0.7)):
        assert bool(torch.isfinite(factors).all())
        assert bool((factors > 0).all())


def test_repq_centres_and_evens_out_what_a_layernorm_gives():
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[0].norm1.weight[5] = 30.0
        model.blocks[0].norm1.bias[7] = 12.0
    context = bench_of(model)
    (x,) = next(iter(context.images(16)))
    wanted = context.graph(x)
    done = get_method("repq").run(
        context, get_method("repq").values({"images": 16, "softmax": False})
    )
    assert (done["layernorms"], done["centred"], done["label"]) == (4, 4, "folded")
    torch.testing.assert_close(context.graph(x), wanted, rtol=1e-3, atol=1e-4)
    seen = {}

    class Look(torch.fx.Interpreter):
        def run_node(self, n):
            out = super().run_node(n)
            if n.target is torch.ops.aten.layer_norm.default:
                seen.setdefault(n.name, out)
            return out

    with torch.no_grad():
        Look(context.graph).run(x)
    first = next(iter(seen.values())).reshape(-1, 32)
    torch.testing.assert_close(first.amax(0), -first.amin(0), rtol=1e-2, atol=1e-3)  # centred
    assert float(first.amax(0).max() / first.amax(0).min()) < 1.1  # one range for all channels


def test_qads_never_does_worse_than_smoothing_on_its_rows():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 12, generator=generator) * torch.logspace(-1, 1.5, 12)
    weight = torch.randn(20, 12, generator=generator)
    amax = rows.abs().amax(0)
    _, smooth = best_strength(rows, amax, [weight], (4, 4))
    factors, error, plain = search_factors(rows, amax, [weight], (4, 4), steps=50, lr=0.05)
    assert error <= float(output_error(rows, amax, [weight], smooth, (4, 4))) < plain
    assert float(output_error(rows, amax, [weight], factors, (4, 4))) == pytest.approx(
        error, rel=1e-4
    )


class Gated(nn.Module):
    """A SiLU between the layers: nothing folds."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)
        with torch.no_grad():
            self.a.weight[3] *= 300.0
            self.a.bias[3] += 900.0
            self.b.weight[:, 3] /= 1000.0

    def forward(self, x):
        return self.head(self.b(nn.functional.silu(self.a(x))).mean((2, 3)))


def test_qads_multiplies_where_it_cannot_fold_and_it_pays():
    torch.manual_seed(0)
    context = bench_of(Gated())
    (x,) = next(iter(context.images(16)))
    wanted = context.graph(x)
    done = get_method("qads").run(context, get_method("qads").arguments)
    assert "b" in done["explicit"]
    assert done["label"] == "ops"
    assert done["refused"] == ["b: silu.default is not scale-equivariant"]
    assert any(n.meta.get("trtq_name") == "b.qads" for n in context.graph.graph.nodes)
    torch.testing.assert_close(context.graph(x), wanted, rtol=1e-3, atol=1e-3)
    untouched = bench_of(Gated())
    done = get_method("qads").run(untouched, get_method("qads").values({"explicit": 0.0}))
    assert done["explicit"] == []


def test_a_map_of_an_unknown_size_is_no_vector():
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes):
        before = torch.empty(2, 4, shapes.create_unbacked_symint(), 1)
        assert not _flat(before, torch.empty(2, shapes.create_unbacked_symint()))
        assert _flat(torch.empty(2, 4, 1, 1), torch.empty(2, 4))
