"""Tasks, and data other than images, on a board."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.boards import (
    Heard,
    _with_preprocessing,
    needs_sshd,
    pooling,
    products,
    spec,
)
from trtq.commands.deploy import deploy
from trtq.deploy.accuracy import TYPES, _split
from trtq.deploy.answers import Output
from trtq.errors import DataError, UsageError
from trtq.testing.images import write_classes

pytestmark = needs_sshd


def with_tensorrt(board, **given):
    if not board.add_tensorrt(**given):
        pytest.skip("no C compiler for the stand-in of CUDA's runtime library")
    return board


def arrays(folder: Path, count: int, **inputs) -> Path:
    folder.mkdir()
    for i in range(count):
        np.savez(folder / f"{i}.npz", **{n: make(i) for n, make in inputs.items()})
    return folder


def asked(board, model, out, **given):
    return spec(board, model, out, **{"bench": False, "precision": "fp32", **given})


def test_the_score_of_a_task_that_was_asked_for(orin, tmp_path):
    """The agent returns the outputs; what they mean is counted here."""
    images = write_classes(tmp_path / "images", 3, 4)
    path = _with_preprocessing(pooling(tmp_path / "m.onnx"))
    board = with_tensorrt(orin)
    plain = deploy(asked(board, path, tmp_path / "o", data=str(images)))
    assert plain.accuracy.top1 is None and not plain.accuracy.figures
    made = deploy(asked(board, path, tmp_path / "o", data=str(images), task="classification"))
    assert not made.built, "the engine is there; only the answers are counted anew"
    assert made.accuracy.task == "classification"
    figures, theirs = made.accuracy.figures, made.accuracy.reference_figures
    assert [f.name for f in figures] == [f.name for f in theirs] and figures[0].name == "top-1"
    assert figures[0].value == theirs[0].value
    assert f"{figures[0].words} (the ONNX file" in made.summary
    alike = made.accuracy.agreement.comparisons[-1].alike
    assert alike[0].value == 100.0


COLOURED = '''
from trtq.tasks.detection import Detection
from trtq.tasks.detections import Detections

class Coloured(Detection):
    """The whole input is one object, of the class that its mean colour says."""

    name = "coloured"

    def bound(self, facts):
        return self

    def decode(self, outputs, places):
        (means,) = outputs.values()
        whole = [Detections.of([[0, 0, 8, 8]], [m.max()], [m.argmax()]) for m in means]
        return whole if places is None else [d.moved(p) for d, p in zip(whole, places)]
'''


def test_boxes_of_a_board_are_decoded_here(orin, tmp_path):
    """The agent knows nothing of boxes: a task of the user reads them from what it returns.

    The model sees the middle square of each picture.
    """
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 20} for i in range(6)]
    folder = tmp_path / "images"
    folder.mkdir()
    for image in images:
        colour = [10, 10, 10]
        colour[image["id"] % 3] = 250 if image["id"] else 200  # the least sure of all
        Image.new("RGB", (40, 20), tuple(colour)).save(folder / image["file_name"])
    right = [
        {"image_id": i, "category_id": i % 3 if i else 1, "bbox": [10, 0, 20, 20]} for i in range(6)
    ]
    names = [{"id": i, "name": n} for i, n in enumerate(("red", "green", "blue"))]
    labels = {"images": images, "annotations": right, "categories": names}
    (folder / "annotations.json").write_text(json.dumps(labels))
    (tmp_path / "own.py").write_text(COLOURED)
    path = _with_preprocessing(pooling(tmp_path / "m.onnx"))
    made = deploy(
        asked(
            with_tensorrt(orin),
            path,
            tmp_path / "o",
            data=f"coco:{folder}",
            task=f"{tmp_path / 'own.py'}:Coloured",
        )
    )
    assert made.accuracy.task == "coloured"
    own = {f.name: f.value for f in made.accuracy.figures}
    assert own == {f.name: f.value for f in made.accuracy.reference_figures}
    # One of three green objects is called red, after the red one: 67 of 101 recalls are reached.
    assert own["mAP"] == pytest.approx(100 * (1 + 67 / 101 + 1) / 3, abs=0.001)
    assert made.accuracy.agreement.comparisons[-1].alike[0].words == "agreement mAP 100.00 %"


def test_arrays_in_place_of_images(orin, tmp_path):
    """The file says nothing about images: its input is given as it is."""
    rng = np.random.default_rng(0)
    data = arrays(
        tmp_path / "data", 11, input=lambda _: rng.normal(size=(3, 8, 8)).astype(np.float32)
    )
    path = pooling(tmp_path / "m.onnx")
    made = deploy(
        asked(
            with_tensorrt(orin), path, tmp_path / "o", data=str(data), task="embedding", images=10
        )
    )
    assert made.accuracy.images == 10 and made.accuracy.task == "embedding"
    comparison = made.accuracy.agreement.comparisons[-1]
    assert comparison.passed and "cosine" in comparison.alike[1].name


def test_several_integer_inputs_of_different_lengths(orin, tmp_path):
    """INT64 goes as the engine takes it; samples of one length are one job."""
    rng = np.random.default_rng(0)

    def ids(i: int) -> np.ndarray:
        return rng.integers(0, 50, 6 if i < 3 else 9)

    lengths = arrays(
        tmp_path / "data", 5, ids=ids, mask=lambda i: np.ones(6 if i < 3 else 9, dtype=np.int64)
    )
    board = with_tensorrt(orin, inputs={"ids": "INT64", "mask": "INT64"})
    path = products(tmp_path / "m.onnx")
    given = {"shapes": ("ids=1x4:1x8:1x16",), "images": 5}
    made = deploy(asked(board, path, tmp_path / "o", data=str(lengths), **given))
    comparison = made.accuracy.agreement.comparisons[-1]
    assert (made.accuracy.images, comparison.passed) == (5, True)
    assert comparison.outputs[0].exact or comparison.outputs[0].sqnr_db > 100
    with pytest.raises(DataError, match="axis 1 of ids is 9, the engine is built for 4 to 8"):
        deploy(
            asked(
                board,
                path,
                tmp_path / "p",
                data=str(lengths),
                shapes=("ids=1x4:1x8:1x8",),
            )
        )


def test_an_engine_of_other_types_says_so(orin, tmp_path):
    data = arrays(
        tmp_path / "data",
        2,
        ids=lambda _: np.arange(4),
        mask=lambda _: np.ones(4, dtype=np.int64),
    )
    board = with_tensorrt(orin, inputs={"ids": "INT32", "mask": "INT32"})
    heard = Heard()
    made = deploy(
        asked(
            board,
            products(tmp_path / "m.onnx"),
            tmp_path / "o",
            data=str(data),
            shapes=("ids=1x4:1x8:1x16",),
        ),
        heard,
    )
    assert made.accuracy is None
    assert (
        "the engine takes ids INT32, mask INT32, it was given ids INT64, mask INT64"
        in (made.unavailable["accuracy"])
    )


def test_a_task_without_its_outputs_is_refused_before_the_build(orin, images, tmp_path):
    path = _with_preprocessing(pooling(tmp_path / "m.onnx"))
    board = with_tensorrt(orin)
    with pytest.raises(UsageError, match="detection"):
        deploy(asked(board, path, tmp_path / "o", data=str(images), task="detection"))
    assert not (tmp_path / "o/deploy.json").exists()
    assert not list(Path(board.home).rglob("*.engine"))
    for option, value in (("task", "classification"), ("tokenizer", "t.json")):
        with pytest.raises(UsageError, match=f"--{option} needs --data: without samples nothing"):
            deploy(asked(board, path, tmp_path / "o", **{option: value}))


def test_an_output_that_the_board_does_not_give(orin, images, tmp_path, monkeypatch):
    path = _with_preprocessing(pooling(tmp_path / "m.onnx"))
    monkeypatch.setattr(
        "trtq.deploy.accuracy.BoardRunner.run",
        lambda self, batches, slots: {"other": np.zeros((4, 3), dtype=np.float32)},
    )
    made = deploy(
        asked(
            with_tensorrt(orin),
            path,
            tmp_path / "o",
            data=str(images),
            task="classification",
            images=4,
        )
    )
    assert made.accuracy is None
    assert made.unavailable["accuracy"].startswith(
        "it lacks the outputs output, which the task classification reads; it answers with other ["
    )


def test_answers_have_the_types_of_the_engine():
    outputs = [Output(name="a", dtype="HALF", shape=[2]), Output(name="b", dtype="INT32", shape=[])]
    halves, wholes = np.arange(6, dtype=np.float16).reshape(3, 2), np.arange(3, dtype=np.int32)
    data = halves[:2].tobytes() + wholes[:2].tobytes() + halves[2:].tobytes() + wholes[2:].tobytes()
    found = _split(data, outputs, 3, 2)
    assert np.array_equal(found["a"], halves) and np.array_equal(found["b"], wholes)
    assert {np.dtype(t).itemsize for t in TYPES.values()} == {1, 2, 4, 8}
