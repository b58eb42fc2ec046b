"""Evaluation of what quantize wrote."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from trtq import EvaluateSpec, evaluate
from trtq.errors import DataError, ExportError, UsageError
from trtq.export.ort import input_shape, open_session
from trtq.testing.images import write_classes, write_images

# ---- evaluate ----------------------------------------------------------------------------------


def test_evaluate_reads_preprocessing_from_the_file(cnn_out, images):
    record = evaluate(
        EvaluateSpec(
            onnx=f"{cnn_out}/model.qdq.onnx",
            reference=f"{cnn_out}/model.fp32.onnx",
            data=str(images),
        )
    )
    assert record.images == 32
    assert 0 <= record.top1 <= record.top5 <= 100
    assert record.agreement > 90
    assert record.sqnr_db > 20
    assert record.preprocess.input_size == (3, 32, 32)
    assert record.calibration_images == 24
    assert "24 of these images were used for calibration" in record.notes[0]


def test_evaluate_leaves_calibration_images_out_and_limits(cnn_out, images):
    held_out = evaluate(
        EvaluateSpec(
            onnx=f"{cnn_out}/model.qdq.onnx", data=str(images), exclude=f"{cnn_out}/quantize.json"
        )
    )
    assert held_out.images == 8
    assert held_out.calibration_images == 0
    assert (
        evaluate(EvaluateSpec(onnx=f"{cnn_out}/model.qdq.onnx", data=str(images), limit=5)).images
        == 5
    )


def test_evaluate_says_that_a_file_gives_infinity(cnn_out, images, tmp_path):
    model = onnx.load(cnn_out / "model.fp32.onnx")
    first = next(i for i in model.graph.initializer if len(i.dims) == 4)
    first.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(first) * np.float32(1e38), first.name)
    )
    onnx.save(model, tmp_path / "m.onnx")
    record = evaluate(
        EvaluateSpec(
            onnx=f"{tmp_path}/m.onnx", reference=f"{cnn_out}/model.fp32.onnx", data=str(images)
        )
    )
    assert not record.finite and "NaN or infinite" in record.summary


def test_evaluate_refuses_to_leave_out_what_a_record_does_not_name(cnn_out, images, tmp_path):
    (tmp_path / "finetune.json").write_text('{"verb": "finetune", "data": {}}')
    with pytest.raises(
        UsageError,
        match=r"Cannot leave out the images of .*: it does not say which images calibration "
        r"looked at",
    ):
        evaluate(
            EvaluateSpec(
                onnx=f"{cnn_out}/model.qdq.onnx",
                data=str(images),
                exclude=f"{tmp_path}/finetune.json",
            )
        )


def test_evaluate_a_file_against_itself_and_without_labels(cnn_out, tmp_path):
    flat = write_images(tmp_path / "flat", 3)
    record = evaluate(
        EvaluateSpec(
            onnx=f"{cnn_out}/model.fp32.onnx",
            reference=f"{cnn_out}/model.fp32.onnx",
            data=str(flat),
        )
    )
    assert record.agreement == 100.0
    assert record.sqnr_db is None
    assert record.top1 is None


def test_evaluate_errors(cnn_out, images, tmp_path):
    with pytest.raises(ExportError, match="it is not an ONNX file"):
        (tmp_path / "x.onnx").write_bytes(b"garbage!" * 10)
        evaluate(EvaluateSpec(onnx=f"{tmp_path}/x.onnx", data=str(images)))
    with pytest.raises(
        ExportError, match=r"cannot run the model on input \[8, 3, 16, 16\].*--input-size"
    ):
        evaluate(
            EvaluateSpec(
                onnx=f"{cnn_out}/model.qdq.onnx",
                data=str(images),
                input_size=(3, 16, 16),
                batch_size=8,
            )
        )
    wide = write_classes(tmp_path / "wide", 6, 1)
    with pytest.raises(DataError, match="the highest class index is 5, the model has 4 classes"):
        evaluate(EvaluateSpec(onnx=f"{cnn_out}/model.qdq.onnx", data=str(wide)))


def test_a_session_reports_its_shape(cnn_out):
    assert input_shape(open_session(cnn_out / "model.qdq.onnx"))[1:] == [3, 32, 32]


def test_the_same_names_elsewhere_are_not_the_same_images(cnn_out, images, tmp_path):
    other = write_classes(tmp_path / "other", 4, 8, size=44)
    record = evaluate(
        EvaluateSpec(
            onnx=f"{cnn_out}/model.qdq.onnx", data=str(other), exclude=f"{cnn_out}/quantize.json"
        )
    )
    assert record.images == 32
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    assert (
        evaluate(
            EvaluateSpec(
                onnx=f"{cnn_out}/model.qdq.onnx",
                data=str(moved),
                exclude=f"{cnn_out}/quantize.json",
            )
        ).images
        == 8
    )
