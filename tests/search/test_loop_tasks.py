"""Searches of models that give no scores of classes: the task measures every try."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trtq
from tests.support.detector import CellDetector, pictures
from trtq.errors import UsageError
from trtq.records.search import unit_of
from trtq.tasks import Figure, Task

ANALYSED = {"metric": "l2", "images": 4, "calib_images": 4, "batch_size": 4, "methods": "never"}
FACTORY = "from tests.support.detector import CellDetector\n\n\nmodel = CellDetector\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def model():
    return trtq.load(CellDetector().eval(), input_size=(3, 64, 64))


def search(model, data, **asked):
    values = {"budget": {"size": 0.9}, "bits": (4, 8), **ANALYSED, **asked}
    return trtq.search(model, data, **values)


class Depth(nn.Module):
    """One distance a picture."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))

    def forward(self, images):
        return self.layers(images).mean((2, 3)) + 3.0


class Error:
    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, answer, targets):
        if targets is not None:
            self.total += float(np.abs(answer[:, 0] - targets).sum())
            self.count += len(answer)

    @property
    def figures(self):
        if not self.count:
            return []
        return [Figure(name="MAE", value=self.total / self.count, unit="m", better="lower")]


class Distance(Task):
    name = "distance"

    def score(self, *, ignore):
        return Error()

    def agreement(self):
        return Error()


def distances(count=12):
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return list(zip(images, Depth()(images)[:, 0] + 0.5, strict=True))


def test_a_detector_is_searched_by_its_mean_precision(cells, model):
    found = search(model, f"coco:{cells}", min_score={"mAP": -50.0}, minimize="size")
    reference = found.record.reference
    assert reference.measure == "mAP" and reference.accuracy > 60
    assert unit_of(reference) == "%"
    (kept,) = [c for c in found.record.constraints if c.name == "mAP"]
    assert kept.met and kept.allowed == "-50 points" and kept.got.startswith("mAP ")
    assert "mAP " in found.record.summary
    assert found.best.done.qdq.ByteSize() == found.record.best.onnx_bytes
    assert any("the task is detection:yolo" in n for n in found.record.notes)


def test_without_labels_the_boxes_of_the_float_model_are_the_reference(cells, model, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in cells.glob("*.png"):
        (images / file.name).write_bytes(file.read_bytes())
    found = search(model, str(images), task="detection", min_accuracy=-100.0)
    assert found.record.reference.measure == "agreement mAP"
    assert found.record.reference.accuracy == 100.0
    assert found.record.best.agreement == found.record.best.accuracy
    with pytest.raises(UsageError, match=r"output is not known to be scores.*task=.detection"):
        search(model, str(images))
    with pytest.raises(UsageError, match="the task tensors has no score without labels"):
        search(model, str(images), task="tensors")


def test_a_score_that_falls_is_better(tmp_path):
    own, pairs = Depth().eval(), distances()
    found = search(own, pairs, task=Distance(), min_score={"MAE": -0.2}, out=tmp_path / "out")
    reference = found.record.reference
    assert reference.unit == "m" and reference.accuracy == pytest.approx(0.5, abs=1e-4)
    for t in found.record.tries:
        assert t.change == pytest.approx(reference.accuracy - t.accuracy, abs=1e-3)
    (kept,) = [c for c in found.record.constraints if c.name == "MAE"]
    assert kept.allowed == "-0.2 points" and " m (" in kept.got
    best = min((t for t in found.record.tries if t.within), key=lambda t: t.accuracy)
    assert found.record.best == best
    assert "MAE, m" in (tmp_path / "out" / "frontier.size.svg").read_text()
    strict = search(own, pairs, task=Distance(), min_score={"MAE": 0.1}, rounds=1)
    assert not strict.record.met  # 0.1 m at most, and the float model is wrong by 0.5
    assert next(c for c in strict.record.constraints if c.name == "MAE").allowed == "0.1 m"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"min_score": {"mAP": -1.0, "mAP50": -1.0}}, "scores mAP and mAP50.*Give one min_score"),
        ({"min_score": {"mAP": -1.0}, "min_accuracy": -1.0}, "does not go with min_accuracy"),
        ({"min_score": {"mAP": float("nan")}}, "Cannot use min_score=.*nan.*a number"),
        ({"min_score": {"map50": -1.0}}, r"Cannot keep the score 'map50'.*are mAP, mAP50.*mAP50"),
        ({"minimize": "size"}, "needs min_accuracy or min_score"),
        ({"task": "detecton"}, "Unknown task|Invalid enum value 'detecton'"),
    ],
)
def test_scores_that_cannot_be_kept_are_refused(asked, reason, cells, model):
    with pytest.raises(UsageError, match=f"(?s){reason}"):
        search(model, f"coco:{cells}", **asked)


def test_the_command_keeps_a_score(cells, tmp_path):
    from trtq import SearchSpec

    factory = tmp_path / "own.py"
    factory.write_text(FACTORY)
    spec = SearchSpec.make(
        {
            "model": f"{factory}:model",
            "data": f"coco:{cells}",
            "input_size": "3x64x64",
            "out": str(tmp_path / "out"),
            "min_score": {"mAP": "-50"},
            "bits": ("4,8",),
            **ANALYSED,
        }
    )
    record = trtq.search(spec)
    assert record.spec["min_score"] == {"mAP": -50.0}
    page = (tmp_path / "out/report.html").read_text()
    assert "mAP" in page
