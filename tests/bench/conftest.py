"""Measurements that several tests read; a history of their own."""

from __future__ import annotations

import os
from functools import partial

import pytest

from tests.support.bench import QUICK
from trtq import BenchSpec, bench
from trtq.bench import harness
from trtq.bench.startup import measure_load


@pytest.fixture(autouse=True)
def own_history(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_HISTORY", str(tmp_path / "history.sqlite"))


@pytest.fixture(scope="module")
def record(cnn_out, tmp_path_factory):
    """Every figure that a CPU has, of the float and the quantized file."""
    os.environ["TRTQ_HISTORY"] = str(tmp_path_factory.mktemp("h") / "history.sqlite")
    out = tmp_path_factory.mktemp("bench")
    files = (f"{cnn_out}/model.fp32.onnx", f"{cnn_out}/model.qdq.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "measure_load", partial(measure_load, processes=2))
        made = bench(
            BenchSpec(
                file=files,
                batch=(1, 4),
                load=True,
                memory=True,
                profile=True,
                energy=True,
                out=str(out),
                **QUICK,
            )
        )
    return made, out
