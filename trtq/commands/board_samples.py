"""Samples that run on a board: images as the ONNX file takes them, or inputs of any form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import onnx

from trtq.data.adapters import open_data
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess
from trtq.data.samples import Batch, Samples
from trtq.engine.gate_samples import require_built_for
from trtq.engine.job import Job
from trtq.engine.meaning import bound_to
from trtq.engine.needs import needs_of
from trtq.engine.runner import OnnxRunner
from trtq.errors import UsageError
from trtq.export.feeds import AnyArray, feed_for
from trtq.export.onnx_file import get_metadata
from trtq.specs import DeployOptions


def open_samples(spec: DeployOptions, note: Callable[[str], None]) -> Data:
    """Return the data of a deployment, before minutes are spent on a board.

    Args:
        spec: names the data.
        note: receives what a user should read.

    Raises:
        DataError: they cannot be read.
        UsageError: an option has no effect on them.
    """
    return open_data(
        Request(
            text=spec.data or "",
            class_index=spec.class_index,
            tokenizer=spec.tokenizer,
            note=note,
        )
    )


def samples_for_board(spec: DeployOptions, job: Job, data: Data) -> Samples:
    """Return the samples that a deployment runs.

    Args:
        spec: the deployment.
        job: the build; its file says what it takes.
        data: opened.

    Raises:
        UsageError: images do not fill the inputs, or the file does not say how they do.
        DataError: the samples do not fit the model.
    """
    if data.source is None:
        samples = data.make(needs_of(job.slots, get_metadata(job.model), job.spec.onnx), None)
    else:
        samples = data.make(None, _preprocess(spec, job))
    least, usual, most = job.batch
    count = min(spec.images, len(samples))
    count -= count % usual if least == most and count > usual else 0
    return samples.take(max(count, 1), 0)


def _preprocess(spec: DeployOptions, job: Job) -> Preprocess:
    """Return how images become the model's input."""
    if len(job.sizes.inputs) != 1:
        raise UsageError(
            f"Cannot run the images of {spec.data}",
            f"they fill one input, {job.spec.onnx} has "
            f"{'; '.join(i.words for i in job.sizes.inputs)}",
            "Give .npz files with these names",
        )
    stored = get_metadata(job.model).get("preprocess")
    if stored is None:
        raise UsageError(
            f"Cannot run the images of {spec.data}",
            f"{job.spec.onnx} does not say how images become its input",
            "Give .npz files of its input",
        )
    return msgspec.convert(stored, Preprocess)


def feeds(job: Job, samples: Samples, size: int) -> Iterator[tuple[Batch, dict[str, AnyArray]]]:
    """Yield batches, and the arrays by the names and types of the file's inputs.

    Args:
        job: the build; its file says what it takes.
        samples: to run.
        size: samples in a batch; the last batch may have fewer.

    Raises:
        DataError: a batch has sizes that the engine is not built for.
        UsageError: it has values that an input cannot hold.
    """
    for batch in samples.batches(size):
        arrays = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
        fed = feed_for(job.slots, arrays, "ONNX file")
        require_built_for(job, samples.name, batch.ids[0], {n: a.shape for n, a in fed.items()})
        yield batch, fed


def require_fit(task: str | None, judged: onnx.ModelProto, job: Job, samples: Samples) -> None:
    """Refuse samples that the engine is not built for, and a task without its outputs.

    Args:
        task: that was asked for.
        judged: the model that the engine is compared with.
        job: the build.
        samples: to run.

    Raises:
        DataError: a sample does not fit.
        UsageError: the model has not the outputs that the task reads.
    """
    every = feeds(job, samples, 1)
    _, first = next(every)
    for _ in every:  # each is checked
        pass
    if task is not None:
        answers = OnnxRunner(judged).run(first)
        bound_to(task, judged, first, {n: np.atleast_1d(v) for n, v in answers.items()})
