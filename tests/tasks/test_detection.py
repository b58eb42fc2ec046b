"""Detection from end to end: quantize, evaluate, pictures, records."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import trtq
from tests.support.detector import NAMES, SIZE, CellDetector, pictures
from trtq.artifact import read_json
from trtq.data.preprocess import resolve_preprocess
from trtq.errors import UsageError
from trtq.tasks.detection import Detection
from trtq.tasks.detections import Detections

PICTURE, _ = resolve_preprocess(input_size=(3, SIZE, SIZE), preset="yolo")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    cells = pictures(folder / "cells")
    made = trtq.quantize(
        trtq.load(CellDetector().eval(), preprocess=PICTURE),
        f"coco:{cells}",
        calib_images=6,
        calib_cache=str(folder / "cache"),
    )
    made.save(folder / "out")
    return made, folder


def test_boxes_in_the_data_make_it_detection_and_the_head_stays_in_float(quantized):
    made, _ = quantized
    assert made.inputs.task.label == "detection:yolo"
    assert any("cells has boxes, and its outputs fit" in n for n in made.notes)
    assert made.done.options.high_precision == ("@head",)
    assert made.preset.tried[0].step == "with @head in float"
    assert made.preset.family == "detector-conv"
    assert made.done.alike[0].name == "agreement mAP"
    assert made.done.alike[0].value == 100.0
    assert "agreement mAP 100.00 %" in made.preset.check or made.preset.passed


def test_every_box_is_found_also_through_a_letterbox(quantized):
    made, folder = quantized
    seen = made.evaluate(f"coco:{pictures(folder / 'wide', wide=True)}")
    assert seen.figures["mAP"].value == 100.0
    assert seen.reference["mAP50"].value == 100.0
    assert seen.agreement["agreement mAP"].value == 100.0
    assert "mAP 100.00 % (float 100.00 %)" in str(seen)


def test_the_record_has_scores_classes_curve_and_pictures(quantized):
    _, folder = quantized
    spoilt = folder / "spoilt.onnx"
    model = trtq.quantize(
        trtq.load(CellDetector().eval(), preprocess=PICTURE),
        f"coco:{folder / 'cells'}",
        bits="w2a2",
        calib_images=6,
        preset_quant="none",
        calib_cache=str(folder / "cache"),
        parity_images=2,
    )
    model.export().save(spoilt)
    record = trtq.evaluate(
        trtq.EvaluateSpec(
            onnx=str(spoilt),
            data=f"coco:{folder / 'cells'}",
            reference=str(folder / "out/model.fp32.onnx"),
            out=str(folder / "scores"),
        )
    )
    written = read_json(folder / "scores/evaluate.json")
    assert written["task"] == "detection:yolo"
    assert [f["name"] for f in written["figures"]][:2] == ["mAP", "mAP50"]
    assert written["class_names"] == list(NAMES)
    assert record.reference_score == 100.0
    assert record.measure == "mAP"
    assert len(written["curve"]) == 101
    assert f"mAP {record.score:.2f} %" in record.summary
    assert (folder / "scores/pictures/index.html").is_file() == bool(record.pictures)
    for row in record.pictures:
        with Image.open(folder / "scores/pictures" / row.file) as shown:
            assert shown.width == 2 * SIZE


def test_a_task_that_does_not_fit_is_refused_before_calibration():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    with pytest.raises(UsageError, match="No detection head is known"):
        trtq.quantize(net.eval(), torch.randn(8, 3, SIZE, SIZE), task="detection")
    with pytest.raises(UsageError, match="There is no head 'yollo'"):
        trtq.quantize(net.eval(), torch.randn(8, 3, SIZE, SIZE), task="detection:yollo")
    with pytest.raises(UsageError, match="classification takes nothing behind a colon"):
        trtq.quantize(net.eval(), torch.randn(8, 3, SIZE, SIZE), task="classification:yolo")


def test_presets_of_images_by_name():
    model = trtq.load(CellDetector().eval(), preprocess="yolo", input_size=(3, SIZE, SIZE))
    assert model.preprocess == PICTURE
    with pytest.raises(UsageError, match="There is no preset 'yollo': known are imagenet"):
        trtq.load(CellDetector().eval(), preprocess="yollo", input_size=(3, SIZE, SIZE))


def test_a_file_that_says_that_it_detects_needs_no_boxes(quantized, tmp_path):
    made, folder = quantized
    model = made.export().model
    plain = onnx.load(folder / "out/model.fp32.onnx")
    del plain.metadata_props[:]
    note = plain.metadata_props.add()
    note.key, note.value = "task", "detect"
    onnx.save(plain, tmp_path / "cells.onnx")
    again = trtq.quantize(
        str(tmp_path / "cells.onnx"),
        f"images:{folder / 'cells'}",
        preprocess="yolo",
        calib_images=6,
        calib_cache=str(folder / "cache"),
    )
    assert again.inputs.task.label == "detection:yolo"
    assert any("says that its task is detect, and its outputs fit" in n for n in again.notes)
    assert len(model.graph.node) == len(again.export().model.graph.node)


class Corners(torch.nn.Module):
    """The detector with the corners of each box as keypoints."""

    def __init__(self):
        super().__init__()
        self.cells = CellDetector()

    def forward(self, images):
        found = self.cells(images)
        x, y, w, h = found[:, :4].split(1, dim=1)
        points = [(x + i * w / 2, y + j * h / 2, x * 0 + 1) for i in (-1, 1) for j in (-1, 1)]
        return torch.cat([found, *(v for point in points for v in point)], 1)


def test_a_file_that_says_pose_has_keypoints(quantized, tmp_path):
    _, folder = quantized
    given = {"calib_images": 6, "calib_cache": str(folder / "cache")}
    cells = f"images:{folder / 'cells'}"
    made = trtq.quantize(trtq.load(Corners().eval(), preprocess=PICTURE), cells, **given)
    made.save(tmp_path / "out")
    plain = onnx.load(tmp_path / "out/model.fp32.onnx")
    del plain.metadata_props[:]
    said = {"task": "pose", "kpt_shape": "[4, 3]", "names": str(dict(enumerate(NAMES)))}
    onnx.helper.set_model_props(plain, said)
    onnx.save(plain, tmp_path / "pose.onnx")
    again = trtq.quantize(str(tmp_path / "pose.onnx"), cells, preprocess="yolo", **given)
    assert again.inputs.task.label == "keypoints:yolo-pose"
    assert any("says that its task is pose, and its outputs fit" in n for n in again.notes)
    assert again.evaluate(cells).agreement["agreement OKS mAP"].value > 90.0


def test_labels_that_name_no_object_are_said(quantized, tmp_path):
    made, _ = quantized
    empty = pictures(tmp_path / "empty")
    path = empty / "annotations.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    seen = made.evaluate(f"coco:{empty}")
    assert seen.figures["mAP"].value is None
    assert seen.agreement["agreement mAP"].value == 100.0  # the float model's boxes are the truth
    assert (
        f"the labels of coco:{empty} name no object that can be found: mAP has nothing to count"
        in (seen.notes)
    )


def test_boxes_without_a_head_that_fits_are_named(quantized, tmp_path):
    _, folder = quantized
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(7))
    net(torch.zeros(1, 3, *PICTURE.input_size[1:]))
    done = trtq.quantize(
        trtq.load(net.eval(), preprocess=PICTURE),
        f"coco:{folder / 'cells'}",
        task="auto",
        calib_images=6,
        calib_cache=str(folder / "cache"),
    )
    assert done.inputs.task is None
    (note,) = [n for n in done.notes if "which are not looked at" in n]
    assert note.startswith("coco:") and "has boxes, which are not looked at: " in note
    assert note.endswith("(--task)")


def test_a_file_cannot_choose_code_that_is_loaded(quantized, tmp_path):
    _, folder = quantized
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('loaded')\n")
    model = onnx.load(folder / "out/model.qdq.onnx")
    for entry in model.metadata_props:
        if entry.key == "trtq.task":
            entry.value = f'"{evil}:TASK"'
    onnx.save(model, tmp_path / "other.onnx")
    record = trtq.evaluate(
        trtq.EvaluateSpec(onnx=str(tmp_path / "other.onnx"), data=f"coco:{folder / 'cells'}")
    )
    assert any("names a task of your own: give it with --task" in n for n in record.notes)


def test_pictures_need_a_reference(quantized):
    _, folder = quantized
    with pytest.raises(UsageError, match="--save-pictures needs --reference"):
        trtq.evaluate(
            trtq.EvaluateSpec(
                onnx=str(folder / "out/model.qdq.onnx"),
                data=f"coco:{folder / 'cells'}",
                save_pictures=str(folder / "p"),
            )
        )


def test_difference_counts_boxes_without_a_partner_and_how_far_partners_lie():
    task = Detection()
    one = Detections.of([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.8], [0, 1])
    moved = Detections.of([[0, 0, 10, 8], [20, 20, 30, 30]], [0.9, 0.8], [0, 0])
    assert task.difference(one, one) == 0.0
    # the first pair overlaps by 80 of 100; the others are of two classes
    assert task.difference(one, moved) == pytest.approx(2 + 0.2)


def test_boxes_are_drawn_with_their_class():
    blank = Image.new("RGB", (40, 40))
    found = Detections.of([[4, 4, 30, 30], [0, 0, 5, 5]], [0.9, 0.1], [1, 0])
    drawn = np.asarray(Detection(classes=NAMES).draw(blank, found))
    assert drawn[4, 10].any()  # the border of the first
    assert not drawn[0, 2].any()  # 0.1 is not shown
