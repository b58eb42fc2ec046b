"""Operators that move, choose or join values without computing any."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import guard_or_false
from torch.nn import functional

from trtq.reader.call import Call
from trtq.reader.values import UnreadError, Value

FAR = 2**62  # exporters write "to the end" as the largest integer


def reshape(call: Call) -> torch.Tensor:
    """0 copies a size, -1 is what remains."""
    x = call.x()
    wanted = call.get("shape") or call.ints(1) or []
    keep = not call.get("allowzero", 0)
    sizes = [x.shape[i] if keep and s_is(s, 0) else s for i, s in enumerate(wanted)]
    return x.reshape(sizes)


def s_is(size: Any, number: int) -> bool:
    """Return whether a size is a plain number with this value; a symbolic one never is."""
    return isinstance(size, int) and size == number


def flatten(call: Call) -> torch.Tensor:
    """To a matrix."""
    x = call.x()
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    if axis == 1 and x.ndim > 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(call: Call) -> torch.Tensor:
    """By default the order is turned round."""
    x = call.x()
    return x.permute(call.get("perm") or list(reversed(range(x.ndim))))


def squeeze(call: Call) -> torch.Tensor:
    """Axes of size 1 go; by default all of them.

    torch's own leaves an axis of another size alone, also one whose size only the data decide.
    """
    x, axes = call.x(), call.axes()
    if axes is None:
        return x.squeeze()
    if all(guard_or_false(x.shape[axis] == 1) for axis in axes):
        return x.squeeze(tuple(axes))
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        torch._check(x.shape[axis] == 1)
        x = x.select(axis, 0)
    return x


def unsqueeze(call: Call) -> torch.Tensor:
    """Axes of size 1 come in; positions are those of the result."""
    x = call.x()
    axes = call.axes() or []
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def expand(call: Call) -> torch.Tensor:
    """Both shapes broadcast: a size of 1 keeps the operand's own."""
    x = call.x()
    wanted = call.ints(1) or []
    rank = max(x.ndim, len(wanted))
    have = [1] * (rank - x.ndim) + list(x.shape)
    want = [1] * (rank - len(wanted)) + list(wanted)
    sizes = [h if s_is(w, 1) else w for h, w in zip(have, want, strict=True)]
    return x.expand(sizes)


def tile(call: Call) -> torch.Tensor:
    """Each axis several times."""
    return call.x().repeat(call.ints(1) or [])


def slices_of(call: Call, rank: int) -> list[tuple[int, Any, Any, int]]:
    """Return what a Slice cuts.

    Args:
        call: the node.
        rank: of the tensor.

    Returns:
        (axis, start, end, step) for each axis, the axis from 0 on, the bounds as in the file.
    """
    if call.get("starts") is not None:  # opset 9 and older
        starts, ends = list(call.get("starts")), list(call.get("ends"))
        axes, steps = call.get("axes"), None
    else:
        starts, ends = call.value(1).ints(), call.value(2).ints()
        axes, steps = call.ints(3), call.ints(4)
    axes = [int(a) % rank for a in (axes if axes is not None else range(len(starts)))]
    return list(zip(axes, starts, ends, steps or [1] * len(starts), strict=True))


def cut(call: Call) -> torch.Tensor:
    """Parts of axes, also backwards."""
    x = call.x()
    for axis, start, end, step in slices_of(call, x.ndim):
        if step > 0:
            x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
        else:
            x = _backwards(x, axis, start, end, step)
    return x


def _backwards(x: torch.Tensor, axis: int, start: Any, end: Any, step: int) -> torch.Tensor:
    """Return a slice with a negative step: a slice of the flipped axis.

    Args:
        x: any shape.
        axis: from 0 on.
        start: the first index that is taken; beyond the ends it is the nearest one.
        end: the index in front of which it stops.
        step: below 0.
    """
    size = x.shape[axis]
    start = size - 1 if s_far(start) and start >= 0 else start
    start = start + size if start < 0 else start
    first = torch.sym_max(size - 1 - torch.sym_max(start, 0), 0)
    if end < -FAR or (isinstance(end, int) and isinstance(size, int) and end < -size):
        last = size
    else:
        last = torch.sym_max(size - 1 - (end + size if end < 0 else end), 0)
    result: torch.Tensor = torch.ops.aten.slice.Tensor(x.flip(axis), axis, first, last, -step)
    return result


def s_far(size: Any) -> bool:
    """Return whether a bound means "to the end", as exporters write it."""
    return isinstance(size, int) and abs(size) >= 2**30


def split(call: Call) -> list[torch.Tensor]:
    """By sizes, or into equal parts."""
    x, axis, parts = call.x(), call.get("axis", 0), len(call.node.output)
    sizes = call.get("split") or call.ints(1)
    if sizes is None:
        size = x.shape[axis]
        each = (size + parts - 1) // parts
        sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
    return list(torch.split(x, list(sizes), axis))


def concat(call: Call) -> torch.Tensor:
    """Along an axis."""
    return torch.cat(call.tensors(), call.get("axis", 1))


def gather(call: Call) -> torch.Tensor:
    """Slices of an axis by their places."""
    x, axis = call.x(), call.get("axis", 0)
    places = call.value(1)
    axis = axis % x.ndim
    if places.host is not None and places.host.ndim == 0:
        return x.select(axis, places.number())
    index = call.x(1)
    index = _wrapped(index, x.shape[axis], known=places.host)
    if axis == 0 and x.ndim == 2 and index.ndim >= 1 and x.is_floating_point():
        return functional.embedding(index, x)
    flat = x.index_select(axis, index.reshape(-1))
    if index.ndim == 1:
        return flat
    return flat.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _wrapped(index: torch.Tensor, size: Any, *, known: Any = None) -> torch.Tensor:
    """Return places counted from the start; negative ones count from the end."""
    if known is not None and all(isinstance(v, int) and v >= 0 for v in known.reshape(-1).tolist()):
        return index.to(torch.int64)
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def gather_elements(call: Call) -> torch.Tensor:
    """A value by its place along an axis, for each place of the result."""
    x, axis = call.x(), call.get("axis", 0)
    return torch.gather(x, axis, _wrapped(call.x(1), x.shape[axis]))


def gather_nd(call: Call) -> torch.Tensor:
    """Slices by tuples of places."""
    x, index, batch = call.x(0), call.x(1).to(torch.int64), call.get("batch_dims", 0)
    depth = int(index.shape[-1])
    lead = [
        torch.arange(x.shape[d]).reshape([-1 if i == d else 1 for i in range(index.ndim - 1)])
        for d in range(batch)
    ]
    places = [_wrapped(index[..., i], x.shape[batch + i]) for i in range(depth)]
    if batch:
        lead = [p.expand(index.shape[:-1]) for p in lead]
    index_ = (*lead, *places)
    return x[index_]


MODES = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(call: Call) -> torch.Tensor:
    """Values are put at places along an axis, or combined with the old values."""
    x, axis, how = call.x(0), call.get("axis", 0), call.get("reduction", "none")
    index, updates = _wrapped(call.x(1), x.shape[axis]), call.x(2)
    if how == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, MODES[how], include_self=True)


def scatter_nd(call: Call) -> torch.Tensor:
    """Slices are put at tuples of places, or added to the old values."""
    x, index, updates = call.x(0), call.x(1).to(torch.int64), call.x(2)
    how = call.get("reduction", "none")
    places = [_wrapped(index[..., i], x.shape[i]) for i in range(int(index.shape[-1]))]
    if how in ("none", "add"):
        return x.index_put(tuple(places), updates, accumulate=how == "add")
    raise UnreadError(f"ScatterND with the reduction {how}")


PADS = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad(call: Call) -> torch.Tensor:
    """In front of and behind axes."""
    x, mode = call.x(), call.get("mode", "constant")
    given = call.get("pads") or call.get("paddings") or call.value(1).ints()
    begins, ends = _sides(call, list(given), x.ndim)
    amounts = [v for pair in zip(reversed(begins), reversed(ends), strict=True) for v in pair]
    while len(amounts) > 2 and s_is(amounts[-1], 0) and s_is(amounts[-2], 0):
        amounts = amounts[:-2]
    if mode == "constant":
        value = call.value(2).number() if call.has(2) else call.get("value", 0.0)
        value = value if x.is_floating_point() else int(value)
        return functional.pad(x, amounts, "constant", value)
    axes = len(amounts) // 2
    if axes > 3 or x.ndim - axes > 2 or not x.is_floating_point():
        raise UnreadError(f"padding of {axes} axes by {mode}")
    if x.ndim - axes == 0:
        y = functional.pad(x.unsqueeze(0), amounts, PADS[mode])
        return y.squeeze(0)
    return functional.pad(x, amounts, PADS[mode])


def _sides(call: Call, given: list[Any], rank: int) -> tuple[list[Any], list[Any]]:
    """Return the padding of every axis, in front and behind."""
    half = len(given) // 2
    axes = call.ints(3) or list(range(half))
    begins, ends = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begins[axis % rank], ends[axis % rank] = given[i], given[half + i]
    return begins, ends


def shape(call: Call) -> Value:
    """Sizes remain numbers."""
    sizes = call.value(0).shape
    return Value.numbers(sizes[slice(call.get("start", 0), call.get("end"))])


def size(call: Call) -> Value:
    """The count of values."""
    return Value.numbers(math.prod(call.value(0).shape))


def depth_to_space(call: Call) -> torch.Tensor:
    """Channels become places; torch has the order CRD."""
    x, b = call.x(), call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, b)
    n, c, h, w = x.shape
    y = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // (b * b), h * b, w * b)


def space_to_depth(call: Call) -> torch.Tensor:
    """Places become channels; torch has the order CRD."""
    x, b = call.x(), call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return functional.pixel_unshuffle(x, b)
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


def fill(call: Call) -> torch.Tensor:
    """A tensor of one value."""
    from onnx import numpy_helper

    tensor = call.get("value")
    value = (
        numpy_helper.to_array(tensor).reshape(-1) if tensor is not None else np.zeros(1, np.float32)
    )
    kind = torch.from_numpy(np.array(value)).dtype
    return torch.full(tuple(call.value(0).ints()), value[0].item(), dtype=kind)


def steps(call: Call) -> torch.Tensor:
    """Numbers from a start to an end."""
    start, stop, step = (call.value(i).number() for i in range(3))
    return torch.arange(start, stop, step, dtype=call.value(0).dtype)


def eye_like(call: Call) -> torch.Tensor:
    """Ones on a diagonal."""
    from trtq.reader.values import TORCH_TYPES

    x, to = call.x(), call.get("dtype")
    n, m, k = x.shape[0], x.shape[1], call.get("k", 0)
    kind = x.dtype if to is None else TORCH_TYPES[to]
    rows, columns = torch.arange(n).unsqueeze(1), torch.arange(m)
    diagonal: torch.Tensor = columns - rows == k
    return diagonal.to(kind)


def trilu(call: Call) -> torch.Tensor:
    """The upper or lower triangle."""
    k = call.value(1).number() if call.has(1) else 0
    function = torch.triu if call.get("upper", 1) else torch.tril
    return function(call.x(), k)


def one_hot(call: Call) -> torch.Tensor:
    """One value at a place along a new axis, another elsewhere."""
    index, depth, values = call.x(0), call.value(1).number(), call.x(2)
    axis = call.get("axis", -1) % (index.ndim + 1)
    index = index.to(torch.int64)
    index = torch.where(index < 0, index + int(depth), index).unsqueeze(axis)
    spread = [-1 if i == axis else 1 for i in range(index.ndim)]
    here = index == torch.arange(int(depth)).reshape(spread)
    return torch.where(here, values[1], values[0])


def nonzero(call: Call) -> torch.Tensor:
    """Places of values that are not 0, an axis of the operand for each row."""
    return torch.nonzero(call.x()).t()


def reverse_sequence(call: Call) -> torch.Tensor:
    """Each sequence up to its length turned round."""
    x, lengths = call.x(0), call.x(1)
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    y = x.movedim((batch, time), (0, 1))
    steps_ = torch.arange(y.shape[1]).unsqueeze(0)
    turned = lengths.unsqueeze(1) - 1 - steps_
    places = torch.where(turned >= 0, turned, steps_)
    places = places.reshape([*places.shape, *[1] * (y.ndim - 2)]).expand(y.shape)
    return torch.gather(y, 1, places).movedim((0, 1), (batch, time))
