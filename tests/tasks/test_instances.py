"""Instances and keypoints: masks and points beside boxes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from trtq.data.boxes import Boxes
from trtq.data.outlines import Outlines, RunLengths, packed
from trtq.errors import UsageError
from trtq.tasks import Facts, find_task
from trtq.tasks.detections import Detections

SIZE = (64, 64)
CELLS = 64 + 16 + 4  # of strides 8, 16 and 32
SEGMENT = Facts(outputs={"o": (2, 4 + 2 + 3, CELLS), "p": (2, 3, 16, 16)}, size=SIZE)
POSE = Facts(
    outputs={"o": (2, 4 + 1 + 6, CELLS)},
    size=SIZE,
    metadata={"task": "pose", "kpt_shape": json.dumps([2, 3]), "names": "{0: 'person'}"},
)


def figures(score):
    return {f.name: f.value for f in score.figures}


def square(left, top, side, *, size=(20, 20)):
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def found(*squares, score=0.9):
    boxes = [[x, y, x + s, y + s] for x, y, s in squares]
    masks = np.stack([square(*s) for s in squares])
    return Detections.of(boxes, [score] * len(squares), [0] * len(squares), masks=masks)


def wanted(detections: Detections) -> Boxes:
    boxes = Boxes.of(detections.xyxy, detections.classes)
    runs = tuple(RunLengths.packed(r) for r in packed(detections.masks))
    return replace(boxes, masks=Outlines(of=runs, size=detections.masks.shape[1:]))


def test_masks_are_counted_beside_boxes():
    task = find_task("instances").bound(SEGMENT)
    assert task.label == "instances:yolo-masks"
    whole = found((2, 2, 10))
    hollow = replace(whole, masks=whole.masks & ~square(2, 2, 7)[None])  # 51 of 100 pixels
    score = task.score(ignore=-1)
    score.add([hollow], [wanted(whole)])
    values = figures(score)
    assert values["box mAP"] == 100.0
    assert values["mask mAP50"] == 100.0
    assert values["mask mAP"] == 10.0  # at one overlap of ten
    assert next(iter(values)) == "mask mAP"
    assert score.by_class == [10.0]
    assert len(score.curve()) == 101
    assert task.difference(hollow, whole) == pytest.approx(0.49)
    assert task.difference(whole, whole) == 0.0


def test_instances_agree_without_labels():
    task = find_task("instances").bound(SEGMENT)
    one, other = found((2, 2, 10)), found((2, 2, 10), (14, 14, 4), score=0.8)
    alike = task.agreement()
    alike.add([one, one], [one, Detections.none()])
    assert list(figures(alike)) == [
        "agreement mask mAP",
        "agreement mask mAP50",
        "agreement box mAP",
        "agreement box mAP50",
    ]
    alike = task.agreement()
    alike.add([one], [other])
    assert figures(alike)["agreement mask mAP"] == pytest.approx(50.495, abs=0.01)
    assert alike.curve() == []


def test_what_has_no_masks_or_points_is_refused():
    plain = Facts(outputs={"o": (2, 6, CELLS)}, size=SIZE)
    with pytest.raises(UsageError, match="the head yolo finds no masks; known: o") as caught:
        find_task("instances").bound(plain)
    assert "--task detection" in caught.value.hint
    with pytest.raises(UsageError, match="the head yolo finds no keypoints"):
        find_task("keypoints").bound(plain)
    with pytest.raises(UsageError, match="the head yolo-pose finds no masks"):
        find_task("instances").bound(POSE)
    boxes = np.empty(1, dtype=object)
    boxes[0] = Boxes.of([[0, 0, 1, 1]], [0])
    assert find_task("instances").mismatch(None, boxes) == "its boxes have no masks"
    assert find_task("keypoints").mismatch(None, boxes) == "its boxes have no keypoints"
    boxes[0] = Boxes.none()
    assert find_task("instances").mismatch(None, boxes) == ""
    assert "expected boxes" in find_task("instances").mismatch(None, np.zeros(3))


@pytest.mark.parametrize(
    ("facts", "task", "extra"),
    [
        (Facts(outputs={"o": (2, 30, 9), "p": (2, 3, 16, 16)}, size=SIZE), "instances", "masks"),
        (
            Facts(
                outputs={"boxes": (5, 4), "labels": (5,), "scores": (5,), "masks": (5, 1, 64, 64)},
                size=SIZE,
            ),
            "instances",
            "masks",
        ),
        (
            Facts(
                outputs={
                    "boxes": (5, 4),
                    "labels": (5,),
                    "scores": (5,),
                    "keypoints": (5, 17, 3),
                    "keypoints_scores": (5, 17),
                },
                size=SIZE,
            ),
            "keypoints",
            "keypoints",
        ),
    ],
)
def test_heads_say_what_they_find(facts, task, extra):
    assert extra in find_task(task).bound(facts).head.gives


def person(points, score=0.9):
    return Detections.of([[0, 0, 20, 20]], [score], [0], keypoints=[points])


def test_keypoints_are_judged_by_their_similarity():
    task = find_task("keypoints").bound(POSE)
    assert task.label == "keypoints:yolo-pose"
    points = [[5, 5, 1.0], [15, 15, 1.0]]
    boxes = replace(
        Boxes.of([[0, 0, 20, 20]], [0]), keypoints=np.array([[[5, 5, 2], [15, 15, 2]]], np.float32)
    )
    score = task.score(ignore=-1)
    score.add([person(points)], [boxes])
    values = figures(score)
    assert values["OKS mAP"] == 100.0
    assert values["box mAP"] == 100.0
    assert "OKS mAP small" not in values  # COCO has no small people
    assert "box mAP small" in values
    far = person([[5, 5, 1.0], [500, 500, 1.0]])
    assert task.difference(far, person(points)) == pytest.approx(0.5)
    assert task.difference(person(points), person(points)) == 0.0
    alike = task.agreement()
    alike.add([person(points)], [person(points)])
    assert figures(alike)["agreement OKS mAP"] == 100.0
    ruined = task.score(ignore=-1)
    ruined.add([person([[5, float("nan"), 1.0], [15, 15, 1.0]])], [boxes])
    assert figures(ruined)["OKS mAP"] == 0.0
