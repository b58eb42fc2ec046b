"""``trtq run``: the chain of stages that a recipe describes.

A stage is skipped when its inputs have not changed and its files are intact.
"""

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
    locked,
    package_version,
    read_json,
    sha256_file,
    write_json,
)
from trtq.bench.harness import bench
from trtq.commands.deploy import deploy
from trtq.commands.evaluate import evaluate
from trtq.commands.finetune import CHECKPOINT, CURVES, finetune
from trtq.commands.finetune import RECORD as TRAINED
from trtq.commands.loading import model_digest
from trtq.commands.quantize import quantize
from trtq.data.classes import require_calibrated_classes, require_one_class_list
from trtq.data.source import Note, Source, fingerprint, open_source, place_of, shared_images
from trtq.deploy.devices import slug
from trtq.deploy.record import DeployRecord
from trtq.engine.build import build
from trtq.engine.manifest import manifest_path
from trtq.engine.targets import parse_target
from trtq.engine.trtexec import find_trtexec, probe_number
from trtq.errors import ArtifactError, TrtqError, UsageError
from trtq.flow.files import ENCODINGS, FP32, QDQ, RECORD
from trtq.models.user_code import source_digest
from trtq.progress import Progress, Silent
from trtq.quant.encodings import Encodings
from trtq.recipe import BenchStage, BuildStage, EvaluateStage, Recipe
from trtq.report.page import write_page
from trtq.specs import (
    BenchSpec,
    BuildOptions,
    BuildSpec,
    DeploySpec,
    EvaluateSpec,
    FinetuneSpec,
    QuantizeSpec,
    Spec,
)
from trtq.version import __version__

STATE, RUN_LOCK = ".trtq-stages", ".trtq-run.lock"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a stage: a summary line, and whether its figures may be used."""

    summary: str
    valid: bool = True


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the chain.

    Attributes:
        name: such as ``build rtx3080``.
        inputs: returns everything the result depends on, when the stage is reached; a digest of it
            is the stage's key.
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


def run(
    recipe: Recipe, progress: Progress | None = None, *, dry_run: bool = False
) -> list[StageResult]:
    """Run the chain of ``recipe`` and return what happened to each stage.

    A stage runs when its inputs changed, or when one of its files is missing or altered. An
    interrupted run resumes at the stage it was in. Two runs in one folder take turns.

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
    """Run the chain of ``recipe`` up to the Q/DQ file and return the path of that file.

    Engines are built and measured elsewhere.

    Raises:
        TrtqError: a stage failed; the results of the stages before it are kept.
    """
    run(_up_to_the_file(recipe), progress)
    return _shipped(recipe, Path(recipe.out))


def _up_to_the_file(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, build=(), bench=None)


def deploy_recipe(
    recipe: Recipe, spec: DeploySpec, progress: Progress | None = None
) -> DeployRecord:
    """Run ``recipe`` up to the Q/DQ file and deploy that file.

    The run's report then includes the board.

    Raises:
        TrtqError: a stage failed, or the board did.
    """
    out, told = Path(recipe.out), progress or Silent()
    report = plan(recipe, out, told)[
        -1:
    ]  # of all stages: what is wrong with any of them is said before the work
    file = ready(recipe, progress)
    record = deploy(
        msgspec.structs.replace(
            spec, model=str(file), out=spec.out or str(out / "deploy" / slug(spec.device))
        ),
        progress,
    )
    with locked(out / RUN_LOCK, waiting=told.note):  # the report once more, with the board in it
        _walk(report, out, told, dry_run=False)
    return record


def _walk(
    stages: list[Stage], out: Path, progress: Progress, *, dry_run: bool
) -> list[StageResult]:
    results: list[StageResult] = []
    stale: list[str] = []
    for stage in stages:
        inputs = stage.inputs()
        key = digest_of({"inputs": inputs, "trtq": __version__, "schema": SCHEMA})
        feeds = [s for s in stale if s in ("quantize", "finetune") or stage.name == "report"]
        why = (
            f"{feeds[0]} runs before it"
            if feeds and dry_run
            else _why_stale(stage, inputs, key, out)
        )
        if why is None:
            before = {} if dry_run else _state(stage, out)
            done = Outcome(str(before.get("summary", "")), before.get("valid", True) is not False)
            results.append(
                StageResult(
                    stage.name, False, "nothing it depends on has changed", done.summary, done.valid
                )
            )
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
        write_json(
            out / STATE / f"{stage.slug}.json",
            {"key": key, "parts": parts, "files": files, **asdict(done)},
        )
        results.append(StageResult(stage.name, True, why, done.summary, done.valid))
    return results


def _state(stage: Stage, out: Path) -> dict[str, Any]:
    return read_json(out / STATE / f"{stage.slug}.json", kind="stage record")


def _why_stale(stage: Stage, inputs: Mapping[str, Any], key: str, out: Path) -> str | None:
    """Return why the stage must run, or None when it is up to date."""
    try:
        state = _state(stage, out)
    except ArtifactError:
        return (
            "it has not finished before"
            if not (out / STATE / f"{stage.slug}.json").exists()
            else "its record is damaged"
        )
    if state.get("key") != key:
        before = state.get("parts", {})
        changed = [k for k, v in inputs.items() if before.get(k) != digest_of(v)]
        gone = [k for k in before if k not in inputs]
        said = [
            f"{' and '.join(names)} {what}"
            for names, what in ((changed, "changed"), (gone, "no longer there"))
            if names
        ]
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
    fp32, note = out / FP32, _once(progress.note)
    stages = [_quantize_stage(recipe, out, progress, note)]
    records = [out / RECORD]
    if recipe.finetune is not None:
        stages.append(_finetune_stage(recipe.finetune, progress, note))
        records.append(Path(recipe.finetune.out) / TRAINED)
    qdq = _shipped(recipe, out)
    if recipe.evaluate is not None:
        stages.append(_evaluate_stage(recipe, out, qdq, progress, note))
        records.append(out / "evaluate.json")
    for wanted in recipe.build:
        stages.append(_build_stage(wanted, out, qdq, progress, note))
        records.append(manifest_path(stages[-1].outputs[0]))
    if recipe.bench is not None:
        for label, path in (("fp32", fp32), ("qdq", qdq)):
            stages.append(_bench_stage(recipe.bench, label, path, out, progress))
            records.append(out / f"bench.{label}.json")
    stages.append(_report_stage(recipe, out, records))
    names = [s.name for s in stages]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(
            f"The recipe asks for {twice!r} twice",
            "both would write the same file",
            "Remove one [[build]]",
        )
    return stages


def _quantize_stage(recipe: Recipe, out: Path, progress: Progress, note: Note) -> Stage:
    spec = recipe.quantize
    settings = _settings(spec, "out", "calib_cache", "batch_size")

    def inputs() -> dict[str, Any]:
        return {
            "settings": settings,
            "model": model_digest(spec),
            "versions": {
                n: package_version(n) for n in ("torch", "timm", "torchvision", "onnxscript")
            },
            "images": fingerprint(spec.data, spec.class_index, note),
            "allocation": _digest_or_none(spec.allocation),
        }

    def work() -> Outcome:
        return _outcome(quantize(spec, progress))

    return Stage("quantize", inputs, tuple(out / n for n in (FP32, QDQ, ENCODINGS, RECORD)), work)


def _shipped(recipe: Recipe, out: Path) -> Path:
    """Return the Q/DQ file that the stages after training work on."""
    return (Path(recipe.finetune.out) if recipe.finetune is not None else out) / QDQ


def _finetune_stage(spec: FinetuneSpec, progress: Progress, note: Note) -> Stage:
    folder = Path(spec.out)
    if spec.masks is None:  # found now, not after quantization
        val = open_source(spec.val, spec.val_class_index or spec.class_index) if spec.val else None
        require_one_class_list(open_source(spec.data, spec.class_index), val)

    def inputs() -> dict[str, Any]:
        index, val_index = spec.class_index, spec.val_class_index or spec.class_index
        where = {
            "data": (spec.data, index),
            "val": (spec.val, val_index),
            "masks": (spec.masks, None),
            "val_masks": (spec.val_masks, None),
        }
        return {
            "settings": _settings(spec),
            "model": model_digest(spec),
            "encodings": Encodings.load(Path(spec.encodings)).digest()
            if Path(spec.encodings).is_file()
            else None,
            "own loss": source_digest(spec.loss, "loss") if spec.loss else None,
            "ranking": _digest_or_none(spec.sensitivity),
            **{n: fingerprint(d, i, note) if d else None for n, (d, i) in where.items()},
        }

    def work() -> Outcome:
        if (folder / CHECKPOINT).is_dir() and (folder / TRAINED).is_file():
            # Of a run that has ended; one that was interrupted goes on, and the next to be
            # interrupted must not look like this one.
            shutil.rmtree(folder / CHECKPOINT)
            (folder / TRAINED).unlink()
        return _outcome(finetune(spec, progress))

    return Stage(
        "finetune", inputs, tuple(folder / n for n in (FP32, QDQ, ENCODINGS, CURVES, TRAINED)), work
    )


def _evaluate_stage(recipe: Recipe, out: Path, qdq: Path, progress: Progress, note: Note) -> Stage:
    wanted, base = recipe.evaluate, recipe.quantize
    assert wanted is not None
    chosen = _evaluated(recipe, wanted)
    if chosen.masks is None:
        _require_classes(recipe, chosen.source)
    if wanted.held_out:
        _require_left(base, chosen.source)
    names = ("input_size", "mean", "std", "preset", "resize", "crop", "interpolation")
    spec = EvaluateSpec(
        onnx=str(qdq),
        reference=str(out / FP32),
        limit=wanted.limit,
        data=chosen.data,
        class_index=chosen.index,
        exclude=str(out / RECORD) if wanted.held_out else None,
        masks=chosen.masks,
        ignore_index=wanted.ignore_index,
        **{n: getattr(wanted, n) for n in names},
    )

    def inputs() -> dict[str, Any]:
        files = {p.name: _digest_or_none(str(p)) for p in (qdq, out / FP32)}
        return {
            "settings": _settings(spec),
            **files,
            "images": fingerprint(spec.data, spec.class_index, note),
            "masks": fingerprint(spec.masks, None, note) if spec.masks else None,
            "versions": _runtime(),
        }

    def work() -> Outcome:
        record = evaluate(spec, progress)
        write_json(out / "evaluate.json", record)
        return _outcome(record)

    return Stage("evaluate", inputs, (out / "evaluate.json",), work)


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """The images that a recipe evaluates on, and the paths in its record."""

    data: str
    index: str | None
    masks: str | None
    source: Source


def _evaluated(recipe: Recipe, wanted: EvaluateStage) -> _Evaluated:
    """Return the images of ``[evaluate]``.

    The default is the calibration images, or the validation images when training uses the
    calibration images.

    Raises:
        UsageError: training saw some of them although they must be held out.
    """
    base, trained = recipe.quantize, recipe.finetune
    data, index = wanted.data or base.data, wanted.class_index
    if index is None and place_of(data) == place_of(base.data):
        index = base.class_index
    found = _Evaluated(data, index, wanted.masks, open_source(data, index))
    if trained is None or not wanted.held_out:
        return found
    learned = open_source(trained.data, trained.class_index)
    shared = shared_images(found.source, learned)
    if shared and trained.val is not None and not wanted.data:
        index = wanted.class_index or trained.val_class_index or trained.class_index
        found = _Evaluated(
            trained.val, index, trained.val_masks or wanted.masks, open_source(trained.val, index)
        )
        shared = shared_images(found.source, learned)
    if shared:
        raise UsageError(
            "The recipe evaluates on images that training saw",
            f"[finetune] learns from {trained.data}, which holds {len(shared)} of the "
            f"{len(found.source)} images of {found.data}, such as {found.source.ids[shared[0]]}",
            "Give [evaluate] images of its own, or [finetune] a val, or set held_out = false",
        )
    return found


def _require_classes(recipe: Recipe, chosen: Source) -> None:
    """Refuse evaluation images whose class numbers differ from those of training.

    Without training, the class numbers of the calibration images are compared.
    """
    base, trained = recipe.quantize, recipe.finetune
    if trained is None or trained.masks is not None:
        require_one_class_list(chosen)
        require_calibrated_classes(
            chosen, open_source(base.data, base.class_index).classes, base.data
        )
    else:
        require_one_class_list(open_source(trained.data, trained.class_index), chosen)


def _require_left(base: QuantizeSpec, chosen: Source) -> None:
    """Refuse evaluation images that are all used for calibration.

    This check runs before quantization.
    """
    calibrating = open_source(base.data, base.class_index)
    taken = set(calibrating.contents(calibrating.sample(base.calib_images, base.seed)))
    if taken.issuperset(chosen.contents(range(len(chosen)))):
        raise UsageError(
            "The recipe leaves no image to evaluate",
            f"{chosen.name} has {len(chosen)} images and calibration takes {len(taken)}",
            "Give [evaluate] images of its own, lower calib_images, or set held_out = false",
        )


PATHS = (
    "data",
    "class_index",
    "val",
    "val_class_index",
    "masks",
    "val_masks",
)  # keys hold the content behind them


def _settings(spec: Spec, *without: str) -> dict[str, Any]:
    """Return the settings of a stage for its key.

    Paths of images are left out, since the key contains their content.
    """
    return {k: v for k, v in msgspec.to_builtins(spec).items() if k not in (*PATHS, *without)}


def _once(note: Note) -> Note:
    """Return a function that passes each distinct line once."""
    passed: set[str] = set()

    def say(text: str) -> None:
        if text not in passed:
            passed.add(text)
            note(text)

    return say


def _build_stage(wanted: BuildStage, out: Path, qdq: Path, progress: Progress, note: Note) -> Stage:
    parse_target(wanted.target)
    name = f"{wanted.target}-{'int8' if wanted.source == 'qdq' else wanted.precision}"
    if wanted.source == "qdq" and wanted.precision != "fp32":
        name += f"-{wanted.precision}"
    source, engine = qdq if wanted.source == "qdq" else out / FP32, out / f"{name}.engine"
    options = {n: getattr(wanted, n) for n in BuildOptions.__struct_fields__}
    spec = BuildSpec(onnx=str(source), target=wanted.target, out=str(engine), **options)

    def inputs() -> dict[str, Any]:
        versions: dict[str, Any] = {
            n: package_version(n) for n in ("tensorrt-rtx-cu13", "tensorrt")
        }
        if wanted.backend == "trtexec":
            versions["trtexec"] = _trtexec_or_none()
        return {
            "settings": _settings(spec),
            source.name: _digest_or_none(str(source)),
            "builder version": versions,
            "images": fingerprint(spec.data, None, note) if spec.data else None,
        }

    return Stage(
        f"build {name}",
        inputs,
        (engine, manifest_path(engine)),
        lambda: _outcome(build(spec, progress)),
    )


def _trtexec_or_none() -> str | None:
    """Return the trtexec found, or None; the stage reports the error when it runs."""
    try:
        path = find_trtexec()
        return f"{path} {probe_number(path)}"
    except TrtqError:
        return None


def _bench_stage(
    wanted: BenchStage, label: str, path: Path, out: Path, progress: Progress
) -> Stage:
    spec = BenchSpec(
        file=(str(path),),
        device=wanted.device,
        batch=(wanted.batch,),
        duration=wanted.duration,
        min_samples=wanted.min_samples,
        max_duration=wanted.max_duration,
        verdict=wanted.verdict,
    )
    target = out / f"bench.{label}.json"

    def inputs() -> dict[str, Any]:
        return {
            "settings": msgspec.to_builtins(spec),
            path.name: _digest_or_none(str(path)),
            "machine": cpu_name(),
            "versions": _runtime(),
        }

    def work() -> Outcome:
        record = bench(spec, progress)
        write_json(target, record)
        return _outcome(record)

    return Stage(f"bench {label}", inputs, (target,), work)


def _report_stage(recipe: Recipe, out: Path, records: list[Path]) -> Stage:
    page = out / "report.html"

    def inputs() -> dict[str, Any]:
        boards = sorted(out.glob("deploy/*/deploy.json"))
        return {
            "title": recipe.title,
            **{str(p.relative_to(out)): _digest_or_none(str(p)) for p in [*records, *boards]},
        }

    def work() -> Outcome:
        return Outcome(str(write_page(out, page, title=recipe.title)))

    return Stage("report", inputs, (page,), work)


def _outcome(record: Any) -> Outcome:
    """Return the outcome of a record: valid measurements and finite outputs."""
    return Outcome(
        str(record.summary),
        bool(getattr(record, "valid", True)) and bool(getattr(record, "finite", True)),
    )


def _digest_or_none(path: str | None) -> str | None:
    return sha256_file(Path(path)) if path and Path(path).is_file() else None


def _runtime() -> dict[str, str | None]:
    """Return the versions of the packages that run ONNX files."""
    return {n: package_version(n) for n in ("onnxruntime", "onnxruntime-gpu")}
