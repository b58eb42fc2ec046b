"""Training in processes of its own: several at once, and killed ones."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.conftest import read, run_cli
from tests.support.processes import start, start_two
from tests.support.quantize import CNN
from trtq.quant.encodings import Encodings


def test_finetuning_on_the_command_line(images: Path, ptq: Path, tmp_path: Path):
    done = run_cli(
        "finetune",
        CNN,
        "--data",
        str(images),
        "--encodings",
        str(ptq / "encodings.safetensors"),
        "--input-size",
        "3x32x32",
        "--preset",
        "imagenet",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--no-learn-amax",
        "--parity-images",
        "8",
        "--out",
        str(tmp_path / "o"),
    )
    assert done.returncode == 0, done.stderr
    assert "0 ranges; loss" in done.stdout
    assert (tmp_path / "o/model.qdq.onnx").is_file()


# ---- several processes, kills, full disks ------------------------------------------------------


def words(images: Path, ptq: Path, out: Path, **more: str) -> list[str]:
    given = {"epochs": "2", "batch-size": "8", "parity-images": "8", "distill": "0.3", **more}
    options = [w for k, v in given.items() for w in (f"--{k}", v)]
    return [
        "finetune",
        CNN,
        "--data",
        str(images),
        "--val",
        str(images),
        "--encodings",
        str(ptq / "encodings.safetensors"),
        "--input-size",
        "3x32x32",
        "--preset",
        "imagenet",
        "--out",
        str(out),
        *options,
    ]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"batch-norm": "kept", "batch-size": "31", "accumulate": "2"},
    ],
)
def test_two_processes_learn_what_one_learns(more, images: Path, ptq: Path, tmp_path: Path):
    both = start_two(*words(images, ptq, tmp_path / "two", **more))
    done = run_cli(*words(images, ptq, tmp_path / "one", **more))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights and biases") == 1
    texts = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    assert sum(out.count("weights and biases") for out, _ in texts) == 1  # one of them speaks
    one, two = (read(tmp_path / n / "finetune.json") for n in ("one", "two"))
    assert two["training"]["processes"] == 2
    for a, b in zip(one["history"], two["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
        assert b["score"] == pytest.approx(a["score"], abs=7)  # one image of 32 is 3 points
    first, second = (Encodings.load(tmp_path / n / "encodings.safetensors") for n in ("one", "two"))
    for name, value in first.constants.items():
        torch.testing.assert_close(second.constants[name], value, rtol=1e-2, atol=1e-3)


def test_a_killed_run_ends_in_the_same_bits(images: Path, ptq: Path, tmp_path: Path):
    more = {"epochs": "14", "batch-norm": "kept", "optimizer": "adamw", "ema": "0.9", "limit": "24"}
    whole = run_cli(*words(images, ptq, tmp_path / "whole", **more))
    assert whole.returncode == 0, whole.stderr
    state = tmp_path / "cut/checkpoint/state.safetensors"
    for kills in range(3):
        process = start(*words(images, ptq, tmp_path / "cut", **more))
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(0.02 * kills)
        process.kill()
        process.communicate()
    last = run_cli(*words(images, ptq, tmp_path / "cut", **more))
    assert last.returncode == 0, last.stderr
    assert "resuming from epoch" in last.stderr
    digests = [
        Encodings.load(tmp_path / n / "encodings.safetensors").digest() for n in ("whole", "cut")
    ]
    assert digests[0] == digests[1]
