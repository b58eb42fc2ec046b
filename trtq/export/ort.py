"""ONNX Runtime as a witness: sessions that compute a Q/DQ file as it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtq.errors import ExportError, first_line
from trtq.export.decompose import holds_fp4, without_fp4
from trtq.export.feeds import AnyArray, Given, Inputs, InputSlot, feed_for, run_in_parts
from trtq.export.lint_ops import is_plugin
from trtq.export.onnx_file import checked_onnx, load_onnx, parse_onnx
from trtq.export.ort_provider import full_name, settings_of
from trtq.onnx_session import exact_session, new_session
from trtq.onnx_walk import all_nodes

ONNX_NAMES = {"float": "float32", "double": "float64"}  # of ONNX Runtime's types, beside NumPy's
NUMPY_NAMES = (
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


def open_session(
    model: Path | onnx.ModelProto,
    *,
    as_written: bool = True,
    provider: str = "CPU",
    device_id: int = 0,
    taking_turns: bool = False,
    optimize: bool = True,
) -> Any:
    """Return an ``onnxruntime.InferenceSession``.

    Args:
        model: a file, or a model in memory.
        as_written: compute every Q/DQ pair in float exactly as the file says (what the parity gate
            and accuracy need). False lets ONNX Runtime fuse pairs into its own integer kernels and
            rewrite biases to int32 (what its latency means).
        provider: ``CPU``, ``CUDA``, ``TensorRT`` or ``NvTensorRTRTX``; the last two build an engine
            of their own. NvTensorRTRTX may come as a plugin, in a package of its own.
        device_id: which GPU.
        taking_turns: other sessions run between its requests: its threads then stop spinning when a
            request ends. Without that the threads of idle sessions take the cores from the one at
            work (resnet18 at 64x64 on two cores: 7.6 ms instead of 2.9 ms).
        optimize: False for a large model that runs a few times: planning the reuse of its memory
            takes time that grows with the square of its nodes.

    Raises:
        ExportError: ONNX Runtime refuses the model or does not offer the provider.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if taking_turns:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_mem_reuse = False
    providers = settings_of(options, provider, device_id)
    source = _source(model)
    try:
        session = (
            exact_session(source, options, providers)
            if as_written
            else new_session(source, options, providers)
        )
    except Exception as exc:  # ONNX Runtime's exceptions share no public base
        label = str(model) if isinstance(model, Path) else "the model"
        raise ExportError(f"ONNX Runtime cannot load {label}", *_why(model, exc)) from exc
    # Where the libraries of a provider cannot be loaded there is a warning only.
    if session.get_providers()[0] != full_name(provider):
        raise ExportError(
            f"ONNX Runtime does not run on {provider} here",
            "it fell back to the CPU",
            "Check the NVIDIA driver",
        )
    return session


def _source(model: Path | onnx.ModelProto) -> str | bytes:
    """Return what a session is made of: a path, or a model of ops that ONNX Runtime has."""
    if isinstance(model, Path):
        if not holds_fp4(checked_onnx(model)):
            return str(model)
        model = load_onnx(model)
    source: bytes = without_fp4(model).SerializeToString()
    return source


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
    """Return the fixed batch of a model, None when it is dynamic.

    It is the first size of the first input that has axes.
    """
    first = next((i.shape[0] for i in session.get_inputs() if i.shape), None)
    return first if isinstance(first, int) else None


def input_slots(session: Any) -> list[InputSlot]:
    """Return names, dtypes and shapes of a session's inputs, in the order of the model.

    Raises:
        ExportError: an input is no tensor that NumPy can hold.
    """
    return [
        InputSlot(
            i.name,
            _dtype(i),
            tuple(d if isinstance(d, int) else None for d in i.shape),
        )
        for i in session.get_inputs()
    ]


def _dtype(value: Any) -> str:
    kind = str(value.type).removeprefix("tensor(").removesuffix(")")
    name = ONNX_NAMES.get(kind, kind)
    if name not in NUMPY_NAMES:
        raise ExportError(
            f"Cannot feed the input {value.name}", f"it is a {value.type}, NumPy has no such type"
        )
    return name


def run_batch(session: Any, given: Given) -> list[AnyArray]:
    """Return the outputs for one batch; a model with a fixed batch runs it in parts.

    Args:
        session: of :func:`open_session`.
        given: arrays by name, samples first; one array alone for a model of one input.

    Raises:
        UsageError: an input is missing, unknown or of a wrong dtype.
        ExportError: the batch does not fit the model's inputs, or ONNX Runtime fails.
    """
    slots = input_slots(session)
    feed = feed_for(slots, given, "model")
    fixed = static_batch(session)
    names = [o.name for o in session.get_outputs()]

    def run(part: Inputs) -> dict[str, AnyArray]:
        try:
            return dict(zip(names, map(np.asarray, session.run(None, dict(part))), strict=True))
        except Exception as exc:
            raise _explained(slots, part, exc) from exc

    if fixed is None:
        return list(run(feed).values())
    split = [s.name for s in slots if s.shape[:1] == (fixed,)]
    return list(run_in_parts(run, feed, split, fixed, fixed).values())


def _explained(slots: Sequence[InputSlot], feed: Inputs, exc: Exception) -> ExportError:
    given = [list(a.shape) for a in feed.values()]
    one = len(slots) == 1
    return ExportError(
        f"ONNX Runtime cannot run the model on input {given[0] if one else given}",
        f"it expects {list(slots[0].shape) if one else [s.words for s in slots]}: "
        f"{first_line(exc)}",
        "Give --input-size as the model has it" if one else "",
    )
