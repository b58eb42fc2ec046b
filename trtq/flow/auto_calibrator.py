"""``--calibrator auto``: the calibrator whose simulation answers most like the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from trtq.flow.inputs import Inputs
from trtq.graph.feed import Feed, outputs_of
from trtq.methods.base import MethodContext
from trtq.quant.calibrate import ActivationStats, make_encodings, summarize_all
from trtq.quant.calibrators import CANDIDATES
from trtq.quant.observe import Range
from trtq.quant.placement import Placement
from trtq.quant.simulate import insert_fake_quantize
from trtq.tasks.distances import relative_error

IMAGES = 16
SEPARATOR = "|"  # between a calibrator and the key of a statistic, in the cache
Stats = Mapping[str, ActivationStats]


@dataclass(frozen=True, slots=True)
class Choice:
    """A calibrator, and what each costs.

    Attributes:
        name: the best.
        error: of each, by name.
    """

    name: str
    error: Mapping[str, float]

    @property
    def words(self) -> str:
        """One line for a person."""
        others = ", ".join(f"{k} {v:.3g}" for k, v in self.error.items() if k != self.name)
        return (
            f"calibrator auto takes {self.name}: distance to the float model's answers "
            f"{self.error[self.name]:.3g}, {others}"
        )


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
    """Return the calibrator with the least distance of the answers, on calibration samples.

    Weights are rounded to nearest, and methods that act after calibration are left out. Equal
    distances go to the first.

    Args:
        inputs: the float model and the samples.
        context: the graph that is quantized; its placement is as before afterwards.
        stats_by_calibrator: statistics of every activation, by calibrator.
    """
    count = inputs.of_usual_size(IMAGES, least=2)
    feeds = list(inputs.images(count, IMAGES))
    with torch.inference_mode():
        wanted = [outputs_of(inputs.model.graph.module(*feed)) for feed in feeds]
        error = {
            name: _distance(inputs, context, stats, feeds, wanted)
            for name, stats in stats_by_calibrator.items()
        }
    return Choice(min(error, key=lambda name: error[name]), error)


def _distance(
    inputs: Inputs,
    context: MethodContext,
    stats: Stats,
    feeds: Sequence[Feed],
    wanted: Sequence[Feed],
) -> float:
    """Return the mean distance of a candidate's answers from the float model's."""
    quantizers = context.placement.quantizers
    before = [(q.format, q.float_reason, q.decided) for q in quantizers]
    try:
        encodings = make_encodings(context.graph, context.placement, stats, {})
        simulated = insert_fake_quantize(context.graph, context.placement, encodings)
    finally:
        for q, (fmt, reason, decided) in zip(quantizers, before, strict=True):
            q.format, q.float_reason, q.decided = fmt, reason, decided
    return answer_distance(inputs, simulated, feeds, wanted)


def answer_distance(
    inputs: Inputs, simulated: fx.GraphModule, feeds: Sequence[Feed], wanted: Sequence[Feed]
) -> float:
    """Return the mean distance of a simulation's answers from the float model's.

    Args:
        inputs: the model, and its task, which says what distance is; without one it is the relative
            error of all outputs.
        simulated: the graph with fake-quantize calls.
        feeds: batches of samples.
        wanted: outputs of the float model for each batch.
    """
    names = [t.name for t in inputs.model.graph.signature.outputs]
    measure = relative_error if inputs.task is None else inputs.task.divergence
    each = []
    for feed, reference in zip(feeds, wanted, strict=True):
        given = outputs_of(simulated(*feed))
        ours, theirs = (dict(zip(names, side, strict=True)) for side in (given, reference))
        each.append(measure(ours, theirs))
    return float(torch.cat(each).mean())
