"""The Fisher information of block outputs, by hand, and learning with it."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import spec
from trtq import quantize
from trtq.methods.fisher import FisherMetric
from trtq.methods.reconstruct import _by_block


def metric_of(*pairs: tuple[list[float], list[float]], rank: int = 5) -> FisherMetric:
    metric = FisherMetric(["block"], rank)
    for slope, error in pairs:
        metric.add({"block": torch.tensor(slope)}, {"block": torch.tensor(error)})
    return metric


def test_it_starts_at_the_relative_error_of_the_block():
    wanted, got = torch.tensor([[2.0, 1.0]]), torch.tensor([[2.5, 1.0]])
    loss = metric_of(([3.0, 1.0], [0.5, 0.1])).loss("block", got, wanted)
    assert float(loss) == pytest.approx(0.25 / 5.0)


def test_errors_count_by_their_slope():
    """Slope (3, 1): the diagonal part is 3 d1^2 + d2^2, that of rank one (3 d1 + d2)^2."""
    wanted = torch.tensor([[2.0, 1.0]])
    metric = metric_of(([3.0, 1.0], [1.0, 1.0]))
    metric.loss("block", wanted + torch.tensor([[1.0, 1.0]]), wanted)  # 4 and 16, relative 2 / 5
    first, second = (
        float(metric.loss("block", wanted + torch.tensor([far]), wanted))
        for far in ([1.0, 0.0], [0.0, -1.0])
    )
    assert first == pytest.approx(0.4 * (3 / 4 + 9 / 16) / 2)
    assert second == pytest.approx(0.4 * (1 / 4 + 1 / 16) / 2)


def test_two_pairs_give_a_matrix_of_rank_two():
    """Errors (1, 0) and (0, 1) with slopes (2, 0) and (0, 8): diag(4, 64), mean slope (1, 4)."""
    wanted = torch.tensor([[1.0, 1.0]])
    metric = metric_of(([2.0, 0.0], [1.0, 0.0]), ([0.0, 8.0], [0.0, 1.0]))
    metric.loss("block", wanted + 1.0, wanted)  # 5 and 68, relative 1
    loss = metric.loss("block", wanted + torch.tensor([[0.5, 0.0]]), wanted)
    assert float(loss) == pytest.approx((0.25 / 5 + 1 / 68) / 2, rel=1e-3)


def test_equal_pairs_can_be_solved_and_no_error_costs_nothing():
    wanted = torch.tensor([[1.0, 1.0]])
    metric = metric_of(*[([1.0, 2.0], [1.0, 1.0])] * 3)
    assert torch.isfinite(metric.loss("block", wanted + 0.1, wanted))
    assert float(metric.loss("block", wanted, wanted)) == 0.0


def test_without_slopes_it_is_the_relative_error():
    wanted = torch.tensor([[2.0, 1.0]])
    still = metric_of(([0.0, 0.0], [0.0, 0.0]))
    assert float(still.loss("block", wanted, wanted)) == 0.0
    off = wanted + torch.tensor([[0.5, 0.0]])
    assert float(still.loss("block", off, wanted)) == pytest.approx(0.25 / 5.0)


def test_blocks_before_the_first_layer_that_learns_have_no_slope():
    constant, learned = torch.ones(2, 3), torch.ones(2, 3, requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    taps = {"first": constant, "second": learned * 2, "other": unused}
    slopes = _by_block((taps["second"] * 3).sum(), taps)
    assert {n: float(s.sum()) for n, s in slopes.items()} == {"first": 0, "second": 18, "other": 0}
    assert float(_by_block(constant.sum(), taps)["second"].sum()) == 0.0


def test_pairs_are_taken_at_equal_distances():
    metric, taken = FisherMetric(["block"], 3), []
    for done in range(12):
        if metric.due(done, 12):
            metric.add({"block": torch.ones(2)}, {"block": torch.ones(2)})
            taken.append(done)
    assert taken == [0, 4, 8]


def test_learning_by_it_beats_rounding_to_nearest(images, tmp_path):
    asked = {"bits": "w3a8", "method": ["reconstruct"]}
    nearest = quantize(spec(images, tmp_path / "a", bits="w3a8")).parity.quantization_sqnr_db
    record = quantize(
        spec(
            images,
            tmp_path / "b",
            **asked,
            method_arg={"reconstruct.steps": 150, "reconstruct.rank": 4},
        )
    )
    assert record.parity.quantization_sqnr_db > nearest + 1.0
    (method,) = record.methods
    assert method.arguments["rank"] == 4
