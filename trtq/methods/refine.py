"""Learned rounding and ranges at 8 bits, kept where samples that were not learned from gain by it.

At 8 bits plain rounding is close already, and learning can fit the few samples it sees. So it is
judged on others.
"""

from __future__ import annotations

import torch

from trtq.data.metrics import ratio_db
from trtq.errors import CalibrationError
from trtq.graph.feed import Feed, count_of, joined, outputs_of
from trtq.methods.base import Method, MethodContext, Report, needs
from trtq.methods.held_out import EVERY, FEWEST, PAYS, split
from trtq.methods.reconstruct import NARROW, Arguments, learn, learners, runs, write_
from trtq.quant.simulate import shared_names
from trtq.tasks.distances import relative_error

BATCH = 16


def _split(feed: Feed) -> tuple[Feed, Feed]:
    """Return the samples to learn from, and those that judge.

    Raises:
        CalibrationError: there are too few.
    """
    count = count_of(feed)
    if count < FEWEST:
        raise CalibrationError(
            "Cannot use the method refine",
            f"it holds every {EVERY}th sample out, and calibration has {count}, expected at least "
            f"{FEWEST}",
            "Give more calibration images, or leave --method refine out",
        )
    rest, judges = split(count)
    return tuple(t[rest] for t in feed), tuple(t[judges] for t in feed)


def _error(context: MethodContext, feed: Feed) -> float:
    """Return the mean of squared error over square of the float model's outputs, on samples."""
    simulated, each = context.simulated(), []
    with torch.inference_mode():
        for start in range(0, count_of(feed), BATCH):
            for part in runs(context, tuple(t[start : start + BATCH] for t in feed)):
                wanted, got = (
                    {str(i): t for i, t in enumerate(outputs_of(graph(*part)))}
                    for graph in (context.graph, simulated)
                )
                each.append(relative_error(got, wanted))
    return float(torch.cat(each).mean())


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Learn on three samples of four, and keep the result where the fourth ones gain by it.

    Returns:
        As of ``reconstruct``, with ``held_out``: the number of samples that judged, ``error``: of
        the outputs on them before and after, squared error over square; and ``kept``.

    Raises:
        CalibrationError: too few samples, or the loss is not finite.
    """
    feed, judges = _split(joined(context.images(arguments.images)))
    encodings = context.encodings
    amax, constants = dict(encodings.amax), dict(encodings.constants)
    before = _error(context, judges)
    shared = shared_names(context.placement, encodings)
    weights, ranges = learners(context, shared, range(NARROW + 1))
    report = learn("refine", context, arguments, feed, weights, ranges)
    write_(context, shared, weights, ranges)
    after = _error(context, judges)
    kept = after <= PAYS * before
    if not kept:
        encodings.amax, encodings.constants = amax, constants
    context.note(
        f"refine: output SQNR {ratio_db(1.0, before):.2f} dB before and "
        f"{ratio_db(1.0, after):.2f} dB after on {count_of(judges)} calibration samples that were "
        f"not learned from: {'kept' if kept else 'not kept'}"
    )
    return {**report, "held_out": count_of(judges), "error": [before, after], "kept": kept}


METHOD = Method(
    name="refine",
    summary="Learn the rounding of weights and the ranges of activations at 8 bits, and keep that "
    "where calibration samples that were not learned from gain by it.",
    label="folded",
    stage="after",
    source="as reconstruct; judged on held-out samples",
    arguments=Arguments(steps=40, lr=0.02, lr_range=0.01),
    run=run,
    excludes=("reconstruct",),
    not_applicable_reason=needs(
        (
            lambda context: any(q.format.kind == "uniform" for q in context.placement.active),
            "no quantizer has integer codes of one scale",
        ),
    ),
)
