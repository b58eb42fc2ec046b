"""Pools."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from trtq.reader.call import Call
from trtq.reader.read_layers import Windows
from trtq.reader.values import UnreadError

MAX = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
AVERAGE = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def max_pool(call: Call) -> torch.Tensor:
    """The largest value of each window."""
    x = call.x()
    if len([o for o in call.node.output if o]) > 1 or call.get("storage_order", 0):
        raise UnreadError("a max pool that gives places")
    if not x.is_floating_point():
        raise UnreadError("a max pool of integers")
    windows = _windows(call, x)
    dims, lowest = len(windows.kernel), -math.inf
    ends = _rounded_up(call, windows, x)
    padding = windows.begins
    if ends != windows.begins or any(
        2 * p > k for p, k in zip(padding, windows.kernel, strict=True)
    ):
        amounts = _amounts(windows.begins, ends)
        x, padding = functional.pad(x, amounts, value=lowest), [0] * dims
    return MAX[dims - 1](x, windows.kernel, windows.strides, padding, windows.dilations)


def average_pool(call: Call) -> torch.Tensor:
    """The mean of each window, with or without what is padded."""
    x = call.x()
    windows = _windows(call, x)
    dims, counted = len(windows.kernel), bool(call.get("count_include_pad", 0))
    ends = _rounded_up(call, windows, x)
    if any(d != 1 for d in windows.dilations):
        raise UnreadError("an average pool with dilations")
    pool = AVERAGE[dims - 1]
    narrow = all(2 * p <= k for p, k in zip(windows.begins, windows.kernel, strict=True))
    if ends == windows.begins and narrow:
        return pool(x, windows.kernel, windows.strides, windows.begins, False, counted)
    # Sums and counts of the padded operand: what rounding up adds is never counted.
    real = torch.ones_like(x)
    if counted:
        real = functional.pad(real, windows.amounts, value=1.0)
        behind = [e - p for e, p in zip(ends, windows.ends, strict=True)]
        real = functional.pad(real, _amounts([0] * dims, behind))
    else:
        real = functional.pad(real, _amounts(windows.begins, ends))
    padded = functional.pad(x, _amounts(windows.begins, ends))
    total = pool(padded, windows.kernel, windows.strides)
    return total / pool(real, windows.kernel, windows.strides)


def _windows(call: Call, x: torch.Tensor) -> Windows:
    kernel = list(call.get("kernel_shape"))
    if not 1 <= len(kernel) <= 3:
        raise UnreadError(f"a pool of {len(kernel)} axes")
    return Windows.of(call, kernel, list(x.shape[2:]))


def _rounded_up(call: Call, windows: Windows, x: torch.Tensor) -> list[Any]:
    """Return the padding behind each axis, with what rounding up the count of windows needs.

    A last window that would start in the padding is left out, as torch and ONNX do.

    Args:
        call: the node, with ``ceil_mode``.
        windows: of it.
        x: [N, C, ...].
    """
    if not call.get("ceil_mode", 0) or call.get("auto_pad", "NOTSET").startswith("SAME"):
        return list(windows.ends)
    ends = []
    for size, k, step, dilation, begin, end in zip(
        x.shape[2:],
        windows.kernel,
        windows.strides,
        windows.dilations,
        windows.begins,
        windows.ends,
        strict=True,
    ):
        reach = dilation * (k - 1) + 1
        room = size + begin + end - reach
        count = (room + step - 1) // step + 1
        if (count - 1) * step >= size + begin:
            count = count - 1
        ends.append(end + torch.sym_max((count - 1) * step - room, 0))
    return ends


def _amounts(begins: list[Any], ends: list[Any]) -> list[Any]:
    return [v for pair in zip(reversed(begins), reversed(ends), strict=True) for v in pair]


def global_average(call: Call) -> torch.Tensor:
    """The mean of each channel."""
    x = call.x()
    if x.ndim == 4:
        return functional.adaptive_avg_pool2d(x, 1)
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def global_max(call: Call) -> torch.Tensor:
    """The largest value of each channel."""
    x = call.x()
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def global_lp(call: Call) -> torch.Tensor:
    """The norm of each channel."""
    x = call.x()
    axes = list(range(2, x.ndim))
    norm: torch.Tensor = torch.linalg.vector_norm(x, call.get("p", 2), axes, keepdim=True)
    return norm


def lp_pool(call: Call) -> torch.Tensor:
    """The norm of each window."""
    x, p = call.x(), call.get("p", 2)
    windows = _windows(call, x)
    if any(d != 1 for d in windows.dilations):
        raise UnreadError("an Lp pool with dilations")
    ends = _rounded_up(call, windows, x)
    padded = functional.pad(x.abs().pow(p), _amounts(windows.begins, ends))
    mean = AVERAGE[len(windows.kernel) - 1](padded, windows.kernel, windows.strides)
    return (mean * math.prod(windows.kernel)).pow(1 / p)
