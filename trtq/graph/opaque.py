"""ONNX nodes that torch does not compute: one call each, which ONNX Runtime computes.

The call holds the node as a model of its own. Shapes of its results come from ONNX's shape
inference. It is written back as it was read, and it has no gradient.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper

from trtq.errors import ModelError, first_line
from trtq.graph.dtypes import TORCH_TYPES
from trtq.onnx_node import label_of
from trtq.onnx_session import exact_session

_LIBRARIES: list[str] = []

Sizes = dict[str, Any]  # of axes by name: numbers or open sizes


def use_library(path: Path) -> None:
    """Let ONNX Runtime load a library of custom ops, in this process from now on.

    Args:
        path: a shared library that exports ``RegisterCustomOps``.

    Raises:
        ModelError: there is no such file.
    """
    if not path.is_file():
        raise ModelError(f"Cannot load the ops of {path}", "there is no such file")
    if str(path) not in _LIBRARIES:
        _LIBRARIES.append(str(path))
        _session.cache_clear()


def has_libraries() -> bool:
    """Whether ONNX Runtime has ops of a user's own."""
    return bool(_LIBRARIES)


def packed(model: onnx.ModelProto) -> str:
    """Return a model of one node as a text: its bytes in base 85."""
    return base64.b85encode(model.SerializeToString(deterministic=True)).decode()


@functools.lru_cache(maxsize=256)
def unpacked(text: str) -> onnx.ModelProto:
    """Return the model of a call; nobody may change it.

    Args:
        text: from :func:`packed`.
    """
    return onnx.load_from_string(base64.b85decode(text))


@functools.lru_cache(maxsize=256)
def _session(text: str) -> Any:
    """Return what computes a call.

    Raises:
        ModelError: ONNX Runtime refuses the node.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    for library in _LIBRARIES:
        options.register_custom_ops_library(library)
    try:
        return exact_session(base64.b85decode(text), options)
    except Exception as exc:  # ONNX Runtime's exceptions share no public base
        raise ModelError(f"ONNX Runtime cannot compute {name_of(text)}", first_line(exc)) from exc


def runs(model: onnx.ModelProto) -> str:
    """Return why ONNX Runtime cannot compute a node, "" where it can."""
    try:
        _session(packed(model))
    except ModelError as exc:
        return exc.reason
    return ""


def name_of(text: str) -> str:
    """Return the node of a call as a person reads it: its name and op type.

    Args:
        text: from :func:`packed`.
    """
    node = unpacked(text).graph.node[0]
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"{label_of(node)} ({kind})"


@torch.library.custom_op("trtq::onnx_node", mutates_args=())
def onnx_node(
    inputs: Sequence[torch.Tensor], model: str, sizes: Sequence[int]
) -> list[torch.Tensor]:
    """Compute a node in ONNX Runtime, on the CPU.

    Args:
        inputs: in the order of the model's inputs.
        model: from :func:`packed`.
        sizes: of the first result, where ONNX's shape inference cannot know them; none otherwise.

    Returns:
        A tensor for each output of the model, on the device of the first input.

    Raises:
        ModelError: ONNX Runtime refuses the node or fails.
    """
    session = _session(model)
    names = [i.name for i in unpacked(model).graph.input]
    given = {n: t.detach().cpu().numpy() for n, t in zip(names, inputs, strict=True)}
    try:
        results = session.run(None, given)
    except Exception as exc:  # ONNX Runtime's exceptions share no public base
        raise ModelError(f"ONNX Runtime fails at {name_of(model)}", first_line(exc)) from exc
    device = inputs[0].device if inputs else None
    return [torch.from_numpy(r.copy()).to(device) for r in results]


def _no_gradient(ctx: Any, *grads: Any) -> Any:
    raise ModelError(
        f"{name_of(ctx.model)} has no gradient",
        "ONNX Runtime computes it, and training must go through it",
        "Train only layers behind it, or use a method without gradients",
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.model = inputs[1]


onnx_node.register_autograd(_no_gradient, setup_context=_remember)


@onnx_node.register_fake
def _shapes(inputs: Sequence[torch.Tensor], model: str, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Return results of the shapes that ONNX infers."""
    known: Sizes = {}
    inferred = _inferred(unpacked(model), inputs, known)
    results = [_empty(value, known, inputs, sizes) for value in inferred.graph.output[:1]]
    return results + [_empty(value, known, inputs) for value in inferred.graph.output[1:]]


def _inferred(
    model: onnx.ModelProto, inputs: Sequence[torch.Tensor], known: Sizes
) -> onnx.ModelProto:
    """Return a model with the shapes of its inputs given and those of its outputs inferred."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value, tensor in zip(copy.graph.input, inputs, strict=True):
        sizes = [s if isinstance(s, int) else f"s{len(known)}_{s}" for s in tensor.shape]
        known |= {str(n): s for n, s in zip(sizes, tensor.shape, strict=True) if n is not s}
        code = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, code, sizes))
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def _empty(
    value: onnx.ValueInfoProto,
    known: Sizes,
    inputs: Sequence[torch.Tensor],
    sizes: Sequence[int] = (),
) -> torch.Tensor:
    """Return an empty tensor for an output; a size that nothing says is decided by the data."""
    info = value.type.tensor_type
    if not info.HasField("shape") and not sizes:
        raise ModelError(
            f"Cannot read the shape of {value.name}",
            "ONNX's shape inference does not know its rank",
            "Declare it in the file: onnx.shape_inference, or value_info",
        )
    sizes = sizes or [_size(d, known) for d in info.shape.dim]
    dtype = TORCH_TYPES.get(info.elem_type, torch.float32)
    device = inputs[0].device if inputs else None
    return torch.empty(sizes, dtype=dtype, device=device)


def _size(dim: onnx.TensorShapeProto.Dimension, known: Sizes) -> Any:
    """Return a size: a number, that of an input's axis by its name, or a new symbol."""
    if dim.HasField("dim_value"):
        return dim.dim_value
    known_size = known.get(dim.dim_param)
    return torch.library.get_ctx().new_dynamic_size() if known_size is None else known_size
