"""Measurements that several tests read; a history of their own."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.bench import QUICK
from trtq import BenchSpec, bench
from trtq.bench.gate import read_record
from trtq.bench.startup import measure_load


@pytest.fixture(autouse=True)
def own_history(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_HISTORY", str(tmp_path / "history.sqlite"))


@pytest.fixture(scope="session")
def record(once, cnn_out):
    """Every figure that a CPU has, of the float and the quantized file, and its folder."""

    def measure(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRTQ_HISTORY", str(folder / "history.sqlite"))
            patch.setattr("trtq.bench.row.measure_load", partial(measure_load, processes=1))
            bench(
                BenchSpec(
                    file=(f"{cnn_out}/model.fp32.onnx", f"{cnn_out}/model.qdq.onnx"),
                    batch=(1, 4),
                    load=True,
                    memory=True,
                    profile=True,
                    energy=True,
                    out=str(folder),
                    **QUICK,
                )
            )

    out = once("bench", measure)
    return read_record(out / "bench.json"), out
