"""Recipes whose samples are no images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trtq import load_recipe, run
from trtq.errors import DataError
from trtq.files import EVALUATE_JSON, QUANTIZE_JSON
from trtq.known_records import read_known

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
"""


def arrays(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(first, first + count):
        values = np.random.default_rng(i).normal(size=8).astype(np.float32)
        np.savez(folder / f"{i:03d}.npz", input=values)
    return folder


def write(folder: Path, evaluate: str) -> Path:
    (folder / "net.py").write_text(MODEL)
    path = folder / "recipe.toml"
    path.write_text(f"""
        out = "{folder}/out"
        [quantize]
        model = "{folder}/net.py:net"
        data = "{arrays(folder / "samples", 12)}"
        calib_images = 8
        parity_images = 4
        [evaluate]
        {evaluate}
    """)
    return path


def test_arrays_are_evaluated_without_those_of_calibration(tmp_path: Path):
    done = run(load_recipe(write(tmp_path, "")))
    assert [r.name for r in done] == ["quantize", "evaluate", "report"]
    record = read_known(tmp_path / "out" / EVALUATE_JSON, "evaluate")
    assert record.images == 12 - 8 and record.outputs[0].sqnr_db > 5
    calibrated = read_known(tmp_path / "out" / QUANTIZE_JSON, "quantize")
    assert calibrated.calibration.images == 8
    assert not any(r.ran for r in run(load_recipe(tmp_path / "recipe.toml")))


def test_arrays_that_calibration_takes_all_of_leave_none(tmp_path: Path):
    path = write(tmp_path, "")
    path.write_text(path.read_text().replace("calib_images = 8", "calib_images = 12"))
    with pytest.raises(DataError, match="is left to evaluate: all of them were used for calibr"):
        run(load_recipe(path))
