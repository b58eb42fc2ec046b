"""After a build, run what was built and the ONNX file on the same samples."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trtq.engine.agreement import AgreementRecord, check_agreement
from trtq.engine.gate_samples import GateSamples
from trtq.engine.job import Job
from trtq.engine.python_api import MODULES
from trtq.engine.retry import Climb, build_model
from trtq.engine.runner import EngineRunner, require_runtime
from trtq.engine.settings import Builder, Settings
from trtq.errors import UsageError
from trtq.export.onnx_file import records_beside
from trtq.platform.releases import release_of_module, shown


def yardstick(job: Job) -> str:
    """Return what the agreement gate compares an engine of this job with."""
    return (
        "the float model of the file"
        if job.fallback
        else "the ONNX file in ONNX Runtime, pairs computed as written"
    )


def verify(
    job: Job, builder: Builder, settings: Settings, success: Climb, samples: GateSamples
) -> AgreementRecord:
    """Compare the engine with the file, on the runtimes available here.

    Args:
        job: what was asked for.
        builder: that built it.
        settings: of the build that gave the engine.
        success: the engine.
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
        engine = opened(success.built.plan)
    return check_agreement(
        job.model,
        success.source,
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


class _File(msgspec.Struct):
    sha256: str


class _Parity(msgspec.Struct):
    images: int


class _Simulated(msgspec.Struct):
    """The part of a record that is read here: its files, and its comparison with torch."""

    files: dict[str, _File]
    parity: _Parity


def _torch_said(job: Job) -> str:
    """Return what the record beside the file says of torch's simulation.

    A record counts where one of its files has the digest of the file that is built.
    """
    for record in records_beside(Path(job.spec.onnx), _Simulated):
        if any(f.sha256 == job.onnx_sha256 for f in record.files.values()):
            images = record.parity.images
            return f"torch's simulation agreed with the file on {images} images when it was written"
    return "torch's simulation is not compared: no record beside the file speaks of it"
