"""``--calibrator auto``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trtq
from trtq.errors import UsageError
from trtq.flow.auto_calibrator import Choice, Errors, better_of
from trtq.quant.calibrators import CANDIDATES
from trtq.tasks.distances import relative_error


class Spiky(nn.Module):
    """A layer whose input has a few values far beyond the rest, which no answer needs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


def images(spike: float):
    made = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    made[:, :, 0, 0] = spike
    return list(made)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("spike", [pytest.param(1.0, marks=pytest.mark.slow), 60.0])
def test_the_calibrator_with_the_closest_answers_is_taken(spike):
    net, given = Spiky().eval(), images(spike)
    asked = {"preset_quant": "none"}
    done = trtq.quantize(net, given, calibrator="auto", **asked)
    batch = torch.stack(given)
    error = {}
    for name in CANDIDATES:
        one = trtq.quantize(net, given, calibrator=name, **asked)
        with torch.inference_mode():
            ours = {"output": one.simulate()(batch)}
            error[name] = float(relative_error(ours, {"output": net(batch)}).mean())
    nearest = min(error, key=lambda name: error[name])
    best = nearest if error[nearest] <= 0.95 * error["mse"] else "mse"
    assert done.encodings.origin["calibrator"] == f"auto: {best}"
    (line,) = [n for n in done.notes if n.startswith("calibrator auto takes")]
    assert line.startswith(f"calibrator auto takes {best}: ") and all(n in line for n in CANDIDATES)
    same = trtq.quantize(net, given, calibrator=best, **asked)
    assert {k: v.tolist() for k, v in done.encodings.amax.items()} == {
        k: v.tolist() for k, v in same.encodings.amax.items()
    }


@pytest.mark.parametrize(
    ("others", "name"),
    [
        ({"max": (0.5, 0.96)}, "mse"),  # the gain is within the noise
        ({"max": (1.1, 0.5)}, "mse"),  # numbers are nearer, the answers are not
        ({"max": (1.0, 0.9), "entropy": (0.9, 0.8)}, "entropy"),
    ],
)
def test_another_calibrator_has_to_pay(others, name):
    errors = {k: Errors(*v, 128) for k, v in {"mse": (1.0, 1.0), **others}.items()}
    assert better_of(errors) == name


def test_the_line_has_the_figures_of_all():
    choice = Choice("mse", {"mse": Errors(0.5, 0.01, 128), "max": Errors(0.6, 0.1, 32)})
    assert choice.words == (
        "calibrator auto takes mse: 20.00 dB of output SQNR, distance 0.5 (128 samples); "
        "max 10.00 dB of output SQNR, distance 0.6 (32 samples)"
    )


def test_a_second_run_takes_the_statistics_from_the_cache():
    first, again = (trtq.quantize(Spiky().eval(), images(9.0), calibrator="auto") for _ in "ab")
    assert first.done.cache_note.startswith("not used")
    assert again.done.cache_note.startswith("used")
    assert first.encodings.digest() == again.encodings.digest()


def test_an_analysis_refuses_it():
    with pytest.raises(
        UsageError, match=r"Cannot analyze with calibrator=.auto.*Give calibrator=.mse"
    ):
        trtq.analyze(Spiky().eval(), images(1.0), calibrator="auto", bits=("8",), metric="l2")
