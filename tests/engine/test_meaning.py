"""The gate of builds and boards asks the task of the file: boxes count, not numbers alone."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import trtq
from tests.support.detector import CellDetector, pictures
from trtq.commands.board_accuracy import Compared, compare_on_samples
from trtq.data.adapters import open_data
from trtq.data.opened import Request
from trtq.data.preprocess import Preprocess
from trtq.engine.agreement import AgreementRecord, check_agreement, require_agreement
from trtq.engine.job import prepare
from trtq.engine.runner import OnnxRunner
from trtq.errors import AgreementError
from trtq.export.onnx_file import get_metadata, set_metadata_
from trtq.specs import BuildSpec


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return f"coco:{pictures(tmp_path_factory.mktemp('cells'), 8)}"


@pytest.fixture(scope="module")
def file(cells, tmp_path_factory):
    """A Q/DQ file of a detector, as it is written."""
    return trtq.quantize(
        CellDetector().eval(),
        cells,
        input_size=(3, 64, 64),
        task="detection",
        preset_quant="none",
        calib_images=4,
        calib_cache=str(tmp_path_factory.mktemp("cache")),
    ).done.qdq


def blind(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its scores upside down: the boxes, which are large numbers, stay."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if list(tensor.dims) == [2, 3, 1, 1]:
            turned = -numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
    return other


def images_of(cells, model):
    data = open_data(Request(text=cells))
    picture = msgspec.convert(get_metadata(model)["preprocess"], Preprocess)
    return [b.input.numpy() for b in data.make(None, picture).batches(4)]


def checked(model, source, images, **more):
    (seen,) = check_agreement(
        model,
        source,
        images,
        engine=None,
        rebuild=OnnxRunner,
        missing=[],
        yardstick="the file",
        **more,
    ).comparisons
    return seen


def test_boxes_that_are_gone_fail_the_gate_although_numbers_are_close(file, cells):
    images = images_of(cells, file)
    seen = checked(file, blind(file), images)
    assert seen.sqnr_db > 30  # the boxes are hundreds of pixels
    assert not seen.passed
    assert seen.alike[0].name == "agreement mAP" and seen.alike[0].value < 50
    assert "agreement mAP" in seen.words
    own = "10 points below the 100.00 % that the file's codes keep of its float model, at most 90 %"
    assert seen.limit == f"agreement mAP at least 90.00 %: {own}"
    record = AgreementRecord(images=8, yardstick="y", comparisons=[seen], missing=[])
    with pytest.raises(AgreementError, match=r"\(expected agreement mAP at least 90.00 %: 10 po"):
        require_agreement(record)


def test_random_inputs_and_files_without_a_task_are_compared_as_numbers(file, cells):
    images = images_of(cells, file)
    assert checked(file, blind(file), images, real=False).passed
    plain = onnx.ModelProto()
    plain.CopyFrom(file)
    set_metadata_(plain, {"task": "elsewhere.py:task"})  # code is never followed from a file
    assert checked(plain, blind(plain), images).alike is msgspec.UNSET


def test_a_board_is_scored_by_the_task(file, cells, tmp_path):
    onnx.save(file, tmp_path / "m.onnx")
    job = prepare(BuildSpec(onnx=str(tmp_path / "m.onnx"), target="orin", out="e.engine"))
    picture = msgspec.convert(get_metadata(file)["preprocess"], Preprocess)
    samples = open_data(Request(text=cells)).make(None, picture).select([0, 3, 5])
    compared = Compared(
        judged=file, built_from=file, yardstick="the file", job=job, data=cells, task=None
    )

    def run(batches):
        parts = [OnnxRunner(file).run(batch) for batch in batches]
        return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}

    seen = compare_on_samples(compared, samples, 2, run)
    assert seen.task == "detection:yolo" and seen.top1 is None and seen.images == 3
    assert seen.figures == seen.reference_figures and seen.figures[0].name == "mAP"
    assert seen.words.startswith(f"{seen.figures[0].words} (the ONNX file ")
    assert seen.agreement.comparisons[0].alike[0].value == 100.0
