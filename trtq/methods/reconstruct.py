"""Learned rounding: choose for each weight whether it rounds up or down.

The range of each activation is learned, too. The quantized network learns to give the float
network's block outputs and logits on the calibration images; no labels are read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import torch
from msgspec.structs import asdict, replace
from torch import fx

from trtq import ops
from trtq.artifact import sha256_bytes
from trtq.errors import CalibrationError
from trtq.graph.device import device_of, rng_devices
from trtq.graph.feed import IMAGE_AXES, Feed, count_of, joined, outputs_of
from trtq.graph.nodes import operands
from trtq.layouts import layout_of
from trtq.methods.base import Method, MethodContext, Report, needs
from trtq.methods.fisher import FisherMetric
from trtq.methods.pace import Pace
from trtq.quant.fake_quantize import FakeQuantizeCall, spread
from trtq.quant.simulate import shared_names
from trtq.train.learning_state import LearningState
from trtq.typed import present

USUAL_VALUES = 3 * 224 * 224  # of a sample; steps of larger ones have fewer
WIDTH = {"NCHW": 3, "NHWC": 2}  # axis by layout
FISHER_SAMPLES = 128  # that each slope is a mean of
NARROW = 8  # bits from which plain rounding is usually fine
GAMMA, ZETA = -0.1, 1.1  # AdaRound's stretched sigmoid reaches 0 and 1


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        steps: of Adam.
        batch: images a step.
        images: calibration images that are learned from; all are in memory.
        lr: of the rounding decisions, lowered to 0 by a cosine.
        lr_range: of the ranges' logarithms.
        keep: share of an activation's values that are quantized while learning (QDrop); 1 for all.
        flip: chance that the images of a step are mirrored.
        rank: pairs of slope and error that the Fisher information of a block's output is taken
            from (FIMA-Q); 0 weighs all errors of a block alike.
    """

    steps: int = 200
    batch: int = 32
    images: int = 512
    lr: float = 0.05
    lr_range: float = 0.01
    keep: float = 1.0
    flip: float = 0.5
    rank: int = 0


class SoftRounding(torch.nn.Module):
    """A weight with codes floor(w / s) plus a learned number h in 0 to 1.

    See Nagel et al. 2020, eq. 22-24: h = clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1) for the
    learned v; it starts at w / s - floor(w / s).

    Args:
        weight: float32.
        step: one code's value, shaped to divide ``weight``.
        qmin: lowest code.
        qmax: highest code.
    """

    def __init__(self, weight: torch.Tensor, step: torch.Tensor, qmin: int, qmax: int) -> None:
        super().__init__()
        self.step = step.to(weight.device)
        codes = weight / self.step
        self.qmin, self.qmax, self.floor = qmin, qmax, codes.floor()
        rest = (codes - self.floor).clamp(0.01, 0.99)
        self.logits = torch.nn.Parameter(torch.logit((rest - GAMMA) / (ZETA - GAMMA)))

    def up(self) -> torch.Tensor:
        """Return how far each weight is rounded up, 0 to 1."""
        return (torch.sigmoid(self.logits) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)

    def forward(self) -> torch.Tensor:
        """Return the weight with every decision taken and the gradient of the soft weight.

        The gradient is straight-through. AdaRound's soft weights with a regulariser need thousands
        of steps to decide. After a few hundred the decided network differs from the learned one
        (EfficientNet-Lite0, w4a8: 70 % agreement before, 46 % after).
        """
        up = self.up()
        decided = (up >= 0.5).to(up.dtype)
        return (self.floor + decided + up - up.detach()).clamp(self.qmin, self.qmax) * self.step

    def hard(self) -> torch.Tensor:
        """Return the weight with every decision taken."""
        return (self.floor + (self.up() >= 0.5)).clamp(self.qmin, self.qmax) * self.step


class LearnedRange(torch.nn.Module):
    """An activation quantizer with a learned step (Esser et al. 2020, LSQ), in the log domain.

    Args:
        step: its first value, float32 [], greater than 0.
        qmin: lowest code.
        qmax: highest code.
    """

    def __init__(self, step: torch.Tensor, qmin: int, qmax: int) -> None:
        super().__init__()
        self.log_step = torch.nn.Parameter(step.log())
        self.qmin, self.qmax = qmin, qmax

    def forward(self, x: torch.Tensor, keep: float) -> torch.Tensor:
        """Quantize; while learning, leave a share of 1 - ``keep`` of the values as they are.

        This is QDrop (Wei et al. 2022).

        Args:
            x: float32, any shape.
            keep: share of the values that are quantized, 0 to 1.
        """
        step = self.log_step.exp()
        codes = (x / step).clamp(self.qmin, self.qmax)
        out = (codes + (codes.round() - codes).detach()) * step
        return out if keep >= 1.0 else torch.where(torch.rand_like(x) < keep, out, x)


class _Learner(fx.Interpreter):
    """Runs the simulation with learned weights and ranges in place of their fake-quantize calls."""

    def __init__(
        self,
        graph: fx.GraphModule,
        weights: Mapping[str, SoftRounding],
        ranges: Mapping[str, LearnedRange],
    ) -> None:
        super().__init__(graph)
        self.weights, self.ranges, self.keep = weights, ranges, 1.0
        self.taps = dict[str, torch.Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        call = FakeQuantizeCall.of(n)
        if call is not None and call.name in self.weights:
            return self.weights[call.name]()
        if call is not None and call.name in self.ranges:
            return self.ranges[call.name](self.fetch_args_kwargs_from_env(n)[0][0], self.keep)
        result = super().run_node(n)
        if n.name in self.taps:
            self.taps[n.name] = result
        return result


def _blocks(graph: fx.GraphModule) -> list[str]:
    """Return the residual adds: where blocks end (Li et al. 2021, BRECQ)."""
    return [
        n.name
        for n in graph.graph.nodes
        if ops.of(n).name == "add" and not n.meta.get("trtq_part") and _joins(n)
    ]


def _joins(node: fx.Node) -> bool:
    """Whether an add joins two activations with at least three axes."""
    computed = all(isinstance(n, fx.Node) and n.op != "get_attr" for n in operands(node)[:2])
    value = node.meta.get("val")
    return computed and isinstance(value, torch.Tensor) and value.ndim >= 3


def learners(
    context: MethodContext, shared: Mapping[str, str], bits: Collection[int]
) -> tuple[dict[str, SoftRounding], dict[str, LearnedRange]]:
    """Return what learns: weights and activations of some widths, by the name of their quantizer.

    Args:
        context: its encodings are where learning starts.
        shared: from :func:`trtq.quant.simulate.shared_names`.
        bits: of the quantizers that learn.
    """
    encodings, device = context.encodings, device_of(context.graph)
    weights, ranges = dict[str, SoftRounding](), dict[str, LearnedRange]()
    for q in context.placement.active:
        if q.format.bits not in bits or q.format.kind != "uniform" or shared[q.name] != q.name:
            continue  # quantizers of one tensor and one scale are one call
        step, fmt = encodings.scale(q.name), q.format
        if q.role == "weight":
            if len(q.source.users) != 1:
                continue  # two layers with scales of their own would each round the other's codes
            weight = encodings.constant(context.graph, q.source)
            each = spread(step, weight, fmt.axis)
            weights[q.name] = SoftRounding(weight, each, fmt.qmin, fmt.qmax)
        elif not q.is_weight:
            ranges[q.name] = LearnedRange(step.to(device), fmt.qmin, fmt.qmax)
    return weights, ranges


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Learn, then write the rounded weights and the ranges into the encodings.

    Returns:
        Numbers of ``steps``, ``images``, ``weights`` and ``ranges``, and ``loss``: the first and
        the last; nothing is learned where every format of fewer than 8 bits remains in float or is
        shared.

    Raises:
        CalibrationError: the loss is not finite.
    """
    feed = joined(context.images(arguments.images))
    shared = shared_names(context.placement, context.encodings)
    weights, ranges = learners(context, shared, range(NARROW))
    report = learn("reconstruct", context, arguments, feed, weights, ranges)
    write_(context, shared, weights, ranges)
    return report


def write_(
    context: MethodContext,
    shared: Mapping[str, str],
    weights: Mapping[str, SoftRounding],
    ranges: Mapping[str, LearnedRange],
) -> None:
    """Write what was learned into the encodings.

    Args:
        context: its encodings change.
        shared: from :func:`trtq.quant.simulate.shared_names`.
        weights: from :func:`learners`.
        ranges: from :func:`learners`.
    """
    encodings = context.encodings
    for q in context.placement.active:
        if q.name in weights:
            encodings.constants[str(q.source.target)] = weights[q.name].hard().detach()
        elif shared[q.name] in ranges:
            step = ranges[shared[q.name]].log_step.detach().exp()
            encodings.amax[q.name] = step.cpu() * q.format.qmax


def _few(method: str, context: MethodContext, feed: Feed, batch: int) -> int:
    """Return how many samples a step has where they are run one by one.

    As many as have the values of ``batch`` images of 3x224x224 at most.
    """
    each = sum(t[0].numel() for t in feed)
    count = min(batch, max(1, batch * USUAL_VALUES // max(1, each)))
    shown = "one sample" if count == 1 else f"{count} samples"
    context.note(
        f"{method}: the model takes one sample at a time; a step is {shown}"
        + ("" if count == batch else f", not {batch}: they are large")
    )
    return count


def learn(
    method: str,
    context: MethodContext,
    arguments: Arguments,
    feed: Feed,
    weights: Mapping[str, SoftRounding],
    ranges: Mapping[str, LearnedRange],
) -> Report:
    """Run the steps. A run that was stopped continues where it was.

    Args:
        method: its name, for notes and errors.
        context: the model with its encodings, which do not change here.
        arguments: how to learn.
        feed: samples that are learned from.
        weights: from :func:`learners`; they change.
        ranges: from :func:`learners`; they change.

    Returns:
        Numbers of ``steps``, ``images``, ``weights`` and ``ranges``, and the first and the last
        ``loss``.

    Raises:
        CalibrationError: the loss is not finite.
    """
    count = count_of(feed)
    if not weights and not ranges:
        context.note(
            f"{method}: all layers that could learn remain in float or are shared, so there is "
            "nothing to learn"
        )
        return {"steps": 0, "images": count, "weights": 0, "ranges": 0, "loss": []}
    if not context.dynamic_batch:
        arguments = replace(arguments, batch=_few(method, context, feed, arguments.batch))
    steps, losses = _learn(method, context, arguments, feed, weights, ranges)
    return {
        "steps": steps,
        "images": count,
        "weights": len(weights),
        "ranges": len(ranges),
        "loss": losses,
    }


def _learn(
    method: str,
    context: MethodContext,
    arguments: Arguments,
    feed: Feed,
    weights: Mapping[str, SoftRounding],
    ranges: Mapping[str, LearnedRange],
) -> tuple[int, list[float]]:
    """Run the steps; return how many they were, and the first and the last loss."""
    steps, batch, count = arguments.steps, arguments.batch, count_of(feed)
    learner, target = (
        _Learner(context.simulated(), weights, ranges),
        _Learner(context.graph, {}, {}),
    )
    taps = _blocks(context.graph)
    for runner in (learner, target):
        runner.taps = dict.fromkeys(taps, torch.empty(0))
    rates = arguments.lr, arguments.lr_range
    optimizer = torch.optim.Adam(
        [
            {"params": [w.logits for w in weights.values()], "lr": rates[0]},
            {"params": [r.log_step for r in ranges.values()], "lr": rates[1]},
        ]
    )
    generator = torch.Generator().manual_seed(0)
    context.begin("Learning the rounding", steps)
    gpus = rng_devices(device_of(context.graph))
    with torch.random.fork_rng(gpus):
        torch.manual_seed(0)
        metric = FisherMetric(taps, arguments.rank) if arguments.rank > 0 and taps else None
        state = LearningState(
            optimizer,
            generator,
            gpus=gpus,
            more={} if metric is None else metric.rows,
            key=[
                method,
                context.encodings.digest(),
                asdict(arguments),
                *present([context.time_budget_s]),
                *(sha256_bytes(t.cpu().numpy().tobytes()) for t in feed),
            ],
        )
        done, losses = state.load(context.resume)
        pace = Pace(method, steps, context.time_budget_s, context.note, state.total)
        if 0 < done < pace.total:
            context.note(
                f"{method} resumes at step {done} of {pace.total}, where an earlier run stopped"
            )
        context.advance(done)
        while done < pace.total:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1.0 + math.cos(math.pi * done / pace.total)) / 2.0
            rows = torch.randint(count, (min(batch, count),), generator=generator)
            part = tuple(t[rows] for t in feed)
            if float(torch.rand((), generator=generator)) < arguments.flip:
                part = _mirrored(part)
            learner.keep = arguments.keep
            if metric is not None and metric.due(done, pace.total):
                some = tuple(t[:FISHER_SAMPLES] for t in feed)
                metric.add(*_slopes(context, learner, target, some, batch))
            optimizer.zero_grad(set_to_none=True)
            now = _gradients(learner, target, runs(context, part), metric)
            optimizer.step()
            losses = [losses[0] if losses else now, now]
            if not math.isfinite(losses[1]):
                raise CalibrationError(
                    "Learning the rounding failed",
                    f"the loss is {losses[1]} at step {done}",
                    f"Use a smaller --method-arg {method}.lr={arguments.lr / 5:g}",
                )
            done += 1
            pace.did(done)
            state.total = pace.total if pace.settled else 0
            state.save(context.resume, done, losses, last=done == pace.total)
            context.advance(1)
    return pace.total, losses


def runs(context: MethodContext, feed: Feed) -> list[Feed]:
    """Return what is run at once: the batch, or each sample where the model takes one at a time.

    Args:
        context: says which.
        feed: a batch.
    """
    if context.dynamic_batch:
        return [feed]
    return list(zip(*(torch.split(t, 1) for t in feed), strict=True))


def _slopes(
    context: MethodContext, learner: _Learner, target: _Learner, feed: Feed, batch: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the slope of the outputs' divergence by each block's output, and the block's error.

    Both are absolute, and means over samples, of the network as it is now.
    """
    count, keep = count_of(feed), learner.keep
    slopes, errors = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    learner.keep = 1.0
    for start in range(0, count, batch):
        for part in runs(context, tuple(t[start : start + batch] for t in feed)):
            with torch.no_grad():
                wanted = outputs_of(target.run(*part))
            cost = context.divergence(outputs_of(learner.run(*part)), wanted).sum()
            for name, slope in _by_block(cost, learner.taps).items():
                far = (learner.taps[name].detach() - target.taps[name]).abs().sum(0) / count
                slopes[name] = slopes.get(name, 0.0) + slope.abs().sum(0) / count
                errors[name] = errors.get(name, 0.0) + far
    learner.keep = keep
    return slopes, errors


def _by_block(cost: torch.Tensor, taps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the slope of a cost by each block's output, 0 where it does not depend on it.

    A block before the first layer that learns has no slope, and needs none.
    """
    learned = [n for n, t in taps.items() if t.requires_grad and cost.requires_grad]
    inputs = [taps[n] for n in learned]
    found = torch.autograd.grad(cost, inputs, allow_unused=True) if inputs else ()
    known = dict(zip(learned, found, strict=True))
    zeros = {n: torch.zeros_like(t) for n, t in taps.items()}
    return {n: zeros[n] if known.get(n) is None else known[n] for n in taps}


def _gradients(
    learner: _Learner, target: _Learner, runs: Sequence[Feed], metric: FisherMetric | None
) -> float:
    """Add the gradients of one step, and return its loss: the mean over the runs."""
    total = 0.0
    for part in runs:
        with torch.no_grad():
            wanted = outputs_of(target.run(*part))
        got = outputs_of(learner.run(*part))
        start = torch.zeros((), device=wanted[0].device)
        loss = sum(map(_relative, got, wanted), start) / len(wanted)
        for name in target.taps:
            cost = _relative if metric is None else partial(metric.loss, name)
            loss = loss + cost(learner.taps[name], target.taps[name]) / len(target.taps)
        loss = loss / len(runs)
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def _mirrored(feed: Feed) -> Feed:
    """Return mirrored images: the float network answers for them, too.

    Other inputs have no mirror image.
    """
    images = all(t.ndim == IMAGE_AXES and t.is_floating_point() for t in feed)
    return tuple(t.flip(WIDTH[layout_of(t.shape) or "NCHW"]) for t in feed) if images else feed


def _relative(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error over the mean square of what is wanted, 0 for integers."""
    if not wanted.is_floating_point():  # class indices have no slope
        return torch.zeros((), dtype=torch.float32, requires_grad=True)
    return (got - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)


METHOD = Method(
    name="reconstruct",
    summary="Learn the rounding of weights and the ranges of activations below 8 bits from the "
    "float model's block outputs.",
    label="folded",
    stage="after",
    source="Nagel et al. 2020, AdaRound, eq. 22-23, decided at every step; Li et al. 2021, BRECQ; "
    "Wei et al. 2022, QDrop (keep); "
    "Esser et al. 2020, LSQ; Wu et al. 2025, FIMA-Q (rank)",
    arguments=Arguments(),
    run=run,
    not_applicable_reason=needs(
        (
            lambda context: any(q.format.bits < NARROW for q in context.placement.active),
            "every quantizer has 8 bits; it is for fewer, such as --bits w4a8, and refine is for 8",
        ),
    ),
)
