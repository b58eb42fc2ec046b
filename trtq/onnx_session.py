"""Sessions of ONNX Runtime that compute a model as it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtq.machine import given_threads

# Optimizers that change what a file computes, and that "session.disable_quant_qdq" does not reach.
CHANGE_VALUES = (
    # They drop a Relu before an FP8 pair, and refuse a Clip before one.
    *("ReluQuantRewrite", "ClipQuantRewrite"),
    # They move a Transpose behind the pair that follows it: an output of the model in front of the
    # Transpose then gets the quantized values.
    *("TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"),
    # It makes zeros that a Pad puts in front of a MaxPool the pool's own border, which counts as
    # minus infinity.
    "Pad_Fusion",
)
CPU: Sequence[tuple[str, dict[str, int]]] = (("CPUExecutionProvider", {}),)


def new_session(
    source: str | bytes, options: Any, providers: Sequence[tuple[str, Any]] | None, **more: Any
) -> Any:
    """Return an ``onnxruntime.InferenceSession`` that runs on these providers or raises.

    Args:
        source: the path of a model, or a model as bytes.
        options: ``onnxruntime.SessionOptions``.
        providers: names and settings; None where ``options`` have the devices.
        more: other arguments of the session.
    """
    import onnxruntime as ort

    return ort.InferenceSession(
        source,
        options,
        providers=None if providers is None else list(providers),
        enable_fallback=0,  # it would run on the CPU after a line on standard output
        **more,
    )


def exact_session(
    source: str | bytes, options: Any, providers: Sequence[tuple[str, Any]] | None = CPU
) -> Any:
    """Return an ``onnxruntime.InferenceSession`` that computes every node and pair in float.

    Args:
        source: the path of a model, or a model as bytes.
        options: ``onnxruntime.SessionOptions``; it is changed.
        providers: names and settings; None where ``options`` have the devices.
    """
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # ONNX Runtime itself takes all cores, also those of other processes of a sweep.
    options.intra_op_num_threads = options.intra_op_num_threads or given_threads()
    # No latency is measured: threads that wait leave the cores to others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return new_session(source, options, providers, disabled_optimizers=CHANGE_VALUES)
