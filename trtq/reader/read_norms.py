"""Normalisation."""

from __future__ import annotations

import torch
from torch.nn import functional

from trtq.reader.call import Call
from trtq.reader.values import UnreadError


def batch_norm(call: Call) -> torch.Tensor:
    """With the stored mean and variance."""
    if call.get("training_mode", 0) or len([o for o in call.node.output if o]) > 1:
        raise UnreadError("batch normalisation in training")
    if not call.get("spatial", 1):
        raise UnreadError("batch normalisation with a mean for each place")
    x, weight, bias, mean, var = call.tensors()
    return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, call.get("epsilon", 1e-5))


def instance_norm(call: Call) -> torch.Tensor:
    """Each channel of each sample by itself."""
    x, weight, bias = call.tensors()
    # That of torch.nn.functional refuses maps of one value.
    epsilon = call.get("epsilon", 1e-5)
    return torch.instance_norm(x, weight, bias, None, None, True, 0.0, epsilon, False)


def layer_norm(call: Call) -> list[torch.Tensor]:
    """Over all axes from one on; mean and inverse deviation where they are read."""
    x, axis, eps = call.x(), call.get("axis", -1), call.get("epsilon", 1e-5)
    shape = list(x.shape[axis % x.ndim :])
    if any(not isinstance(s, int) for s in shape):
        raise UnreadError("a layer norm over an open axis")
    weight, bias = call.optional(1), call.optional(2)
    if any(w is not None and list(w.shape) != shape for w in (weight, bias)):
        y = functional.layer_norm(x, shape, None, None, eps)
        y = y if weight is None else y * weight
        y = y if bias is None else y + bias
    else:
        y = functional.layer_norm(x, shape, weight, bias, eps)
    if len(call.node.output) == 1:
        return [y]
    axes = list(range(axis % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(x.var(axes, unbiased=False, keepdim=True) + eps)
    return [y, mean, inverse][: len(call.node.output)]


def rms_norm(call: Call) -> torch.Tensor:
    """Divided by the root of the mean square."""
    x, axis = call.x(), call.get("axis", -1)
    axes = list(range(axis % x.ndim, x.ndim))
    scale = torch.rsqrt(x.pow(2).mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    return x * scale * call.x(1)


def group_norm(call: Call) -> torch.Tensor:
    """Groups of channels; before opset 21 a weight for each group."""
    x, weight, bias = call.tensors()
    groups = call.get("num_groups")
    if call.opset < 21:
        repeats = int(x.shape[1]) // groups
        weight, bias = weight.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return functional.group_norm(x, groups, weight, bias, call.get("epsilon", 1e-5))


def lp_norm(call: Call) -> torch.Tensor:
    """Divided by the norm along an axis; zeros remain zeros."""
    x = call.x()
    norm = torch.linalg.vector_norm(x, call.get("p", 2), dim=call.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def mean_variance(call: Call) -> torch.Tensor:
    """Moved to mean 0 and deviation 1."""
    x, axes = call.x(), list(call.get("axes", [0, 2, 3]))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.pow(2).mean(axes, keepdim=True).sqrt() + 1e-9)


def lrn(call: Call) -> torch.Tensor:
    """Divided by a power of the sum of squares of channels around."""
    x, size = call.x(), call.get("size")
    squares = x.pow(2).unsqueeze(1)
    sides = [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2]
    flat = functional.pad(squares, sides)
    total = sum_of_windows(flat, size)
    scale = call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * total
    result: torch.Tensor = x / scale.pow(call.get("beta", 0.75))
    return result


def sum_of_windows(x: torch.Tensor, size: int) -> torch.Tensor:
    """Return the sum of ``size`` neighbours along axis 2.

    Args:
        x: [N, 1, C + size - 1, ...].
        size: 1 or more.

    Returns:
        [N, C, ...].
    """
    count = x.shape[2] - size + 1
    total = x.narrow(2, 0, count)
    for i in range(1, size):
        total = total + x.narrow(2, i, count)
    return total.squeeze(1)
