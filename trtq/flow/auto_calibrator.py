"""``--calibrator auto``: the calibrator whose simulation answers most like the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx

from trtq.data.metrics import ratio_db
from trtq.flow.inputs import Inputs
from trtq.graph.feed import Feed, outputs_of
from trtq.methods.base import MethodContext
from trtq.methods.held_out import PAYS
from trtq.quant.calibrate import ActivationStats, make_encodings, summarize_all
from trtq.quant.calibrators import CANDIDATES
from trtq.quant.observe import Range
from trtq.quant.placement import Placement
from trtq.quant.simulate import insert_fake_quantize
from trtq.tasks.distances import relative_error

FIRST, SECOND = 32, 128  # samples of the two rounds: on 32 alone luck decides
BATCH = 16
SEPARATOR = "|"  # between a calibrator and the key of a statistic, in the cache
Stats = Mapping[str, ActivationStats]


class Errors(NamedTuple):
    """How far the answers of a simulation are from the float model's, means over samples.

    Attributes:
        divergence: as the task measures it; the same as ``error`` without a task.
        error: squared error of the outputs over their square.
        samples: how many.
    """

    divergence: float
    error: float
    samples: int

    @property
    def words(self) -> str:
        """One phrase for a person."""
        return (
            f"{ratio_db(1.0, self.error):.2f} dB of output SQNR, distance {self.divergence:.3g} "
            f"({self.samples} samples)"
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """A calibrator, and how far each is from the float model.

    Attributes:
        name: the one that is taken.
        errors: of each, by name; the first is the default.
    """

    name: str
    errors: Mapping[str, Errors]

    @property
    def words(self) -> str:
        """One line for a person."""
        others = "; ".join(f"{k} {v.words}" for k, v in self.errors.items() if k != self.name)
        return f"calibrator auto takes {self.name}: {self.errors[self.name].words}; {others}"


def better_of(errors: Mapping[str, Errors]) -> str:
    """Return the default unless another pays: a smaller error, and answers that are no farther.

    A gain below a twentieth is within the noise of the samples.

    Args:
        errors: of each, by name, the default first.
    """
    default = next(iter(errors))
    least = errors[default]
    paying = [
        name
        for name, e in errors.items()
        if e.error <= PAYS * least.error and e.divergence <= least.divergence
    ]
    return min(paying, key=lambda name: errors[name].error, default=default)


def summarize_candidates(
    placement: Placement, seen: Mapping[str, Range], percentile: float
) -> dict[str, ActivationStats]:
    """Return the statistics of every activation for each candidate, in one mapping.

    Args:
        placement: the quantizers.
        seen: what every activation was seen to do, by key of its statistics.
        percentile: of the calibrator of that name, percent.

    Returns:
        Keys are the calibrator, ``|`` and the key of the statistics.
    """
    return {
        f"{name}{SEPARATOR}{key}": stats
        for name in CANDIDATES
        for key, stats in summarize_all(placement, seen, name, percentile).items()
    }


def by_calibrator(stats: Stats) -> dict[str, dict[str, ActivationStats]]:
    """Return the statistics that :func:`summarize_candidates` joined, by calibrator.

    Args:
        stats: as the cache has them.
    """
    stats_by_calibrator: dict[str, dict[str, ActivationStats]] = {name: {} for name in CANDIDATES}
    for joined, value in stats.items():
        name, _, key = joined.partition(SEPARATOR)
        stats_by_calibrator[name][key] = value
    return stats_by_calibrator


def choose_calibrator(
    inputs: Inputs, context: MethodContext, stats_by_calibrator: Mapping[str, Stats]
) -> Choice:
    """Return the calibrator whose answers are nearest to the float model's, on calibration samples.

    The one with the least error on a few samples meets the default on more of them, and has to pay
    there. Weights are rounded to nearest, and methods that act after calibration are left out.

    Args:
        inputs: the float model and the samples.
        context: the graph that is quantized; its placement is as before afterwards.
        stats_by_calibrator: statistics of every activation, by calibrator, the default first.
    """
    few, many = (
        min(len(inputs.samples), inputs.of_usual_size(n, least=2)) for n in (FIRST, SECOND)
    )
    errors = _round(inputs, context, stats_by_calibrator, few)
    default = next(iter(errors))
    best = min(errors, key=lambda name: errors[name].error)
    finalists = dict.fromkeys((default, best))
    if best != default and many > few:
        candidates = {name: stats_by_calibrator[name] for name in finalists}
        errors |= _round(inputs, context, candidates, many)
    return Choice(better_of({name: errors[name] for name in finalists}), errors)


def _round(
    inputs: Inputs, context: MethodContext, candidates: Mapping[str, Stats], count: int
) -> dict[str, Errors]:
    """Return the errors of some calibrators on the first samples."""
    feeds = list(inputs.images(count, BATCH))
    with torch.inference_mode():
        wanted = [outputs_of(inputs.model.graph.module(*feed)) for feed in feeds]
        return {
            name: _errors(inputs, context, stats, feeds, wanted)
            for name, stats in candidates.items()
        }


def _errors(
    inputs: Inputs,
    context: MethodContext,
    stats: Stats,
    feeds: Sequence[Feed],
    wanted: Sequence[Feed],
) -> Errors:
    """Return how far a candidate's answers are from the float model's."""
    quantizers = context.placement.quantizers
    before = [(q.format, q.float_reason, q.decided) for q in quantizers]
    try:
        encodings = make_encodings(context.graph, context.placement, stats, {})
        simulated = insert_fake_quantize(context.graph, context.placement, encodings)
    finally:
        for q, (fmt, reason, decided) in zip(quantizers, before, strict=True):
            q.format, q.float_reason, q.decided = fmt, reason, decided
    return answer_errors(inputs, simulated, feeds, wanted)


def answer_errors(
    inputs: Inputs, simulated: fx.GraphModule, feeds: Sequence[Feed], wanted: Sequence[Feed]
) -> Errors:
    """Return how far a simulation's answers are from the float model's.

    Args:
        inputs: the model, and its task, which says what distance is.
        simulated: the graph with fake-quantize calls.
        feeds: batches of samples.
        wanted: outputs of the float model for each batch.
    """
    names = [t.name for t in inputs.model.graph.signature.outputs]
    divergences, errors = list[torch.Tensor](), list[torch.Tensor]()
    for feed, reference in zip(feeds, wanted, strict=True):
        given = outputs_of(simulated(*feed))
        ours, theirs = (dict(zip(names, side, strict=True)) for side in (given, reference))
        errors.append(relative_error(ours, theirs))
        if inputs.task is not None:
            divergences.append(inputs.task.divergence(ours, theirs))
    error = torch.cat(errors)
    divergence = torch.cat(divergences) if divergences else error
    return Errors(float(divergence.mean()), float(error.mean()), len(error))
