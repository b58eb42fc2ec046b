"""Time budgets of methods that learn."""

from __future__ import annotations

import pytest

import trtq
from tests.support.hybrid import hybrid, images
from trtq.errors import UsageError
from trtq.methods import pace
from trtq.methods.pace import Pace


@pytest.fixture
def clock(monkeypatch):
    """A clock on which every reading is ``step`` seconds after the one before it."""

    class Clock:
        now, step = 0.0, 10.0

        def perf_counter(self):
            self.now += self.step
            return self.now

    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def test_the_second_step_tells_how_many_fit(clock):
    notes = []
    it = Pace("reconstruct", 200, 600.0, notes.append)
    it.did(1)
    assert (it.total, notes) == (200, [])
    it.did(2)  # 20 s are gone, 580 s are left for steps of 10 s
    assert it.total == 2 + 58
    assert notes == [
        "reconstruct: 60 steps fit into the time budget of 10.0 min; 200 steps of 10 s take about "
        "33.3 min (--time-budget 34 does them all)"
    ]
    clock.step = 1000.0
    it.did(3)  # slower now: what was settled stays, so that the learning rate has one schedule
    assert it.total == 60


def test_without_a_budget_long_work_says_how_long(clock):
    notes = []
    it = Pace("reconstruct", 200, None, notes.append)
    it.did(1), it.did(2)
    assert it.total == 200
    assert notes == [
        "reconstruct: 200 steps of 10 s take about 33.3 min (--time-budget MIN shortens it)"
    ]
    clock.step, short = 0.1, []
    it = Pace("reconstruct", 200, None, short.append)
    it.did(1), it.did(2)
    assert short == []


def test_a_budget_for_nothing_does_ten_steps_and_one_for_all_says_nothing(clock):
    notes = []
    it = Pace("reconstruct", 200, 1.0, notes.append)
    it.did(1), it.did(2)
    assert it.total == 10
    it = Pace("reconstruct", 20, 3600.0, notes.append)
    it.did(1), it.did(2)
    assert (it.total, len(notes)) == (20, 1)


def test_a_run_that_goes_on_keeps_its_number(clock):
    it = Pace("reconstruct", 200, 600.0, print, settled=60)
    it.did(41), it.did(42)
    assert it.total == 60


def test_quantize_within_a_time_budget(clock, tmp_path):
    made = trtq.quantize(
        hybrid(),
        images(),
        bits="w4a8",
        method=("reconstruct",),
        preset_quant="none",
        time_budget=2,
        calib_cache=str(tmp_path),
    )
    (did,) = [m.did for m in made.done.methods]
    assert did["steps"] == 12  # 2 done in 20 s, 100 s for the others
    assert any(
        "12 steps fit into the time budget of 2.0 min" in n for n in made.inputs.run.note.lines
    )
    with pytest.raises(UsageError, match=r"time_budget|--time-budget"):
        trtq.quantize(hybrid(), images(), time_budget=0)


@pytest.mark.parametrize(
    ("more", "steps"),
    [({}, 30), ({"time_budget": 2}, 12), ({"method": ("reconstruct",)}, 200)],
)
def test_a_preset_learns_for_five_minutes_on_a_cpu(clock, tmp_path, more, steps):
    given = {"bits": "w4a8", "min_agreement": 0.0, "calib_cache": str(tmp_path)}
    made = trtq.quantize(hybrid(), images(), **given, **more)
    did = next(m.did for m in made.done.methods if m.name == "reconstruct")
    assert did["steps"] == steps
    said = any("fit into the time budget" in n for n in made.inputs.run.note.lines)
    assert said == (steps < 200)
