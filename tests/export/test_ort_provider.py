"""Providers of ONNX Runtime that come as plugins; no plugin of NVIDIA loads without a driver."""

import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from trtq.bench.workload import device_for, parse_device
from trtq.errors import ExportError
from trtq.export.ort import open_session
from trtq.export.ort_provider import PLUGINS, _registered, settings_of

VALUES = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in "xy"]
GRAPH = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", VALUES[:1], VALUES[1:])
MODEL = helper.make_model(GRAPH, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
MODULE, PACKAGE = PLUGINS["NvTensorRTRTX"]
pytestmark = pytest.mark.skipif(
    "NvTensorRTRTXExecutionProvider" in ort.get_available_providers(),
    reason="ONNX Runtime here has the provider built in",
)


@pytest.fixture
def plugin(monkeypatch):
    """Return a function that puts a package of a plugin in place."""
    _registered.cache_clear()

    def install(name, library="libplugin.so"):
        module = SimpleNamespace(
            __spec__=SimpleNamespace(), get_ep_name=lambda: name, get_library_path=lambda: library
        )
        monkeypatch.setitem(sys.modules, MODULE, module)

    yield install
    _registered.cache_clear()


def test_a_plugin_that_is_not_installed_is_named_with_its_package(plugin, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ExportError,
        match=f"cannot run on NvTensorRTRTX: it offers .*is not installed. pip install {PACKAGE}",
    ):
        open_session(MODEL, provider="NvTensorRTRTX")


def test_a_plugin_that_does_not_load_says_why(plugin, tmp_path):
    plugin("Another", str(tmp_path / "no.so"))
    with pytest.raises(ExportError, match="cannot be loaded: .*no.so.*It needs an NVIDIA driver"):
        open_session(MODEL, provider="NvTensorRTRTX")


def test_a_plugin_that_leaves_gpus_out_is_refused(plugin, monkeypatch):
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *_: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    plugin("CPUExecutionProvider")
    with pytest.raises(ExportError, match="takes 1 of 2 GPUs.*CUDA_VISIBLE_DEVICES=N"):
        settings_of(ort.SessionOptions(), "NvTensorRTRTX")


def test_a_plugin_without_such_a_gpu_is_refused(plugin, monkeypatch):
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *_: None)
    plugin("Another")
    with pytest.raises(ExportError, match="finds 0 GPUs, asked for number 1"):
        settings_of(ort.SessionOptions(), "NvTensorRTRTX", 1)


def test_the_devices_of_a_plugin_run_a_model(plugin, monkeypatch):
    # The CPU provider is asked for as if it were a plugin: ONNX Runtime lists its device as well.
    # A plugin's devices are listed only after it was loaded.
    loaded, listed = [], ort.get_ep_devices
    monkeypatch.setattr(ort, "get_ep_devices", lambda: listed() if loaded else [])
    monkeypatch.setattr(
        ort, "register_execution_provider_library", lambda name, path: loaded.append((name, path))
    )
    plugin("CPUExecutionProvider")
    options = ort.SessionOptions()
    assert settings_of(options, "NvTensorRTRTX") is None
    assert settings_of(ort.SessionOptions(), "NvTensorRTRTX") is None
    assert loaded == [("CPUExecutionProvider", "libplugin.so")], "a library is registered once"
    session = ort.InferenceSession(MODEL.SerializeToString(), options)
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)


def test_a_provider_that_falls_back_to_the_cpu_is_refused(plugin, monkeypatch):
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *_: None)
    plugin("CPUExecutionProvider")
    with pytest.raises(ExportError, match="does not run on NvTensorRTRTX here: it fell back"):
        open_session(MODEL, provider="NvTensorRTRTX")


@pytest.mark.parametrize(
    ("text", "provider", "hardware"),
    [
        ("cpu", ("CPU", 0), "cpu"),
        ("cuda:1", ("CUDA", 1), "cuda:1"),
        ("cuda", ("CUDA", 0), "cuda:0"),
        ("rtx:2", ("NvTensorRTRTX", 2), "cuda:2"),
    ],
)
def test_devices_of_bench(text, provider, hardware, tmp_path):
    assert parse_device(text) == provider
    assert device_for(text) == hardware
    assert device_for(text, tmp_path / "e.engine") == hardware.replace("cpu", "cuda:0")
