"""Providers of ONNX Runtime: those built into it, and those that come as a plugin."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from typing import Any

from trtq.errors import ExportError, first_line

SPELLED = {"TensorRT": "Tensorrt"}  # as ONNX Runtime writes it
PLUGINS = {
    # Provider: the module of its package, and the package that has it.
    "NvTensorRTRTX": ("onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
}
LOADING = threading.Lock()
Settings = list[tuple[str, dict[str, int]]]


def settings_of(options: Any, provider: str, device_id: int = 0) -> Settings | None:
    """Return what a session is given as ``providers``.

    Args:
        options: ``onnxruntime.SessionOptions``; the devices of a plugin are added to it, and the
            answer is then None, as ONNX Runtime asks.
        provider: ``CPU``, ``CUDA``, ``TensorRT`` or ``NvTensorRTRTX``.
        device_id: which GPU, counted from 0.

    Raises:
        ExportError: ONNX Runtime does not offer the provider or has no such device.
    """
    import onnxruntime as ort

    name = full_name(provider)
    if name in ort.get_available_providers():
        return [(name, {"device_id": device_id} if provider != "CPU" else {})]
    if provider not in PLUGINS:
        raise ExportError(
            f"ONNX Runtime here cannot run on {provider}",
            f"it offers {', '.join(ort.get_available_providers())}",
            "Install onnxruntime-gpu on a machine with an NVIDIA driver, or use --device cpu",
        )
    with LOADING:
        registered = _registered(provider)
    devices = [d for d in ort.get_ep_devices() if d.ep_name == registered]
    if device_id >= len(devices):
        raise ExportError(
            f"ONNX Runtime here cannot run on {provider}",
            f"its plugin finds {len(devices)} GPUs, asked for number {device_id} (counted from 0)",
            "It takes GPUs of compute capability 8.6, 8.9 and 12.0 or newer: nvidia-smi lists "
            "those of this machine",
        )
    _require_certain(provider, len(devices))
    options.add_provider_for_devices([devices[device_id]], {})
    return None


def _require_certain(provider: str, count: int) -> None:
    """Refuse a plugin that leaves GPUs out: its numbers are then not those of CUDA.

    Otherwise clocks, power and memory would be those of a different device.

    Raises:
        ExportError: CUDA has another number of GPUs.
    """
    import torch

    every = torch.cuda.device_count()
    if every not in (0, count):
        raise ExportError(
            f"ONNX Runtime here cannot run on {provider}",
            f"its plugin takes {count} of {every} GPUs, and their numbers are not those of CUDA",
            "Leave one GPU that it takes: CUDA_VISIBLE_DEVICES=N",
        )


def full_name(provider: str) -> str:
    """Return the name of a provider as ONNX Runtime writes it."""
    return f"{SPELLED.get(provider, provider)}ExecutionProvider"


@functools.cache
def _registered(provider: str) -> str:
    """Load the plugin of a provider, and return the name its devices have.

    Raises:
        ExportError: it is not installed, or cannot be loaded.
    """
    import onnxruntime as ort

    module, package = PLUGINS[provider]
    refused = f"ONNX Runtime here cannot run on {provider}"
    if importlib.util.find_spec(module) is None:
        raise ExportError(
            refused,
            f"it offers {', '.join(ort.get_available_providers())}; its plugin is not installed",
            f"pip install {package}",
        )
    try:
        plugin = importlib.import_module(module)
        name: str = plugin.get_ep_name()
        ort.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as exc:  # of ONNX Runtime and of the package: they share no base
        raise ExportError(
            refused,
            f"its plugin {package} cannot be loaded: {first_line(exc)}",
            "It needs an NVIDIA driver (libcuda.so.1) and ONNX Runtime 1.24 or newer",
        ) from exc
    return name
