"""Samples that an engine and its file are compared on after a build.

Data are of any form; ``random`` draws inputs that are no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtq.artifact import check_record
from trtq.engine.job import Job
from trtq.engine.random_inputs import random_feed
from trtq.errors import DataError, UsageError
from trtq.export.feeds import Given
from trtq.export.onnx_file import get_metadata
from trtq.export.tables import table_sizes
from trtq.progress import Progress

if TYPE_CHECKING:  # torch takes seconds to load: a build without data does without
    from trtq.data.opened import Data
    from trtq.data.source import Source

RANDOM = "random"
MOST_RANDOM = 4  # batches


@dataclass(frozen=True, slots=True)
class GateSamples:
    """Batches that an engine and its file are compared on.

    Attributes:
        batches: at least one: arrays by input name, or one array for a model of one input.
        random: they are drawn at random and are no data.
    """

    batches: Sequence[Given]
    random: bool


def samples_for(job: Job, progress: Progress) -> GateSamples:
    """Return the samples for the agreement gate.

    Images become the input as the file says; other data are the inputs by name; ``random`` draws
    values by the inputs' dtypes. At most ``job.spec.check_images`` are used.

    Args:
        job: names the data, the model and the sizes that it is built for.
        progress: receives notes.

    Raises:
        UsageError: images do not fill the model's inputs, or the file does not say how they do.
        DataError: samples do not fit the model, or the sizes that it is built for.
    """
    if job.spec.data == RANDOM:
        return _random(job, progress)
    from trtq.data.adapters import open_data
    from trtq.data.opened import Request

    given = job.spec.data or ""
    data = open_data(Request(text=given, tokenizer=job.spec.tokenizer, note=progress.note))
    if data.source is not None:
        return GateSamples(_images(job, data.source), False)
    return GateSamples(_tensors(job, data), False)


def _random(job: Job, progress: Progress) -> GateSamples:
    slots, shapes = job.slots, job.sizes.usual
    tables = table_sizes(job.model)
    count = min(MOST_RANDOM, -(-job.spec.check_images // job.batch[1]))
    progress.note("the engine is compared with the file on inputs drawn at random, not on data")
    return GateSamples([random_feed(slots, shapes, tables, seed=i) for i in range(count)], True)


def _images(job: Job, source: Source) -> list[Given]:
    """Return images, preprocessed as the file says.

    Raises:
        UsageError: the file does not say how, or has several inputs.
    """
    from trtq.data.preprocess import Preprocess, batches

    spec, stored = job.spec, get_metadata(job.model).get("preprocess")
    if len(job.sizes.inputs) != 1:
        raise UsageError(
            f"Cannot compare the engine with {spec.onnx} on {spec.data}",
            f"images fill one input, the model has {'; '.join(i.words for i in job.sizes.inputs)}",
            "Give .npz files with these names, or --data random: inputs drawn by their dtypes",
        )
    if stored is None:
        raise UsageError(
            f"Cannot hold the engine against {spec.onnx} on {spec.data}",
            "the file does not say how images become its input",
            "Leave --data out, or use --data random; trtq evaluate takes --mean, --std and "
            "--input-size",
        )
    size = job.batch[1]
    indices = source.sample(_count(job, len(source)), 0)
    preprocess = check_record(stored, Path(spec.onnx), Preprocess, kind="preprocessing stored in")
    return [b.numpy() for b in batches(source, indices, preprocess, size)]


def _count(job: Job, total: int) -> int:
    """Return how many samples are used: whole batches where the engine takes one size."""
    count, size = min(job.spec.check_images, total), job.batch[1]
    count -= count % size if job.batch[0] == job.batch[2] and count > size else 0
    return max(count, 1)


def _tensors(job: Job, data: Data) -> list[Given]:
    """Return samples that are inputs already, in batches that the engine is built for.

    Raises:
        DataError: they do not fit the model, or the sizes that it is built for.
    """
    from trtq.engine.needs import needs_of

    spec = job.spec
    samples = data.make(needs_of(job.slots, get_metadata(job.model), spec.onnx), None)
    drawn = samples.take(_count(job, len(samples)), 0)
    feeds: list[Given] = []
    for batch in drawn.batches(job.batch[1]):
        arrays = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
        shapes = {n: a.shape for n, a in arrays.items()}
        require_built_for(job, samples.name, batch.ids[0], shapes)
        feeds.append(arrays)
    return feeds


def require_built_for(
    job: Job, data: str, sample: str, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a batch of other sizes than the engine is built for.

    A first axis below the smallest size is allowed: small batches are filled up.

    Args:
        job: has the sizes.
        data: name of the samples, for errors.
        sample: id of the batch's first sample, for errors.
        shapes: of the batch, by input.

    Raises:
        DataError: names the axis.
    """
    for name, shape in shapes.items():
        spans = job.sizes.spans.get(name, ())
        for axis, (size, (least, _, most)) in enumerate(zip(shape, spans, strict=True)):
            if not least <= size <= most and (axis or size > most):
                raise DataError(
                    f"Cannot compare the engine with {job.spec.onnx} on sample {sample} of {data}",
                    f"axis {axis} of {name} is {size}, the engine is built for {least} to {most}",
                    "Give sizes that include it with --shapes, or other samples",
                )
