"""The size that images get where an ONNX file leaves height and width open."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import trtq
from tests.conftest import run_cli
from tests.support.onnx_files import open_sizes
from trtq.testing.images import write_images


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 4)
    return tmp_path / "model.onnx"


def written(file: Path, imgsz: str | None) -> Path:
    model = open_sizes()
    if imgsz is not None:
        model.metadata_props.add(key="imgsz", value=imgsz)
    onnx.save(model, file)
    return file


@pytest.mark.parametrize(
    ("imgsz", "size", "why"),
    [
        ("[96, 160]", [3, 96, 160], "they become 96x160, as its metadata says"),
        ("64", [3, 64, 64], "they become 64x64, as its metadata says"),
        ("[", [3, 224, 224], "they become 224x224, for lack of another size"),
        (None, [3, 224, 224], "they become 224x224, for lack of another size"),
    ],
)
def test_quantize_takes_the_size_of_the_metadata_and_says_so(file, imgsz, size, why):
    line = f"the file leaves the size of images open: {why} (--input-size 3xHxW)"
    done = run_cli(
        *("quantize", str(written(file, imgsz)), "--data", str(file.parent / "images")),
        *("--preset", "yolo", "--out", str(file.parent / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert line in " ".join(done.stderr.split())
    record = json.loads((file.parent / "out/quantize.json").read_text())
    assert record["preprocess"]["input_size"] == size
    assert line in record["notes"]


def test_a_size_that_is_given_needs_no_line(file):
    done = run_cli(
        *("quantize", str(written(file, "[96, 160]")), "--data", str(file.parent / "images")),
        *("--preset", "yolo", "--input-size", "3x32x48", "--out", str(file.parent / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert "leaves the size of images open" not in done.stderr
    record = json.loads((file.parent / "out/quantize.json").read_text())
    assert record["preprocess"]["input_size"] == [3, 32, 48]


def test_a_file_of_others_is_evaluated_at_the_size_of_its_metadata(file):
    done = run_cli(
        *("evaluate", str(written(file, "[96, 160]")), "--data", str(file.parent / "images")),
        *("--task", "tensors", "--reference", str(file), "--json"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["preprocess"]["input_size"] == [3, 96, 160]
    assert any("they become 96x160, as its metadata says" in line for line in record["notes"])


def test_from_python(file):
    model = trtq.load(str(written(file, "[96, 160]")))
    assert model.preprocess.input_size == (3, 96, 160)
    assert any("they become 96x160" in line for line in model.notes)
