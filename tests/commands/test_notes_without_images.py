"""Commands on data that are no images say nothing about how images are normalised."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import run_cli

MLP = """
import torch
from torch import nn


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
"""
DATA = ("own.py:model", "--input", "input=2x8", "--data", "random:8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mlp")
    (made / "own.py").write_text(MLP)
    done = run_cli("quantize", *DATA, "--task", "tensors", "--out", "out", cwd=made)
    assert done.returncode == 0, done.stderr
    assert "ImageNet" not in done.stderr
    return made


@pytest.mark.parametrize(
    "words",
    [
        ("export", "--target", "orin@10.3", "--out", "profiles"),
        ("finetune", "--task", "tensors", "--epochs", "1", "--out", "qat"),
    ],
    ids=lambda words: words[0],
)
def test_no_line_about_images(folder, words):
    command, *more = words
    encodings = ("--encodings", "out/encodings.safetensors")
    done = run_cli(command, *DATA, *encodings, *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "ImageNet" not in done.stderr
    assert "random numbers" in done.stderr  # other lines are there
    assert ("are not augmented: its inputs are" in done.stderr) == (command == "finetune")


def test_another_augmentation_is_for_images(folder):
    encodings = ("--encodings", "out/encodings.safetensors", "--task", "tensors")
    asked = ("--augment", "flip", "--out", "flipped")
    done = run_cli("finetune", *DATA, *encodings, *asked, cwd=folder)
    assert done.returncode == 2
    assert "Cannot augment the samples" in done.stderr and "Add --augment none" in done.stderr
