"""Where ``trtq advise`` takes the times of a quantized model's regions from.

From a profile on a device, from the kernels of two plans, or from the layers of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from trtq.bench.int8_verdict import find_baseline
from trtq.commands.layer_times import Measured, pieces, read_measured
from trtq.cost.devices import Device, find_device
from trtq.cost.roofline import HOW as ROOFLINE
from trtq.engine.choose_regions import Choice, EngineCosts, GraphCosts, choose, priced
from trtq.engine.int8_model import HOW as GRAPH
from trtq.engine.int8_model import Int8Model
from trtq.engine.manifest import EngineManifest, manifest_path, read_engine, read_manifest
from trtq.engine.open_engine import is_engine
from trtq.engine.plan_kernels import PlanKernel, read_plan_kernels
from trtq.engine.regions import Compared, compare_pieces
from trtq.engine.settings import RTX
from trtq.engine.shapes import inputs_of
from trtq.engine.sizes import Request, choose_sizes
from trtq.errors import ArtifactError, TrtqError, UsageError
from trtq.export.codes import codes_of
from trtq.export.onnx_file import TARGET, get_metadata, read_onnx
from trtq.files import FP32
from trtq.onnx_node import label_of
from trtq.platform.target import Target
from trtq.specs import AdviseSpec

MEASURED = (
    "Times of the profiler of the runtime, layer by layer; conversions between INT8 and FP16 that "
    "neither file has are predicted by the roofline."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that advice is for.

    Attributes:
        path: the Q/DQ file.
        onnx: its content.
        sha256: its digest, with that of external data.
        engine, manifest: of it; None without one.
        target, device: to run on.
        sizes: of the inputs by name, the batch included; an open batch is 1.
        batch: samples in a call.
        notes: automatic choices.
    """

    path: Path
    onnx: onnx.ModelProto
    sha256: str
    engine: Path | None
    manifest: EngineManifest | None
    target: Target
    device: Device
    sizes: dict[str, list[int]]
    batch: int
    notes: list[str]

    @property
    def model(self) -> Int8Model:
        """The kernels that a builder should make."""
        return Int8Model(self.onnx, str(self.path), self.sizes, self.batch, self.target.rtx)


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Source of the times.

    Attributes:
        choice: the regions.
        basis: ``measured`` or ``predicted``.
        source: what the times come from, in words.
        how: what the figures are, in words.
        compared: the two engines; None for the graph.
    """

    choice: Choice
    basis: Literal["measured", "predicted"]
    source: str
    how: str
    compared: Compared | None = None

    @property
    def left(self) -> list[str]:
        """Quantized layers that the source does not name."""
        return self.compared.missing if self.compared is not None else []

    @property
    def every(self) -> bool:
        """Whether every layer loses from INT8."""
        regions = self.choice.regions
        return bool(regions) and all(r.loses for r in regions) and not self.left


def open_subject(spec: AdviseSpec, path: Path) -> Subject:
    """Read the Q/DQ file, its engine and the device.

    Args:
        spec: what was asked for.
        path: the Q/DQ file, or an engine, whose manifest names the file.

    Raises:
        UsageError: no target, or one without INT8.
        ArtifactError: the engine was built from another file.
    """
    notes: list[str] = []
    given = path if is_engine(path) else Path(spec.engine) if spec.engine else None
    source = read_manifest(path).source if is_engine(path) else path
    model, _, digest = read_onnx(source)
    if spec.keep_winners and spec.out and Path(spec.out).resolve() == source.parent.resolve():
        raise UsageError(
            "--out would overwrite the file it reads",
            f"{source} is in that folder",
            "Give another folder",
        )
    manifest = _manifest(given, source, digest) if given is not None else None
    target = _target(spec.target, manifest, model, source)
    engine = given or _engine_beside(source, digest, target)
    if engine is not None and manifest is None:
        manifest = read_manifest(engine)
        notes.append(f"the engine beside the file is used: {engine}")
    device = find_device(target.name)
    codes = "fp8" if codes_of(model) == "FP8" else "int8"
    if codes not in device.peaks:
        raise UsageError(
            f"Cannot advise on {codes.upper()} for the {device.title}",
            f"it has no {codes.upper()} kernels",
            f"Build FP16: trtq build {source.with_name(FP32)} --precision fp16 --target "
            f"{target.text}",
        )
    sizes, batch = _sizes(spec, source, model, manifest)
    return Subject(
        path=source,
        onnx=model,
        sha256=digest,
        engine=engine,
        manifest=manifest,
        target=target,
        device=device,
        sizes=sizes,
        batch=batch,
        notes=notes,
    )


def _sizes(
    spec: AdviseSpec, path: Path, model: onnx.ModelProto, manifest: EngineManifest | None
) -> tuple[dict[str, list[int]], int]:
    """Return the sizes of the inputs for one sample, or for the file's own batch; and the batch.

    Raises:
        UsageError: an open axis that neither an option nor the engine gives.
    """
    inputs = inputs_of(model)
    open_batch = any(i.axes and i.axes[0].size is None for i in inputs)
    usual = {r.name: r.usual[1:] for r in manifest.input_rows} if manifest is not None else {}
    given = {text.partition("=")[0] for text in spec.shapes}
    built = [
        f"{i.name}={'x'.join(map(str, (1, *usual[i.name])))}"
        for i in inputs
        if open_batch and i.is_open and usual.get(i.name) and i.name not in given
    ]
    request = Request(
        texts=[*spec.shapes, *built],
        batch=(1, 1, 1) if open_batch else None,
        file=str(path),
        single=True,
        verb="price",
    )
    sizes = choose_sizes(inputs, request).usual
    own = next((v[0] for v in sizes.values() if v), 1)
    return sizes, spec.batch if open_batch else max(spec.batch, own)


def _engine_beside(path: Path, digest: str, target: Target) -> Path | None:
    """Return an engine of a Q/DQ file for a target in its folder."""
    for engine in sorted(p for p in path.parent.iterdir() if is_engine(p)):
        if not manifest_path(engine).is_file():
            continue
        manifest = read_manifest(engine)
        if manifest.onnx_sha256 == digest and manifest.target.capability == target.capability:
            return engine
    return None


def _manifest(engine: Path, path: Path, digest: str) -> EngineManifest:
    manifest = read_manifest(engine)
    if manifest.onnx_sha256 != digest:
        raise ArtifactError(
            f"The engine {engine} is not of {path}",
            f"it was built from a file with SHA-256 {manifest.onnx_sha256[:12]}, this one has "
            f"{digest[:12]}",
            f"Build it again: trtq build {path} --target {manifest.target.name} --out {engine}",
        )
    return manifest


def _target(
    target_option: str | None, manifest: EngineManifest | None, model: onnx.ModelProto, path: Path
) -> Target:
    """Return the target that was asked for, that of the engine, or that of the file."""
    built = manifest.target.name if manifest is not None else None
    text = target_option or built or get_metadata(model).get(TARGET)
    if text is None:
        raise UsageError(
            "trtq advise needs --target",
            f"{path} does not say which device it is for",
            "trtq targets lists what there is",
        )
    target = Target.parse(text)
    if manifest is not None and manifest.target.capability != target.capability:
        raise UsageError(
            f"Cannot advise for {target.text} with this engine",
            f"it was built for {manifest.target.name} (compute capability "
            f"{manifest.target.capability}), {target.text} has {target.capability}",
            f"Write --target {manifest.target.name}, or leave --engine out",
        )
    return target


def basis_of(spec: AdviseSpec, subject: Subject) -> Basis:
    """Return the times of a model's regions: measured, over two plans, or over the graph.

    A profile that was given counts before two plans, and those before the graph; a note says what
    is missing for the plans.

    Args:
        spec: names the profiles and the baseline.
        subject: the model; its notes grow.

    Raises:
        ArtifactError: a record or an engine is of another model.
    """
    return _measured(spec, subject) or _planned(spec, subject) or _predicted(subject)


def _measured(spec: AdviseSpec, subject: Subject) -> Basis | None:
    """Return the measured times of the regions; None without a record."""
    if not spec.measured:
        return None
    manifest = subject.manifest
    own = [subject.sha256, *([manifest.engine_sha256] if manifest is not None else [])]
    measured = read_measured(spec.measured, own)
    model = subject.model
    order = {label_of(n): i for i, n in enumerate(subject.onnx.graph.node)}
    int8 = pieces(
        measured.int8.layers, order, _kernels(subject, subject.engine, measured.int8.batch)
    )
    baseline = Path(measured.fp16.file)
    fp16 = pieces(measured.fp16.layers, order, _kernels(subject, baseline, measured.fp16.batch))
    compared = compare_pieces(model.quantized, int8, fp16)
    _require_regions(compared, measured)
    return Basis(
        choice=choose(EngineCosts(compared.sides, model, subject.device)),
        basis="measured",
        source=f"{measured.words} on {measured.int8.device}",
        how=MEASURED,
        compared=compared,
    )


def _require_regions(compared: Compared, measured: Measured) -> None:
    if not compared.sides:
        raise ArtifactError(
            f"Cannot use the layer times of {measured.int8.file} and {measured.fp16.file}",
            "no layer of the two names a quantized layer of the Q/DQ file",
            "Build with trtq build, whose engines keep the names, and give --engine",
        )


def _kernels(subject: Subject, engine: Path | None, batch: int) -> list[PlanKernel]:
    """Return the kernels of a plan, none where they cannot be read."""
    if engine is None or not is_engine(engine) or not manifest_path(engine).is_file():
        return []
    try:
        return _plan(engine, batch) or []
    except TrtqError as exc:
        subject.notes.append(f"the plan {engine} was not read: {exc}")
        return []


def _plan(engine: Path, batch: int) -> list[PlanKernel] | None:
    """Return the kernels of a plan; None where it does not say."""
    manifest, plan = read_engine(engine)
    sizes_known = all(r.least[1:] == r.most[1:] for r in manifest.input_rows)
    if manifest.builder.backend != RTX or not sizes_known:
        return None
    return read_plan_kernels(plan, manifest.builder.version, batch)


def _planned(spec: AdviseSpec, subject: Subject) -> Basis | None:
    """Return the roofline over the kernels of two plans; None, with a note, where one lacks."""
    engine = subject.engine
    if engine is None:
        subject.notes.append(
            "no engine of the file is known: the prediction is over the layers of the graph "
            "(--engine)"
        )
        return None
    baseline, missing = find_baseline(engine, spec.baseline)
    if baseline is None:
        subject.notes.append(f"the prediction is over the layers of the graph: {missing}")
        return None
    plans = [_plan(p, subject.batch) for p in (engine, baseline)]
    for path, plan in zip((engine, baseline), plans, strict=True):
        if plan is None:
            subject.notes.append(
                f"the prediction is over the layers of the graph: {path} does not say which "
                "kernels it has (plans of TensorRT-RTX 1.7 with fixed sizes do)"
            )
            return None
    int8, fp16 = (list(priced(plan or (), subject.device)) for plan in plans)
    model = subject.model
    compared = compare_pieces(model.quantized, int8, fp16)
    if not compared.sides:
        raise ArtifactError(
            f"The engine {baseline} is not of the same model as {engine}",
            "none of its kernels names a quantized layer",
            f"Build it: trtq build {subject.path.with_name(FP32)} --precision fp16 --target "
            f"{subject.target.text}",
        )
    return Basis(
        choice=choose(EngineCosts(compared.sides, model, subject.device)),
        basis="predicted",
        source=f"roofline over the kernels of {engine.name} and {baseline.name}",
        how=ROOFLINE,
        compared=compared,
    )


def _predicted(subject: Subject) -> Basis:
    """Return the roofline over the layers of the graph."""
    return Basis(
        choice=choose(GraphCosts(subject.model, subject.device)),
        basis="predicted",
        source="roofline over the layers of the graph",
        how=f"{ROOFLINE} {GRAPH[subject.target.rtx]}.",
    )
