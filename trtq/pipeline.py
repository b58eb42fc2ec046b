"""``trtq run``: the chain of a recipe, each stage skipped when what it depends on has not changed and its files are whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import (
    SCHEMA,
    cpu_name,
    digest_of,
    ensure_writable_dir,
    fingerprint,
    locked,
    package_version,
    read_json,
    sha256_file,
    write_json,
)  # fmt: skip
from trtq.bench.harness import bench
from trtq.data.source import open_source
from trtq.deploy.devices import slug
from trtq.deploy.record import DeployRecord
from trtq.engine.build import build
from trtq.engine.manifest import manifest_path
from trtq.engine.targets import parse_target
from trtq.engine.trtexec import find_trtexec, probe_number
from trtq.errors import ArtifactError, TrtqError, UsageError
from trtq.progress import Progress, Silent
from trtq.recipe import BenchStage, BuildStage, Recipe
from trtq.report.page import write_page
from trtq.specs import BenchSpec, BuildOptions, BuildSpec, DeploySpec, EvaluateSpec, FinetuneSpec
from trtq.verbs.deploy import deploy
from trtq.verbs.evaluate import evaluate
from trtq.verbs.finetune import CHECKPOINT, CURVES, finetune
from trtq.verbs.finetune import RECORD as TRAINED
from trtq.verbs.quantize import ENCODINGS, FP32, QDQ, RECORD, quantize
from trtq.version import __version__

STATE, RUN_LOCK = ".trtq-stages", ".trtq-run.lock"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a stage: a line about it, and whether its figures may be used."""

    summary: str
    valid: bool = True


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the chain.

    Attributes:
        name: such as ``build rtx3080``.
        inputs: returns everything the result depends on, when the stage is reached; a digest of it is the stage's key.
        outputs: files the stage writes.
        work: does it and returns what came of it.
    """

    name: str
    inputs: Callable[[], dict[str, Any]]
    outputs: tuple[Path, ...]
    work: Callable[[], Outcome]

    @property
    def slug(self) -> str:
        """The stage's name as a file name."""
        return "".join(c if c.isalnum() else "-" for c in self.name)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What happened to a stage.

    Attributes:
        name: of the stage.
        ran: False when it was up to date.
        why: why it ran, or why not.
        summary: one line about its result; empty in a dry run.
        valid: False where its record says that its figures may not be used.
    """

    name: str
    ran: bool
    why: str
    summary: str
    valid: bool = True


def run(recipe: Recipe, progress: Progress | None = None, *, dry_run: bool = False) -> list[StageResult]:
    """Run the chain of ``recipe`` and return what happened to each stage.

    A stage runs when its inputs changed, or when one of its files is missing or altered. An interrupted run goes on with the
    stage it was in. Two runs in one folder take turns.

    Args:
        recipe: what to do.
        progress: receives what happens.
        dry_run: only say which stages would run, and why.

    Raises:
        TrtqError: a stage failed; the results of the stages before it are kept.
    """
    progress = progress or Silent()
    out = Path(recipe.out)
    stages = plan(recipe, out, progress)  # refuses what cannot end well before anything is written
    if dry_run:
        return _walk(stages, out, progress, dry_run=True)
    ensure_writable_dir(out)
    with locked(out / RUN_LOCK, waiting=progress.note):
        return _walk(stages, out, progress, dry_run=False)


def ready(recipe: Recipe, progress: Progress | None = None) -> Path:
    """Run the chain of ``recipe`` up to the Q/DQ file and return that file: what is built and measured happens elsewhere.

    Raises:
        TrtqError: a stage failed; the results of the stages before it are kept.
    """
    run(_up_to_the_file(recipe), progress)
    return _shipped(recipe, Path(recipe.out))


def _up_to_the_file(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, build=(), bench=None)


def deploy_recipe(recipe: Recipe, spec: DeploySpec, progress: Progress | None = None) -> DeployRecord:
    """Run the chain of ``recipe`` up to the Q/DQ file, deploy that file, and put the board into the run's report.

    Raises:
        TrtqError: a stage failed, or the board did.
    """
    out, told = Path(recipe.out), progress or Silent()
    report = plan(recipe, out, told)[-1:]  # of all stages: what is wrong with any of them is said before the work
    file = ready(recipe, progress)
    record = deploy(msgspec.structs.replace(spec, model=str(file), out=spec.out or str(out / "deploy" / slug(spec.device))), progress)
    with locked(out / RUN_LOCK, waiting=told.note):  # the report once more, with the board in it
        _walk(report, out, told, dry_run=False)
    return record


def _walk(stages: list[Stage], out: Path, progress: Progress, *, dry_run: bool) -> list[StageResult]:
    results: list[StageResult] = []
    stale: list[str] = []
    for stage in stages:
        inputs = stage.inputs()
        key = digest_of({"inputs": inputs, "trtq": __version__, "schema": SCHEMA})
        feeds = [s for s in stale if s in ("quantize", "finetune") or stage.name == "report"]
        why = f"{feeds[0]} runs before it" if feeds and dry_run else _why_stale(stage, inputs, key, out)
        if why is None:
            before = {} if dry_run else _state(stage, out)
            done = Outcome(str(before.get("summary", "")), before.get("valid", True) is not False)
            results.append(StageResult(stage.name, False, "nothing it depends on has changed", done.summary, done.valid))
            continue
        stale.append(stage.name)
        if dry_run:
            results.append(StageResult(stage.name, True, why, ""))
            continue
        progress.note(f"{stage.name}: {why}")
        (out / STATE / f"{stage.slug}.json").unlink(missing_ok=True)
        done = stage.work()
        files = {str(p.relative_to(out)): sha256_file(p) for p in stage.outputs}
        parts = {k: digest_of(v) for k, v in inputs.items()}
        ensure_writable_dir(out / STATE)
        write_json(out / STATE / f"{stage.slug}.json", {"key": key, "parts": parts, "files": files, **asdict(done)})
        results.append(StageResult(stage.name, True, why, done.summary, done.valid))
    return results


def _state(stage: Stage, out: Path) -> dict[str, Any]:
    return read_json(out / STATE / f"{stage.slug}.json", kind="stage record")


def _why_stale(stage: Stage, inputs: Mapping[str, Any], key: str, out: Path) -> str | None:
    """Return why the stage must run, None when it is up to date."""
    try:
        state = _state(stage, out)
    except ArtifactError:
        return "it has not finished before" if not (out / STATE / f"{stage.slug}.json").exists() else "its record is damaged"
    if state.get("key") != key:
        before = state.get("parts", {})
        changed = [k for k, v in inputs.items() if before.get(k) != digest_of(v)]
        gone = [k for k in before if k not in inputs]
        said = [f"{' and '.join(names)} {what}" for names, what in ((changed, "changed"), (gone, "no longer there")) if names]
        return ", ".join(said) or "another version of trtq made it"
    for name, digest in state.get("files", {}).items():
        path = out / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_file(path) != digest:
            return f"{name} was altered"
    return None


def plan(recipe: Recipe, out: Path, progress: Progress) -> list[Stage]:
    """Return the stages of ``recipe`` in order."""
    fp32 = out / FP32
    stages = [_quantize_stage(recipe, out, progress)]
    records = [out / RECORD]
    if recipe.finetune is not None:
        stages.append(_finetune_stage(recipe.finetune, progress))
        records.append(Path(recipe.finetune.out) / TRAINED)
    qdq = _shipped(recipe, out)
    if recipe.evaluate is not None:
        stages.append(_evaluate_stage(recipe, out, qdq, progress))
        records.append(out / "evaluate.json")
    for wanted in recipe.build:
        stages.append(_build_stage(wanted, out, qdq, progress))
        records.append(manifest_path(stages[-1].outputs[0]))
    if recipe.bench is not None:
        for label, path in (("fp32", fp32), ("qdq", qdq)):
            stages.append(_bench_stage(recipe.bench, label, path, out, progress))
            records.append(out / f"bench.{label}.json")
    stages.append(_report_stage(recipe, out, records))
    names = [s.name for s in stages]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(f"The recipe asks for {twice!r} twice", "both would write the same file", "Remove one [[build]]")
    return stages


def _quantize_stage(recipe: Recipe, out: Path, progress: Progress) -> Stage:
    spec = recipe.quantize
    settings = {k: v for k, v in msgspec.to_builtins(spec).items() if k not in ("out", "calib_cache", "batch_size")}

    def inputs() -> dict[str, Any]:
        return {
            "settings": settings,
            "weights": _digest_or_none(spec.checkpoint),
            "model code": _model_code(spec.model),
            "versions": {n: package_version(n) for n in ("torch", "timm", "torchvision", "onnxscript")},
            "images": fingerprint(spec.data),
            "class index": _digest_or_none(spec.class_index),
            "allocation": _digest_or_none(spec.allocation),
        }

    def work() -> Outcome:
        return _outcome(quantize(spec, progress))

    return Stage("quantize", inputs, tuple(out / n for n in (FP32, QDQ, ENCODINGS, RECORD)), work)


def _shipped(recipe: Recipe, out: Path) -> Path:
    """Return the Q/DQ file that the stages after training work on."""
    return (Path(recipe.finetune.out) if recipe.finetune is not None else out) / QDQ


def _finetune_stage(spec: FinetuneSpec, progress: Progress) -> Stage:
    folder = Path(spec.out)

    def inputs() -> dict[str, Any]:
        where = {n: getattr(spec, n) for n in ("data", "val", "masks", "val_masks")}
        return {
            "settings": msgspec.to_builtins(spec), "encodings": _digest_or_none(spec.encodings),
            "weights": _digest_or_none(spec.checkpoint), "model code": _model_code(spec.model),
            "own loss": _model_code(spec.loss) if spec.loss else None,
            "ranking": _digest_or_none(spec.sensitivity), **{n: fingerprint(d) if d else None for n, d in where.items()},
            "class index": [_digest_or_none(spec.class_index), _digest_or_none(spec.val_class_index)],
        }  # fmt: skip

    def work() -> Outcome:
        if (folder / CHECKPOINT).is_dir() and (folder / TRAINED).is_file():
            # Of a run that has ended; one that was interrupted goes on, and the next to be interrupted must not look like this one.
            shutil.rmtree(folder / CHECKPOINT)
            (folder / TRAINED).unlink()
        return _outcome(finetune(spec, progress))

    return Stage("finetune", inputs, tuple(folder / n for n in (FP32, QDQ, ENCODINGS, CURVES, TRAINED)), work)


def _evaluate_stage(recipe: Recipe, out: Path, qdq: Path, progress: Progress) -> Stage:
    wanted, base = recipe.evaluate, recipe.quantize
    assert wanted is not None
    trained, masks = recipe.finetune, wanted.masks
    same = wanted.data in ("", base.data)
    data, index = wanted.data or base.data, wanted.class_index or (base.class_index if same else None)
    if trained is not None and data == trained.data and wanted.held_out:
        if wanted.data or trained.val is None:
            raise UsageError(
                "The recipe evaluates on images that training saw", f"[finetune] learns from {trained.data}",
                "Give [evaluate] images of its own, or [finetune] a val, or set held_out = false",
            )  # fmt: skip
        data, masks, same = trained.val, masks or trained.val_masks, False
        index = wanted.class_index or trained.val_class_index or base.class_index
    names = ("input_size", "mean", "std", "preset", "resize", "crop", "interpolation")
    spec = EvaluateSpec(
        onnx=str(qdq), reference=str(out / FP32), limit=wanted.limit, data=data,
        class_index=index,
        exclude=str(out / RECORD) if wanted.held_out else None, masks=masks, ignore_index=wanted.ignore_index,
        **{n: getattr(wanted, n) for n in names},
    )  # fmt: skip

    # Found now, not after quantization: images that are not there, or none that calibration leaves over.
    images = len(open_source(spec.data, Path(spec.class_index) if spec.class_index else None))
    if same and wanted.held_out and images <= base.calib_images:
        raise UsageError(
            "The recipe leaves no image to evaluate", f"{base.data} has {images} images and calibration takes {base.calib_images}",
            "Give [evaluate] images of its own, lower calib_images, or set held_out = false",
        )  # fmt: skip

    def inputs() -> dict[str, Any]:
        files = {p.name: _digest_or_none(str(p)) for p in (qdq, out / FP32)}
        return {
            "settings": msgspec.to_builtins(spec), **files, "images": fingerprint(spec.data),
            "masks": fingerprint(spec.masks) if spec.masks else None, "class index": _digest_or_none(spec.class_index),
            "versions": _runtime(),
        }  # fmt: skip

    def work() -> Outcome:
        record = evaluate(spec, progress)
        write_json(out / "evaluate.json", record)
        return _outcome(record)

    return Stage("evaluate", inputs, (out / "evaluate.json",), work)


def _build_stage(wanted: BuildStage, out: Path, qdq: Path, progress: Progress) -> Stage:
    parse_target(wanted.target)
    name = f"{wanted.target}-{'int8' if wanted.source == 'qdq' else wanted.precision}"
    if wanted.source == "qdq" and wanted.precision != "fp32":
        name += f"-{wanted.precision}"
    source, engine = qdq if wanted.source == "qdq" else out / FP32, out / f"{name}.engine"
    options = {n: getattr(wanted, n) for n in BuildOptions.__struct_fields__}
    spec = BuildSpec(onnx=str(source), target=wanted.target, out=str(engine), **options)

    def inputs() -> dict[str, Any]:
        versions: dict[str, Any] = {n: package_version(n) for n in ("tensorrt-rtx-cu13", "tensorrt")}
        if wanted.backend == "trtexec":
            versions["trtexec"] = _trtexec_or_none()
        return {
            "settings": msgspec.to_builtins(spec), source.name: _digest_or_none(str(source)), "builder version": versions,
            "images": fingerprint(spec.data) if spec.data else None,
        }  # fmt: skip

    return Stage(f"build {name}", inputs, (engine, manifest_path(engine)), lambda: _outcome(build(spec, progress)))


def _trtexec_or_none() -> str | None:
    """Return which trtexec there is; what is wrong with it is said when the stage runs."""
    try:
        path = find_trtexec()
        return f"{path} {probe_number(path)}"
    except TrtqError:
        return None


def _bench_stage(wanted: BenchStage, label: str, path: Path, out: Path, progress: Progress) -> Stage:
    spec = BenchSpec(
        file=(str(path),), device=wanted.device, batch=(wanted.batch,), duration=wanted.duration, min_samples=wanted.min_samples,
        max_duration=wanted.max_duration, verdict=wanted.verdict,
    )  # fmt: skip
    target = out / f"bench.{label}.json"

    def inputs() -> dict[str, Any]:
        return {
            "settings": msgspec.to_builtins(spec), path.name: _digest_or_none(str(path)), "machine": cpu_name(), "versions": _runtime(),
        }  # fmt: skip

    def work() -> Outcome:
        record = bench(spec, progress)
        write_json(target, record)
        return _outcome(record)

    return Stage(f"bench {label}", inputs, (target,), work)


def _report_stage(recipe: Recipe, out: Path, records: list[Path]) -> Stage:
    page = out / "report.html"

    def inputs() -> dict[str, Any]:
        boards = sorted(out.glob("deploy/*/deploy.json"))
        return {"title": recipe.title, **{str(p.relative_to(out)): _digest_or_none(str(p)) for p in [*records, *boards]}}

    def work() -> Outcome:
        return Outcome(str(write_page(out, page, title=recipe.title)))

    return Stage("report", inputs, (page,), work)


def _outcome(record: Any) -> Outcome:
    """Return what a record says of itself: whether its measurements are valid, its outputs finite."""
    return Outcome(str(record.summary), bool(getattr(record, "valid", True)) and bool(getattr(record, "finite", True)))


def _digest_or_none(path: str | None) -> str | None:
    return sha256_file(Path(path)) if path and Path(path).is_file() else None


def _runtime() -> dict[str, str | None]:
    """Return the versions of what runs ONNX files."""
    return {n: package_version(n) for n in ("onnxruntime", "onnxruntime-gpu")}


def _model_code(name: str) -> str | None:
    """Return the digest of the file a user's own factory lives in; a package's version is in the record instead."""
    where = name.rpartition(":")[0]
    if where.endswith(".py"):
        return _digest_or_none(where)
    base = where.replace(".", "/")
    return _digest_or_none(f"{base}.py") or _digest_or_none(f"{base}/__init__.py")
