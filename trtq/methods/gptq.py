"""GPTQ: round the weights of linear layers one input after another.

The inputs that are left make up for what rounding the others cost the layer's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import torch
from torch import fx

from trtq import ops
from trtq.errors import CalibrationError
from trtq.graph.feed import Feed
from trtq.graph.naming import node_name
from trtq.graph.nodes import operands
from trtq.methods.base import Method, MethodContext, Report, needs
from trtq.quant.fake_quantize import e2m1, e4m3, spread
from trtq.quant.formats import Format
from trtq.quant.placement import Quantizer

MOST_VALUES = 1 << 27  # of the matrices that are in memory at a time: 1 GiB
LAZY = 128  # columns after which the rest of a weight is updated


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        images: calibration images whose inputs of layers are added up.
        damping: share of the mean diagonal of these sums that is added to it.
    """

    images: int = 128
    damping: float = 0.01


def _fits(quantizer: Quantizer) -> bool:
    """Whether a weight is that of a linear layer, below INT8, read by that layer alone."""
    fmt = quantizer.format
    return (
        quantizer.is_weight
        and ops.kind(quantizer.consumer) == "linear"
        and fmt.axis is not None
        and (fmt.bits < 8 or fmt.kind == "fp8")
        and fmt.has_kernel
        and len(quantizer.source.users) == 1
    )


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Round the weights of linear layers, and write them into the encodings.

    Returns:
        ``layers`` rounded, ``better``: those that kept the result, and ``error``: the mean over
        layers of the output's squared error over that of rounding to nearest.

    Raises:
        CalibrationError: the sums of a layer cannot be inverted.
    """
    layers = [q for q in context.placement.active if _fits(q)]
    context.begin("GPTQ", len(layers))
    gained = list[float]()
    for group in _groups(context, layers):
        sums = _input_sums(context, group, context.images(arguments.images))
        for quantizer in group:
            gained.append(_round(context, quantizer, sums.pop(quantizer.name), arguments.damping))
            context.advance(1)
    better = [g for g in gained if g < 1.0]
    return {
        "layers": len(gained),
        "better": len(better),
        "error": round(sum(gained) / len(gained), 4) if gained else 1.0,
    }


def _groups(context: MethodContext, layers: Sequence[Quantizer]) -> Iterator[list[Quantizer]]:
    """Yield layers whose matrices fit into memory together."""
    group, value_count = list[Quantizer](), 0
    for quantizer in layers:
        own = context.encodings.constant(context.graph, quantizer.source).shape[1] ** 2
        if group and value_count + own > MOST_VALUES:
            yield group
            group, value_count = [], 0
        group.append(quantizer)
        value_count += own
    if group:
        yield group


class _Sums(fx.Interpreter):
    """Runs the float model and adds up x x^T of the inputs of layers."""

    def __init__(self, graph: fx.GraphModule, layers: Sequence[Quantizer]) -> None:
        super().__init__(graph)
        self.readers = {q.consumer: q.name for q in layers}
        self.sums = dict[str, torch.Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        name = self.readers.get(n)
        if name is not None:
            x = self.env[operands(n)[0]]
            rows = x.reshape(-1, x.shape[-1])
            added = rows.mT @ rows
            self.sums[name] = self.sums[name] + added if name in self.sums else added
        return super().run_node(n)


def _input_sums(
    context: MethodContext, layers: Sequence[Quantizer], feeds: Iterable[Feed]
) -> dict[str, torch.Tensor]:
    """Return the sum of x x^T over all inputs x of each layer, float32 [K, K]."""
    watcher = _Sums(context.graph, layers)
    with torch.inference_mode():
        for feed in feeds:
            watcher.run(*feed)
    return watcher.sums


def _round(
    context: MethodContext, quantizer: Quantizer, sums: torch.Tensor, damping: float
) -> float:
    """Round a weight where that is better than to the nearest codes.

    Returns the layer's expected squared error over that of rounding to nearest.
    """
    encodings, fmt = context.encodings, quantizer.format
    weight = encodings.constant(context.graph, quantizer.source)
    steps = spread(encodings.scale(quantizer.name).to(weight.device), weight, fmt.axis)
    steps = steps.expand_as(weight)
    nearest = _nearest(weight, steps, fmt)
    rounded_weight = rounded(weight, steps, fmt, sums, damping)
    before, after = (_error(weight - w, sums) for w in (nearest, rounded_weight))
    if not after < before:
        context.note(f"gptq: {node_name(quantizer.consumer)} keeps its nearest codes")
        return 1.0
    encodings.constants[str(quantizer.source.target)] = rounded_weight.cpu()
    return after / before


def rounded(
    weight: torch.Tensor, steps: torch.Tensor, fmt: Format, sums: torch.Tensor, damping: float
) -> torch.Tensor:
    """Return a weight on codes with less error of the layer's output.

    Frantar et al. 2022, eq. 2 and 3, with the Cholesky factor of the inverse (section 3.3, step 3)
    and updates of 128 columns at a time (step 2). The scales are not changed. For example, two
    equal inputs with weights 0.4 and 0.3 and a step of 1 give 0 and 1: the second makes up for the
    first.

    Args:
        weight: float32 [N, K].
        steps: one code's value for each weight, [N, K].
        fmt: of the codes.
        sums: of x x^T over the inputs, [K, K].
        damping: share of the mean diagonal that is added to it.

    Returns:
        float32 [N, K], multiples of ``steps``.

    Raises:
        CalibrationError: ``sums`` cannot be inverted.
    """
    work, out = weight.double().clone(), torch.empty_like(weight)
    factor = _inverse_factor(sums.double(), damping)
    for start in range(0, weight.shape[1], LAZY):
        end = min(start + LAZY, weight.shape[1])
        errors = work.new_zeros(len(work), end - start)
        for j in range(start, end):
            codes = _nearest(work[:, j].float(), steps[:, j], fmt)
            out[:, j] = codes
            errors[:, j - start] = (work[:, j] - codes) / factor[j, j]
            work[:, j:end] -= torch.outer(errors[:, j - start], factor[j, j:end])
        work[:, end:] -= errors @ factor[start:end, end:]
    return out


def _inverse_factor(sums: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse, float64 [K, K].

    Args:
        sums: of x x^T over the inputs, float64 [K, K].
        damping: share of the mean diagonal that is added to it.

    Raises:
        CalibrationError: there is no inverse, as with few inputs and a damping of 0.
    """
    diagonal = sums.diagonal()
    never = diagonal == 0  # inputs that were always 0
    mean = diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny)
    damped = sums + torch.diag(damping * mean + never * mean)
    inverse = torch.cholesky_inverse(_cholesky(damped, damping, upper=False))
    return _cholesky(inverse, damping, upper=True)


def _cholesky(matrix: torch.Tensor, damping: float, *, upper: bool) -> torch.Tensor:
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix, upper=upper)
    if bool(failed):
        raise CalibrationError(
            "gptq cannot invert the products of a layer's inputs",
            f"with a damping of {damping:g} they are singular",
            "Use --method-arg gptq.damping=0.01",
        )
    return factor


def _nearest(values: torch.Tensor, steps: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Return the nearest codes' values."""
    if fmt.kind == "fp4":
        return e2m1(values / steps) * steps
    if fmt.kind == "fp8":
        return e4m3(values / steps) * steps
    return (values / steps).round_().clamp_(fmt.qmin, fmt.qmax) * steps


def _error(off: torch.Tensor, sums: torch.Tensor) -> float:
    """Return the sum of squares of what a weight's errors add to the outputs.

    Args:
        off: the errors, [N, K].
        sums: of x x^T over the inputs, [K, K].
    """
    return float(((off @ sums) * off).sum())


METHOD = Method(
    name="gptq",
    summary="Round the weights of linear layers, below 8 bits or FP8, so that later inputs make up "
    "for earlier ones.",
    label="folded",
    stage="after",
    source="Frantar et al. 2022, GPTQ, eq. 2-3, section 3.3",
    arguments=Arguments(),
    run=run,
    not_applicable_reason=needs(
        (
            lambda context: any(_fits(q) for q in context.placement.active),
            "no linear layer has FP8 weights or fewer than 8 bits, as with --bits w4a16:128",
        ),
    ),
)
