"""Losses by hand, class weights, and losses of the user's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.support.training import asked
from trtq import finetune
from trtq.errors import CalibrationError, ModelError, UsageError
from trtq.train.objective import Objective, class_weights

# ---- what is asked of the answers --------------------------------------------------------------


def asks(**changes) -> Objective:
    return Objective(
        **{
            "distill": 0.0,
            "temperature": 2.0,
            "weights": None,
            "ignore": -100,
            "own": None,
            **changes,
        }
    )


def value(parts) -> float:
    return float(sum(p.share * p.total / p.norm for p in parts))


def test_losses_by_hand():
    answer, wanted = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    nll = [math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(1.0))]
    assert value(asks().parts(answer, wanted, None)) == pytest.approx(sum(nll) / 2, rel=1e-5)
    assert value(asks(ignore=0).parts(answer, torch.tensor([1, 0]), None)) == pytest.approx(
        math.log(1 + math.exp(2.0)), rel=1e-5
    )
    weighted = asks(weights=torch.tensor([1.0, 3.0])).parts(answer, torch.tensor([0, 1]), None)
    assert value(weighted) == pytest.approx(
        (nll[0] + 3 * math.log(1 + math.exp(-1.0))) / 4, rel=1e-5
    )
    assert value(asks(distill=1.0).parts(answer, None, answer)) == pytest.approx(0.0, abs=1e-6)
    own = asks(own=lambda a, w: (a.sum() - w.sum()) / len(a), distill=0.25).parts(
        answer, wanted, answer
    )
    assert value(own) == pytest.approx(0.75 * 1.5, rel=1e-5)


def test_outputs_without_scores_are_compared_by_relative_power():
    scores, grid, codes = torch.randn(2, 3), torch.tensor([[3.0, 4.0]]), torch.tensor([1, 2])
    off = grid + torch.tensor([[0.0, 1.0]])
    asked = asks(distill=1.0)
    parts = asked.parts((scores, off, codes), None, (scores, grid, codes))
    assert [p.share for p in parts] == [0.5, 0.5]
    assert value(parts) == pytest.approx(0.5 * 1 / 25, rel=1e-5)
    assert value(asks(distill=1.0, scores=False).parts(off, None, grid)) == pytest.approx(1 / 25)


def test_parts_of_two_halves_sum_to_the_whole():
    torch.manual_seed(0)
    answer, teacher, wanted = (
        torch.randn(6, 3, 4, 4),
        torch.randn(6, 3, 4, 4),
        torch.randint(0, 4, (6, 4, 4)),
    )
    objective = asks(distill=0.3, weights=torch.tensor([1.0, 0.2, 5.0]), ignore=3)
    halves = [objective.parts(answer[h], wanted[h], teacher[h]) for h in (slice(0, 2), slice(2, 6))]
    together = sum(
        a.share * float((a.total + b.total) / (a.norm + b.norm))
        for a, b in zip(*halves, strict=True)
    )
    assert together == pytest.approx(value(objective.parts(answer, wanted, teacher)), rel=1e-5)


def test_class_weights():
    wanted = [
        torch.tensor([[0, 0], [0, 9]]),
        torch.tensor([[1, 0], [0, 0]]),
    ]  # shares 6/7, 1/7, 0; 9 is void
    log = class_weights("log", wanted, 3, 9)
    torch.testing.assert_close(
        log, torch.tensor([1 / math.log(1.02 + 6 / 7), 1 / math.log(1.02 + 1 / 7), 0.0])
    )
    torch.testing.assert_close(
        class_weights("median", wanted, 3, 9), torch.tensor([0.5 / (6 / 7), 0.5 * 7, 0.0])
    )
    assert class_weights("none", wanted, 3, 9) is None


def test_weights_of_classes_that_nothing_would_read(images: Path, ptq: Path, tmp_path: Path):
    for changes in ({"distill": 1.0}, {"loss": "a:b"}):
        with pytest.raises(UsageError, match="--class-weights needs the cross-entropy"):
            asked(images, ptq, tmp_path, class_weights="log", **changes)


def test_a_loss_of_ones_own(images: Path, ptq: Path, tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import torch\n"
        "def smooth(answer, wanted):\n    return torch.nn.functional.cross_entropy(answer, "
        "wanted, label_smoothing=0.1)\n"
        "def each(answer, wanted):\n    return answer.sum(dim=1)\n"
        "def endless(answer, wanted):\n    return answer.sum() + torch.empty(1 << 50).sum()\n"
    )
    record = finetune(
        asked(images, ptq, tmp_path / "o", epochs=1, loss=f"{mine}:smooth", distill=0.0)
    )
    assert math.isfinite(record.history[0]["loss"])
    with pytest.raises(UsageError, match=r"Cannot use --loss: it returned \[8\], not one number"):
        finetune(asked(images, ptq, tmp_path / "p", loss=f"{mine}:each"))
    with pytest.raises(ModelError, match="Cannot load the loss .*has no callable 'smoth'.*smooth"):
        finetune(asked(images, ptq, tmp_path / "p", loss=f"{mine}:smoth"))
    with pytest.raises(
        CalibrationError, match=r"Out of memory at 8 images a step.*--batch-size 4 --accumulate 2"
    ):
        finetune(asked(images, ptq, tmp_path / "p", loss=f"{mine}:endless"))
