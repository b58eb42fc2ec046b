from __future__ import annotations

import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from trtq.onnx_session import exact_session

READ = """
import threading
from trtq.platform.catalogue import catalogue
gate = threading.Barrier(8)
def read():
    gate.wait()
    assert catalogue.__wrapped__().devices
threads = [threading.Thread(target=read) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
"""


def test_many_threads_may_read_the_catalogue_first():
    for _ in range(3):  # what msgspec makes of a type it makes once in a process
        done = subprocess.run([sys.executable, "-c", READ], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("5,2", 5), ("", 0), ("many", 0)])
def test_sessions_take_the_threads_that_a_process_was_given(given, threads, monkeypatch):
    from onnxruntime.capi.onnxruntime_pybind11_state import SessionOptions

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["b"])],
        "one",
        [value("a", TensorProto.FLOAT, [1])],
        [value("b", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    options = SessionOptions()
    session = exact_session(model.SerializeToString(), options)
    assert session.get_session_options().intra_op_num_threads == threads
