"""Files of deployments that a later one finds, or must not replace."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtq import BenchSpec
from trtq.commands import board_export, remote_bench
from trtq.errors import BoardError, UsageError
from trtq.specs import DeploySpec


def qdq_file(path: Path) -> Path:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
        helper.make_node("Relu", ["dq"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy")
    scale, zero = np.array(0.5, np.float32), np.array(0, np.int8)
    stored = [numpy_helper.from_array(v, n) for n, v in (("s", scale), ("z", zero))]
    opsets = [helper.make_opsetid("", 17)]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_another_version_of_trtq_writes_the_files_for_a_dla_again(tmp_path: Path, monkeypatch):
    qdq, folder = qdq_file(tmp_path / "m.qdq.onnx"), tmp_path / "dla"
    _, cache, _ = board_export.for_dla(qdq, 8502, folder)
    kept = cache.stat().st_mtime_ns
    board_export.for_dla(qdq, 8502, folder)
    assert cache.stat().st_mtime_ns == kept
    monkeypatch.setattr(board_export, "__version__", "99.0")
    board_export.for_dla(qdq, 8502, folder)
    assert cache.stat().st_mtime_ns != kept


def test_two_files_of_one_name_have_folders_of_their_own(tmp_path: Path, monkeypatch):
    files = [qdq_file((tmp_path / n).mkdir() or tmp_path / n / "m.qdq.onnx") for n in ("a", "b")]
    asked = list[DeploySpec]()

    def deployed(spec: DeploySpec, _: object) -> SimpleNamespace:
        asked.append(spec)
        return SimpleNamespace(rows=[], unavailable={"latency": "there is no trtexec"})

    monkeypatch.setattr(remote_bench, "deploy", deployed)
    spec = BenchSpec(file=tuple(map(str, files)), device="ssh:orin", out=str(tmp_path / "out"))
    with pytest.raises(BoardError, match="there is no trtexec"):
        remote_bench.bench_there(spec)
    assert [Path(s.out).name for s in asked] == ["a-m.qdq", "b-m.qdq"]
    one = BenchSpec(file=(str(files[0]),) * 2, device="ssh:orin", out=str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"Two models would both be called a-m\.qdq"):
        remote_bench.bench_there(one)
