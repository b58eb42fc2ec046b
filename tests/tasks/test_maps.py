"""Maps: depth and segmentation in any size, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from trtq.errors import UsageError
from trtq.tasks import TASKS, Facts, Figure, find_task
from trtq.tasks.maps import draw_classes, draw_values, resized
from trtq.tasks.segmentation import PixelScore

NAN = float("nan")
DEPTH = find_task("depth").bound(Facts(outputs={"d": (2, 1, 2, 2)}))


def figures(score):
    return {f.name: f.value for f in score.figures}


def test_depth_by_hand():
    found = np.array([[[1.0, 2.0], [4.0, NAN]]], dtype=np.float32)
    wanted = np.array([[[1.0, 4.0], [4.0, 2.0]]], dtype=np.float32)
    score = DEPTH.score(ignore=-100)
    score.add(found, wanted)
    assert figures(score) == {
        "AbsRel": pytest.approx((0 + 0.5 + 0 + 1) / 4),
        "RMSE": pytest.approx(np.sqrt((4 + 4) / 4), abs=1e-5),
        "delta1": 50.0,
    }
    assert [f.better for f in score.figures] == ["lower", "lower", "higher"]
    # pixels without a depth do not count; a sample without any does not
    score = DEPTH.score(ignore=9)
    score.add(
        np.repeat(found, 2, axis=0),
        np.array([[[1.0, 0.0], [9.0, NAN]], [[0.0, -1.0], [np.inf, 9.0]]]),
    )
    assert figures(score) == {"AbsRel": 0.0, "RMSE": 0.0, "delta1": 100.0}
    empty = DEPTH.score(ignore=0)
    empty.add(found, None)
    assert empty.figures == []


def test_depth_is_the_mean_over_samples():
    score = DEPTH.score(ignore=-100)
    score.add(np.full((1, 1, 1), 2.0), np.full((1, 1, 1), 1.0))
    score.add(np.full((1, 2, 2), 1.0), np.full((1, 2, 2), 1.0))
    assert figures(score)["AbsRel"] == 0.5
    assert figures(score)["delta1"] == 50.0


def test_depth_agreement_and_its_forms():
    reference = np.array([[[2.0, 2.0], [2.0, -1.0]]], dtype=np.float32)
    alike = DEPTH.agreement()
    alike.add(np.array([[[2.0, 3.0], [2.0, 5.0]]], dtype=np.float32), reference)
    assert [f.name for f in alike.figures] == [
        "agreement within 10 %",
        "agreement AbsRel",
        "agreement RMSE",
    ]
    assert figures(alike)["agreement within 10 %"] == pytest.approx(66.6667)
    scaled = DEPTH.agreement()  # 20 % off everywhere is another map, although delta1 counts it
    scaled.add(1.2 * np.abs(reference), np.abs(reference))
    assert scaled.figures[0].value == 0.0
    assert DEPTH.decode({"d": np.zeros((2, 1, 3, 4))}, None).shape == (2, 3, 4)
    assert DEPTH.decode({"d": np.zeros((2, 3, 4))}, None).shape == (2, 3, 4)
    assert DEPTH.difference(reference[0], reference[0]) == 0.0
    assert DEPTH.difference(reference[0] + 0.175, reference[0]) == pytest.approx(0.1)
    assert DEPTH.difference(reference[0] * NAN, reference[0]) == np.inf
    with pytest.raises(UsageError, match=r"No output fits the task depth"):
        find_task("depth").bound(Facts(outputs={"x": (2, 3, 4, 4)}))
    assert DEPTH.mismatch(reference, np.zeros(1)) == (
        "its targets are float64 [1], expected maps [N, H, W]"
    )
    assert DEPTH.mismatch(reference, np.zeros((1, 1, 5, 5), np.uint16)) == ""
    assert "no numbers" in DEPTH.mismatch(reference, np.array(["a"], dtype=object))


def test_maps_of_another_size_are_resized_and_said():
    found, wanted = np.full((1, 2, 2), 3.0), np.full((1, 1, 4, 6), 3.0)
    score = DEPTH.score(ignore=-100)
    score.add(found, wanted)
    assert figures(score)["AbsRel"] == 0.0
    assert DEPTH.remark(found, wanted) == (
        "the maps of 2x2 are resized to the targets of 4x6, bilinear"
    )
    assert DEPTH.remark(found, found) == ""
    # between the centres 0.25 and 0.75 of two pixels, as torch has it
    row = resized(np.array([[[[0.0, 4.0]]]], dtype=np.float32), (1, 4))
    assert row[0, 0, 0].tolist() == [0.0, 1.0, 3.0, 4.0]


def test_scores_of_pixels_are_resized_to_the_masks():
    task = TASKS["segmentation"].bound(Facts(outputs={"s": (1, 2, 1, 2)}))
    scores = np.array([[[[1.0, 0.0]], [[0.0, 1.0]]]], dtype=np.float32)
    masks = np.array([[[0, 0, 1, 255], [0, 1, 1, 1]]])
    assert task.mismatch(scores, masks) == ""
    assert task.remark(scores, masks) == (
        "the scores of 1x2 are resized to the masks of 2x4, bilinear"
    )
    score = task.score(ignore=255)
    score.add(scores, masks)
    # of 7 pixels one is wrong: class 0 has 3 of 4, class 1 has 3 of 4
    assert figures(score) == {"mIoU": 75.0, "pixel accuracy": pytest.approx(85.7143)}
    scores[0, 0, 0, 0] = NAN  # ruins the left half
    ruined = PixelScore(255)
    ruined.add(scores, masks)
    assert figures(ruined)["pixel accuracy"] < 86.0
    assert "expected masks [N, H, W]" in task.mismatch(scores, np.zeros((1, 4), np.int64))
    assert "no numbers" in task.mismatch(scores, np.array(["a"], dtype=object))


def test_agreement_of_pixels():
    task = TASKS["segmentation"]
    one = np.zeros((1, 2, 2, 2), dtype=np.float32)
    one[0, 1, 0] = 1.0  # the upper row is class 1
    other = one.copy()
    other[0, 1, 1, 0] = 2.0
    alike = task.agreement()
    alike.add(other, one)
    # class 0 has 1 of 2, class 1 has 2 of 3
    assert figures(alike) == {"agreement": 75.0, "agreement mIoU": pytest.approx(58.3333)}
    assert task.difference(other[0], one[0]) == 0.25
    other[0, 0, 0, 0] = NAN
    assert task.difference(other[0], one[0]) == 0.5
    ruined = task.agreement()
    ruined.add(other, one)
    assert figures(ruined)["agreement"] == 50.0


def test_one_map_is_the_probability_of_class_one():
    task = TASKS["segmentation"].bound(Facts(outputs={"s": (1, 1, 1, 2)}))
    shares = np.array([[[[0.25, 0.75]]]], dtype=np.float32)
    assert task.decode({"s": shares}, None).argmax(axis=1).tolist() == [[[0, 1]]]
    with pytest.raises(UsageError, match="The scores of the task segmentation are no probab"):
        task.decode({"s": shares * 9}, None)
    logits = find_task("segmentation:logits").bound(Facts(outputs={"s": (1, 1, 1, 2)}))
    assert logits.decode({"s": shares * 9 - 4}, None).argmax(axis=1).tolist() == [[[0, 1]]]


def test_small_errors_are_not_written_as_none():
    figure = Figure(name="AbsRel", value=0.003412, unit="", better="lower")
    assert (figure.words, figure.amount) == ("AbsRel 0.003412", "0.003412")
    assert Figure(name="top-1", value=None).amount == "n/a"


def test_pictures_of_maps():
    image = Image.new("RGB", (8, 4), "white")
    tinted = draw_classes(image, np.array([[0, 1]]))
    assert tinted.size == (8, 4)
    assert tinted.getpixel((0, 0)) != tinted.getpixel((7, 0))
    values = np.full((40, 80), 1.0, dtype=np.float32)
    values[20:] = 5.0
    values[0, 79] = NAN
    drawn = draw_values((80, 40), values)
    assert drawn.getpixel((70, 35)) == (122, 4, 3)
    assert drawn.getpixel((70, 15)) == (48, 18, 59)
    assert drawn.getpixel((79, 0)) == (0, 0, 0)
