"""The parts of a start, the page cache, and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.bench import QUICK
from tests.support.onnx_files import model_of, random_weight
from trtq import BenchSpec, bench
from trtq.bench import startup
from trtq.bench.startup import cached_share, drop_from_cache, measure_load
from trtq.bench.startup_worker import account_of, shared_memory_used, status
from trtq.errors import BenchError


@pytest.mark.alone
def test_pain_34_the_parts_of_a_start_add_up(cnn_out):
    load = measure_load(cnn_out / "model.qdq.onnx", processes=2)
    assert sum(p.median for p in load.phases) == pytest.approx(load.total.median, rel=0.2)
    assert load.processes == 2
    assert load.second.median < load.total.median


def test_the_parts_of_a_start_have_their_names(record):
    made, _ = record
    assert made.rows[0].load
    for load in made.rows[0].load:
        assert [p.name for p in load.phases] == [
            "process and Python",
            "imports",
            "read",
            "deserialize and context",
            "first answer",
        ]
        assert load.processes == 1


@pytest.mark.alone
def test_the_parts_of_one_start_are_the_time_a_watch_shows(cnn_out):
    start = time.perf_counter()
    load = measure_load(cnn_out / "model.qdq.onnx", processes=1)
    seen = 1e3 * (time.perf_counter() - start)
    assert load.total.median <= seen
    assert sum(p.median for p in load.phases) == pytest.approx(load.total.median, rel=1e-6)


# ---- startup and memory ------------------------------------------------------------------------


def test_a_file_leaves_the_page_cache(tmp_path):
    path = Path.cwd() / f".trtq-cold-{os.getpid()}"  # /tmp may be a file system in memory
    try:
        path.write_bytes(os.urandom(1 << 20))
        path.read_bytes()
        assert cached_share(path) > 0.5
        drop_from_cache(path)
        assert cached_share(path) == 0.0
    finally:
        path.unlink()
    (tmp_path / "empty").write_bytes(b"")
    assert cached_share(tmp_path / "empty") == 0.0


def test_a_process_that_cannot_load_says_why(tmp_path):
    sides = [(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    node = helper.make_node("NoSuchOp", ["x"], ["y"], "n")
    onnx.save(model_of([node], sides[:1], sides[1:], check=False), tmp_path / "bad.onnx")
    with pytest.raises(BenchError, match="A new process cannot load bad.onnx"):
        measure_load(tmp_path / "bad.onnx", processes=1)


def test_pain_35_an_engines_own_account():
    class Engine:
        device_memory_size_v2 = 4096

    class Old:
        device_memory_size = 512

    assert account_of(Engine()) == (None, 4096)
    assert account_of(Old()) == (None, 512)
    assert account_of(object()) == (None, None)
    assert status("Name:\tx\nVmHWM:\t  20 kB\nVmRSS:\t  10 kB\n") == (10240, 20480)


def test_pain_35_shared_memory_has_one_line_that_is_not_to_be_added(monkeypatch):
    from trtq.bench import startup_worker as fresh
    from trtq.bench.meters import jetson

    monkeypatch.setattr(jetson, "is_jetson", lambda *_: True)
    used = iter([10 << 20, 30 << 20])
    monkeypatch.setattr(fresh, "shared_memory_used", lambda: next(used))
    held = fresh.Memory("cuda:0")
    held.look()
    held.look()
    workload = type("W", (), {"io_bytes": 232})()
    made = held.account(workload)
    assert made["device"] == 20 << 20
    assert "GPU and CPU share this memory, the process is in it" in made["sources"]["device"]
    assert made["io"] == 232
    assert (
        shared_memory_used("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   40 kB\n") == 60 * 1024
    )


def test_a_start_covers_the_files_with_the_tensors(tmp_path, monkeypatch):
    """The weights are in a file of their own: a cold start drops it, too."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "mm")
    sides = [(name, TensorProto.FLOAT, [1, 256]) for name in ("x", "y")]
    model = model_of([node], sides[:1], sides[1:], {"w": random_weight(256, 256)})
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    dropped = []
    monkeypatch.setattr(startup, "drop_from_cache", lambda file: dropped.append(file.name))
    measure_load(path, cache="cold", processes=1)
    assert dropped == ["m.onnx", "m.data"]
    made = bench(BenchSpec(file=(str(path),), **QUICK)).rows[0]
    assert made.file_bytes == path.stat().st_size + (tmp_path / "m.data").stat().st_size
