"""Answers of a simulation: against the float model, and against ONNX Runtime on its file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import onnx
from torch import fx

from trtq.export.parity import ParityRecord, check_parity
from trtq.export.probe import QuantizerStats
from trtq.flow.inputs import Inputs
from trtq.graph.device import with_smaller_batches
from trtq.specs import QuantizeOptions
from trtq.tasks import Figure, Score
from trtq.tasks.base import Outputs

FEWEST_COMPARED = 8


class Comparison(NamedTuple):
    """Answers of a simulation.

    Attributes:
        parity: against float and against ONNX Runtime.
        measured: what each quantizer did, by name.
        alike: what the task says of its answers against the float model's.
    """

    parity: ParityRecord
    measured: dict[str, QuantizerStats]
    alike: tuple[Figure, ...]


def compare_simulation(
    inputs: Inputs, options: QuantizeOptions, simulated: fx.GraphModule, qdq: onnx.ModelProto
) -> Comparison:
    """Compare the float model, torch's simulation and ONNX Runtime on calibration samples.

    Args:
        inputs: the float model and the samples.
        options: batch size and number of compared samples.
        simulated: the graph with fake-quantize calls.
        qdq: the file exported from it.
    """
    count = _compared(inputs, options)
    parity, measured, counts = with_smaller_batches(
        lambda batch: _compare(inputs, count, batch, simulated, qdq),
        options.batch_size,
        inputs.run.note,
        "comparing torch and ONNX Runtime",
    )
    inputs.run.clock.lap("parity")
    return Comparison(parity, measured, () if counts is None else tuple(counts.figures))


def _compare(
    inputs: Inputs, count: int, batch: int, simulated: fx.GraphModule, qdq: onnx.ModelProto
) -> tuple[ParityRecord, dict[str, QuantizerStats], Score | None]:
    compared = list(inputs.images(count, batch))
    progress = inputs.run.progress
    progress.begin("Comparing torch and ONNX Runtime", min(count, len(inputs.samples)))
    counts = None if inputs.task is None else inputs.task.agreement()
    parity, measured = check_parity(
        inputs.model.graph.module,
        simulated,
        qdq,
        compared,
        known=inputs.answer,
        progress=progress.advance,
        seen=None if counts is None else _counting(inputs, counts),
    )
    return parity, measured, counts


def _counting(inputs: Inputs, counts: Score) -> Callable[[Outputs, Outputs], None]:
    """Return what counts how alike the answers of two models to one batch are."""
    task = inputs.task
    assert task is not None

    def count(full: Outputs, simulated: Outputs) -> None:
        counts.add(task.decode(simulated, None), task.decode(full, None))

    return count


def _compared(inputs: Inputs, options: QuantizeOptions) -> int:
    """Return how many samples are compared: fewer large ones, unless a number was asked for."""
    requested_count = options.parity_images
    count = inputs.of_usual_size(requested_count, least=FEWEST_COMPARED)
    if requested_count != QuantizeOptions().parity_images or count >= min(
        requested_count, len(inputs.samples)
    ):
        return requested_count
    inputs.run.note(
        f"torch and ONNX Runtime are compared on {count} samples, not {requested_count}: they are "
        f"large (--parity-images {requested_count + 1} compares so many)"
    )
    return count
