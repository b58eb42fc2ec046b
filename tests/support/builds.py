"""Build specs, and files that the stand-ins stumble over."""

from __future__ import annotations

from pathlib import Path

import onnx

from trtq import BuildSpec


def asked(files: Path, out: Path, **more) -> BuildSpec:
    given = {
        "onnx": f"{files}/model.qdq.onnx",
        "target": "sm86",
        "backend": "tensorrt",
        "out": str(out / "e.engine"),
        **more,
    }
    return BuildSpec(**given)


def with_note(files: Path, folder: Path, note: str) -> Path:
    """Return a copy of the Q/DQ file that the stand-ins stumble over."""
    model = onnx.load(files / "model.qdq.onnx")
    model.doc_string = note
    onnx.save(model, folder / "model.qdq.onnx")
    return folder
