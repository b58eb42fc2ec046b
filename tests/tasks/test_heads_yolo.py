"""Raw heads of the YOLO family, against values worked out by hand."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from trtq.errors import UsageError
from trtq.tasks.facts import Facts
from trtq.tasks.heads import HEADS, find_head

SIZE = (64, 64)
CELLS = 8 * 8 + 4 * 4 + 2 * 2  # 84


def facts(shape, *, size=SIZE, names: int = 0, **more) -> Facts:
    classes = tuple(f"c{i}" for i in range(names))
    return Facts(outputs={"output0": shape}, size=size, classes=classes, **more)


def raw(classes: int = 3, anchors: int = CELLS, objectness: int = 0) -> np.ndarray:
    return np.zeros((1, 4 + objectness + classes, anchors), dtype=np.float32)


def test_yolo_reads_one_anchor():
    head = find_head(facts((1, 7, CELLS)))
    assert (head.name, head.classes) == ("yolo", 3)
    values = raw()
    values[0, :, 5] = [30, 20, 10, 4, 0.1, 0.9, 0]
    (found,) = head.decode({"output0": values}, SIZE)
    assert found.xyxy.tolist() == [[25, 18, 35, 22]]
    assert found.classes.tolist() == [1] and found.scores.tolist() == pytest.approx([0.9])
    (every,) = replace(head, one_class=False).decode({"output0": values}, SIZE)
    assert every.xyxy.tolist() == [[25, 18, 35, 22]] * 2
    assert every.classes.tolist() == [1, 0] and every.scores.tolist() == pytest.approx([0.9, 0.1])
    (turned,) = find_head(facts(("n", CELLS, 7), names=3)).decode(
        {"output0": values.transpose(0, 2, 1)}, SIZE
    )
    assert turned.xyxy.tolist() == found.xyxy.tolist()


def test_the_better_of_two_overlapping_boxes_of_a_class_is_kept():
    values = raw()
    values[0, :, 0] = [30, 20, 10, 10, 0.5, 0, 0]
    values[0, :, 1] = [31, 20, 10, 10, 0.8, 0, 0]  # 90 of 110: 0.82
    values[0, :, 2] = [32, 20, 10, 10, 0, 0.7, 0]
    values[0, :, 3] = [50, 50, 10, 10, 0.0009, 0, 0]
    (found,) = find_head(facts((1, 7, CELLS))).decode({"output0": values}, SIZE)
    assert found.scores.tolist() == pytest.approx([0.8, 0.7])
    assert found.xyxy[0].tolist() == [26, 15, 36, 25]


def test_boxes_of_other_classes_do_not_suppress_each_other():
    values = raw()
    values[0, :, 0] = [95, 5, 10, 10, 0.5, 0, 0]  # its right side, 100, is the largest number
    values[0, :, 1] = [-6, -96, 10, 10, 0, 0.25, 0]  # 101 further, where the first one is
    (found,) = find_head(facts((1, 7, CELLS))).decode({"output0": values}, SIZE)
    assert found.classes.tolist() == [0, 1]


def test_what_is_not_finite_is_no_detection():
    values = raw()
    values[0, :, 0] = [30, 20, 10, 10, np.nan, 0, 0]
    values[0, :, 5] = [10, 50, 10, 10, np.nan, 0.125, np.inf]
    values[0, :, 1] = [np.nan, 20, 10, 10, 0.5, 0, 0]
    values[0, :, 2] = [30, 20, np.inf, 10, 0.5, 0, 0]
    values[0, :, 3] = [30, 20, 10, 10, np.inf, 0, 0]
    values[0, :, 4] = [31, 20, 10, 10, 0.25, 0, 0]
    (found,) = find_head(facts((1, 7, CELLS))).decode({"output0": values}, SIZE)
    assert found.scores.tolist() == [0.25, 0.125] and found.classes.tolist() == [0, 1]
    heads = (find_head(facts((1, 7, CELLS))), find_head(facts((1, 7, CELLS)), "yolo-objectness"))
    for wild in (np.nan, np.inf, -np.inf):
        for head in heads:
            (nothing,) = head.decode({"output0": np.full_like(values, wild)}, SIZE)
            assert len(nothing) == 0
    (nothing,) = find_head(facts((1, 7, CELLS))).decode({"output0": values * np.nan}, SIZE)
    assert len(nothing) == 0 and nothing.xyxy.shape == (0, 4)


def test_objectness_multiplies_the_scores():
    head = find_head(facts((2, 3 * CELLS, 8)))
    assert (head.name, head.classes) == ("yolo-objectness", 3)
    values = np.zeros((2, 3 * CELLS, 8), dtype=np.float32)
    values[1, 7] = [30, 20, 10, 4, 0.5, 0, 0, 0.5]
    first, second = head.decode({"output0": values}, SIZE)
    assert len(first) == 0
    assert second.scores.tolist() == [0.25] and second.classes.tolist() == [2]
    (turned,) = find_head(facts((1, 8, 3 * CELLS))).decode(
        {"output0": values[1:].transpose(0, 2, 1)}, SIZE
    )
    assert turned.xyxy.tolist() == [[25, 18, 35, 22]]


def test_yolox_places_its_boxes_on_the_cells():
    values = np.zeros((1, CELLS, 8), dtype=np.float32)
    values[0, 64 + 4 + 2] = [0.5, 0.25, 0, np.log(2), 0.5, 0, 1, 0]  # stride 16, row 1, column 2
    head = find_head(facts((1, CELLS, 8)), "yolox")
    (found,) = head.decode({"output0": values}, SIZE)
    # centre (2.5, 1.25) * 16, size 16 x 32
    np.testing.assert_allclose(found.xyxy, [[32, 4, 48, 36]], rtol=1e-6)
    assert found.scores.tolist() == [0.5] and found.classes.tolist() == [1]
    with pytest.raises(UsageError, match=r"has 84 boxes, an input of 96x64 has 126 cells.*--input"):
        head.decode({"output0": values}, (96, 64))


def test_metadata_decide_where_the_size_is_open():
    names = (
        "{0: 'Caption', 1: 'Footnote', 10: 'Title', "
        + ", ".join(f"{i}: 'c{i}'" for i in range(2, 10))
        + "}"
    )
    known = facts(("batch", 15, "h*w/64"), size=None, metadata={"names": names, "task": "detect"})
    assert known.names[:3] == ("Caption", "Footnote", "c2") and known.names[10] == "Title"
    head = find_head(known)
    assert (head.name, head.classes) == ("yolo", 11)
    assert find_head(facts((1, 300, 16), size=None, names=11)).name == "yolo-objectness"


@pytest.mark.parametrize(
    ("known", "asked", "text"),
    [
        (
            facts((1, CELLS, 8)),
            None,
            r"Several detection heads .* output0 as yolo with 4 classes or output0 as "
            r"yolo-objectness with 3 classes or output0 as yolox with 3 classes; known: output0 "
            r"\[1, 84, 8\], input 64x64, number of classes unknown.*Choose one: "
            r"--task detection:yolo or --task detection:yolo-objectness or --task detection:yolox",
        ),
        (
            facts((1, CELLS, 8), names=3),
            None,
            "yolo-objectness with 3 classes or output0 as yolox with 3 classes",
        ),
        (
            facts((1, 7, CELLS), names=5),
            None,
            r"The outputs do not have the 5 classes of the labels: output0 as yolo with 3 classes; "
            r"known: .*Give labels of the model's classes",
        ),
        (
            facts((1, 7, CELLS), metadata={"names": "['a', 'b']"}),
            "yolo",
            "do not have the 2 classes of the model's metadata: output0 as yolo with 3 classes",
        ),
        (
            facts((1, 7, 77)),
            None,
            r"No detection head is known.*output0 \[1, 7, 77\], input 64x64.*Choose one of yolo, .*"
            r"as --task detection:yolo; or give",
        ),
        (
            facts((1, 1000)),
            "yolo",
            r"The head yolo cannot read the outputs of the model: it reads \[N, 4 \+ classes, "
            r"anchors\] or transposed.*known: output0 \[1, 1000\].*Choose another "
            r"--task detection:HEAD",
        ),
        (facts((1, 7, CELLS)), "yollo", "There is no head 'yollo'. Did you mean yolo"),
        (
            facts((1, 7, CELLS), metadata={"task": "obb"}),
            None,
            "Cannot read rotated boxes.*task obb",
        ),
        (
            Facts(outputs={"a": (1, 7, CELLS), "b": (1, 9, CELLS)}, size=SIZE),
            None,
            "The head yolo can read the outputs in 2 ways: a as yolo with 3 classes or b as yolo "
            "with 5 classes.*--outputs NAME",
        ),
        (
            facts((1, 7, CELLS), names=3, metadata={"names": "['c1', 'c0', 'c2']"}),
            None,
            "in another order than the model's: class 0 is 'c1' in the model and 'c0' in the "
            "labels.*Number the classes of the labels as the model does",
        ),
        (
            facts((1, 7, CELLS), names=3, metadata={"names": "['other', 'C 0', 'c-2']"}),
            None,
            "in another order than the model's: class 0 is 'other' in the model and 'c0' in the",
        ),
        (
            facts((1, 7, CELLS), names=4, metadata={"names": "['c1', 'c0', 'c2']"}),
            None,
            "The model has 3 classes, the labels have 4: model: c1, c0, c2; labels: c0, c1, c2 and "
            "1 more. Give labels",
        ),
    ],
)
def test_heads_that_are_not_clear_are_refused(known, asked, text):
    with pytest.raises(UsageError, match=text):
        find_head(known, asked)


def test_asked_for_a_head_reads_an_unusual_number_of_anchors():
    head = find_head(facts((1, 7, 77)), "yolo")
    assert (head.name, head.classes) == ("yolo", 3)
    with pytest.raises(UsageError, match="has no output output0 to read.*outputs are x.*--outputs"):
        head.decode({"x": raw()}, SIZE)
    assert all(h.summary and h.name == n for n, h in HEADS.items())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("['a', 'b']", ("a", "b")),
        ("{1: 'b', 0: 'a'}", ("a", "b")),
        ("{1: 'b', 2: 'c'}", ()),
        ("{'a': 'b', 0: 'c'}", ()),
        ("['a', 3]", ()),
        ("'ab'", ()),
        ("__import__('os').system('true')", ()),
        ("(" * 5000, ()),
        ("[" + "'a'," * 300_000 + "]", ()),
        ("", ()),
    ],
)
def test_names_of_the_metadata(text, names):
    known = facts((1, 7, CELLS), metadata={"names": text, "kpt_shape": "[17, 3]"})
    assert known.names == names and known.keypoint_shape == (17, 3)
    assert known.unread == ([] if names else ["names"])
    wrong = facts((1,), metadata={"kpt_shape": "[17, 9]"})
    assert wrong.keypoint_shape is None and wrong.unread == ["kpt_shape"]


def test_a_large_head_is_decoded_in_milliseconds():
    random = np.random.default_rng(0)
    values = random.uniform(0, 0.001, (1, 15, 21504)).astype(np.float32)
    values[:, :4] = random.uniform(20, 1000, (1, 4, 21504))
    values[0, 4:, :600] = random.uniform(0, 1, (11, 600))
    head = find_head(facts((1, 15, 21504), size=(1024, 1024)))
    head.decode({"output0": values}, (1024, 1024))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (found,) = head.decode({"output0": values}, (1024, 1024))
        times.append(time.perf_counter() - start)
    assert len(found) == 300 and (np.diff(found.scores) <= 0).all()
    assert min(times) < 0.1, times


def split(boxes=("n", CELLS, 4), scores=("n", CELLS, 3), names=("b", "s"), **more) -> Facts:
    outputs = dict(zip(names, (boxes, scores), strict=True))
    return Facts(outputs=outputs, size=SIZE, **more)


@pytest.mark.parametrize("turned", [False, True])
def test_yolo_nas_gives_corners_and_scores_apart(turned: bool):
    """DAMO-YOLO, too; PP-YOLOE has the classes before the anchors."""
    scores = ("n", 3, CELLS) if turned else ("n", CELLS, 3)
    head = find_head(split(scores=scores))
    assert (head.name, head.classes, head.outputs) == ("yolo-split", 3, ("b", "s"))
    boxes, values = np.zeros((1, CELLS, 4), np.float32), np.zeros((1, CELLS, 3), np.float32)
    boxes[0, :4] = [[10, 10, 30, 20], [11, 10, 30, 20], [np.nan] * 4, [0, 0, 8, 8]]
    values[0, :4] = [[0, 0.5, 0], [0, 0.75, 0], [0.9, 0, 0], [0.25, 0, 0.125]]
    given = {"b": boxes, "s": values.transpose(0, 2, 1) if turned else values}
    (found,) = head.decode(given, SIZE)
    assert found.scores.tolist() == [0.75, 0.25, 0.125] and found.classes.tolist() == [1, 0, 2]
    assert found.xyxy.tolist() == [[11, 10, 30, 20], [0, 0, 8, 8], [0, 0, 8, 8]]
    raw = head.raw({n: torch.from_numpy(v) for n, v in given.items()}, SIZE)
    assert tuple(raw.scores.shape) == (1, CELLS, 3)
    assert raw.boxes[0, 0].tolist() == [20, 15, 20, 10]  # centre, width and height


def test_two_outputs_that_are_no_boxes_and_scores():
    four = split(scores=("n", CELLS, 4), names=("x", "y"))
    with pytest.raises(UsageError, match="The head yolo-split can read the outputs in 2 ways"):
        find_head(four)
    named = split(scores=("n", CELLS, 4), names=("scores", "pred_boxes"))
    assert find_head(named).outputs == ("pred_boxes", "scores")
    other = split(boxes=("n", 100, 4), scores=("n", 100, 3))
    with pytest.raises(UsageError, match="No detection head is known"):
        find_head(other)
    assert find_head(other, "yolo-split").classes == 3
    third = Facts(outputs={**split().outputs, "centerness": ("n", CELLS, 1)}, size=SIZE)
    with pytest.raises(UsageError):
        find_head(third, "yolo-split")


def test_rotated_boxes_are_refused():
    """The angle behind the scores would be read as one more class."""
    metadata = {"task": "obb", "names": "{0: 'ship', 1: 'plane'}"}
    for shape in ((1, 4 + 2 + 1, CELLS), (1, 300, 7)):
        known = Facts(outputs={"output0": shape}, size=SIZE, metadata=metadata)
        for asked in (None, "yolo"):
            with pytest.raises(
                UsageError, match="Cannot read rotated boxes: .* say task obb: its boxes have an"
            ):
                find_head(known, asked)
