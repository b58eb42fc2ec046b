"""ONNX Runtime as a witness: sessions that compute a Q/DQ file as it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtq.data.metrics import Array
from trtq.errors import DataError, ExportError, first_line
from trtq.export.lint_ops import is_plugin
from trtq.export.onnx_file import parse_onnx, require_onnx
from trtq.onnx_walk import all_nodes

Inputs = Array | Sequence[Array] | Mapping[str, Array]  # one batch, samples first
SPELLED = {"TensorRT": "Tensorrt"}  # as ONNX Runtime writes it


def open_session(
    model: Path | onnx.ModelProto,
    *,
    as_written: bool = True,
    provider: str = "CPU",
    device_id: int = 0,
    taking_turns: bool = False,
) -> Any:
    """Return an ``onnxruntime.InferenceSession``.

    Args:
        model: a file, or a model in memory.
        as_written: compute every Q/DQ pair in float exactly as the file says (what the parity gate
            and accuracy need). False lets ONNX Runtime fuse pairs into its own integer kernels and
            rewrite biases to int32 (what its latency means).
        provider: ``CPU``, ``CUDA``, ``TensorRT`` or ``NvTensorRTRTX``; the last two build an engine
            of their own.
        device_id: which GPU.
        taking_turns: other sessions run between its requests: its threads then stop spinning when a
            request ends. Without that the threads of idle sessions take the cores from the one at
            work (resnet18 at 64x64 on two cores: 7.6 ms instead of 2.9 ms).

    Raises:
        ExportError: ONNX Runtime refuses the model or does not offer the provider.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if taking_turns:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Two rewrites that the entry above does not reach: they drop a Relu before an FP8 pair, and
        # refuse a Clip before one.
        rewrites = ["ReluQuantRewrite", "ClipQuantRewrite"]
    else:
        rewrites = []
    name = f"{SPELLED.get(provider, provider)}ExecutionProvider"
    if name not in ort.get_available_providers():
        raise ExportError(
            f"ONNX Runtime here cannot run on {provider}",
            f"it offers {', '.join(ort.get_available_providers())}",
            "Install onnxruntime-gpu on a machine with an NVIDIA driver, or use --device cpu",
        )
    if isinstance(model, Path):
        require_onnx(model)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        settings = {"device_id": device_id} if provider != "CPU" else {}
        session = ort.InferenceSession(
            source, options, providers=[(name, settings)], disabled_optimizers=rewrites
        )
    except Exception as exc:  # ONNX Runtime's exceptions share no public base
        label = str(model) if isinstance(model, Path) else "the model"
        raise ExportError(f"ONNX Runtime cannot load {label}", *_why(model, exc)) from exc
    if session.get_providers()[0] != name:  # it falls back to the CPU with a warning only
        raise ExportError(
            f"ONNX Runtime does not run on {provider} here",
            "it fell back to the CPU",
            "Check the NVIDIA driver",
        )
    return session


def _why(model: Path | onnx.ModelProto, exc: Exception) -> tuple[str, str]:
    """Return why ONNX Runtime refuses a model, and what to do where that is known.

    A plugin of TensorRT runs only in an engine.
    """
    parsed = parse_onnx(model) if isinstance(model, Path) else model
    plugins = [n for n in all_nodes(parsed) if is_plugin(n.op_type, n.domain)]
    if not plugins:
        return first_line(exc), ""
    first = (
        f"{plugins[0].op_type} at {plugins[0].name or plugins[0].output[0]} is a plugin of "
        "TensorRT, which only an engine runs"
    )
    return first, "Give the engine built from it, or end the model before that node"


def input_shape(session: Any) -> list[Any]:
    """Return the shape of the first input; a dynamic axis is a text or None."""
    return list(session.get_inputs()[0].shape)


def static_batch(session: Any) -> int | None:
    """Return the fixed batch of a model, None when it is open, or no input has one."""
    first = {i.shape[0] for i in session.get_inputs() if i.shape}
    only = first.pop() if len(first) == 1 else None
    return only if isinstance(only, int) else None


def bound(names: Sequence[str], given: Inputs) -> dict[str, Array]:
    """Return a batch by the names of a model's inputs.

    Args:
        names: of the inputs, in order.
        given: one array, arrays in the order of the inputs, or arrays by name; the array of a model
            of one input may have any name.

    Raises:
        DataError: an input is missing, or there is one more.
    """
    if isinstance(given, np.ndarray):
        given = (given,)
    if not isinstance(given, Mapping):
        given = dict(zip(names, given, strict=False)) if len(given) == len(names) else {}
    if len(names) == 1 and len(given) == 1:
        return {names[0]: next(iter(given.values()))}
    missing = [n for n in names if n not in given]
    extra = [n for n in given if n not in names]
    if missing or extra:
        reason = f"the model takes {', '.join(names)}, the data have {', '.join(given) or 'others'}"
        raise DataError(
            "The data do not fit the inputs of the model",
            reason,
            f"Give samples with {', '.join(names)}",
        )
    return {n: given[n] for n in names}


def run_batch(session: Any, batch: Inputs) -> list[Array]:
    """Return the outputs for one batch; a model with a fixed batch runs it in parts.

    Args:
        session: of ONNX Runtime.
        batch: samples first; as for :func:`bound`.

    Raises:
        DataError: an input is missing, or there is one more.
        ExportError: the batch does not fit the model's inputs, or ONNX Runtime fails.
    """
    feed = bound([i.name for i in session.get_inputs()], batch)
    count, fixed = max((len(v) for v in feed.values() if v.ndim), default=1), static_batch(session)
    try:
        if fixed is None or fixed == count:
            return [np.asarray(o) for o in session.run(None, feed)]
        parts = [
            session.run(
                None, {n: padded(v[i : i + fixed], fixed) if v.ndim else v for n, v in feed.items()}
            )
            for i in range(0, count, fixed)
        ]
    except Exception as exc:
        given = ", ".join(str(list(v.shape)) for v in feed.values())
        raise ExportError(
            f"ONNX Runtime cannot run the model on input {given}",
            f"it expects {', '.join(str(list(i.shape)) for i in session.get_inputs())}: "
            f"{first_line(exc)}",
            "Give --input-size as the model has it",
        ) from exc
    return [concatenated([np.asarray(p[i]) for p in parts])[:count] for i in range(len(parts[0]))]


def concatenated(parts: Sequence[Array]) -> Array:
    """Return the answers of several batches as one.

    Answers without a common form, such as the boxes of each image, lie flat behind each other.
    """
    if all(p.ndim and p.shape[1:] == parts[0].shape[1:] for p in parts):
        return np.concatenate(parts)
    return np.concatenate([p.reshape(-1) for p in parts])


def padded(batch: Array, size: int) -> Array:
    """Return at least ``size`` samples by repeating the last one.

    This is for models that take no fewer samples; the extra answers are dropped.
    """
    return (
        np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        if len(batch) < size
        else batch
    )
