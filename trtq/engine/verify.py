"""After a build, run what was built and the ONNX file on the same samples.

Samples are images, or drawn at random: ``--data random``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtq.artifact import check_record
from trtq.engine.agreement import AgreementRecord, check_agreement
from trtq.engine.job import Job
from trtq.engine.python_api import MODULES
from trtq.engine.random_inputs import random_feed, table_sizes
from trtq.engine.retry import Climb, build_model
from trtq.engine.runner import EngineRunner, OnnxRunner, require_runtime
from trtq.engine.settings import Builder, Settings
from trtq.errors import UsageError
from trtq.export.feeds import Given
from trtq.export.onnx_file import get_metadata, records_beside
from trtq.platform.releases import release_of_module, shown
from trtq.progress import Progress

RANDOM = "random"
MOST_RANDOM = 4  # batches


@dataclass(frozen=True, slots=True)
class GateSamples:
    """Batches that an engine and its file are compared on; ``random`` where they are no data."""

    batches: Sequence[Given]
    random: bool


def yardstick(job: Job) -> str:
    """Return what the agreement gate compares an engine of this job with."""
    return (
        "the float model of the file"
        if job.fallback
        else "the ONNX file in ONNX Runtime, pairs computed as written"
    )


def samples_for(job: Job, told: Progress) -> GateSamples:
    """Return the samples for the agreement gate: images as the file says, or random inputs.

    Raises:
        UsageError: images do not fill the model's inputs, or the file does not say how they do.
    """
    if job.spec.data == RANDOM:
        return _random(job, told)
    return GateSamples(_images(job, told), False)


def _random(job: Job, told: Progress) -> GateSamples:
    slots, shapes = OnnxRunner(job.model).inputs, job.sizes.usual
    tables = table_sizes(job.model)
    count = min(MOST_RANDOM, -(-job.spec.check_images // job.batch[1]))
    told.note("the engine is compared with the file on inputs drawn at random, not on data")
    return GateSamples([random_feed(slots, shapes, tables, seed=i) for i in range(count)], True)


def _images(job: Job, told: Progress) -> list[Given]:
    """Return images, preprocessed as the file says.

    Raises:
        UsageError: the file does not say how, or has several inputs.
    """
    from trtq.data.preprocess import (
        Preprocess,
        batches,
    )  # torch takes seconds to load: a build without images does without
    from trtq.data.source import open_source

    spec, stored = job.spec, get_metadata(job.model).get("preprocess")
    if len(job.sizes.inputs) != 1:
        raise UsageError(
            f"Cannot compare the engine with {spec.onnx} on {spec.data}",
            f"images fill one input, the model has {'; '.join(i.words for i in job.sizes.inputs)}",
            "Use --data random: inputs drawn by their dtypes",
        )
    if stored is None:
        raise UsageError(
            f"Cannot hold the engine against {spec.onnx} on {spec.data}",
            "the file does not say how images become its input",
            "Leave --data out, or use --data random; trtq evaluate takes --mean, --std and "
            "--input-size",
        )
    source, size = open_source(spec.data or "", None, told.note), job.batch[1]
    count = min(spec.check_images, len(source))
    count -= count % size if job.batch[0] == job.batch[2] and count > size else 0
    indices = source.sample(max(count, 1), 0)
    preprocess = check_record(stored, Path(spec.onnx), Preprocess, kind="preprocessing stored in")
    return [b.numpy() for b in batches(source, indices, preprocess, size)]


def verify(
    job: Job, builder: Builder, settings: Settings, found: Climb, samples: GateSamples
) -> AgreementRecord:
    """Compare what was built with the file, on whatever can run here.

    Args:
        job: what was asked for.
        builder: that built it.
        settings: of the build that gave the engine.
        found: the engine.
        samples: to run.
    """
    module, span = MODULES.get(builder.name, "tensorrt"), (job.batch[0], job.batch[2])
    missing, engine = [_torch_said(job)], None

    def opened(plan: bytes) -> EngineRunner:
        return EngineRunner(plan, module, batch=span)

    why = _why_not(job, builder, module)
    if why:
        missing.append(f"the engine did not run: {why}")
    else:
        engine = opened(found.built.plan)
    return check_agreement(
        job.model,
        found.source,
        samples.batches,
        engine=engine,
        missing=missing + ["inputs were drawn at random"] * samples.random,
        rebuild=lambda m: opened(build_model(builder, m, settings).plan),
        yardstick=yardstick(job),
        real=not samples.random,
    )


def _why_not(job: Job, builder: Builder, module: str) -> str:
    """Return why the engine cannot run in this process, "" when it can."""
    if job.spec.strip_weights:
        return "it has no weights"
    try:
        trt = require_runtime("the engine", module, "cuda")
    except UsageError as exc:
        return exc.reason
    import torch

    major, minor = torch.cuda.get_device_capability()
    if f"{major}.{minor}" != job.target.capability:
        return f"the GPU here has compute capability {major}.{minor}"
    here = release_of_module(trt)
    return f"the Python module is of TensorRT {shown(here)}" if here != builder.version else ""


def _torch_said(job: Job) -> str:
    """Return what the record beside the file says of torch's simulation."""
    for record in records_beside(Path(job.spec.onnx)):
        try:
            known = any(f.get("sha256") == job.onnx_sha256 for f in record["files"].values())
            images = record["parity"]["images"]
        except (KeyError, TypeError, AttributeError):
            continue
        if known:
            return f"torch's simulation agreed with the file on {images} images when it was written"
    return "torch's simulation is not compared: no record beside the file speaks of it"
