"""Parsers of boxes for nvinfer: those that trtq writes, and NVIDIA's."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.package.conftest import YOLO
from tests.package.test_deepstream import INCLUDE, parsed
from tests.package.test_programs import needs_compiler
from tests.support.onnx_files import model_of
from trtq.export.onnx_file import set_metadata_
from trtq.tasks import Facts, find_task

HEADS = {
    "yolo": (1, 7, 84),
    "yolo-objectness": (1, 252, 8),
    "end-to-end": (1, 10, 6),
}


@needs_compiler
@pytest.mark.parametrize("head", HEADS)
def test_the_parser_finds_the_boxes_that_the_head_finds(head, packaged, tmp_path):
    shape = HEADS[head]
    model = model_of(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], "mean", axes=[1, 2, 3], keepdims=0),
            helper.make_node("Expand", ["m", "shape"], ["out"], "spread"),
        ],
        [("x", TensorProto.FLOAT, [1, 3, 64, 64])],
        [("out", TensorProto.FLOAT, list(shape))],
        {"shape": np.array(shape, np.int64)},
        opset=13,
    )
    set_metadata_(model, {"preprocess": YOLO})
    onnx.save(model, tmp_path / "m.onnx")
    labels = tmp_path / "names.txt"
    labels.write_text("a\nb\nc\n")
    folder = packaged(tmp_path / "m.onnx", "deepstream", task=f"detection:{head}", labels=labels)
    assert parsed(folder)["property"]["num-detected-classes"] == "3"
    program = tmp_path / "run"
    source = folder / "parser/nvdsinfer_trtq.cpp"
    line = ["g++", "-std=c++17", "-Wall", "-Werror", f"-I{INCLUDE}", "-o", program, source]
    subprocess.run([*line, INCLUDE / "run_parser.cpp"], check=True)
    values = raw_output(shape, head)
    size = [str(n) for n in values.shape]
    run = [program, "out", *size, "3", "0.3"]
    done = subprocess.run(run, input=values.tobytes(), capture_output=True, check=True)
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    got = np.array(sorted([float(v) for v in row] for row in rows))
    np.testing.assert_allclose(got, wanted_boxes(values, head), rtol=1e-5, atol=1e-4)
    assert len(got) >= 2
    wrong = subprocess.run([program, "none", *size, "3", "0.3"], input=b"", check=False)
    assert wrong.returncode == 3


def raw_output(shape: tuple[int, ...], head: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.uniform(0, 0.4, shape).astype(np.float32)[0]
    rows = values.T if head == "yolo" else values
    rows[:, :2] = rng.uniform(0, 40, (len(rows), 2))
    rows[:, 2:4] = rng.uniform(5, 30, (len(rows), 2))
    if head == "end-to-end":
        rows[:, 2:4] += rows[:, :2]
        rows[:, 5] = rng.integers(0, 3, len(rows))
    rows[:5, 4:] *= 2 if head != "end-to-end" else 1
    if head == "yolo-objectness":
        rows[:, 4] = rng.uniform(0.8, 1, len(rows))
    rows[0, 4] = np.nan
    return values


def wanted_boxes(values: np.ndarray, head: str) -> np.ndarray:
    """Return what trtq's own head finds above the threshold, without suppression."""
    facts = Facts(outputs={"out": (1, *values.shape)}, size=(64, 64), classes=("a", "b", "c"))
    task = find_task(f"detection:{head}").bound(facts)
    chosen = replace(task.head, overlap=1.0, least_score=0.3, most=1000)
    (found,) = chosen.decode({"out": values[None]}, (64, 64))
    boxes = np.clip(found.xyxy, 0, 64)
    rows = np.column_stack([found.classes, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], found.scores])
    return np.array(sorted(rows.tolist()))


@pytest.mark.parametrize(
    ("head", "number", "prefix", "function", "note"),
    [
        (
            "tensorflow",
            "num_detections",
            "detection_",
            "NvDsInferParseCustomTfSSD",
            "DeepStream's own library",
        ),
        (
            "efficient-nms",
            "num_dets",
            "det_",
            "NvDsInferParseCustomEfficientNMS",
            "deepstream_tao_apps",
        ),
    ],
)
def test_parsers_of_nvidia(head, number, prefix, function, note, packaged, tmp_path):
    shapes = {"boxes": [1, 5, 4], "scores": [1, 5], "classes": [1, 5]}
    outputs = {number: [1, 1], **{prefix + n: s for n, s in shapes.items()}}
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], "mean", axes=[1, 2, 3], keepdims=0)]
    nodes += [helper.make_node("Expand", ["m", f"{n}_s"], [n], n) for n in outputs]
    model = model_of(
        nodes,
        [("x", TensorProto.FLOAT, [1, 3, 64, 64])],
        [(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        {f"{n}_s": np.array(s, np.int64) for n, s in outputs.items()},
        opset=13,
    )
    set_metadata_(model, {"preprocess": YOLO, "task": f"detection:{head}"})
    onnx.save(model, tmp_path / "m.onnx")
    labels = tmp_path / "names.txt"
    labels.write_text("a\nb\n")
    folder = packaged(tmp_path / "m.onnx", "deepstream", labels=labels)
    own = parsed(folder)["property"]
    assert (own["parse-bbox-func-name"], own["cluster-mode"]) == (function, "4")
    assert own["num-detected-classes"] == "2"
    assert note in (folder.parent / "README.md").read_text()
