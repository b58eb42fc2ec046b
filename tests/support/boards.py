"""Boards over SSH on loopback."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtq.deploy.agent_client import Agent
from trtq.deploy.devices import find_device, parse_device, remember_device
from trtq.deploy.ssh import Link
from trtq.progress import Silent
from trtq.specs import DeploySpec
from trtq.testing.board import KINDS, StandInBoard, find_sshd

QUICK = {"duration": 0.3, "min_samples": 50, "reconnect_timeout": 30.0}


@contextlib.contextmanager
def served(place: Path, kind: str, **given) -> Iterator[StandInBoard]:
    board = StandInBoard(Path(tempfile.mkdtemp(dir=place, prefix=f"{kind}-")), kind, **given)
    try:
        with board.serving():
            yield board
    finally:
        shutil.rmtree(board.folder, ignore_errors=True)


def introduce(board: StandInBoard, name: str, *, port: int | None = None) -> None:
    """Add a board whose key is accepted."""
    address = board.address if port is None else f"{board.user}@127.0.0.1:{port}"
    device = parse_device(name, address, identity=str(board.identity))
    link = Link(device)
    link.accept(link.offered_key()[0])
    remember_device(device)


def name_of(board: StandInBoard) -> str:
    return next(k for k, v in KINDS.items() if v is board.kind)


def pooling(path: Path, doc: str = "", *, weights: int = 0, opset: int = 13) -> Path:
    """A model that the board's TensorRT stand-in can compute: the mean of every channel."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["output"]),
    ]
    held = (
        [
            numpy_helper.from_array(
                np.random.default_rng(0).integers(0, 255, weights, dtype=np.uint8), "ballast"
            )
        ]
        if weights
        else []
    )
    if weights:
        nodes.append(helper.make_node("Identity", ["ballast"], ["unused"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 3])],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    model.doc_string = doc
    onnx.save(model, path)
    return path


def products(path: Path) -> Path:
    """A model of two integer inputs that the stand-in can compute: the sum of their products."""
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["both"]),
        helper.make_node("Cast", ["both"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axes"], ["output"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["N", "L"]) for n in ("ids", "mask")],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path
    )
    return path


def spec(board: StandInBoard, model: Path, out: Path, **given) -> DeploySpec:
    return DeploySpec(device=name_of(board), model=str(model), out=str(out), **{**QUICK, **given})


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


# The link and the power go.


def _agent(port: int, board: StandInBoard) -> Agent:
    introduce(board, "orin", port=port)
    return Agent(find_device("orin"), Heard(), patience_s=30.0)


def _until(found, limit_s: float = 30.0) -> None:
    until = time.monotonic() + limit_s
    while not found():
        assert time.monotonic() < until
        time.sleep(0.02)


def _with_preprocessing(path: Path) -> Path:
    from trtq.data.preprocess import Preprocess
    from trtq.export.onnx_file import set_metadata_

    model = onnx.load(path)
    how = Preprocess(
        input_size=(3, 8, 8),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        resize=8,
        crop=8,
        interpolation="bilinear",
    )
    set_metadata_(model, {"preprocess": how})
    onnx.save(model, path)
    return path


needs_sshd = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server here: make system installs it"
)
