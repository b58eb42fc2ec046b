"""Sensitivity of models whose outputs are no classes: their task compares all outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trtq
from tests.support.detector import CellDetector, pictures
from trtq.errors import UsageError

FEW = {"images": 4, "calib_images": 4, "batch_size": 2, "bits": (4, 8), "trials": 1, "probes": 2}


class Pair(nn.Module):
    """Two outputs: the second one depends on the layer ``late`` alone."""

    def __init__(self, *, loops=False):
        super().__init__()
        torch.manual_seed(2)
        self.loops = loops
        self.early, self.late = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, images):
        x = self.early(images).relu()
        y = self.late(x)
        if self.loops:
            y = torch.stack([y[i] for i in range(int(y.shape[0]))])
        return {"map": x.mean(1), "code": y.mean((2, 3))}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return f"coco:{pictures(tmp_path_factory.mktemp('cells'), 6)}"


@pytest.fixture(scope="module")
def photos():
    return list(torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("metric", ["jsd", "gradient", "hessian", "combined"])
def test_all_outputs_count(metric, photos):
    record = trtq.analyze(Pair().eval(), photos, metric=metric, task="tensors", **FEW)
    by_name = {layer.name: layer for layer in record.layers}
    for layer in by_name.values():
        assert layer.loss["w4a4"] > layer.loss["w8a8"] >= 0
    assert by_name["late"].loss["w4a4"] > 0  # it is seen in the second output only
    said = any("against the float model's own answers" in n for n in record.notes)
    assert said == (metric != "jsd")


def test_a_model_of_one_sample_at_a_time_has_the_same_sensitivity(photos):
    asked = {"metric": "gradient", "task": "tensors", **FEW}
    many, one = (trtq.analyze(Pair(loops=v).eval(), photos, **asked) for v in (False, True))
    for a, b in zip(many.layers, one.layers, strict=True):
        assert a.loss["w4a4"] == pytest.approx(b.loss["w4a4"], rel=0.05)


def test_a_detector_is_analysed_by_its_boxes(cells):
    model = CellDetector().eval()
    record = trtq.analyze(model, cells, input_size=(3, 64, 64), metric="jsd", **FEW)
    assert any("the task is detection:yolo" in n for n in record.notes)
    assert all(layer.loss["w4a4"] >= layer.loss["w8a8"] for layer in record.layers)
    assert any(layer.loss["w4a4"] > 0 for layer in record.layers)


def test_outputs_without_a_meaning_need_a_task(photos):
    with pytest.raises(UsageError, match=r"The metric jsd needs scores of classes.*\(task\)"):
        trtq.analyze(Pair().eval(), photos, metric="jsd", **FEW)
