"""Detection from end to end: quantize, evaluate, pictures, records."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import trtq
from tests.support.detector import NAMES, SIZE, CellDetector, TinyDetr, pictures
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
    assert len(written["reference_by_class"]) == len(written["by_class"]) == len(NAMES)
    assert record.pictures
    page = (folder / "scores/pictures/index.html").read_text()
    for row in record.pictures:
        with Image.open(folder / "scores/pictures" / row.file) as shown:
            assert shown.width == 2 * SIZE
        assert row.reference_score.words == "mAP 100.00 %"
        assert row.score.name == "mAP" and row.agreement.name == "agreement mAP"
        assert f"{row.sample}: {row.score.words} (float 100.00 %); agreement mAP" in page


def test_a_decoder_that_loses_boxes_stays_in_float(tmp_path):
    """Queries of very different sizes share one range, which no method mends."""
    torch.manual_seed(0)
    net = TinyDetr(spread=3000.0).eval()
    with torch.no_grad():
        net.box.weight *= 4  # boxes of queries differ
    picture, _ = resolve_preprocess(input_size=(3, SIZE, SIZE))
    made = trtq.quantize(
        trtq.load(net, preprocess=picture),
        f"coco:{pictures(tmp_path / 'cells', 16)}",
        task="detection:rt-detr",
        calib_images=16,
        calib_cache=str(tmp_path / "cache"),
    )
    assert made.preset.family == "detector-transformer"
    assert [t.step for t in made.preset.tried] == ["with smooth", "decoder in float"]
    assert made.preset.taken == "decoder in float"
    assert made.preset.passed
    floats = [q.layer for q in made.done.placement.quantizers if q.float_reason]
    assert {"hidden", "out", "av"} <= set(floats)
    assert "memory" not in floats


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


def test_the_names_that_a_file_has_are_those_of_its_boxes(quantized, tmp_path):
    """Pictures without labels: nobody else says what the classes are."""
    made, folder = quantized
    for name in ("fp32", "qdq"):
        model = onnx.load(folder / f"out/model.{name}.onnx")
        note = model.metadata_props.add()
        note.key, note.value = "names", str(dict(enumerate(NAMES)))
        onnx.save(model, tmp_path / f"{name}.onnx")
    again = trtq.load(str(tmp_path / "fp32.onnx"), preprocess="yolo")
    cells = f"images:{folder / 'cells'}"
    bound = trtq.quantize(again, cells, task="detection", calib_images=6).inputs.task
    assert bound.classes == NAMES
    found = Detections.of([[4, 24, 60, 60]], [0.9], [1])
    image = Image.new("RGB", (SIZE, SIZE))
    named = replace(Detection(), classes=NAMES).draw(image, found)
    assert bound.draw(image, found).tobytes() == named.tobytes()
    assert Detection().draw(image, found).tobytes() != named.tobytes()  # a number
    assert made.inputs.task.classes == NAMES  # of the labels


class Masked(torch.nn.Module):
    """The detector with a mask of each box: all of it, by the only prototype."""

    def __init__(self):
        super().__init__()
        self.cells = CellDetector()

    def forward(self, images):
        found = self.cells(images)
        prototype = images.mean((1, 2, 3), keepdim=True) * 0 + torch.ones(
            1, 1, SIZE // 4, SIZE // 4
        )
        return torch.cat([found, found[:, :1] * 0 + 1], 1), prototype


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


@pytest.mark.parametrize(
    ("net", "said", "label", "figure"),
    [
        (
            Corners,
            {"task": "pose", "kpt_shape": "[4, 3]"},
            "keypoints:yolo-pose",
            "agreement OKS mAP",
        ),
        (Masked, {"task": "segment"}, "instances:yolo-masks", "agreement mask mAP"),
    ],
)
def test_a_file_says_that_it_finds_more_than_boxes(net, said, label, figure, quantized, tmp_path):
    _, folder = quantized
    given = {"calib_images": 6, "calib_cache": str(folder / "cache")}
    cells = f"images:{folder / 'cells'}"
    made = trtq.quantize(trtq.load(net().eval(), preprocess=PICTURE), cells, **given)
    made.save(tmp_path / "out")
    plain = onnx.load(tmp_path / "out/model.fp32.onnx")
    del plain.metadata_props[:]
    onnx.helper.set_model_props(plain, {**said, "names": str(dict(enumerate(NAMES)))})
    onnx.save(plain, tmp_path / "more.onnx")
    again = trtq.quantize(str(tmp_path / "more.onnx"), cells, preprocess="yolo", **given)
    assert again.inputs.task.label == label
    words = f"says that its task is {said['task']}, and its outputs fit"
    assert any(words in n for n in again.notes)
    assert again.evaluate(cells).agreement[figure].value > 90.0


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


def as_voc(cells, folder):
    """Write pictures and labels of COCO as Pascal VOC has them."""
    whole = json.loads((cells / "annotations.json").read_text())
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(NAMES))
    for image in whole["images"]:
        name = image["file_name"]
        Image.open(cells / name).save(folder / "JPEGImages" / name)
        objects = ""
        for a in (a for a in whole["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = a["bbox"]
            sides = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
            box = "".join(f"<{k}>{v}</{k}>" for k, v in sides.items())
            label = NAMES[a["category_id"] - 1]
            objects += f"<object><name>{label}</name><bndbox>{box}</bndbox></object>"
        size = f"<size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / name).with_suffix(".xml").write_text(text)
    return folder


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_pictures_without_objects_count(kind, quantized, tmp_path):
    """A box in a picture that has no object is a false one, and none there is right."""
    made, _ = quantized
    cells = pictures(tmp_path / "cells")
    path = cells / "annotations.json"
    whole = json.loads(path.read_text())
    black = whole["images"][0]["file_name"]
    Image.new("RGB", (SIZE, SIZE)).save(cells / black)
    kept = [a for a in whole["annotations"] if a["image_id"] not in (0, 1)]
    path.write_text(json.dumps({**whole, "annotations": kept}))
    data = as_voc(cells, tmp_path / "voc") if kind == "voc" else cells
    seen = made.evaluate(f"{kind}:{data}")
    assert seen.samples == 12
    figures = {n: f.value for n, f in seen.figures.items()}
    assert figures == {n: f.value for n, f in seen.reference.items()}
    # Picture 1 still shows its cells, as sure as the others are: after 9 in 10 right ones at least.
    assert 80.0 < figures["mAP"] < 100.0


class Branches(torch.nn.Module):
    """Branches of very different ranges that meet in a concat, as those of a neck do."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (torch.nn.Conv2d(3, 4, 3, padding=1) for _ in range(2))
        self.behind, self.head = torch.nn.Conv2d(11, 8, 1), torch.nn.Conv2d(8, 3, 1)

    def forward(self, images):
        left, right = self.left(images).relu(), 50 * self.right(images).relu()
        both = torch.cat([left, right, images], 1)
        return self.head(self.behind(both).relu() + self.behind(both))


def test_branches_that_meet_in_a_concat_share_one_scale(tmp_path):
    """The pair is behind the concat: whatever meets there is in the codes of one scale."""
    torch.manual_seed(0)
    made = trtq.quantize(
        Branches().eval(), torch.randn(8, 3, 8, 8), calib_images=8, calib_cache=str(tmp_path)
    )
    nodes = made.export().model.graph.node
    (concat,) = (n for n in nodes if n.op_type == "Concat")
    pairs = ("QuantizeLinear", "DequantizeLinear")
    assert not [n for n in nodes if n.op_type in pairs and set(n.output) & set(concat.input)]
    (behind,) = (n for n in nodes if concat.output[0] in n.input)
    assert behind.op_type == "QuantizeLinear"
    made.save(tmp_path / "out")
    record = trtq.run_lint(
        trtq.LintSpec(onnx=str(tmp_path / "out/model.qdq.onnx"), target="rtx4090")
    )
    assert not record.findings


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
