"""Training without labels: a model of any task learns every output of the float model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import trtq
from tests.support.detector import CellDetector, pictures
from trtq.errors import DataError, UsageError
from trtq.tasks import Facts, find_task
from trtq.tasks.distances import Raw, bernoulli_kullback_leibler, head_distance, relative_error

QUICK = {"epochs": 1, "augment": "none", "lr": 1e-4, "parity_images": 4}


class TwoHeads(nn.Module):
    """A map and a vector, neither of classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.depth = nn.Conv2d(8, 1, 3, padding=1)
        self.code = nn.Linear(8, 6)

    def forward(self, images):
        x = self.middle(self.stem(images))
        return {"depth": self.depth(x), "code": self.code(x.mean((2, 3)))}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def photos():
    return list(torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def two_heads(photos, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return trtq.quantize(
        TwoHeads().eval(), photos, bits="w2a8", preset_quant="none", calib_cache=cache
    )


@pytest.fixture(scope="module")
def fixed(tmp_path_factory, pages):
    """A detector as an ONNX file that takes one image at a time, quantized to few bits."""
    folder = tmp_path_factory.mktemp("fixed")
    torch.onnx.export(
        CellDetector().eval(), (torch.zeros(1, 3, 64, 64),), folder / "model.onnx", dynamo=True
    )
    return trtq.quantize(
        str(folder / "model.onnx"),
        f"coco:{pages}",
        task="detection",
        bits="w4a8",
        calib_images=8,
        preset_quant="none",
        calib_cache=str(folder),
    )


def test_every_output_is_learned(two_heads, photos):
    before = two_heads.evaluate(photos)
    asked = {**QUICK, "epochs": 12, "batch_size": 4, "optimizer": "adamw", "lr": 1e-3}
    tuned = trtq.finetune(two_heads, photos, val=photos, task="tensors", **asked)
    after = tuned.quantized.evaluate(photos)
    assert sum(o.sqnr_db for o in after.outputs) > sum(o.sqnr_db for o in before.outputs) + 1.0
    assert tuned.record.measure == "divergence"
    scores = [row.score for row in tuned.record.history]
    assert scores[tuned.record.best_epoch] == min(scores)  # lower is better
    assert tuned.record.evaluation.outputs[1].name == "code"


def test_a_detector_of_one_image_at_a_time_learns_without_labels(fixed, pages, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in pages.glob("*.png"):
        (images / file.name).write_bytes(file.read_bytes())
    tuned = trtq.finetune(fixed, str(images), val=str(images), task="detection", **QUICK)
    record = tuned.record
    assert record.measure == "agreement mAP" and record.history[0].score > 50
    assert record.evaluation.judged[0].name == "agreement mAP"
    assert any("every step is one image" in n for n in record.notes)
    metadata = {p.key: p.value for p in tuned.quantized.done.qdq.metadata_props}
    assert any("detection:yolo" in v for v in metadata.values())
    assert isinstance(tuned.quantized.done.qdq, onnx.ModelProto)


def test_labelled_boxes_measure_and_do_not_teach(fixed, pages):
    tuned = trtq.finetune(fixed, f"coco:{pages}", val=f"coco:{pages}", **QUICK)
    assert tuned.record.measure == "mAP"
    assert any("learns from the float model's answers, not labels" in n for n in tuned.record.notes)
    names = [f.name for f in tuned.record.evaluation.figures]
    assert names[0] == "mAP"


def test_options_of_labels_are_refused(fixed, pages):
    with pytest.raises(UsageError, match="Cannot use class_weights with the task detection"):
        trtq.finetune(fixed, f"coco:{pages}", **QUICK, class_weights="log")
    with pytest.raises(DataError, match="Cannot train on .* no labels"):
        trtq.finetune(fixed, photos_of(pages), **QUICK)


def test_targets_that_the_task_cannot_read_are_refused_before_training(fixed, pages, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for file in list(pages.glob("*.png"))[:2]:
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    why = r"Cannot compare .* with labels: its targets are int64, expected boxes"
    with pytest.raises(UsageError, match=why):
        trtq.finetune(fixed, photos_of(pages), val=str(tmp_path), task="detection", **QUICK)


def photos_of(pages):
    from PIL import Image

    return [
        torch.from_numpy(np.asarray(Image.open(f).convert("RGB"), np.float32) / 255).permute(
            2, 0, 1
        )
        for f in sorted(pages.glob("*.png"))
    ]


# ---- losses ------------------------------------------------------------------------------------


def test_the_relative_error_adds_up_over_outputs_and_keeps_samples_apart():
    reference = {"a": torch.tensor([[1.0, 1.0], [2.0, 0.0]]), "b": torch.tensor([[3], [4]])}
    outputs = {"a": torch.tensor([[1.0, 2.0], [2.0, 0.0]]), "b": torch.tensor([[9], [9]])}
    assert relative_error(outputs, reference).tolist() == [0.5, 0.0]


def test_the_relative_error_of_half_precision_and_of_integers():
    """300 squared is beyond float16; integers have no slope, and every sample its value."""
    half = {"y": torch.tensor([[300.0], [100.0]], dtype=torch.float16)}
    other = {"y": torch.tensor([[330.0], [100.0]], dtype=torch.float16)}
    assert relative_error(other, half).tolist() == pytest.approx([0.01, 0.0])
    whole = {"y": torch.tensor([[1], [2], [3]])}
    assert relative_error(whole, whole).tolist() == [0.0, 0.0, 0.0]


def test_the_head_loss_is_zero_for_equal_answers_and_weighs_boxes_by_the_reference():
    boxes = torch.tensor([[[10.0, 10, 4, 4], [20, 20, 8, 8]]])
    scores = torch.tensor([[[0.9, 0.1], [0.0, 0.0]]])
    same = head_distance(Raw(boxes, scores), Raw(boxes, scores), bernoulli_kullback_leibler)
    assert same.tolist() == pytest.approx([0.0], abs=1e-6)
    moved = boxes.clone()
    moved[0, 1] += 5  # where the reference sees nothing
    free = head_distance(Raw(moved, scores), Raw(boxes, scores), bernoulli_kullback_leibler)
    assert float(free) == pytest.approx(0.0, abs=1e-5)
    moved = boxes.clone()
    moved[0, 0, 0] += 2  # half a width, at a score of 0.9
    near = head_distance(Raw(moved, scores), Raw(boxes, scores), bernoulli_kullback_leibler)
    assert float(near) == pytest.approx(0.9 * (0.5 - 0.025), abs=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_a_detector_is_told_apart_by_its_raw_head(last):
    torch.manual_seed(0)
    rows = torch.cat([torch.rand(2, 84, 4) * 60 + 2, torch.rand(2, 84, 3)], 2)
    given = rows if last else rows.transpose(1, 2)
    facts = Facts(outputs={"out": tuple(given.shape)}, size=(64, 64))
    task = find_task("detection:yolo").bound(facts)
    other = (given * 1.01).requires_grad_()
    loss = task.loss({"out": other}, {"out": given})
    loss.backward()
    assert float(loss.detach()) > 0 and bool(other.grad.abs().sum() > 0)
    each = task.divergence({"out": given.roll(1, 0)}, {"out": given})
    assert each.shape == (2,) and bool((each > 0.1).all())
    assert task.divergence({"out": given}, {"out": given}).tolist() == [0.0, 0.0]


def test_queries_have_a_raw_form_too():
    logits, boxes = torch.randn(2, 5, 4), torch.rand(2, 5, 4)
    facts = Facts(outputs={"logits": (2, 5, 4), "pred_boxes": (2, 5, 4)}, size=(40, 80))
    task = find_task("detection:detr").bound(facts)
    raw = task.head.raw({"logits": logits, "pred_boxes": boxes}, (40, 80))
    assert raw.scores.shape == (2, 5, 3)
    assert torch.allclose(raw.boxes[..., 0], boxes[..., 0] * 80)
    assert torch.allclose(raw.boxes[..., 3], boxes[..., 3] * 40)
