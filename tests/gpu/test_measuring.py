"""Meters, timers and runtimes on a real GPU."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import trtq
from tests.support.hybrid import hybrid, images

pytestmark = pytest.mark.gpu


def test_energy_of_a_known_load(gpu):
    """A GPU at work takes more power than an idle one, and no more than its limit allows."""
    from trtq.bench.meters.nvml import Gpu

    device = Gpu(gpu)
    meter = device.meter()

    def watts(work):
        before, start = meter.read(), time.perf_counter()
        while time.perf_counter() - start < 2.0:
            work()
        torch.cuda.synchronize()
        return (meter.read() - before) / (time.perf_counter() - start)

    idle = watts(lambda: time.sleep(0.1))
    a = torch.randn(4096, 4096, device=gpu)
    busy = watts(lambda: a @ a)
    assert 0.0 < idle < busy < 2000.0


def test_state_and_card(gpu):
    from trtq.bench.system_info import take_card

    card = take_card(gpu)
    assert card.kind == "gpu"
    assert card.device == gpu


def test_onnxruntime_on_the_gpu(gpu, tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider (pip install onnxruntime-gpu)")
    quantized = trtq.quantize(hybrid(), images(), preset_quant="none")
    quantized.save(tmp_path)
    record = trtq.bench(tmp_path / "model.qdq.onnx", device=gpu, duration=1.0)
    assert record.rows[0].latencies["e2e"].median > 0.0


@pytest.fixture
def plugin(gpu):
    """The plugin provider of TensorRT for RTX, where this GPU is one of those it takes."""
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx")
    capability = torch.cuda.get_device_capability(0)
    if capability not in ((8, 6), (8, 9)) and capability < (12, 0):
        pytest.skip(f"the plugin takes no GPU of compute capability {capability}")


@pytest.mark.usefixtures("plugin")
def test_accuracy_in_the_plugin_of_tensorrt_for_rtx(tmp_path):
    """The engine that the plugin builds from the float file agrees with ONNX Runtime on the CPU."""
    trtq.quantize(hybrid(), images(), preset_quant="none").save(tmp_path)
    np.savez(tmp_path / "x.npz", x=images().numpy())
    file = str(tmp_path / "model.fp32.onnx")
    record = trtq.evaluate(
        trtq.EvaluateSpec(
            onnx=file,
            reference=file,
            data=str(tmp_path / "x.npz"),
            task="tensors",
            provider="NvTensorRTRTX",
        )
    )
    assert "NvTensorRTRTX" in record.runtime
    assert record.outputs[0].cosine > 0.999


@pytest.mark.usefixtures("plugin")
def test_the_plugin_of_tensorrt_for_rtx_in_onnxruntime(tmp_path):
    quantized = trtq.quantize(hybrid(), images(), preset_quant="none")
    quantized.save(tmp_path)
    record = trtq.bench(tmp_path / "model.qdq.onnx", device="rtx:0", duration=1.0)
    assert record.rows[0].latencies["e2e"].median > 0.0
    assert "TensorRT for RTX in ONNX Runtime" in record.rows[0].device


def test_an_engine_of_tensorrt_for_rtx(gpu, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    major, minor = torch.cuda.get_device_capability(0)
    quantized = trtq.quantize(hybrid(), images(), preset_quant="none")
    quantized.save(tmp_path)
    try:
        engine = trtq.build(tmp_path / "model.qdq.onnx", target=f"sm{major}{minor}")
    except trtq.TrtqError as exc:
        pytest.skip(f"TensorRT for RTX builds nothing for this card: {exc}")
    record = trtq.bench(engine, device=gpu, duration=1.0)
    assert record.rows[0].latencies["e2e"].median > 0.0
