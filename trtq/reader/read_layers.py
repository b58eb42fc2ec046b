"""Convolutions, linear layers and matmuls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from trtq.reader.call import Call
from trtq.reader.values import UnreadError

CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the windows of a convolution or a pool are, by spatial axis.

    Attributes:
        kernel, strides, dilations: sizes and steps.
        begins, ends: padding in front of and behind each axis, symbolic where ``auto_pad`` makes it
            follow from an open size.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[Any]
    ends: list[Any]

    @classmethod
    def of(cls, call: Call, kernel: list[int], sizes: list[Any]) -> Windows:
        """Return the windows of a node.

        Args:
            call: the node, with ``strides``, ``dilations``, ``pads`` and ``auto_pad``.
            kernel: its sizes.
            sizes: the operand's spatial sizes.
        """
        dims = len(kernel)
        strides = list(call.get("strides") or [1] * dims)
        dilations = list(call.get("dilations") or [1] * dims)
        pads = list(call.get("pads") or [0] * (2 * dims))
        auto = call.get("auto_pad", "NOTSET")
        if auto == "VALID":
            pads = [0] * (2 * dims)
        elif auto.startswith("SAME"):
            pads = _same(kernel, strides, dilations, sizes, upper=auto == "SAME_UPPER")
        return cls(kernel, strides, dilations, pads[:dims], pads[dims:])

    @property
    def even(self) -> bool:
        """Whether each axis is padded alike on both sides."""
        return self.begins == self.ends

    @property
    def amounts(self) -> list[Any]:
        """The padding as torch's pad takes it: the last axis first."""
        sides = zip(reversed(self.begins), reversed(self.ends), strict=True)
        return [v for pair in sides for v in pair]


def _same(
    kernel: list[int], strides: list[int], dilations: list[int], sizes: list[Any], *, upper: bool
) -> list[Any]:
    """Return the padding that gives one window a step; the odd one is behind with ``upper``.

    With n = ceil(size / stride) it is max((n - 1) stride + (k - 1) dilation + 1 - size, 0) an axis.
    """
    begins, ends = [], []
    for k, stride, dilation, size in zip(kernel, strides, dilations, sizes, strict=True):
        count = (size + stride - 1) // stride
        total = torch.sym_max((count - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        if stride == 1:
            total = (k - 1) * dilation  # for every size
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return [*begins, *ends]


def conv(call: Call) -> torch.Tensor:
    """A convolution of 1 to 3 spatial axes; uneven padding becomes a pad of its own."""
    x, weight, bias = call.x(0), call.x(1), call.optional(2)
    dims = weight.ndim - 2
    if not 1 <= dims <= 3:
        raise UnreadError(f"a convolution of {dims} spatial axes")
    windows = Windows.of(call, [int(k) for k in weight.shape[2:]], list(x.shape[2:]))
    padding = windows.begins
    if not windows.even:
        x, padding = functional.pad(x, windows.amounts), [0] * dims
    return CONV[dims - 1](
        x, weight, bias, windows.strides, padding, windows.dilations, call.get("group", 1)
    )


def conv_transpose(call: Call) -> torch.Tensor:
    """A transposed convolution; uneven padding becomes a cut."""
    x, weight, bias = call.x(0), call.x(1), call.optional(2)
    dims = weight.ndim - 2
    if not 1 <= dims <= 3:
        raise UnreadError(f"a transposed convolution of {dims} spatial axes")
    kernel = [int(k) for k in weight.shape[2:]]
    windows = Windows.of(call, kernel, [0] * dims)
    extra = list(call.get("output_padding") or [0] * dims)
    begins, ends = _cuts(call, windows, extra, list(x.shape[2:]))
    even = begins == ends and all(b >= 0 for b in begins)
    # torch takes less output padding than ONNX: what is behind is then computed and cut off.
    small = all(
        e < max(s, d) for e, s, d in zip(extra, windows.strides, windows.dilations, strict=True)
    )
    arguments = (windows.strides, begins if even else 0, extra if small else 0)
    y = TRANSPOSED[dims - 1](x, weight, bias, *arguments, call.get("group", 1), windows.dilations)
    if even and small:
        return y
    if not small:
        raise UnreadError("an output padding of a step or more")
    amounts = [-v for pair in zip(reversed(begins), reversed(ends), strict=True) for v in pair]
    return functional.pad(y, amounts)


def _cuts(
    call: Call, windows: Windows, extra: list[int], sizes: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Return how much of the full result is cut off in front of and behind each axis."""
    wanted = call.get("output_shape")
    auto = call.get("auto_pad", "NOTSET")
    if wanted is None and not auto.startswith("SAME"):
        return list(windows.begins), list(windows.ends)
    steps = zip(windows.kernel, windows.strides, windows.dilations, sizes, strict=True)
    if wanted is None:
        wanted = [size * stride for _, stride, _, size in steps]
        steps = zip(windows.kernel, windows.strides, windows.dilations, sizes, strict=True)
    begins, ends = [], []
    for (k, stride, dilation, size), more, want in zip(
        steps, extra, wanted[-len(sizes) :], strict=True
    ):
        total = stride * (size - 1) + more + (k - 1) * dilation + 1 - want
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return begins, ends


def gemm(call: Call) -> torch.Tensor:
    """Alpha a @ b + beta c; a linear where b is a constant."""
    a, b, c = call.x(0), call.x(1), call.optional(2)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.t() if call.get("transA", 0) else a
    weight = b if call.get("transB", 0) else b.t()
    plain = alpha == 1 and (
        c is None or (beta == 1 and c.ndim == 1 and c.shape[0] == weight.shape[0])
    )
    if plain and a.is_floating_point():
        return functional.linear(a, weight, c)
    product = torch.matmul(a, weight.t())
    product = product if alpha == 1 else (product * alpha).to(a.dtype)
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else (c * beta).to(c.dtype))


def matmul(call: Call) -> torch.Tensor:
    """A @ b; a linear where b is a matrix of constants, which are then stored transposed."""
    if call.get("linear"):
        return functional.linear(call.x(0), call.x(1), call.optional(2))
    return torch.matmul(call.x(0), call.x(1))


def einsum(call: Call) -> torch.Tensor:
    """The same notation."""
    return torch.einsum(call.get("equation"), *call.tensors())
