"""A verb whose input is not there leaves no folder behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import trtq
from trtq.cli import run_command
from trtq.errors import DataError, TrtqError
from trtq.specs import SweepSpec
from trtq.sweep.command import sweep
from trtq.testing.models import tiny_cnn

CNN = "trtq.testing.models:tiny_cnn"
SIZE = ("--input-size", "3x32x32")


def commands(cnn: Path, out: Path) -> dict[str, list[str]]:
    """Return a command line of every verb that opens inputs and has a folder for its results."""
    onnx, encodings = str(cnn / "model.qdq.onnx"), str(cnn / "encodings.safetensors")
    gone, to = ["--data", str(out.parent / "typo")], ["--out", str(out)]
    of_model = [CNN, *SIZE, *gone, *to]
    return {
        "quantize": ["quantize", *of_model],
        "quantize without its model": ["quantize", "timm:resnt18", *SIZE, "--data", "digits", *to],
        "search": ["search", *of_model, "--budget", "size=0.5"],
        "analyze": ["analyze", CNN, *SIZE, *gone, "--out", str(out / "S.json")],
        "finetune": ["finetune", *of_model, "--encodings", encodings],
        "finetune from nothing": [
            "finetune",
            *[CNN, *SIZE, "--data", "digits", *to, "--encodings", str(out.parent / "typo.st")],
        ],
        "import-checkpoint": ["import-checkpoint", *of_model, "--ranges", str(cnn / "gone.pt")],
        "export": ["export", *of_model, "--encodings", encodings, "--target", "orin"],
        "evaluate": ["evaluate", onnx, *gone, *to],
        "import-calib": ["import-calib", str(out.parent / "typo.cache"), "--onnx", onnx, *to],
        "export-calib": [
            "export-calib",
            str(out.parent / "typo.onnx"),
            *["--target", "xavier@8.5", "--out", str(out / "c.cache")],
        ],
        "allocate": ["allocate", str(out.parent / "typo.json"), "--out", str(out / "A.json")],
        "build": ["build", str(out.parent / "t.onnx"), "--target", "rtx4090", "--out", f"{out}/e"],
        "package": ["package", str(out.parent / "typo.onnx"), "--for", "triton", *to],
        "bench": ["bench", str(out.parent / "typo.onnx"), *to],
        "compare": ["compare", onnx, str(out.parent / "typo.onnx"), *to],
        "lint": ["lint", f"{out.parent}/typo.onnx", "--target", "orin", "--fix", f"{out}/f.onnx"],
        "report": ["report", str(out.parent / "typo"), "--out", str(out / "r.html")],
        "advise": ["advise", str(out.parent / "typo.onnx"), *to],
        "advise on kernels": ["advise", str(out.parent / "typo.onnx"), "--engine", "e", *to],
    }


@pytest.mark.parametrize("verb", commands(Path(), Path()))
def test_no_folder_is_left_by_an_input_that_is_not_there(
    verb: str, cnn_out: Path, tmp_path: Path, capsys
):
    out = tmp_path / "new" / "out"
    assert run_command(commands(cnn_out, out)[verb]) != 0
    said = capsys.readouterr().err
    assert any(name in said for name in ("typo", "gone.pt", "resnt18", "t.onnx")), said
    assert not out.parent.exists()


@pytest.mark.parametrize("name", ["r.toml", "sweep.toml"])
def test_a_recipe_without_its_images_starts_no_run(name: str, tmp_path: Path):
    lists = '[vary]\n"quantize.seed" = [0, 1]\n' if name == "sweep.toml" else ""
    path, out = tmp_path / name, tmp_path / "out"
    table = f'[quantize]\nmodel = "{CNN}"\ndata = "{tmp_path}/typo"\ninput_size = "3x32x32"\n'
    path.write_text(f'out = "{out}"\n{table}{lists}')
    with pytest.raises(TrtqError, match="Cannot read images from .*typo"):
        if lists:
            sweep(SweepSpec(recipe=str(path)))
        else:
            trtq.run(trtq.load_recipe(path))
    assert not out.exists()


def test_a_program_without_its_images_leaves_no_folder_either(tmp_path: Path):
    out, gone = tmp_path / "out", str(tmp_path / "typo")
    net = tiny_cnn().eval()
    with pytest.raises(DataError):
        trtq.search(net, gone, out=out, budget={"size": 0.5}, input_size=(3, 32, 32))
    with pytest.raises(DataError):
        trtq.finetune(net, gone, out=out)
    assert not out.exists()
