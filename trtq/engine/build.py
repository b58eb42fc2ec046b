"""Build an engine and write its manifest.

The steps are: choose the builder, refuse what it would silently do wrong, build in a separate
process, look at what came out, and write the manifest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx

from trtq.artifact import (
    ensure_writable_dir,
    ensure_writable_file,
    environment,
    explain_os_error,
    header,
    locked,
    read_json,
    write_bytes,
    write_json,
)
from trtq.engine.agreement import AgreementRecord, require_agreement
from trtq.engine.coverage import Coverage, cover, require_codes
from trtq.engine.gate_samples import samples_for
from trtq.engine.job import Job, prepare
from trtq.engine.lint_target import reader_for, refuse_errors
from trtq.engine.manifest import BuiltBy, BuiltFor, EngineManifest, InputRow, manifest_path
from trtq.engine.plan_text import PlanAudit
from trtq.engine.python_api import MODULES
from trtq.engine.retry import Climb, climb
from trtq.engine.select_builder import imagine_builder, open_builder, refuse_silent_failures
from trtq.engine.settings import Builder, Settings, TensorRow, runtime_of
from trtq.engine.sizes import Sizes
from trtq.engine.verify import verify
from trtq.errors import ArtifactError, UsageError
from trtq.export.codes import codes_of, count_qdq, quantized_nodes
from trtq.export.fp16 import has_half
from trtq.export.onnx_file import get_metadata, made_with
from trtq.export.strip import strip_at
from trtq.export.tables import table_sizes
from trtq.onnx_walk import is_fixed
from trtq.platform.releases import Runtime, newer_note
from trtq.progress import Progress, or_silent
from trtq.specs import BuildSpec


def build(spec: BuildSpec, progress: Progress | None = None) -> EngineManifest:
    """Build the engine and write it with its manifest.

    The engine is ``spec.out``, the manifest ``spec.out`` with ``.json`` behind it. Both are
    replaced only after the build and its checks have passed; builds of one output wait for each
    other.

    Args:
        spec: what to build, from which file.
        progress: receives progress and notes; default: nobody.

    Raises:
        EngineError: the backend cannot do what is asked on this target, the parser or the builder
            refuses (their words, with node names), or what was built is not what was asked for.
        ExportError: the ONNX file cannot be read.
        UsageError: options that contradict each other or the file.
        AgreementError: on ``spec.data`` the engine computes something else than the file.
        MissingExtraError: the backend is not installed.
        ArtifactError: the output cannot be written.
    """
    listener, out = or_silent(progress), Path(spec.out)
    _require_output(spec, out)
    job = prepare(spec)
    for line in job.notes:
        listener.note(line)
    builder, number = open_builder(job.spec, job.target, listener, quantized=job.pairs > 0)
    refuse_silent_failures(job.model, job.pairs, builder.name, job.target, job.spec)
    settings = job.settings(builder, number)
    refuse_errors(job.model, reader_for(builder, job.target), job.spec.onnx, job.target)
    for line in job.unkept(settings):
        listener.note(line)
    samples = samples_for(job, listener) if spec.data is not None else None
    ensure_writable_dir(out.parent)
    with locked(out.with_name(f".{out.name}.lock"), waiting=listener.note):
        outcome = build_and_look(builder, job, settings, listener)
        success = outcome.climb
        agreement = None
        if samples is not None:
            last = replace(settings, workspace=success.workspace)
            agreement = verify(job, builder, last, success, samples)
            require_agreement(agreement)
        # Only when the new engine is on the disk does the old manifest go; the new one comes last.
        fresh = write_bytes(out.with_name(f".{out.name}.new"), success.built.plan)
        try:
            manifest_path(out).unlink(missing_ok=True)
            fresh.replace(out)
        finally:
            fresh.unlink(missing_ok=True)
        manifest = describe(job, builder, settings, outcome, agreement)
        write_json(manifest_path(out), manifest)
    return manifest


def _require_output(spec: BuildSpec, out: Path) -> None:
    """Refuse an output that cannot be written or would overwrite what it must not.

    This happens before any work.

    Raises:
        ArtifactError: the engine or its manifest would replace an input, a folder, a device or a
            file of another origin.
    """
    inputs = [Path(p) for p in (spec.onnx, spec.calibration, spec.timing_cache) if p]
    ensure_writable_file(out, inputs=inputs)
    beside = ensure_writable_file(manifest_path(out), inputs=inputs)
    try:
        verb = read_json(beside).get("verb") if beside.is_file() else "build"
    except ArtifactError:  # a torn manifest
        verb = "build"
    if verb != "build":
        why = f"the manifest would replace {beside}, which is no manifest of an engine"
        raise ArtifactError(f"Cannot write {out}", why, "Choose another --out, such as NAME.engine")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An engine that was just built, and what it computes in.

    Attributes:
        climb: the engine, and what it took.
        seconds: of all attempts.
        coverage: how much of the Q/DQ graph computes in codes; None where the builder does not say.
        audit: what a plan itself says; None where that cannot be read.
    """

    climb: Climb
    seconds: float
    coverage: Coverage | None
    audit: PlanAudit | None


def build_and_look(builder: Builder, job: Job, settings: Settings, progress: Progress) -> Outcome:
    """Build, and look at what came out.

    Args:
        builder: to use.
        job: what was asked for.
        settings: for the first attempt.
        progress: receives progress and notes.

    Raises:
        EngineError: nothing helped, or the engine computes nothing in codes although the model asks
            for it.
    """
    started = time.perf_counter()
    success = climb(builder, job, settings, progress)
    seconds = round(time.perf_counter() - started, 3)
    effective_model = strip_at(job.model, success.without) if success.without else job.model
    coverage, rows = cover(effective_model, success.built, builder.name, job.target)
    require_codes(effective_model, job.spec.onnx, coverage, rows, job.target)
    return Outcome(climb=success, seconds=seconds, coverage=coverage, audit=rows)


def describe(
    job: Job,
    builder: Builder,
    settings: Settings,
    outcome: Outcome,
    agreement: AgreementRecord | None = None,
) -> EngineManifest:
    """Return the manifest of an engine that was just built.

    Args:
        job: what was asked for.
        builder: that built it.
        settings: of the first attempt; the workspace of the last is in ``outcome``.
        outcome: the engine, and what it computes in.
        agreement: with its file; None where no samples were given.
    """
    spec, success, path = job.spec, outcome.climb, Path(job.spec.onnx)
    built, metadata = success.built, get_metadata(job.model)
    last = replace(settings, workspace=success.workspace)
    by_command = builder.name == "trtexec"
    by = BuiltBy(
        backend=builder.name,
        version=built.version,
        module="" if by_command else MODULES[builder.name],
        command=builder.show(path, Path(spec.out), last) if by_command else "",
    )
    without = (
        [f"without Q/DQ pairs, for want of a kernel: {', '.join(success.without)}"]
        if success.without
        else []
    )
    return EngineManifest(
        **header("build", spec),
        engine_sha256=built.sha256,
        engine_bytes=built.size,
        builder=by,
        target=BuiltFor(job.target.name, job.target.device, job.target.capability),
        precision=_precision(success.source, spec),
        quantized_tensors=count_qdq(success.source),
        codes=codes_of(success.source) or ("INT8" if spec.calibration else ""),
        batch=job.batch,
        tensors=built.tensors or _tensors(success.source, runtime_of(builder)),
        inputs=_inputs(job, job.sizes),
        profiles=[_inputs(job, sizes) for sizes in job.more] or msgspec.UNSET,
        signature=metadata.get("signature"),
        onnx_sha256=job.onnx_sha256,
        onnx_bytes=path.stat().st_size,
        encodings_sha256=metadata.get("encodings_sha256"),
        model=metadata.get("model"),
        preprocess=metadata.get("preprocess"),
        task=metadata.get("task"),
        answer=metadata.get("answer"),
        classes=metadata.get("classes") or [],
        made_with=made_with(job.model),
        builder_log=built.log,
        quantized_convolutions=len(quantized_nodes(job.model, "Conv")),
        fallback="; ".join(filter(None, [job.fallback, *without])),
        attempts=success.attempts,
        float_nodes={n: job.float_nodes[n] for n in settings.float_nodes},
        numbers=built.numbers,
        workspace=success.workspace,
        notes=[*job.notes, *job.unkept(settings), *_newer(builder)],
        environment=environment(),
        agreement=agreement,
        seconds=outcome.seconds,
        coverage=outcome.coverage,
        audit=outcome.audit,
    )


def _precision(source: onnx.ModelProto, spec: BuildSpec) -> str:
    """Return the precision of what is not quantized.

    It is FP16 where the types of the file say so.
    """
    return "fp16" if has_half(source) else spec.precision


def _inputs(job: Job, sizes: Sizes) -> list[InputRow]:
    """Return the sizes that each input is built for in a profile."""
    tables = table_sizes(job.model)
    return [
        InputRow(
            name=i.name,
            axes=[a.symbol if a.size is None else a.size for a in i.axes],
            least=[s[0] for s in sizes.spans[i.name]],
            usual=[s[1] for s in sizes.spans[i.name]],
            most=[s[2] for s in sizes.spans[i.name]],
            table=tables.get(i.name),
        )
        for i in sizes.inputs
    ]


def _tensors(model: onnx.ModelProto, runtime: Runtime) -> list[TensorRow]:
    """Return inputs and outputs as the engine has them, for builders that do not tell."""
    changed = {} if runtime.parses("INT64 inputs and outputs") else {"INT64": "INT32"}

    def kind(value: onnx.ValueInfoProto) -> str:
        name = str(onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type))
        return changed.get(name, name)

    return [
        TensorRow(
            name=v.name,
            dtype=kind(v),
            mode=mode,
            shape=[d.dim_value if is_fixed(d) else -1 for d in v.type.tensor_type.shape.dim],
        )
        for mode, values in (("input", model.graph.input), ("output", model.graph.output))
        for v in values
    ]


def dry_run(spec: BuildSpec, progress: Progress | None = None) -> str:
    """Return the one command line, or the Python, that would build the engine.

    Nothing is built, and no builder need be here. A model that must be changed first (pairs
    removed, types written into the graph) is written beside ``spec.out``, and named.

    Args:
        spec: what to build, from which file.
        progress: receives notes; default: nobody.

    Raises:
        EngineError: the target's TensorRT cannot read the file, or the device lacks what it needs.
        UsageError: trtexec's version is not known, or the changed model would replace the file.
    """
    listener, job = or_silent(progress), prepare(spec)
    builder = imagine_builder(job.spec, job.target, quantized=job.pairs > 0)
    refuse_silent_failures(job.model, job.pairs, builder.name, job.target, job.spec)
    settings, changes = job.settings(builder), [job.fallback] if job.fallback else []
    refuse_errors(job.model, reader_for(builder, job.target), job.spec.onnx, job.target)
    model = job.source(settings, builder.version)
    if job.half and settings.typed(builder.version):
        changes.append("the graph has FP16 types")
    source = _changed(spec, model, changes) if changes else Path(spec.onnx)
    for line in (*job.notes, *job.unkept(settings), *changes, *_newer(builder)):
        listener.note(line)
    return builder.show(source, Path(spec.out), settings)


def _newer(builder: Builder) -> list[str]:
    """Return the note about a builder that is newer than the catalogue."""
    note = newer_note(builder.version)
    return [note] if note else []


def _changed(spec: BuildSpec, model: onnx.ModelProto, changes: list[str]) -> Path:
    """Write the changed model beside the engine and return where."""
    path = Path(spec.out).with_suffix(".onnx")
    if path.resolve() == Path(spec.onnx).resolve():
        raise UsageError(
            f"--out {spec.out} would put the changed model over {spec.onnx}",
            hint="Give another --out",
        )
    ensure_writable_dir(path.parent)
    try:
        onnx.save(model, path)
    except OSError as exc:
        raise explain_os_error(exc, path) from exc
    changes.append(f"the model that is built from was written to {path}")
    return path
