"""Lists of boxes, and heads with anchors, against torchvision's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trtq.errors import DataError, UsageError
from trtq.tasks import find_task
from trtq.tasks.facts import Facts
from trtq.tasks.heads import find_head

SIZE = (50, 100)
BOX, OTHER = [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]


def test_lists_of_a_batch():
    known = Facts(outputs={"labels": ("n", 9), "boxes": ("n", 9, 4), "scores": ("n", 9)}, size=SIZE)
    head = find_head(known)
    assert (head.name, head.classes) == ("lists", None)
    outputs = {
        "labels": np.array([[3, 0, 1]], dtype=np.int64),
        "boxes": np.array([[BOX, OTHER, BOX]]),
        "scores": np.array([[0.5, 0.75, np.nan]]),
    }
    (found,) = head.decode(outputs, SIZE)
    assert found.xyxy.tolist() == [OTHER, BOX] and found.classes.tolist() == [0, 3]


def test_efficient_nms_counts_its_rows():
    names = ("num_dets", "det_boxes", "det_scores", "det_classes")
    shapes = ((1, 1), (1, 9, 4), (1, 9), (1, 9))
    head = find_head(Facts(outputs=dict(zip(names, shapes, strict=True)), size=SIZE))
    assert head.name == "efficient-nms"
    values = (
        np.array([[1], [0]], dtype=np.int32),
        np.array([[BOX, OTHER], [BOX, OTHER]]),
        np.array([[0.5, 0.25], [0.5, 0.5]]),
        np.array([[3, 3], [3, 3]], dtype=np.int32),
    )
    first, second = head.decode(dict(zip(names, values, strict=True)), SIZE)
    assert first.xyxy.tolist() == [BOX] and first.classes.tolist() == [3] and len(second) == 0


def test_tensorflow_writes_shares_from_the_top():
    names = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
    shapes = ((1,), (1, 9, 4), (1, 9), (1, 9))
    known = Facts(outputs=dict(zip(names, shapes, strict=True)), size=SIZE)
    with pytest.raises(
        UsageError, match="--task detection:efficient-nms or --task detection:tensorflow"
    ):
        find_head(known)
    values = ([1.0], [[[0.1, 0.2, 0.3, 0.4]]], [[0.5]], [[1.0]])
    arrays = {n: np.array(v) for n, v in zip(names, values, strict=True)}
    (found,) = find_head(known, "tensorflow").decode(arrays, SIZE)
    np.testing.assert_allclose(found.xyxy, [[20, 5, 40, 15]], rtol=1e-6)
    assert found.classes.tolist() == [0]


def test_torchvision_has_one_picture():
    outputs = {"boxes": ("k", 4), "labels": ("k",), "scores": ("k",), "masks": ("k", 1, 50, 100)}
    head = find_head(Facts(outputs=outputs, size=SIZE))
    assert head.name == "torchvision"
    masks = np.zeros((2, 1, 50, 100), np.float32)
    masks[1, 0, :4] = 0.75
    values = {
        "boxes": np.array([BOX, OTHER]),
        "labels": np.array([1, 18]),
        "scores": np.array([0.25, 0.5]),
        "masks": masks,
    }
    (found,) = head.decode(values, SIZE)
    assert found.xyxy.tolist() == [OTHER, BOX] and found.classes.tolist() == [17, 0]
    assert found.masks is not None and found.masks.sum(axis=(1, 2)).tolist() == [400, 0]
    poses = {**outputs, "keypoints": ("k", 17, 3), "keypoints_scores": ("k", 17)}
    del poses["masks"], values["masks"]
    points = np.ones((2, 17, 3))
    scores = np.full((2, 17), 0.5)
    (found,) = find_head(Facts(outputs=poses, size=SIZE)).decode(
        {**values, "keypoints": points, "keypoints_scores": scores}, SIZE
    )
    assert found.keypoints is not None and found.keypoints.shape == (2, 17, 3)
    assert found.keypoints[0, 0].tolist() == [1, 1, 0.5]


ANCHORS = np.array([[0, 0, 10, 10], [20, 10, 40, 20], [60, 20, 80, 60]], np.float32)


def anchored(columns: int, *, more: bool = False, anchors=ANCHORS) -> Facts:
    outputs = {"cls_logits": (1, 3, columns), "bbox_regression": (1, 3, 4)}
    if more:
        outputs["bbox_ctrness"] = (1, 3, 1)
    return Facts(outputs=outputs, size=SIZE, anchors=anchors)


def random_outputs(columns: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {
        "cls_logits": random.standard_normal((1, 3, columns)).astype(np.float32),
        "bbox_regression": random.uniform(0.1, 1, (1, 3, 4)).astype(np.float32),
        "bbox_ctrness": random.standard_normal((1, 3, 1)).astype(np.float32),
    }


@pytest.mark.parametrize(
    ("name", "weights"), [("ssd", (10, 10, 5, 5)), ("retinanet", (1, 1, 1, 1))]
)
def test_anchors_as_torchvision_reads_them(name, weights):
    from torchvision.models.detection._utils import BoxCoder

    head = find_head(anchored(4), name)
    assert (head.name, head.classes) == (name, 3 if name == "ssd" else 4)
    outputs = random_outputs(4)
    (found,) = head.decode(outputs, SIZE)
    logits = torch.from_numpy(outputs["cls_logits"][0])
    scores = logits.softmax(1)[:, 1:] if name == "ssd" else logits.sigmoid()
    boxes = BoxCoder(weights).decode_single(
        torch.from_numpy(outputs["bbox_regression"][0]), torch.from_numpy(ANCHORS)
    )
    assert found.scores.tolist() == pytest.approx(scores.flatten().sort().values.flip(0).tolist())
    rows = [
        (scores[:, c] - s).abs().argmin() for c, s in zip(found.classes, found.scores, strict=True)
    ]
    np.testing.assert_allclose(found.xyxy, boxes[torch.stack(rows)], rtol=1e-5)


def test_fcos_as_torchvision_reads_it():
    from torchvision.models.detection._utils import BoxLinearCoder

    head = find_head(anchored(2, more=True), "fcos")
    outputs = random_outputs(2)
    (found,) = head.decode(outputs, SIZE)
    scores = torch.sqrt(
        torch.from_numpy(outputs["cls_logits"][0]).sigmoid()
        * torch.from_numpy(outputs["bbox_ctrness"][0]).sigmoid()
    )
    boxes = BoxLinearCoder(normalize_by_size=True).decode(
        torch.from_numpy(outputs["bbox_regression"][0]), torch.from_numpy(ANCHORS)
    )
    best = int(scores.flatten().argmax())
    assert found.scores[0] == pytest.approx(float(scores.max())) and found.classes[0] == best % 2
    np.testing.assert_allclose(found.xyxy[0], boxes[best // 2], rtol=1e-5)


@pytest.mark.parametrize(
    ("known", "asked", "text"),
    [
        (anchored(4), None, "No detection head is known that has the outputs.*cls_logits"),
        (
            anchored(4, anchors=None),
            "ssd",
            r"ssd needs the anchors of the model.*\[A, 4\].*--task detection:ssd:FILE.npy",
        ),
        (anchored(4, anchors=ANCHORS[:2]), "ssd", "2 anchors are given, the outputs have 3"),
        (anchored(4), "fcos", "The head fcos cannot read the outputs.*centerness"),
    ],
)
def test_anchors_that_do_not_fit(known, asked, text):
    with pytest.raises(UsageError, match=text):
        find_head(known, asked)


def test_anchors_are_counted_when_they_are_read():
    outputs = {"cls_logits": (1, "a", 2), "bbox_regression": (1, "a", 4)}
    head = find_head(Facts(outputs=outputs, anchors=ANCHORS), "retinanet")
    with pytest.raises(
        UsageError, match="3 anchors are given, the outputs have 1. Give the anchors"
    ):
        head.decode(
            {"cls_logits": np.zeros((1, 1, 2)), "bbox_regression": np.zeros((1, 1, 4))}, SIZE
        )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.zeros((3, 5)), r"anchors of .*a.npy: they are float64 \[3, 5\]. Give a .npy file"),
        (np.array([["a"] * 4]), "they are <U1"),
        (np.array([[0, 0, 5, 0]]), "a box has no area"),
        (np.array([[0, 0, np.nan, 5]]), "numbers that are not finite"),
    ],
)
def test_files_of_anchors(tmp_path, values, text):
    np.save(tmp_path / "a.npy", values)
    known = anchored(4, anchors=None)
    with pytest.raises(UsageError, match=text):
        find_head(known, f"ssd:{tmp_path}/a.npy")


def test_anchors_are_given_with_the_name_of_the_head(tmp_path):
    known = anchored(4, anchors=None)
    np.save(tmp_path / "a.npy", ANCHORS.astype(np.float64))
    np.savez(tmp_path / "a.npz", a=ANCHORS)
    head = find_head(known, f"ssd:{tmp_path}/a.npy")
    assert head.name == "ssd" and getattr(head, "anchors", None).dtype == np.float32
    task = find_task(f"detection:ssd:{tmp_path}/a.npy").bound(known)
    assert task.label == f"detection:ssd:{tmp_path}/a.npy"
    with pytest.raises(UsageError, match="a.npz: it has several arrays. Give a .npy file"):
        find_head(known, f"ssd:{tmp_path}/a.npz")
    with pytest.raises(DataError, match=r"Cannot read .*gone.npy"):
        find_head(known, f"ssd:{tmp_path}/gone.npy")
    with pytest.raises(UsageError, match="The head detr has no anchors: a.npy is given for them"):
        find_head(known, "detr:a.npy")
    with pytest.raises(UsageError, match="There is no head 'sd'. Did you mean ssd"):
        find_head(known, "sd:a.npy")
