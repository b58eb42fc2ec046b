"""Inputs that are one number, and outputs whose first axis is not that of the samples."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

import trtq
from tests.support.onnx_files import two_images
from trtq.errors import CaptureError, DataError, ModelError
from trtq.graph.tensor_spec import SizeRange

ASKED = {"calib_images": 6, "parity_images": 6, "batch_size": 2}


class Gated(nn.Module):
    """A number and a sequence in, scores of each step out, steps first."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, gain, x):
        return self.head(self.inner(x * gain).relu()).transpose(0, 1)


@pytest.fixture(scope="module")
def gated():
    torch.manual_seed(0)
    example = {"gain": torch.tensor(0.5), "x": torch.randn(2, 5, 4)}
    return trtq.load(
        Gated().eval(), example=example, dynamic={"gain": [], "x": ["batch", "steps", 4]}
    )


@pytest.mark.parametrize("method", [(), ("bias-correction",)])
def test_a_number_as_the_first_input(gated, tmp_path, method):
    quantized = trtq.quantize(gated, "random:6", calib_cache=str(tmp_path), method=method, **ASKED)
    assert quantized.done.parity.passed
    assert quantized.done.parity.images == 6


def test_the_summary_counts_samples_not_steps(gated, tmp_path):
    quantized = trtq.quantize(gated, "random:6", calib_cache=str(tmp_path), **ASKED)
    assert len(gated.answers[0]) == 5
    assert quantized.done.parity.images == 6


def test_methods_on_all_samples_need_one_number(gated, tmp_path):
    rows = [{"gain": torch.tensor(0.5 + i), "x": torch.randn(5, 4)} for i in range(4)]
    asked = {**ASKED, "batch_size": 1, "calib_cache": str(tmp_path)}
    assert trtq.quantize(gated, rows, **asked).done.parity.passed
    with pytest.raises(DataError, match=r"one number has other values.*Leave out the method"):
        trtq.quantize(gated, rows, method=("bias-correction",), **asked)


def test_bench_counts_the_samples_behind_a_number(gated, tmp_path):
    from trtq.bench.engine_workload import count_of

    assert count_of({"gain": [], "x": [8, 5, 4]}) == 8
    assert count_of({"gain": []}) == 1


def test_a_file_of_a_fixed_batch_says_how_to_open_it(tmp_path):
    """Samples come one at a time where the batch is fixed."""
    path = tmp_path / "four.onnx"
    onnx.save(two_images(batch=4), path)
    asked = {**ASKED, "calib_cache": str(tmp_path)}
    with pytest.raises(ModelError, match=r"input left takes batches of 4 only") as caught:
        trtq.quantize(trtq.load(str(path)), "random:4", **asked)
    dynamic = '{"left": ["batch", 3, 8, 8], "right": ["batch", 3, 8, 8]}'
    assert caught.value.hint == f"Open it: dynamic={dynamic}"
    opened = {"left": ["batch", 3, 8, 8], "right": ["batch", 3, 8, 8]}
    model = trtq.load(str(path), dynamic=opened)
    assert trtq.quantize(model, "random:4", **asked).done.parity.passed


def test_an_example_outside_its_range_gets_one_inside(tmp_path):
    path = tmp_path / "one.onnx"
    onnx.save(two_images(batch=1), path)
    axes = ["batch", 3, "height", 8]
    with pytest.raises(CaptureError, match="height is 8, expected 16 to 64") as caught:
        trtq.load(
            str(path),
            dynamic={"left": axes, "right": axes},
            ranges={"height": SizeRange(least=16, most=64)},
        )
    assert caught.value.hint == 'Give an example inside it: example={"left": tensor}'
