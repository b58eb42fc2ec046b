"""Heads of transformers: boxes as shares of the picture, one for each query."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from trtq.errors import UsageError
from trtq.tasks.facts import Facts
from trtq.tasks.heads import find_head

SIZE = (50, 100)  # height, width
QUERIES = 7


def facts(columns: int = 3, names: int = 0, prefix: str = "", **more) -> Facts:
    classes = tuple(f"c{i}" for i in range(names))
    outputs = {
        f"{prefix}logits": ("batch", QUERIES, columns),
        f"{prefix}pred_boxes": ("batch", QUERIES, 4),
        "last_hidden_state": ("batch", QUERIES, 256),
    }
    return Facts(outputs=outputs, size=SIZE, classes=classes, **more)


def answer(*rows: tuple[list[float], list[float]]) -> dict[str, np.ndarray]:
    columns = len(rows[0][0])
    logits = np.full((1, QUERIES, columns), -20, np.float32)
    logits[..., -1] = -10
    boxes = np.full((1, QUERIES, 4), 0.5, np.float32)
    for i, (own, box) in enumerate(rows):
        logits[0, i], boxes[0, i] = own, box
    return {"logits": logits, "pred_boxes": boxes}


def test_detr_has_a_column_for_no_object():
    head = find_head(facts(names=2))
    assert (head.name, head.classes) == ("detr", 2)
    box = [0.5, 0.5, 0.2, 0.4]
    half = answer(([0, np.log(3), np.log(4)], box), ([5, 0, 9], box), ([np.nan, 9, 0], box))
    (found,) = head.decode(half, SIZE)
    # Softmax of 1, 3 and 4: the second class has 3/8. A query has its best class only.
    assert found.scores[:1].tolist() == pytest.approx([0.375]) and found.classes[0] == 1
    np.testing.assert_allclose(found.xyxy[0], [40, 15, 60, 35], rtol=1e-6)
    assert found.scores[1:].tolist() == pytest.approx([np.exp(5) / (np.exp(5) + 1 + np.exp(9))])


def test_rt_detr_has_a_sigmoid_for_each_class():
    head = find_head(facts(names=3, prefix="out."))
    assert (head.name, head.classes) == ("rt-detr", 3)
    half = answer(([0, -np.log(3), -20], [0.25, 0.5, 0.5, 1]), ([np.nan, -20, -20], [0.5] * 4))
    (found,) = head.decode({f"out.{n}": v for n, v in half.items()}, SIZE)
    assert found.scores.tolist() == pytest.approx([0.5, 0.25])  # and none of e^-10 and less
    assert found.classes.tolist() == [0, 1]
    np.testing.assert_allclose(found.xyxy, [[0, 0, 50, 50]] * 2)


def test_without_a_number_of_classes_both_fit():
    with pytest.raises(
        UsageError,
        match="as detr with 2 classes or logits and pred_boxes as rt-detr .* detr reads logits .* "
        "for a softmax .*; rt-detr reads logits .* for a sigmoid",
    ):
        find_head(facts())
    assert find_head(facts(), "rt-detr").classes == 3
    open_size = replace(facts(metadata={"head": "RTDETRDecoder"}), size=None)
    assert find_head(open_size).name == "rt-detr"  # whatever last_hidden_state looks like
    assert find_head(facts(metadata={"description": "RT-DETR v2"})).name == "rt-detr"
    with pytest.raises(
        UsageError, match="do not have the 5 classes of the labels: logits and pred"
    ):
        find_head(facts(names=5))
    with pytest.raises(UsageError, match="The head detr cannot read the outputs"):
        find_head(Facts(outputs={"logits": (1, 7, 3), "pred_boxes": (1, 9, 4)}), "detr")


def test_rt_detr_of_ultralytics_has_one_output():
    metadata = {"description": "Ultralytics RT-DETR-l model", "names": "['a', 'b', 'c']"}
    old = Facts(outputs={"output0": (1, 300, 7)}, size=SIZE, metadata=metadata)
    head = find_head(old)
    assert (head.name, head.classes) == ("rt-detr-rows", 3)
    rows = np.zeros((1, 300, 7), np.float32)
    rows[0, 8] = [0.5, 0.5, 0.2, 0.4, 0.1, 0.8, 0]
    (found,) = head.decode({"output0": rows}, SIZE)
    np.testing.assert_allclose(found.xyxy, [[40, 15, 60, 35]] * 2, rtol=1e-6)
    assert found.classes.tolist() == [1, 0]
    new = Facts(
        outputs={"output0": (1, 300, 6)}, size=SIZE, metadata={**metadata, "head": "RTDETRDecoder"}
    )
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, 4] = [0.5, 0.5, 0.2, 0.4, 0.9, 2]
    head = find_head(new)
    assert (head.name, head.classes) == ("rt-detr-rows", None)
    (found,) = head.decode({"output0": rows}, SIZE)
    np.testing.assert_allclose(found.xyxy, [[40, 15, 60, 35]], rtol=1e-6)
    assert found.classes.tolist() == [2]
    unnamed = Facts(outputs={"output0": (1, 300, 84)}, size=SIZE)
    with pytest.raises(UsageError, match="No detection head is known"):
        find_head(unnamed)
    assert find_head(unnamed, "rt-detr-rows").classes == 80


def rf_facts(columns: int, names: int = 0, **more) -> Facts:
    classes = tuple(f"c{i}" for i in range(names))
    outputs = {"dets": ("batch", QUERIES, 4), "labels": ("batch", QUERIES, columns), **more}
    return Facts(outputs=outputs, size=SIZE, classes=classes)


def test_rf_detr_as_its_own_export_names_it():
    head = find_head(rf_facts(3))
    assert (head.name, head.classes, head.outputs) == ("rf-detr", 3, ("labels", "dets"))
    given = answer(([0, -np.log(3), 9], [0.25, 0.5, 0.5, 1]), ([np.nan, -20, -20], [0.5] * 4))
    named = {"labels": given["logits"], "dets": given["pred_boxes"]}
    (found,) = head.decode(named, SIZE)
    assert found.classes[:3].tolist() == [2, 0, 1]
    assert found.scores[1:3].tolist() == pytest.approx([0.5, 0.25])
    # Fine-tuned, there is one column more than classes: it is no class.
    tuned = find_head(rf_facts(3, names=2))
    assert tuned.classes == 2
    (found,) = tuned.decode(named, SIZE)
    assert found.classes.tolist() == [0, 1]
    np.testing.assert_allclose(found.xyxy, [[0, 0, 50, 50]] * 2)
    raw = tuned.raw({n: torch.from_numpy(v) for n, v in named.items()}, SIZE)
    assert tuple(raw.scores.shape) == (1, QUERIES, 2)
    with pytest.raises(UsageError, match="do not have the 7 classes"):
        find_head(rf_facts(3, names=7))
    assert find_head(rf_facts(3, names=3)).classes == 3


def test_rf_detr_with_masks():
    head = find_head(rf_facts(2, masks=("batch", QUERIES, 5, 10)))
    assert head.outputs == ("labels", "dets", "masks") and head.gives == ("masks",)
    given = answer(([5, -20], [0.25, 0.5, 0.5, 1]))
    maps = np.full((1, QUERIES, 5, 10), -1, np.float32)
    maps[0, 0, :, :5] = 1
    named = {"labels": given["logits"], "dets": given["pred_boxes"], "masks": maps}
    (found,) = head.decode(named, SIZE)
    assert found.masks.shape == (1, 50, 100)
    assert found.masks[0, :, :50].all() and not found.masks[0, :, 50:].any()
    raw = head.raw({n: torch.from_numpy(v) for n, v in named.items()}, SIZE)
    assert tuple(raw.boxes.shape) == (1, QUERIES, 4)
