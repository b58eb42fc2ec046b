"""Builds through TensorRT's Python API on a board, and on a DLA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from tests.conftest import read, run_cli
from tests.support.boards import (
    Heard,
    _with_preprocessing,
    introduce,
    needs_sshd,
    pooling,
    served,
    spec,
)
from trtq import agent as agent_code
from trtq.artifact import sha256_file
from trtq.commands.deploy import deploy
from trtq.deploy.record import DeployRecord
from trtq.errors import EngineError
from trtq.testing.board import StandInBoard

pytestmark = needs_sshd


def _told(board: StandInBoard, record: DeployRecord) -> dict:
    """What the board's builder was told, as its engine has it."""
    return json.loads(Path(record.engine).read_bytes().partition(b": ")[2])


@pytest.mark.parametrize("kind", ["nano", "xavier", "orin"])
def test_a_build_through_python_where_there_is_no_trtexec(place, python36, images, kind, tmp_path):
    """Each release's own words; what only trtexec can do is said, the images run."""
    python = python36 if kind == "nano" and python36 is not None else "/usr/bin/python3"
    with served(place, kind, python=python) as board:
        introduce(board, kind)
        if not board.add_tensorrt():
            pytest.skip("no C compiler for the stand-in of CUDA's runtime library")
        (board.root / "usr/src/tensorrt/bin/trtexec").unlink()
        path = _with_preprocessing(pooling(tmp_path / "m.onnx"))
        heard = Heard()
        asked = spec(
            board,
            path,
            tmp_path / "o",
            workspace=64,
            batch=(1, 2, 4),
            data=str(images) if kind != "nano" else None,
            images=7,
        )
        record = deploy(asked, heard)
        assert record.manifest.builder.backend == "tensorrt"
        assert sha256_file(Path(record.engine)) == record.manifest.engine_sha256
        told = _told(board, record)
        typed = kind == "orin"
        assert told["workspace"] == 64
        assert told["creation"] == (
            ["EXPLICIT_BATCH", "STRONGLY_TYPED"] if typed else ["EXPLICIT_BATCH"]
        )
        assert told["flags"] == ([] if typed else ["FP16"])
        assert told["profiles"] == [{"input": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]}]
        assert (record.rows, record.measured) == ([], False)
        assert (
            "latency n/a: there is no trtexec on the board (sudo apt-get install libnvinfer-bin)"
            in record.summary
        )
        if kind != "nano":
            assert record.accuracy.agreement.comparisons[-1].passed
        again = deploy(asked)
        assert not again.built and again.sent + again.received < 20_000
        with pytest.raises(
            EngineError, match="While parsing node number 0: no importer for this one"
        ):
            deploy(spec(board, pooling(tmp_path / "n.onnx", "refuse-me"), tmp_path / "p"))
        with pytest.raises(EngineError, match=r"Error Code 1: Cuda Runtime"):
            deploy(spec(board, pooling(tmp_path / "n.onnx", "no-gpu"), tmp_path / "p"))
        record = deploy(
            spec(board, pooling(tmp_path / "n.onnx", "memory:300"), tmp_path / "p", workspace=1000)
        )
        assert [a.workspace for a in record.manifest.attempts] == [1000, 512]


def test_nodes_that_stay_in_float_through_python(place, tmp_path):
    """A weakly typed release is told by name which layers FP16 would harm."""
    with served(place, "xavier") as board:
        introduce(board, "xavier")
        if not board.add_tensorrt():
            pytest.skip("no C compiler for the stand-in of CUDA's runtime library")
        (board.root / "usr/src/tensorrt/bin/trtexec").unlink()
        from trtq.export.fp16_ranges import FLOAT_NODES
        from trtq.export.onnx_file import set_metadata_

        model = onnx.load(pooling(tmp_path / "m.onnx"))
        model.graph.node[0].name, model.graph.node[1].name = "node_pool", "node_flat"
        set_metadata_(model, {FLOAT_NODES: {"node_pool": "its sum leaves FP16's range"}})
        onnx.save(model, tmp_path / "m.onnx")
        record = deploy(
            spec(board, tmp_path / "m.onnx", tmp_path / "o", bench=False, optimization_level=None)
        )
        told = _told(board, record)
        assert (told["float"], told["flags"]) == (
            ["node_pool"],
            ["FP16", "OBEY_PRECISION_CONSTRAINTS"],
        )
        assert record.manifest.float_nodes == {"node_pool": "its sum leaves FP16's range"}
        # And a DLA: the core of the build is the core of the runtime, too.
        record = deploy(
            spec(board, tmp_path / "m.onnx", tmp_path / "p", bench=False, dla=1, gpu_fallback=True)
        )
        told = _told(board, record)
        assert (told["dla"], "GPU_FALLBACK" in told["flags"]) == (1, True)
        assert read(tmp_path / "p/deploy.json")["manifest"]["spec"]["dla"] == 1


@pytest.mark.parametrize("kind", ["orin", pytest.param("xavier", marks=pytest.mark.slow)])
def test_int8_on_a_dla(place, cnn_out, kind, tmp_path):
    """No release takes Q/DQ pairs on a DLA.

    The same scales are given as a calibration cache of the exact patch release, and the network is
    weakly typed.
    """
    from trtq.export.calibration_cache import read_cache
    from trtq.platform.releases import shown

    with served(place, kind) as board:
        name = {"orin": "NVIDIA Jetson AGX Orin Developer Kit", "xavier": "Jetson-AGX"}[kind]
        (board.root / "proc/device-tree/model").write_text(f"{name}\0")
        introduce(board, kind)
        model = Path(shutil.copytree(cnn_out, tmp_path / "m")) / "model.qdq.onnx"
        quick = ["--duration", "0.3", "--min-samples", "50", "--out", str(tmp_path / "o")]
        asked = ["deploy", kind, str(model), "--dla", "0", *quick, "--json"]
        done = run_cli(*asked)
        assert done.returncode in (0, 3), done.stderr
        record = json.loads(done.stdout)
        number = {"orin": "100300", "xavier": "8502"}[kind]
        assert (
            f"with the scales of activations in a calibration cache for TRT-{number}"
            in done.stderr + " ".join(record["notes"])
        )
        told = Path(record["engine"]).read_bytes().decode().split(": ")[1].split()
        assert {"useDLACore", "allowGPUFallback", "calib", "int8", "fp16"} <= set(
            told
        ) and "stronglyTyped" not in told
        assert record["rows"][0]["gpu"]["median"]["value"] == pytest.approx(2.06, abs=0.02)
        cache = read_cache((tmp_path / f"o/dla/trt-{number}.cache").read_text(), "c")
        assert shown(cache.version) == {"orin": "10.3", "xavier": "8.5"}[kind]
        exported = onnx.load(next((tmp_path / "m").glob("for-*-fp32/*[0-9].onnx")))
        held = {i.name: numpy_helper.to_array(i) for i in exported.graph.initializer}
        scale = next(
            float(held[n.input[1]])
            for n in exported.graph.node
            if n.op_type == "QuantizeLinear" and n.input[0] == "input"
        )
        assert cache.scales["input"] == pytest.approx(scale, rel=1e-6)
        assert "INT8 by a calibration cache + fp16" in run_cli(*asked[:-1]).stdout
        second = json.loads(run_cli(*asked).stdout)
        assert (second["built"], second["sent"] + second["received"] < 20_000) == (False, True)
        assert "FP32: it computes in FP16 and INT8 alone" not in done.stderr
        (board.root / "usr/src/tensorrt/bin/trtexec").unlink()
        done = run_cli(*asked, "--force")
        assert (
            "Cannot build INT8 for the DLA of" in done.stderr
            and "there is no trtexec to read the calibration cache" in done.stderr
        )


def test_what_the_agent_knows_of_releases():
    assert agent_code.jetpack_of("36.4.3") == "6.2"
    assert agent_code.jetpack_of("36.9.9") == "6.x"
    assert agent_code.jetpack_of("99.0.0") is None
    assert agent_code.jetpack_of(None) is None
