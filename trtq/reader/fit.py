"""Whether an example fits the inputs that a file declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from trtq.data.sample_axes import sample_axes
from trtq.errors import CaptureError, suggest
from trtq.graph.inputs import BATCH_OF_TWO
from trtq.graph.signature import INPUT, Axes
from trtq.reader.port import Port

Example = dict[str, torch.Tensor]


def fitted(ports: Sequence[Port], given: object, axes: Axes) -> Example:
    """Return an example by the names of a file's inputs, with as many samples as it takes.

    Args:
        ports: the inputs of the file.
        given: one batch: a tensor, a tuple in the file's order, or a mapping.
        axes: sizes of inputs by name, open ones as texts.

    Raises:
        CaptureError: an input is missing or unknown, or of another type, rank or size.
    """
    named = _named(ports, given)
    batch = _batch_axis(ports, axes)
    example = {p.name: _of_kind(p, named[p.name]) for p in ports}
    shapes = [axes.get(p.name, p.shape) for p in ports]
    for port, sizes, axis in zip(ports, shapes, sample_axes(shapes), strict=True):
        example[port.name] = _of_size(port, example[port.name], sizes, axis or 0)
    lone = batch and all(n == 1 for p in ports for n in _sizes_of(batch, p, axes, example))
    return {n: _twice(t, axes.get(n, ()), batch) if lone else t for n, t in example.items()}


def _named(ports: Sequence[Port], given: object) -> Example:
    known = [p.name for p in ports]
    if not isinstance(given, Mapping):
        several = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if len(several) != len(known):
            raise CaptureError(
                f"Cannot call the model with {len(several)} inputs",
                f"it has {len(known)}: {', '.join(known)}",
            )
        given = dict(zip(known, several, strict=True))
    elif len(known) == 1 and list(given) == [INPUT]:  # a sample without a name
        given = {known[0]: given[INPUT]}
    unknown = [str(k) for k in given if k not in known]
    if unknown:
        raise CaptureError(
            f"The ONNX model has no input {unknown[0]}",
            f"its inputs are {', '.join(known)}",
            suggest(unknown[0], known),
        )
    missing = [n for n in known if n not in given]
    if missing:
        raise CaptureError(
            f"The input {missing[0]} of the ONNX model is missing",
            f"given are {', '.join(map(str, given))}",
            f"Give all of {', '.join(known)}",
        )
    wrong = next((n for n in known if not isinstance(given[n], torch.Tensor)), None)
    if wrong is not None:
        kind = type(given[wrong]).__name__
        raise CaptureError(f"The input {wrong} of the ONNX model is a tensor", f"given is a {kind}")
    return {n: given[n] for n in known}


def _of_kind(port: Port, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the type of an input; floats remain floats, integers integers."""
    if tensor.dtype == port.dtype:
        return tensor
    kinds = [(t.is_floating_point, t is torch.bool) for t in (port.dtype, tensor.dtype)]
    if kinds[0] != kinds[1]:
        raise CaptureError(
            f"The input {port.name} of the ONNX model is {_name(port.dtype)}",
            f"its example is {_name(tensor.dtype)}",
            f"Give values of the type {_name(port.dtype)}",
        )
    return tensor.to(port.dtype)


def _of_size(
    port: Port, tensor: torch.Tensor, sizes: Sequence[int | str], axis: int
) -> torch.Tensor:
    """Return a tensor with as many samples as a fixed batch has.

    Args:
        port: the input.
        tensor: samples on their axis, or first as a batch of data has them.
        sizes: of the input.
        axis: of its samples.
    """
    if not sizes and tensor.ndim == 1:  # samples of one number
        return tensor[0]
    ways = [tensor, tensor.movedim(0, axis)] if 0 < axis < tensor.ndim else [tensor]
    fitting_tensor = next(
        (t for t in (_cut(w, sizes, axis) for w in ways) if _fits(t, sizes)), None
    )
    if fitting_tensor is None:
        more = tensor.ndim > len(sizes)
        raise CaptureError(
            f"The example of the input {port.name} does not fit the ONNX model",
            f"it is {list(tensor.shape)}, expected [{', '.join(map(str, sizes))}]",
            "Data hold one sample an item, without a batch axis" if more else "",
        )
    return fitting_tensor


def _cut(tensor: torch.Tensor, sizes: Sequence[int | str], axis: int) -> torch.Tensor:
    """Return no more samples than a fixed batch has."""
    fixed = sizes[axis] if axis < len(sizes) else None
    alike = len(sizes) == tensor.ndim
    if isinstance(fixed, int) and alike and tensor.shape[axis] > fixed:
        return tensor.narrow(axis, 0, fixed)
    return tensor


def _fits(tensor: torch.Tensor, sizes: Sequence[int | str]) -> bool:
    return len(sizes) == tensor.ndim and all(
        isinstance(size, str) or size == own for size, own in zip(sizes, tensor.shape, strict=True)
    )


def _batch_axis(ports: Sequence[Port], axes: Axes) -> str:
    """Return the name of the first open first axis, "" for none."""
    firsts = (tuple(axes.get(p.name, ()))[:1] for p in ports)
    return next((f[0] for f in firsts if f and isinstance(f[0], str)), "")


def _sizes_of(name: str, port: Port, axes: Axes, example: Example) -> list[int]:
    named = axes.get(port.name, ())
    return [d for a, d in zip(named, example[port.name].shape, strict=True) if a == name]


def _twice(tensor: torch.Tensor, named: Sequence[int | str], axis: str) -> torch.Tensor:
    """Return one sample as two: an open axis is traced with a size that is not 1."""
    for i, name in enumerate(named):
        if name == axis:
            tensor = torch.cat([tensor] * BATCH_OF_TWO, i)
    return tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
