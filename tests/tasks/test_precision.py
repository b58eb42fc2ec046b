"""Mean average precision against pycocotools used directly, and against values by hand."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import trtq
from trtq.data.boxes import Boxes
from trtq.data.outlines import Outlines, RunLengths, packed
from trtq.data.preprocess import resolve_preprocess
from trtq.errors import DataError
from trtq.tasks.detections import Detections
from trtq.tasks.precision import AgreementPrecision, MeanPrecision

SIDE, IMAGES, CLASSES = 224, 20, 5
Case = tuple[list[Detections], list[Boxes]]


def squares(random: np.random.Generator, count: int) -> np.ndarray:
    corner = random.uniform(0, 150, (count, 2))
    sides = np.exp(random.uniform(np.log(8), np.log(200), (count, 2)))
    return np.concatenate([corner, np.minimum(corner + sides, SIDE)], axis=1).astype(np.float32)


def filled(boxes: np.ndarray) -> np.ndarray:
    """Masks of the pixels in boxes without their upper left quarters."""
    left, top, right, bottom = (boxes[:, i, None] for i in range(4))
    at = np.arange(SIDE)[None]
    x, y = (at >= left) & (at < right), (at >= top) & (at < bottom)
    quarter = (at < (left + right) / 2)[:, None, :] & (at < (top + bottom) / 2)[:, :, None]
    return x[:, None, :] & y[:, :, None] & ~quarter


def points_in(random: np.random.Generator, boxes: np.ndarray, count: int = 17) -> np.ndarray:
    share = random.uniform(0, 1, (len(boxes), count, 2))
    xy = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
    seen = random.integers(0, 3, (len(boxes), count, 1))
    return np.concatenate([xy, seen], axis=2).astype(np.float32)


def random_case(kind: str, images: int = IMAGES) -> Case:
    """1,000 detections near 12 objects in each of 20 images, and far from them."""
    random = np.random.default_rng(3)
    found, wanted = [], []
    for _ in range(images):
        boxes = squares(random, 12)
        truth = Boxes.of(
            boxes, random.integers(0, CLASSES, 12), crowd=random.uniform(size=12) < 0.15
        )
        picked = random.integers(0, 12, 50)
        noise = random.normal(0, 0.05, (50, 4)) * np.tile(boxes[picked, 2:] - boxes[picked, :2], 2)
        near = (boxes[picked] + noise).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
        near[40:] = squares(random, 10)
        classes = np.where(random.uniform(size=50) < 0.8, truth.classes[picked], 0)
        scores = random.choice(np.linspace(0.01, 0.99, 40), 50)  # some are equal
        masks = filled(near) if kind == "segm" else None
        points = None
        if kind == "segm":
            runs = tuple(
                {"size": r["size"], "counts": r["counts"].decode()} for r in packed(filled(boxes))
            )
            areas = coco_mask.area([{**r, "counts": r["counts"].encode()} for r in runs])
            truth = replace(truth, masks=outlines(runs), areas=areas.astype(np.float64))
        if kind == "keypoints":
            labelled = points_in(random, boxes)
            labelled[0, :, 2] = 0
            truth = replace(truth, keypoints=labelled, areas=random.uniform(50, 30000, 12))
            points = labelled[picked].copy()
            points[..., :2] += random.normal(0, 4, points[..., :2].shape)
        found.append(Detections.of(near, scores, classes, masks=masks, keypoints=points))
        wanted.append(truth)
    return found, wanted


def outlines(runs) -> Outlines:
    return Outlines(
        of=tuple(RunLengths(r["counts"], tuple(r["size"])) for r in runs), size=(SIDE, SIDE)
    )


def directly(case: Case, kind: str) -> COCOeval:
    """What a person writes with pycocotools: an annotation file, a result list, COCOeval."""
    found, wanted = case
    annotations, results = [], []
    for image, (f, w) in enumerate(zip(found, wanted, strict=True)):
        for i in range(len(w)):
            x0, y0, x1, y1 = w.xyxy[i].astype(np.float64).tolist()
            entry = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": int(w.classes[i]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0) if w.areas is None else float(w.areas[i]),
                "iscrowd": int(w.crowd[i]),
            }
            if kind == "segm":
                run = w.masks.of[i]
                entry["segmentation"] = {"size": list(run.size), "counts": run.counts}
            if kind == "keypoints":
                entry["keypoints"] = w.keypoints[i].astype(float).ravel().tolist()
                entry["num_keypoints"] = int((w.keypoints[i, :, 2] > 0).sum())
            annotations.append(entry)
        for i in range(len(f)):
            x0, y0, x1, y1 = f.xyxy[i].astype(np.float64).tolist()
            result = {
                "image_id": image,
                "category_id": int(f.classes[i]),
                "score": float(f.scores[i]),
            }
            if kind == "bbox":
                result["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            if kind == "segm":
                result["segmentation"] = packed(f.masks[i : i + 1])[0]
            if kind == "keypoints":
                result["keypoints"] = f.keypoints[i].astype(float).ravel().tolist()
            results.append(result)
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "width": SIDE, "height": SIDE} for i in range(len(found))],
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in range(CLASSES)],
    }
    return counted(truth, results, kind)


def counted(truth: COCO, results: list[dict], kind: str) -> COCOeval:
    """What pycocotools says of results."""
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_the_same_figures_as_pycocotools(kind, capsys):
    case = random_case(kind)
    assert sum(map(len, case[0])) == 1000
    precision = MeanPrecision(kind=kind)
    for f, w in zip(*case, strict=True):
        precision.add([f], [w])
    figures = {f.name: f.value for f in precision.figures}
    assert capsys.readouterr() == ("", "")
    stats = directly(case, kind).stats
    names = ["mAP", "mAP50", "mAP75", "mAP small", "mAP medium", "mAP large"]
    if kind == "keypoints":
        assert figures["mAP small"] is None
        names.remove("mAP small")
    for name, value in zip(names, stats, strict=False):
        assert figures[name] == pytest.approx(100 * value, abs=1e-4), name
    assert next(iter(figures)) == "mAP" and 10 < figures["mAP"] < 90


def test_pages_as_pycocotools(trtq_data):
    """The labels as trtq reads them, against the annotation file as pycocotools reads it."""
    with zipfile.ZipFile(trtq_data / "pages.zip") as archive:
        labels = json.loads(archive.read("annotations.json"))
    truth = COCO()
    truth.dataset = labels
    ids = {entry["file_name"]: entry["id"] for entry in labels["images"]}
    of_class = [c["id"] for c in sorted(labels["categories"], key=lambda c: c["id"])]
    random = np.random.default_rng(0)
    samples = trtq.samples(
        f"coco:{trtq_data}/pages.zip",
        preprocess=resolve_preprocess(preset="yolo", input_size=(3, 64, 64))[0],
    )
    precision, results = MeanPrecision(kind="bbox"), []
    pages = [p for b in samples.batches(16) for p in zip(b.ids, b.targets(), strict=True)]
    for page, wanted in pages:
        near = wanted.xyxy + random.normal(0, 6, wanted.xyxy.shape).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
        scores = random.uniform(0.1, 1.0, len(near))
        wrong = random.uniform(size=len(near)) < 0.1
        classes = np.where(wrong, (wanted.classes + 1) % len(of_class), wanted.classes)
        found = Detections.of(near, scores, classes)
        precision.add([found], [wanted])
        for i in range(len(found)):
            x0, y0, x1, y1 = found.xyxy[i].astype(np.float64).tolist()
            results.append(
                {
                    "image_id": ids[Path(page).name],
                    "category_id": of_class[int(found.classes[i])],
                    "score": float(found.scores[i]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
            )
    evaluation = counted(truth, results, "bbox")
    figures = {f.name: f.value for f in precision.figures}
    names = ["mAP", "mAP50", "mAP75", "mAP small", "mAP medium", "mAP large"]
    for name, value in zip(names, evaluation.stats, strict=False):
        if value < 0:
            assert figures[name] is None
        else:
            assert figures[name] == pytest.approx(100 * value, abs=0.1), name
    assert 10 < figures["mAP"] < 90


def test_classes_and_curve_as_pycocotools():
    case = random_case("bbox")
    precision = MeanPrecision([f"c{i}" for i in range(CLASSES + 1)])
    precision.add(*case)
    counts = directly(case, "bbox").eval["precision"][..., 0, -1]
    wanted = 100 * counts.mean(axis=(0, 1))
    assert precision.by_class[:CLASSES] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert precision.by_class[CLASSES:] == [None]
    curve = precision.curve()
    assert [r for r, _ in curve] == pytest.approx(np.linspace(0, 1, 101).tolist())
    assert [p for _, p in curve] == pytest.approx(counts[0].mean(axis=1).tolist())
    assert [p for _, p in precision.curve(2)] == pytest.approx(counts[0, :, 2].tolist())
    assert precision.curve(CLASSES) == []


def value(precision: MeanPrecision | AgreementPrecision, name: str = "mAP") -> float | None:
    return next(f.value for f in precision.figures if f.name == name)


ONE = [[10, 10, 50, 50]]


def of(*pairs: tuple[Detections, Boxes]) -> MeanPrecision:
    precision = MeanPrecision()
    for found, wanted in pairs:
        precision.add([found], [wanted])
    return precision


def test_values_by_hand():
    hit = (Detections.of(ONE, [0.5], [1]), Boxes.of(ONE, [1]))
    assert value(of(hit)) == 100.0
    # One of two objects is found: precision 1 up to recall 0.5, 51 of 101 points.
    missed = (Detections.none(), Boxes.of(ONE, [1]))
    assert value(of(hit, missed)) == pytest.approx(100 * 51 / 101, abs=1e-4)
    # A better box that is wrong halves the precision.
    wrong = (Detections.of(ONE, [0.9], [1]), Boxes.none())
    assert value(of(hit, wrong)) == pytest.approx(50, abs=1e-4)
    # An overlap of 0.6 counts at 0.5, 0.55 and 0.6.
    shifted = Detections.of([[10, 10, 50, 34]], [0.5], [1])
    assert value(of((shifted, Boxes.of(ONE, [1])))) == pytest.approx(30, abs=1e-4)
    assert value(of((shifted, Boxes.of(ONE, [1]))), "mAP75") == 0.0
    assert [f.unit for f in of(hit).figures] == ["%"] * 6


def test_nothing_to_find_and_nothing_found():
    assert MeanPrecision().figures == [] and AgreementPrecision().figures == []
    empty = of((Detections.none(), Boxes.none()), (Detections.of(ONE, [0.5], [0]), Boxes.none()))
    assert {f.value for f in empty.figures} == {None} and len(empty.figures) == 6
    assert empty.by_class == [] and empty.curve() == []
    unfound = of((Detections.none(), Boxes.of(ONE, [2])))
    assert value(unfound) == 0.0 and value(unfound, "mAP small") is None
    assert value(unfound, "mAP medium") == 0.0 and unfound.by_class == [None, None, 0.0]


def test_an_image_that_is_given_twice_counts_twice():
    pair = (Detections.of(ONE, [0.5], [1]), Boxes.of(ONE, [1]))
    missed = (Detections.none(), Boxes.of(ONE, [1]))
    assert value(of(pair, pair, missed)) == pytest.approx(100 * 67 / 101, abs=1e-4)


def test_numbers_that_are_not_finite_are_no_detections():
    boxes = Boxes.of(ONE, [1])
    good, bad = ([10, 10, 50, 50], [10, np.nan, 50, 50])
    found = Detections.of([bad, good, good, good], [0.99, np.nan, np.inf, 0.5], [1] * 4)
    assert value(of((found, boxes))) == 100.0
    assert value(of((found.at(np.array([0, 1])), boxes))) == 0.0
    points = np.full((1, 17, 3), np.nan, np.float32)
    poses = MeanPrecision(kind="keypoints")
    labelled = replace(boxes, keypoints=np.full((1, 17, 3), 20, np.float32))
    poses.add([Detections.of(ONE, [0.5], [1], keypoints=points)], [labelled])
    assert value(poses) == 0.0


def test_boxes_outside_the_picture_are_wrong_and_nothing_else():
    outside = [[-500, -500, -400, -400], [1e7, 1e7, 2e7, 2e7], [30, 30, 20, 20]]
    found = Detections.of([*ONE, *outside], [0.9, 0.8, 0.7, 0.6], [1] * 4)
    assert value(of((found, Boxes.of(ONE, [1])))) == 100.0


def test_groups_and_difficult_objects_count_neither_way():
    twice = Detections.of(ONE * 3 + [[200, 200, 240, 240]], [0.9, 0.8, 0.7, 0.6], [1] * 4)
    last = [[200, 200, 240, 240]]
    for flags in ({"crowd": [True, False]}, {"difficult": [True, False]}):
        assert value(of((twice, Boxes.of(ONE + last, [1, 1], **flags)))) == 100.0
    # A part of a group is a hit, a part of a difficult object is not.
    part = Detections.of([[10, 10, 20, 20], *last], [0.9, 0.5], [1, 1])
    assert value(of((part, Boxes.of(ONE + last, [1, 1], [True, False])))) == 100.0
    difficult = Boxes.of(ONE + last, [1, 1], difficult=[True, False])
    assert value(of((part, difficult))) == pytest.approx(50, abs=1e-4)
    assert value(of((Detections.none(), Boxes.of(ONE, [1], [True])))) is None


def test_keypoints_of_another_number():
    truth = replace(
        Boxes.of(ONE, [0]), keypoints=np.array([[[20, 20, 2], [40, 40, 1]]], np.float32)
    )
    near = np.array([[[20, 20, 0.5], [45, 40, 0.5]]], np.float32)
    precision = MeanPrecision(kind="keypoints", sigmas=[0.1, 0.1])
    precision.add([Detections.of(ONE, [0.5], [0], keypoints=near)], [truth])
    # Area 0.53 * 1600, distance 0 and 5: (1 + exp(-25 / 0.04 / 848 / 2)) / 2 = 0.846
    assert value(precision) == pytest.approx(70)
    other = MeanPrecision(kind="keypoints")  # sigma 1/2: 0.9926
    other.add([Detections.of(ONE, [0.5], [0], keypoints=near)], [truth])
    assert value(other) == 100.0


@pytest.mark.parametrize(
    ("kind", "found", "wanted", "text"),
    [
        ("segm", Detections.of(ONE, [1], [0]), Boxes.none(), "the detections have none. Give det"),
        ("segm", Detections.none(), Boxes.of(ONE, [0]), "Cannot count masks: the labels have none"),
        (
            "keypoints",
            Detections.none(),
            Boxes.of(ONE, [0]),
            "count keypoints: the labels have non",
        ),
        ("keypoints", Detections.of(ONE, [1], [0]), Boxes.none(), "or count boxes"),
    ],
)
def test_masks_and_keypoints_that_are_missing(kind, found, wanted, text):
    with pytest.raises(DataError, match=text):
        MeanPrecision(kind=kind).add([found], [wanted])


def test_masks_and_keypoints_of_other_sizes():
    masks = np.ones((1, 8, 8), dtype=np.bool_)
    truth = replace(Boxes.of(ONE, [0]), masks=Outlines(of=([[1, 1, 5, 1, 5, 5]],), size=(9, 9)))
    precision = MeanPrecision(kind="segm")
    with pytest.raises(DataError, match="masks are 8x8 pixels, those of the labels 9x9"):
        precision.add([Detections.of(ONE, [1], [0], masks=masks)], [truth])
    points = np.ones((1, 5, 3), np.float32)
    labelled = replace(Boxes.of(ONE, [0]), keypoints=np.ones((1, 4, 3), np.float32))
    with pytest.raises(DataError, match="have 5 keypoints, the labels have 4"):
        MeanPrecision(kind="keypoints").add(
            [Detections.of(ONE, [1], [0], keypoints=points)], [labelled]
        )


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_a_model_agrees_with_itself(kind: str):
    found, _ = random_case(kind, images=4)
    apart = [f.at(np.array([0, 15, 45])) for f in found]  # boxes that do not cover each other
    same = AgreementPrecision(kind=kind)
    same.add(apart, apart)
    assert [f.name for f in same.figures] == ["agreement mAP", "agreement mAP50"]
    assert value(same, "agreement mAP") == 100.0
    weak = [replace(f, scores=f.scores * np.float32(0.2)) for f in apart]
    none = AgreementPrecision(kind=kind)
    none.add(apart, weak)  # the reference is sure of nothing
    assert value(none, "agreement mAP") is None and none.by_class == []
    lost = AgreementPrecision(kind=kind)
    lost.add([Detections.none()] * 4, apart)
    assert value(lost, "agreement mAP") == 0.0


def test_figures_follow_what_is_added(monkeypatch):
    calls = []
    import trtq.tasks.precision as module

    counted = module.count
    monkeypatch.setattr(module, "count", lambda *a, **k: calls.append(1) or counted(*a, **k))
    precision = of((Detections.of(ONE, [0.5], [1]), Boxes.of(ONE, [1])))
    assert [value(precision), value(precision)] == [100.0, 100.0] and len(calls) == 1
    precision.add([Detections.none()], [Boxes.of(ONE, [1])])
    assert value(precision) < 60 and len(calls) == 2
