"""The parts that learn besides the weights: a quantizer's step, a codebook, a kept BatchNorm.

Straight-through gradients inside the range; ranges by LSQ (Esser et al. 2020, eq. 3 and section
2.2), learned as logarithms so that they remain positive.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn

from trtq.quant.fake_quantize import along_axis
from trtq.quant.formats import Format
from trtq.quant.histogram import dense_view

aten = torch.ops.aten
# Best clipping points of a Laplace distribution in units of its scale, by bits (Banner et al. 2019,
# section 4): more codes reach further.
REACH = {2: 2.83, 3: 3.89, 4: 5.03, 5: 6.20, 6: 7.41, 7: 8.64, 8: 9.89}
EPSILON = 1e-5  # of a kept BatchNorm


class _Origin:
    """The source of a tensor on its codes; recomputes the tensor when backward asks for it."""

    __slots__ = ("axis", "held", "qmax", "qmin", "step", "x")

    def __init__(
        self, x: torch.Tensor, step: torch.Tensor, axis: int | None, qmin: int, qmax: int
    ) -> None:
        self.x, self.step, self.axis, self.qmin, self.qmax = x, step, axis, qmin, qmax
        self.held: torch.Tensor | None = None

    def made(self) -> torch.Tensor:
        s = along_axis(self.step, self.x.ndim, self.axis)
        return torch.div(self.x, s).round_().clamp_(self.qmin, self.qmax).mul_(s)

    def value(self) -> torch.Tensor:
        """Return the tensor and keep it until :meth:`take`.

        Every consumer's backward runs before that of the quantizer.
        """
        if self.held is None:
            self.held = self.made()
        return self.held

    def take(self) -> torch.Tensor:
        result, self.held = self.value(), None
        return result


class LeanMemory(torch.autograd.graph.saved_tensors_hooks):
    """Keeps no tensor on its codes for backward while a forward pass runs inside.

    Backward rounds it again from its source. A convolution keeps its input for backward, and so
    does the op before it; without this class the rounded copy would be a third tensor.

    Attributes:
        active: the one that a forward pass runs inside now, of the whole process; None outside.
        origins: source of each tensor on its codes, by its storage, while it lives.
    """

    active: LeanMemory | None = None

    def __init__(self) -> None:
        super().__init__(self._pack, self._unpack)
        self.origins: dict[int, tuple[_Origin, object]] = {}

    def note(self, tensor: torch.Tensor, origin: _Origin) -> None:
        """Remember where ``tensor`` comes from, for as long as it lives.

        Args:
            tensor: a tensor on its codes.
            origin: rounds it again.
        """
        key = tensor.untyped_storage()._cdata
        self.origins[key] = origin, weakref.ref(tensor, lambda _: self.origins.pop(key, None))

    def _pack(self, tensor: torch.Tensor) -> object:
        entry = self.origins.get(tensor.untyped_storage()._cdata)
        return (
            tensor
            if entry is None
            else (entry[0], tensor.size(), tensor.stride(), tensor.storage_offset())
        )

    @staticmethod
    def _unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        origin, size, stride, offset = packed
        result: torch.Tensor = origin.value().as_strided(size, stride, offset)
        return result

    def __enter__(self) -> None:
        LeanMemory.active = self
        super().__enter__()

    def __exit__(self, *args: object) -> None:
        LeanMemory.active = None
        self.origins.clear()
        super().__exit__(*args)


class _LearnedStep(torch.autograd.Function):
    """Round to codes, with gradients of the input and of the step (LSQ eq. 3).

    The gradient of the step is multiplied by ``grad_scale``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,  # noqa: ARG004
        step: torch.Tensor,  # noqa: ARG004
        origin: _Origin,
        grad_scale: float,
    ) -> torch.Tensor:
        ctx.origin, ctx.grad_scale = origin, grad_scale
        return origin.made()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,), origin = grads, ctx.origin
        x, axis, qmin, qmax = origin.x, origin.axis, origin.qmin, origin.qmax
        step = along_axis(origin.step, x.ndim, axis)
        # The gradient where the position rounds onto a code (half a code beyond the ends still
        # does), else 0.
        if (
            axis is None and x.device.type == "cpu"
        ):  # one pass less; elsewhere reading the step would wait for the device
            into_x = aten.hardtanh_backward(
                grad, x, (qmin - 0.5) * step.item(), (qmax + 0.5) * step.item()
            )
        else:
            into_x = aten.hardtanh_backward(grad, torch.div(x, step), qmin - 0.5, qmax + 0.5)
        into_step = None
        if ctx.needs_input_grad[1]:
            # LSQ eq. 3: what rounding did inside, the end code outside. Two sums of small terms:
            # those of grad * codes and grad * x apart would be large, and cancel.
            codes, outside = origin.take(), grad - into_x
            if (
                axis is None
                and grad.dtype == x.dtype == torch.float32
                and grad.stride() == x.stride()
            ):
                outer = torch.dot(dense_view(outside), dense_view(codes))
                inner = torch.dot(dense_view(into_x), dense_view(codes.sub_(x)))
            else:
                dims = [d for d in range(x.ndim) if axis is None or d != axis % x.ndim]
                outer = (outside * codes).sum(dims, dtype=torch.float32)
                inner = codes.sub_(x).mul(into_x).sum(dims, dtype=torch.float32)
            into_step = (inner + outer) * ctx.grad_scale / origin.step
        origin.held = ctx.origin = None  # freed now, not with the whole graph
        return into_x, into_step, None, None


def _composed(
    x: torch.Tensor, step: torch.Tensor, axis: int | None, qmin: int, qmax: int, grad_scale: float
) -> torch.Tensor:
    """Round to codes in differentiable operations, which a compiler fuses.

    The values and gradients are those of :class:`_LearnedStep`.
    """
    step = step * grad_scale + (step - step * grad_scale).detach()
    s = along_axis(step, x.ndim, axis)
    v = (x / s).clamp(qmin - 0.5, qmax + 0.5)
    return (v + (v.round().clamp(qmin, qmax) - v).detach()) * s


class LearnedFakeQuantize(nn.Module):
    """The fake-quantize op of the simulation with a learned step.

    Args:
        name: of the quantizer.
        step: float32, [] or [C].
        fmt: its format.
        learn: whether the step learns.
    """

    def __init__(self, name: str, step: torch.Tensor, fmt: Format, *, learn: bool) -> None:
        super().__init__()
        self.quantizer, self.format, self.axis = name, fmt, fmt.axis
        self.qmin, self.qmax, self.factor = fmt.qmin, fmt.qmax, 1.0
        self.log_step = nn.Parameter(step.detach().clone().log(), requires_grad=learn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` on its codes."""
        values = x.numel() / max(1, self.log_step.numel())
        grad_scale = 1.0 / math.sqrt(values * max(1, self.qmax))  # LSQ section 2.2
        step = self.log_step.exp() * self.factor
        if torch.compiler.is_compiling():
            return _composed(x, step, self.axis, self.qmin, self.qmax, grad_scale)
        origin = _Origin(x.detach(), step.detach(), self.axis, self.qmin, self.qmax)
        result: torch.Tensor = _LearnedStep.apply(x, step, origin, grad_scale)
        if LeanMemory.active is not None:
            LeanMemory.active.note(result, origin)
        return result

    def widen_(self, bits: int) -> None:
        """Use codes of ``bits`` bits, or of the format's own width where that is larger.

        The range moves with the reach of the width.

        Args:
            bits: 2 to 8.
        """
        own = self.format.bits
        width = max(bits, own)
        self.qmin = self.format.qmin * (1 << (width - own))
        self.qmax = self.qmin + (1 << width) - 1
        # The step of the own width is learned, at every current width.
        self.factor = REACH[width] / REACH[own] * self.format.qmax / self.qmax

    @property
    def amax(self) -> torch.Tensor:
        """The range at the format's own width."""
        return self.log_step.detach().exp() * self.format.qmax


class LearnedCodebook(nn.Module):
    """Weights as one of 2^b learned values per layer, times a range per channel (S2 Fig. 1).

    The values follow k-means by moving averages. No gradient reaches them: after each step a value
    moves towards the mean of the weights that are nearest to it, as in van den Oord et al. 2017,
    appendix A.1. No engine has a kernel for this, so it is simulated.

    Args:
        weight: float32, [C, ...]; where the values start.
        scale: float32, [C] or []: the ranges.
        axis: of ``scale``.
        bits: 2 to 8.
        decay: of the moving averages.

    Attributes:
        counts, sums: float32 [2^bits], moving averages; the values are their quotients.
        scale: the ranges.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        axis: int | None,
        bits: int,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.axis, self.decay = axis, decay
        self.register_buffer("scale", scale.detach().clone())
        flat = self._relative(weight.detach()).flatten()
        levels = 1 << bits
        values = torch.quantile(
            flat[:: max(1, flat.numel() // 1_000_000)], (torch.arange(levels) + 0.5) / levels
        )
        # Equal quantiles are separated and remain in order.
        values = (values + torch.linspace(-1e-6, 1e-6, levels)).sort().values
        self.register_buffer("counts", torch.ones(levels))
        self.register_buffer("sums", values.clone())
        for _ in range(10):  # Lloyd's algorithm brings them to rest before training begins
            self._move(flat, 0.0)

    def _relative(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / along_axis(self.scale, weight.ndim, self.axis)

    @property
    def values(self) -> torch.Tensor:
        """The values, ascending, relative to the range."""
        return self.sums / self.counts

    def _nearest(self, relative: torch.Tensor) -> torch.Tensor:
        values = self.values
        return torch.bucketize(relative, (values[1:] + values[:-1]) / 2)

    def _move(self, flat: torch.Tensor, decay: float) -> None:
        """Move the values towards the means of the weights that are nearest to them.

        Args:
            flat: weights relative to their range.
            decay: of the moving averages; 0 takes the means themselves.
        """
        where = self._nearest(flat)
        counts = torch.bincount(where, minlength=len(self.counts)).to(flat.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, where, flat)
        used = counts > 0  # a value that nothing is near keeps its place
        self.counts.copy_(
            torch.where(used, decay * self.counts + (1 - decay) * counts, self.counts)
        )
        self.sums.copy_(torch.where(used, decay * self.sums + (1 - decay) * sums, self.sums))

    def snapped(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight on its values.

        Args:
            weight: float32, the shape that the codebook was made for.
        """
        return self.values[self._nearest(self._relative(weight))] * along_axis(
            self.scale, weight.ndim, self.axis
        )

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight on its values; gradients pass straight through."""
        with torch.no_grad():
            if self.training:
                self._move(self._relative(weight.detach()).flatten(), self.decay)
            off = self.snapped(weight.detach()) - weight.detach()
        return weight + off


class KeptNorm(nn.Module):
    """The BatchNorm of a folded convolution, put back behind it.

    It uses the statistics of the batch in training and the running statistics otherwise. Folding it
    back scales output channels by a positive factor, so that per-channel codes of the weight remain
    what they are. With several processes the statistics are those of the whole batch.

    Args:
        bias: float32, [C]: of the folded convolution, which loses it.
        momentum: of the running statistics.

    Attributes:
        mean, var: float32 [C], running statistics.
        start: float32 [C], the old bias.
        seen: sums while statistics are gathered, else None; set it to [] to begin.
        counts: False where what this process sees enters no statistics.
    """

    mean: torch.Tensor
    var: torch.Tensor
    start: torch.Tensor

    def __init__(self, bias: torch.Tensor, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("start", bias.detach().clone())
        self.register_buffer("mean", torch.zeros_like(bias))
        self.register_buffer("var", torch.ones_like(bias))
        # A logarithm: the factor remains positive.
        self.log_weight = nn.Parameter(torch.zeros_like(bias))
        self.bias = nn.Parameter(bias.detach().clone())
        self.seen: list[torch.Tensor] | None = None
        self.counts = (
            True  # False: what this process sees now is a placeholder, and enters no statistics
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` normalised.

        While statistics are gathered, return it with its old bias instead.

        Args:
            x: float32 [N, C, ...].
        """
        if self.seen is not None:
            dims = [d for d in range(x.ndim) if d != 1]
            values = x.double()
            self.seen.append(
                torch.cat(
                    [
                        values.sum(dims),
                        values.square().sum(dims),
                        values.new_full((1,), x.numel() / x.shape[1]),
                    ]
                )
            )
            return x + along_axis(self.start, x.ndim, 1)
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            result: torch.Tensor = nn.functional.batch_norm(
                x,
                self.mean,
                self.var,
                self.log_weight.exp(),
                self.bias,
                self.training and x.numel() > x.shape[1],
                self.momentum,
                EPSILON,
            )
            return result
        mean, var, count = _shared_statistics(x, self.counts)
        with torch.no_grad():
            self.mean.lerp_(mean.detach(), self.momentum)
            self.var.lerp_(var.detach() * count / max(count - 1.0, 1.0), self.momentum)
        factor = self.log_weight.exp() / (var + EPSILON).sqrt()
        return x * along_axis(factor, x.ndim, 1) + along_axis(self.bias - mean * factor, x.ndim, 1)

    def adopt_statistics_(self) -> None:
        """Make the gathered statistics the running ones.

        The factor and bias are set so that nothing changes.
        """
        assert self.seen
        total = torch.stack(self.seen).sum(0)
        self.seen = None
        channels, count = len(self.start), float(total[-1])
        mean = total[:channels] / count
        var = (total[channels : 2 * channels] / count - mean.square()).clamp_min(0.0)
        with torch.no_grad():
            self.mean.copy_(mean)
            self.var.copy_(var * count / max(count - 1.0, 1.0))
            self.log_weight.copy_(0.5 * (self.var + EPSILON).log())
            self.bias.copy_(self.mean + self.start)

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what replaces this norm: ``conv * factor + bias``.

        Returns:
            The factor of the output channels, greater than 0, and the bias, float32 [C] each.
        """
        factor = (self.log_weight.exp() / (self.var + EPSILON).sqrt()).detach()
        return factor, (self.bias - self.mean * factor).detach()


def _shared_statistics(x: torch.Tensor, counts: bool) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return mean and biased variance of each channel over the batch of all processes.

    The third value is the number of values behind each of them.
    """
    from torch.distributed.nn import functional  # the one that gradients pass through

    all_reduce: Callable[[torch.Tensor], torch.Tensor] = functional.all_reduce
    dims, weight = [d for d in range(x.ndim) if d != 1], float(counts)
    values = x.float()
    count = values.new_full((1,), weight * x.numel() / x.shape[1])
    total = all_reduce(torch.cat([values.sum(dims) * weight, count]))
    mean = total[:-1] / total[-1]
    squares = all_reduce((values - along_axis(mean, x.ndim, 1)).square().sum(dims) * weight)
    return mean, squares / total[-1], float(total[-1])
