"""Candidates of a search that are searched alone first, and references of other searches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.test_executors import Heard
from tests.support.cluster import marks
from tests.sweep.conftest import REFUSER
from trtq import SearchSpec, search
from trtq.artifact import read_record
from trtq.errors import ArtifactError, UsageError
from trtq.jobs.executors import Settings, open_executor
from trtq.jobs.together import carry_out, job_of
from trtq.records.search import SearchRecord
from trtq.specs.sweep import Slots
from trtq.testing.images import write_classes

NETS = """
import torch
from torch import nn

def make(width):
    torch.manual_seed(width)
    layers = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, 4))

def small():
    return make(8)

def large():
    return make(24)
"""


@pytest.fixture(scope="session")
def labelled(once) -> Path:
    """Twenty-four images of 16 x 16 pixels in four classes."""
    return once("labelled", lambda folder: write_classes(folder, 4, 6, size=16))


@pytest.fixture()
def nets(tmp_path: Path) -> list[str]:
    (tmp_path / "nets.py").write_text(NETS)
    return [f"{tmp_path / 'nets.py'}:{n}" for n in ("large", "small")]


def asked(data: Path, folder: Path, **changes: object) -> SearchSpec:
    values = {
        "data": str(data),
        "out": str(folder / "out"),
        "input_size": "3x16x16",
        "preset": "imagenet",
        "metric": "l2",
        "images": 4,
        "calib_images": 8,
        "calib_cache": str(folder / "cache"),
        "methods": "never",
        "rounds": 2,
        "min_accuracy": -100.0,
    }
    return SearchSpec.make({**values, **changes})


def figures(record: SearchRecord) -> list[tuple[object, ...]]:
    return [(t.label, t.widths, t.accuracy, t.sqnr_db, t.costs) for t in record.tries]


@pytest.mark.parametrize("on", ["local", pytest.param("ray", marks=marks("ray"))])
def test_candidates_searched_alone_first_give_the_same_table(labelled, nets, tmp_path, on):
    both = {"candidates": tuple(nets), "budget": ("size=0.2",)}
    serial = search(asked(labelled, tmp_path / "serial", **both))
    heard = Heard()
    spread = search(asked(labelled, tmp_path / "each", on=on, workers=2, **both), heard)
    assert figures(spread) == figures(serial)
    assert spread.chosen == serial.chosen
    assert spread.reference == serial.reference
    for label in ("0-large", "1-small"):
        alone = read_record(tmp_path / f"each/out/candidates/{label}/search.json", SearchRecord)
        assert alone.reference == serial.reference
        assert any(line.startswith(f"{label}: ") for line in heard.lines)
        tries = tmp_path / f"each/out/candidates/{label}/tries"
        ours = {Path(t.folder).name for t in spread.tries if f"/{label}/" in f"/{t.folder}/"}
        assert ours == {p.name for p in tries.iterdir()}  # nothing was measured a second time


def test_what_a_candidate_alone_did_not_leave_is_measured(labelled, nets, tmp_path):
    (tmp_path / "own.py").write_text(REFUSER.replace("CODE", "1"))
    both = {"candidates": tuple(nets), "budget": ("size=0.2",)}
    heard = Heard()
    record = search(
        asked(labelled, tmp_path, on=f"{tmp_path / 'own.py'}:open_executor", **both), heard
    )
    assert "1-small was not searched alone: it is Sunday" in heard.lines
    assert {t.model for t in record.tries} == set(nets)


def test_a_search_alone_that_fails_says_why(labelled, nets, tmp_path):
    """An error of any kind is a reason, also one whose exit code is 1."""
    heard = Heard()
    (tmp_path / "empty").mkdir()
    spec = asked(tmp_path / "empty", tmp_path, model=nets[0], budget=("size=0.5",))
    executor = open_executor("local", Settings(folder=tmp_path, slots=Slots()), heard)
    ended = carry_out([job_of("large", "search", spec)], executor, heard)["large"]
    assert ended.code == 1
    assert "has no images" in ended.reason or "no image" in ended.reason, ended.reason


def test_a_search_can_refer_to_another(labelled, nets, tmp_path):
    large, small = nets
    first = search(asked(labelled, tmp_path / "a", model=large, budget=("size=0.5",)))
    made = str(tmp_path / "a/out/search.json")
    other = {"model": small, "reference": made}
    second = search(asked(labelled, tmp_path / "b", budget=("size=0.2",), **other))
    assert second.reference == first.reference
    allowed = 0.2 * first.reference.costs["size"] / 1e3
    assert second.constraints[0].allowed == f"{allowed:.4g} kB (0.2000 of float)"
    with pytest.raises(UsageError, match="its search counted no latency@t4. Give that search the"):
        search(asked(labelled, tmp_path / "c", budget=("latency@t4=1ms",), **other))
    with pytest.raises(ArtifactError, match="Cannot read the record of a search"):
        search(asked(labelled, tmp_path / "d", model=small, reference=str(tmp_path / "no.json")))
    (tmp_path / "wrong.json").write_text(json.dumps({"schema": 1, "verb": "allocate"}))
    with pytest.raises(ArtifactError, match="missing required field `reference`"):
        search(asked(labelled, tmp_path / "e", model=small, reference=str(tmp_path / "wrong.json")))


def test_one_model_has_nothing_to_share_out(labelled, nets, tmp_path):
    with pytest.raises(UsageError, match="its tries depend on each other. Leave it out, or name"):
        search(asked(labelled, tmp_path, model=nets[0], budget=("size=0.5",), on="local"))
