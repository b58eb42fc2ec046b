"""Requests whose batch and sizes come from ``--shapes``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.bench import QUICK
from tests.support.onnx_files import model_of
from trtq import BenchSpec, CompareSpec, bench, compare
from trtq.bench import row
from trtq.bench.history import recall
from trtq.errors import MeterError


@pytest.fixture
def open_file(tmp_path) -> Path:
    """A file whose batch and height are open."""
    node = helper.make_node("Relu", ["x"], ["y"], "relu")
    shape = ["batch", 4, "height"]
    sides = [(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    path = tmp_path / "open.onnx"
    onnx.save(model_of([node], sides[:1], sides[1:], {}), path)
    return path


def test_energy_is_of_one_image_where_shapes_give_the_batch(open_file, monkeypatch):
    seen = []

    def measure(call, images: int, *_, **__):
        seen.append(images)
        raise MeterError("Not measured here")

    monkeypatch.setattr(row, "open_meter", lambda *_: SimpleNamespace(counter=False))
    monkeypatch.setattr(row, "measure_energy", measure)
    made = bench(BenchSpec(file=(str(open_file),), shapes=("x=8x4x16",), energy=True, **QUICK))
    assert made.rows[0].batch == 8
    assert seen == [8]


def test_a_verdict_has_the_batch_of_its_requests(open_file):
    spec = CompareSpec(
        file=(str(open_file), str(open_file)),
        shapes=("x=8x4x16",),
        max_loads=8,
        block=0.01,
        profile=False,
    )
    made = compare(spec)
    assert [v.batch for v in made.verdicts] == [8]
    assert [e.batch for e in recall(mode="compare")] == [8]
