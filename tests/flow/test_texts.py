"""Texts for PyTorch encoders: their length is open as far as the model takes it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import trtq
from tests.conftest import run_cli
from tests.support.texts import save_tokenizer
from trtq.errors import CaptureError
from trtq.graph.capture import capture

POSITIONS = 12
ENCODER = """
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self, fixed=False):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(16, 8), nn.Parameter(torch.randn(12, 8))
        self.linear, self.fixed = nn.Linear(8, 4), fixed

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids) + self.places[: input_ids.shape[1]]
        if self.fixed:
            x = torch.stack([x[:, i] for i in range(int(x.shape[1]))], 1)
        mask = attention_mask.unsqueeze(-1).float()
        return (self.linear(x) * mask).sum(1) / mask.sum(1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    (tmp_path / "own.py").write_text(ENCODER)
    (tmp_path / "t.txt").write_text("one two\nthree four one two three four\nfour one two\n")
    return tmp_path


def shapes(file: Path) -> list[list[int | str]]:
    inputs = onnx.load(file).graph.input
    return [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in inputs]


def quantized(folder: Path, *more: str) -> str:
    done = run_cli(
        *("quantize", "own.py:Encoder", "--data", "t.txt", "--tokenizer", "tokenizer.json"),
        *("--task", "tensors", "--out", "out", *more),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return " ".join((done.stdout + done.stderr).split())


def test_the_length_is_open_up_to_what_the_model_takes(folder):
    text = quantized(folder)
    assert "the model takes length 2 to 12" in text
    assert "cut at" not in text
    assert "3 calibration samples are few" in text
    assert "output against float on 3 calibration samples" in text
    assert shapes(folder / "out/model.qdq.onnx") == [["batch", "length"]] * 2
    (folder / "v.txt").write_text("one two three four one two three four one\n")
    scored = run_cli(
        *("evaluate", "out/model.qdq.onnx", "--reference", "out/model.fp32.onnx", "--data"),
        *("v.txt", "--tokenizer", "tokenizer.json", "--json"),
        cwd=folder,
    )
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["outputs"][0]["sqnr_db"] > 20
    shown = run_cli(
        *("evaluate", "out/model.qdq.onnx", "--data", "v.txt", "--tokenizer", "tokenizer.json"),
        cwd=folder,
    )
    assert shown.stdout.startswith("1 samples; ")


def test_a_model_of_one_length_takes_the_longest_text(folder):
    text = quantized(folder, "--model-arg", "fixed=true")
    assert "the model only captures with fixed sizes, batch 1, length 6" in text
    assert shapes(folder / "out/model.qdq.onnx") == [[1, 6]] * 2
    assert "cut at" not in text


def test_a_length_that_a_user_typed_is_fixed(folder):
    quantized(folder, "--input", "input_ids=2x8:int64", "--input", "attention_mask=2x8:int64")
    assert shapes(folder / "out/model.qdq.onnx") == [["batch", 8]] * 2


def test_from_python(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict[str, type[nn.Module]] = {}
    exec(compile(ENCODER, "own.py", "exec"), names)
    texts = trtq.samples("t.txt", tokenizer="tokenizer.json")
    quantized = trtq.quantize(names["Encoder"]().eval(), texts, task="tensors")
    assert [t.shape for t in quantized.inputs.model.graph.signature.inputs] == [
        ("batch", "length")
    ] * 2


def test_a_limit_of_an_axis_that_was_asked_for_is_named(folder):
    names: dict[str, type[nn.Module]] = {}
    exec(compile(ENCODER, "own.py", "exec"), names)
    example = dict.fromkeys(("input_ids", "attention_mask"), torch.ones(2, 5, dtype=torch.int64))
    axes = {name: ["batch", "length"] for name in example}
    with pytest.raises(CaptureError, match="length must be 2 to 12") as caught:
        capture(names["Encoder"]().eval(), example, axes=axes)
    assert "--dynamic input_ids=batch,length:2..12" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_a_path_is_loaded_as_its_text(tmp_path):
    """`trtq.load(Path("net.onnx"))` is what most programs write."""
    file = tmp_path / "net.onnx"
    torch.onnx.export(nn.Linear(4, 2), (torch.zeros(1, 4),), file, dynamo=False)
    assert trtq.load(file).name == trtq.load(str(file)).name
