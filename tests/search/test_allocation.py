"""Cost models, budgets and allocation: hand-worked values, the papers' figures, brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtq.cost.energy import relative_energy
from trtq.errors import UsageError
from trtq.quant.formats import BitConfig, read_options
from trtq.search.allocate import STRATEGIES, Choice, greedy, mixed_integer, pareto, percentile
from trtq.search.budgets import read_budgets

LABELS = ("w2a2", "w4a4", "w8a8")
BITS = {"w2a2": 2, "w4a4": 4, "w8a8": 8}


def choices(sensitivities, sizes, labels=LABELS):
    """Return the choices of S4 eq. 3.4.

    The loss of a layer is its sensitivity over its bits, its cost its parameters times bits / 8.
    """
    return [
        Choice(
            name=f"l{i}",
            layers=(f"l{i}",),
            sensitivity=s,
            loss={o: s / BITS[o] for o in labels},
            costs={
                "size": {o: p * BITS[o] / 8 for o in labels},
                "bitops": {o: p * BITS[o] ** 2 for o in labels},
            },
        )
        for i, (s, p) in enumerate(zip(sensitivities, sizes, strict=True))
    ]


def brute_force(items, labels, budgets):
    best = None
    for picked in itertools.product(labels, repeat=len(items)):
        costs = {b: sum(c.costs[b][o] for c, o in zip(items, picked, strict=True)) for b in budgets}
        if all(costs[b] <= limit * (1 + 1e-9) for b, limit in budgets.items()):
            loss = sum(c.loss[o] for c, o in zip(items, picked, strict=True))
            best = loss if best is None else min(best, loss)
    return best


networks = st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(1, 500)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(networks, st.floats(0.25, 1.0))
def test_the_pareto_strategy_finds_what_brute_force_finds(network, share):
    items = choices(*zip(*network, strict=True))
    limit = share * sum(p for _, p in network)
    best = brute_force(items, LABELS, {"size": limit})
    found = pareto(items, LABELS, {"size": limit})
    assert found.loss == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert found.costs["size"] <= limit * (1 + 1e-9)
    costs, losses = [f[0] for f in found.front], [f[1] for f in found.front]
    assert costs == sorted(costs)
    assert all(a > b for a, b in itertools.pairwise(losses))  # nobody on the front is dominated


@settings(max_examples=40)
@given(networks, st.floats(0.3, 1.0), st.floats(0.1, 1.0))
def test_the_integer_program_finds_what_brute_force_finds_under_two_budgets(network, share, other):
    items = choices(*zip(*network, strict=True))
    budgets = {
        "size": share * sum(p for _, p in network),
        "bitops": other * sum(64 * p for _, p in network),
    }
    best = brute_force(items, LABELS, budgets)
    found = mixed_integer(items, LABELS, budgets)
    assert all(found.costs[b] <= limit * (1 + 1e-6) for b, limit in budgets.items())
    spread = sum(max(c.loss.values()) - min(c.loss.values()) for c in items)
    assert found.loss <= best + 2e-6 * spread + 1e-9


def test_the_greedy_rule_stays_within_budgets_when_the_narrowest_width_is_not_the_cheapest():
    labels = ("w4a16", "w8a8")  # in latency the first costs more
    items = [
        Choice(
            name=n,
            layers=(n,),
            sensitivity=s,
            loss={"w4a16": 1.0, "w8a8": 2.0},
            costs={"latency@t4": {"w4a16": 2.0, "w8a8": 1.0}},
        )
        for n, s in (("a", 3.0), ("b", 2.0), ("c", 1.0))
    ]
    assert greedy(items, labels, {"latency@t4": 3.5}).costs["latency@t4"] <= 3.5
    torn = [
        Choice(
            name="a",
            layers=("a",),
            sensitivity=1.0,
            loss={"x": 1.0, "y": 1.0},
            costs={"p": {"x": 1.0, "y": 9.0}, "q": {"x": 9.0, "y": 1.0}},
        )
    ]
    with pytest.raises(UsageError, match="The greedy strategy finds no start within the budgets"):
        greedy(torn, ("x", "y"), {"p": 2.0, "q": 2.0})


def test_dp_and_integer_program_agree_on_a_deep_network():
    generator = np.random.default_rng(0)
    items = choices(generator.gamma(1.0, 5.0, 60), generator.integers(100, 10_000, 60))
    limit = 0.5 * sum(c.costs["size"]["w8a8"] for c in items)
    assert pareto(items, LABELS, {"size": limit}).loss == pytest.approx(
        mixed_integer(items, LABELS, {"size": limit}).loss, rel=1e-4
    )


@pytest.mark.parametrize(("layers", "wanted"), [(21, (6, 9, 6)), (50, (13, 24, 13))])
def test_the_percentile_rule_gives_the_papers_table_3(layers, wanted):
    items = choices(list(np.random.default_rng(1).permutation(layers).astype(float)), [1] * layers)
    found = percentile(items, LABELS, {})
    assert tuple(list(found.options.values()).count(o) for o in LABELS) == wanted


def test_greedy_starts_with_the_most_sensitive():
    items = choices([1.0, 10.0, 5.0], [100, 100, 100])
    found = greedy(items, LABELS, {"size": 175.0})
    assert found.options == {"l0": "w2a2", "l1": "w8a8", "l2": "w4a4"}
    assert found.costs["size"] == 175.0


def test_the_papers_energies_follow_from_their_memory_shares():
    for share, wanted in ((0.936, (0.238, 0.178, 0.118)), (0.952, (0.241, 0.180, 0.120))):
        assert [relative_energy(share, b) for b in (8, 6, 4)] == pytest.approx(wanted, abs=0.001)


def test_what_cannot_be_met_is_explained():
    items = choices([1.0, 2.0], [100, 300])
    for strategy in ("greedy", "pareto", "milp"):
        with pytest.raises(
            UsageError,
            match=r"The budget size cannot be met: the cheapest widths need 100, 50 is "
            r"allowed",
        ):
            STRATEGIES[strategy](items, LABELS, {"size": 50.0})
    with pytest.raises(UsageError, match=r"Allow 1\.02 times as much"):  # 1.01 would not do
        greedy(items, LABELS, {"size": 98.9})
    crossed = [
        Choice(
            name="l0",
            layers=("l0",),
            sensitivity=1,
            loss=dict.fromkeys(LABELS[:2], 1.0),
            costs={"size": {"w2a2": 1.0, "w4a4": 9.0}, "energy": {"w2a2": 9.0, "w4a4": 1.0}},
        )
    ]
    with pytest.raises(
        UsageError,
        match=r"The budgets cannot be met together: each alone is possible: size <= 5, energy <= 5",
    ):
        mixed_integer(crossed, LABELS[:2], {"size": 5.0, "energy": 5.0})
    with pytest.raises(UsageError, match="The percentile rule needs three widths: it got 2"):
        percentile(items, LABELS[:2], {})
    with pytest.raises(UsageError, match="The percentile rule knows no budget"):
        percentile(items, LABELS, {"size": 1.0})
    with pytest.raises(UsageError, match="takes exactly one budget: it got 2"):
        pareto(items, LABELS, {"size": 1e9, "bitops": 1e9})


def test_ties_take_the_cheaper_width():
    items = [
        Choice(
            name="a",
            layers=("a",),
            sensitivity=0,
            loss=dict.fromkeys(LABELS, 1.0),
            costs={"size": {o: float(BITS[o]) for o in LABELS}},
        )
    ]
    assert mixed_integer(items, LABELS, {"size": 100.0}).options == {"a": "w2a2"}
    assert pareto(items, LABELS, {"size": 100.0}).options == {"a": "w2a2"}


def test_a_crowded_front_stays_feasible_and_near_the_best(monkeypatch):
    from trtq.search import allocate

    monkeypatch.setattr(allocate, "MAX_STATES", 200)
    generator = np.random.default_rng(2)
    items = choices(generator.gamma(1.0, 5.0, 40), generator.integers(1000, 99_999, 40))
    limit = 0.4 * sum(c.costs["size"]["w8a8"] for c in items)
    found = pareto(items, LABELS, {"size": limit})
    assert found.costs["size"] <= limit
    assert found.loss <= 1.02 * mixed_integer(items, LABELS, {"size": limit}).loss


def test_budgets_as_people_write_them():
    full = {"size": 40e6, "bitops": 1024e6, "energy": 7.0, "latency@t4": 8.0}
    assert read_budgets(["size=1.9MB", "bitops=0.2", "energy=.15"], full) == pytest.approx(
        {"size": 1.9e6, "bitops": 204.8e6, "energy": 1.05}
    )
    assert read_budgets(["size=0.25"], full) == {"size": 10e6}
    assert read_budgets(["latency@t4=250us", "size=1KiB"], full) == {
        "latency@t4": 0.25,
        "size": 1024,
    }
    assert read_budgets(["latency@T4=0.5"], full) == {"latency@t4": 4.0}
    for text, error in (
        ("sise=1MB", "Unknown budget 'sise'.*size"),
        ("size=1.9", "without a unit it is a ratio.*Give a unit, such as size=1.9MB"),
        ("size=3MX", "Unknown unit in 'size=3MX'"),
        ("energy=2J", "energy is a ratio of the float model and has no unit"),
        ("bitops", "expected NAME=NUMBER"),
        ("energy=0", "must be greater than 0"),
        ("energy=2", "above 0 and at most 1"),
        ("latency=3ms", "names no device.*latency@xavier=3ms"),
        ("latency@t4=3", "Give a unit, such as latency@t4=3ms"),
        ("latency@t4=3MB", "Unknown unit"),
    ):
        with pytest.raises(UsageError, match=error):
            read_budgets([text], full)
    with pytest.raises(UsageError, match="The budget size was given twice"):
        read_budgets(["size=1MB", "size=2MB"], full)


def test_widths_as_people_write_them():
    assert [o.label for o in read_options(["8,fp8", "w4a16"])] == ["w4a16", "w8a8", "fp8"]
    assert [o.label for o in read_options(["8", "w4a8", "fp16", "2"])] == [
        "w2a2",
        "w4a8",
        "w8a8",
        "fp16",
    ]
    assert not BitConfig.parse("fp16").quantized
    with pytest.raises(
        UsageError, match="Cannot read the width '9': expected 2 to 8, .*nvfp4 or fp16"
    ):
        BitConfig.parse("9")
    with pytest.raises(UsageError, match="The width w4a4 was asked for twice"):
        read_options(["4", "w4a4"])


@pytest.mark.parametrize("slack", [1.0, 1.000001, 1.01])
def test_the_pareto_strategy_survives_a_budget_near_the_least(slack, monkeypatch):
    from trtq.search import allocate

    monkeypatch.setattr(allocate, "MAX_STATES", 50)
    items = choices([1.0] * 18, [144, *[100_000 + i for i in range(16)], 50_000_000])
    limit = slack * sum(c.costs["size"]["w2a2"] for c in items)
    found = pareto(items, LABELS, {"size": limit})
    assert found.costs["size"] <= limit * (1 + 1e-9)
