"""A classifier, a segmenter, a detector and a text encoder, as files and as engines."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import trtq
from tests.support.onnx_files import model_of, pyramid_detector, random_weight, text_encoder
from trtq.engine import select_builder as choose
from trtq.engine.worker_process import end_early, is_installed
from trtq.export.onnx_file import set_metadata_
from trtq.testing.tensorrt import write_fake_tensorrt

TENSORRT = "10.3.0"  # that the stand-in plays
CLASSES = ["ant", "bee", "cat", "dog"]
YOLO = {
    "input_size": [3, 64, 64],
    "mean": [0.0],
    "std": [1.0],
    "resize": None,
    "crop": None,
    "interpolation": "bilinear",
    "fit": "letterbox",
    "fill": 114,
}
IMAGENET = {
    "input_size": [3, 32, 32],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "resize": None,
    "crop": None,
    "interpolation": "bilinear",
}
SHAPES = "ids=1x4:2x8:4x16"


def _named(model: onnx.ModelProto, **values: str) -> onnx.ModelProto:
    for key, value in values.items():
        model.metadata_props.add(key=key, value=value)
    return model


def _segmenter() -> onnx.ModelProto:
    """Scores of three classes for each pixel, from two convolutions."""
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "v"], ["output"], "head"),
    ]
    return model_of(
        nodes,
        [("input", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [("output", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        {"w": random_weight(4, 3, 3, 3), "v": random_weight(3, 4, 1, 1)},
        opset=13,
    )


def _write_files(folder: Path, classifier: Path, float_file: Path) -> None:
    model = onnx.load(classifier)
    set_metadata_(model, {"classes": CLASSES})
    onnx.save(model, folder / "classifier.onnx")
    model = onnx.load(float_file)
    set_metadata_(model, {"classes": CLASSES})
    onnx.save(model, folder / "float.onnx")
    segmenter = _segmenter()
    set_metadata_(segmenter, {"preprocess": IMAGENET, "answer": "pixels"})
    onnx.save(segmenter, folder / "segmenter.onnx")
    yolo = _named(pyramid_detector(), names="{0: 'red', 1: 'green'}", task="detect", stride="32")
    set_metadata_(yolo, {"preprocess": YOLO, "task": "detection:yolo"})
    onnx.save(yolo, folder / "yolo.onnx")
    onnx.save(text_encoder(), folder / "text.onnx")


@pytest.fixture(scope="session")
def files(once, cnn13: Path) -> SimpleNamespace:
    """The ONNX files; only read."""
    folder = once(
        "package-files",
        lambda f: _write_files(f, cnn13 / "model.qdq.onnx", cnn13 / "model.fp32.onnx"),
    )
    names = {p.name.replace(".onnx", "").replace(".", "_"): p for p in folder.glob("*.onnx")}
    return SimpleNamespace(**names)


def _build(folder: Path, backend: str, **sources: Path) -> None:
    for name, source in sources.items():
        spec = trtq.BuildSpec(
            onnx=str(source),
            target="sm86",
            backend=backend,
            out=str(folder / f"{name}.engine"),
            batch=(1, 2, 4) if name in ("classifier", "segmenter") else None,
            shapes=(SHAPES,) if name == "text" else (),
        )
        trtq.build(spec)


@pytest.fixture(scope="session")
def tensorrt(once) -> Path:
    """A folder with the stand-in for TensorRT's module."""
    return once("package-tensorrt", lambda f: write_fake_tensorrt(f, TENSORRT))


@pytest.fixture(scope="session")
def engines(once, files, tensorrt: Path) -> SimpleNamespace:
    """Engines of the stand-in, with their manifests; only read."""

    def make(folder: Path) -> None:
        path = f"{tensorrt}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", path)
            patch.syspath_prepend(str(tensorrt))
            patch.setattr(choose, "is_installed", lambda module: True)
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
            sys.modules.pop("tensorrt", None)
            names = ("classifier", "segmenter", "yolo", "text")
            _build(folder, "tensorrt", **{n: getattr(files, n) for n in names})
            end_early()
        sys.modules.pop("tensorrt", None)

    folder = once("package-engines", make)
    return SimpleNamespace(**{p.stem: p for p in folder.glob("*.engine")})


@pytest.fixture(scope="session")
def rtx(once, files) -> SimpleNamespace:
    """Engines of TensorRT for RTX; only read."""
    if not is_installed("tensorrt_rtx"):
        pytest.skip("no TensorRT for RTX")
    folder = once(
        "package-rtx",
        lambda f: _build(f, "tensorrt-rtx", classifier=files.classifier, text=files.text),
    )
    return SimpleNamespace(**{p.stem: p for p in folder.glob("*.engine")})


@pytest.fixture
def packaged(tmp_path: Path):
    """Return a function that packages a file for one consumer and returns its folder."""

    def make(file: Path, consumer: str, **options) -> Path:
        out = tmp_path / consumer
        shutil.rmtree(out, ignore_errors=True)
        trtq.package(file, for_=consumer, out=out, **options)
        return out / consumer

    return make


@pytest.fixture
def changed(tmp_path: Path):
    """Return a function that copies an engine, its manifest changed, and returns the copy."""

    def make(engine: Path, change: Callable[[dict], object]) -> Path:
        manifest = json.loads(Path(f"{engine}.json").read_bytes())
        change(manifest)
        (tmp_path / "changed").mkdir(exist_ok=True)
        copy = Path(shutil.copy(engine, tmp_path / "changed" / engine.name))
        Path(f"{copy}.json").write_text(json.dumps(manifest))
        return copy

    return make
