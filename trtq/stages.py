"""The stages of a recipe: what each depends on, which files it writes, and its work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import (
    sha256_file,
    write_json,
)
from trtq.bench.harness import bench
from trtq.commands.evaluate import evaluate
from trtq.commands.finetune import CHECKPOINT, finetune
from trtq.commands.quantize import quantize
from trtq.data.classes import require_calibrated_classes, require_one_class_list
from trtq.data.source import Note, Source, place_of, shared_images
from trtq.engine.build import build
from trtq.engine.manifest import manifest_path
from trtq.engine.trtexec import find_trtexec, probe_number
from trtq.errors import TrtqError, UsageError
from trtq.extensions import identity
from trtq.files import (
    CURVES_SVG,
    DEPLOYED,
    EVALUATE_JSON,
    FINETUNE_JSON,
    FP32,
    MODEL_FILES,
    QDQ,
    QUANTIZE_JSON,
    REPORT_HTML,
    bench_json,
)
from trtq.machine import cpu_name, package_version
from trtq.methods.registry import METHODS
from trtq.platform.target import Target
from trtq.progress import Progress
from trtq.quant.calibrators import AUTO, CALIBRATORS
from trtq.quant.encodings import Encodings
from trtq.recall import fingerprint, model_digest, open_images
from trtq.recipe import BenchStage, BuildStage, EvaluateStage, Recipe
from trtq.report.page import write_page
from trtq.specs import (
    BenchSpec,
    BuildOptions,
    BuildSpec,
    EvaluateSpec,
    FinetuneSpec,
    QuantizeSpec,
    Spec,
)
from trtq.user_code import source_digest

Inputs = dict[str, object]  # all that a stage's result depends on, by what a person calls it


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a stage.

    Attributes:
        summary: one line.
        valid: whether its figures may be used.
    """

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
    inputs: Callable[[], Inputs]
    outputs: tuple[Path, ...]
    work: Callable[[], Outcome]

    @property
    def slug(self) -> str:
        """The stage's name as a file name."""
        return "".join(c if c.isalnum() else "-" for c in self.name)


def plan(recipe: Recipe, out: Path, progress: Progress) -> list[Stage]:
    """Return the stages of ``recipe`` in order.

    Args:
        recipe: what to do.
        out: its folder.
        progress: receives what the stages report.

    Raises:
        UsageError: two stages would write one file, a target is unknown, evaluation images were
            used for training or all for calibration, or classes have other numbers.
        DataError: images cannot be read.
    """
    fp32, note = out / FP32, _once(progress.note)
    stages = [_quantize_stage(recipe, out, progress, note)]
    records = [out / QUANTIZE_JSON]
    if recipe.finetune is not None:
        stages.append(_finetune_stage(recipe.finetune, progress, note))
        records.append(Path(recipe.finetune.out) / FINETUNE_JSON)
    qdq = quantized_file(recipe, out)
    if recipe.evaluate is not None:
        stages.append(_evaluate_stage(recipe, out, qdq, progress, note))
        records.append(out / EVALUATE_JSON)
    for wanted in recipe.build:
        stages.append(_build_stage(wanted, out, qdq, progress, note))
        records.append(manifest_path(stages[-1].outputs[0]))
    if recipe.bench is not None:
        for label, path in (("fp32", fp32), ("qdq", qdq)):
            stages.append(_bench_stage(recipe.bench, label, path, out, progress))
            records.append(out / bench_json(label))
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
    open_images(spec.data, spec.class_index, tokenizer=spec.tokenizer)  # refused before any work
    settings = _settings(spec, "out", "calib_cache", "batch_size")

    def inputs() -> Inputs:
        return {
            "settings": settings,
            "model": model_digest(spec),
            "versions": {
                n: package_version(n) for n in ("torch", "timm", "torchvision", "onnxscript")
            },
            "images": fingerprint(spec.data, spec.class_index, note, tokenizer=spec.tokenizer),
            **({"masks": fingerprint(spec.masks, None, note)} if spec.masks else {}),
            "allocation": _digest_or_none(spec.allocation),
            **_extensions_of(spec),
        }

    def work() -> Outcome:
        return _outcome(quantize(spec, progress))

    return Stage("quantize", inputs, tuple(out / n for n in (*MODEL_FILES, QUANTIZE_JSON)), work)


def _extensions_of(spec: QuantizeSpec) -> dict[str, list[str]]:
    """Return the identity of every method and calibrator from outside trtq, {} for none."""
    named = [("methods", n) for n in spec.method if n not in METHODS]
    named += (
        [("calibrators", spec.calibrator)] if spec.calibrator not in (*CALIBRATORS, AUTO) else []
    )
    return {"extensions": [identity(kind, n) for kind, n in named]} if named else {}


def quantized_file(recipe: Recipe, out: Path) -> Path:
    """Return the Q/DQ file of a recipe, the trained one where it trains."""
    return (Path(recipe.finetune.out) if recipe.finetune is not None else out) / QDQ


def _finetune_stage(spec: FinetuneSpec, progress: Progress, note: Note) -> Stage:
    folder = Path(spec.out)
    val_index = spec.val_class_index or spec.class_index
    if spec.masks is None:  # found now, not after quantization
        val = open_images(spec.val, val_index, tokenizer=spec.tokenizer) if spec.val else None
        learned = open_images(spec.data, spec.class_index, tokenizer=spec.tokenizer)
        if learned is not None:
            require_one_class_list(learned, val)

    def inputs() -> Inputs:
        images = {
            "data": (spec.data, spec.class_index, spec.tokenizer),
            "val": (spec.val, val_index, spec.tokenizer),
            "masks": (spec.masks, None, None),
            "val_masks": (spec.val_masks, None, None),
        }
        encodings = Path(spec.encodings)
        return {
            "settings": _settings(spec),
            "model": model_digest(spec),
            "encodings": Encodings.load(encodings).digest() if encodings.is_file() else None,
            "own loss": source_digest(spec.loss, "loss") if spec.loss else None,
            "ranking": _digest_or_none(spec.sensitivity),
            **{
                n: fingerprint(d, i, note, tokenizer=t) if d else None
                for n, (d, i, t) in images.items()
            },
        }

    def work() -> Outcome:
        if (folder / CHECKPOINT).is_dir() and (folder / FINETUNE_JSON).is_file():
            # The file of a run that has ended; one that was interrupted continues, and the next
            # to be interrupted must not look like this one.
            shutil.rmtree(folder / CHECKPOINT)
            (folder / FINETUNE_JSON).unlink()
        return _outcome(finetune(spec, progress))

    outputs = tuple(folder / n for n in (*MODEL_FILES, CURVES_SVG, FINETUNE_JSON))
    return Stage("finetune", inputs, outputs, work)


def _evaluate_stage(recipe: Recipe, out: Path, qdq: Path, progress: Progress, note: Note) -> Stage:
    wanted, base = recipe.evaluate, recipe.quantize
    assert wanted is not None
    chosen = _evaluated(recipe, wanted)
    if chosen.masks is None and chosen.source is not None:
        _require_classes(recipe, chosen.source)
    if wanted.held_out and chosen.source is not None:
        _require_left(base, chosen.source)
    spec = EvaluateSpec(
        onnx=str(qdq),
        reference=str(out / FP32),
        limit=wanted.limit,
        data=chosen.data,
        class_index=chosen.index,
        tokenizer=chosen.tokenizer,
        exclude=str(out / QUANTIZE_JSON) if wanted.held_out else None,
        masks=chosen.masks,
        ignore_index=wanted.ignore_index,
        out=str(out),  # of the pictures
        **wanted.picture,
    )

    def inputs() -> Inputs:
        files = {p.name: _digest_or_none(str(p)) for p in (qdq, out / FP32)}
        return {
            "settings": _settings(spec, "out"),
            **files,
            "images": fingerprint(spec.data, spec.class_index, note, tokenizer=spec.tokenizer),
            "masks": fingerprint(spec.masks, None, note) if spec.masks else None,
            "versions": _runtime(),
        }

    def work() -> Outcome:
        record = evaluate(spec, progress)
        write_json(out / EVALUATE_JSON, record)
        return _outcome(record)

    return Stage("evaluate", inputs, (out / EVALUATE_JSON,), work)


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """The samples that a recipe evaluates on, and the paths in its record.

    Attributes:
        source: the images; None for other samples, which only the step itself compares with those
            of calibration.
    """

    data: str
    index: str | None
    masks: str | None
    tokenizer: str | None
    source: Source | None


def _evaluated(recipe: Recipe, wanted: EvaluateStage) -> _Evaluated:
    """Return the images of ``[evaluate]``.

    The default is the calibration images, or the validation images when training uses the
    calibration images.

    Raises:
        UsageError: training saw some of them although they must be held out.
    """
    base, trained = recipe.quantize, recipe.finetune
    data, index, masks = wanted.data or base.data, wanted.class_index, wanted.masks
    if place_of(data) == place_of(base.data):
        index, masks = index or base.class_index, masks or base.masks
    tokenizer = wanted.tokenizer or base.tokenizer
    source = open_images(data, index, tokenizer=tokenizer)
    chosen = _Evaluated(data, index, masks, tokenizer, source)
    if trained is None or not wanted.held_out:
        return chosen
    learned = open_images(trained.data, trained.class_index, tokenizer=trained.tokenizer)
    shared = _shared(chosen.source, learned)
    if shared and trained.val is not None and not wanted.data:
        chosen = _validation(trained, trained.val, wanted)
        shared = _shared(chosen.source, learned)
    if shared and chosen.source is not None:
        raise UsageError(
            "The recipe evaluates on images that training saw",
            f"[finetune] learns from {trained.data}, which holds {len(shared)} of the "
            f"{len(chosen.source)} images of {chosen.data}, such as "
            f"{chosen.source.ids[shared[0]]}",
            "Give [evaluate] images of its own, or [finetune] a val, or set held_out = false",
        )
    return chosen


def _shared(one: Source | None, other: Source | None) -> list[int]:
    """Return the positions in ``one`` of images that ``other`` has; none for other samples."""
    return [] if one is None or other is None else shared_images(one, other)


def _validation(trained: FinetuneSpec, val: str, wanted: EvaluateStage) -> _Evaluated:
    """Return the validation images of a training."""
    index = wanted.class_index or trained.val_class_index or trained.class_index
    tokenizer = wanted.tokenizer or trained.tokenizer
    source = open_images(val, index, tokenizer=tokenizer)
    return _Evaluated(val, index, trained.val_masks or wanted.masks, tokenizer, source)


def _require_classes(recipe: Recipe, chosen: Source) -> None:
    """Refuse evaluation images whose class numbers differ from those of training.

    Without training, the class numbers of the calibration images are compared.
    """
    base, trained = recipe.quantize, recipe.finetune
    if trained is None or trained.masks is not None:
        require_one_class_list(chosen)
        calibrating = open_images(base.data, base.class_index, tokenizer=base.tokenizer)
        if calibrating is not None:
            require_calibrated_classes(chosen, calibrating.classes, base.data)
        return
    learned = open_images(trained.data, trained.class_index, tokenizer=trained.tokenizer)
    if learned is not None:
        require_one_class_list(learned, chosen)


def _require_left(base: QuantizeSpec, chosen: Source) -> None:
    """Refuse evaluation images that are all used for calibration.

    This check runs before quantization.
    """
    calibrating = open_images(base.data, base.class_index, tokenizer=base.tokenizer)
    if calibrating is None:
        return
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


def _settings(spec: Spec, *without: str) -> Inputs:
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
    Target.parse(wanted.target)
    name = f"{wanted.target}-{'int8' if wanted.source == 'qdq' else wanted.precision}"
    if wanted.source == "qdq" and wanted.precision != "fp32":
        name += f"-{wanted.precision}"
    source, engine = qdq if wanted.source == "qdq" else out / FP32, out / f"{name}.engine"
    options = {n: getattr(wanted, n) for n in BuildOptions.__struct_fields__}
    spec = BuildSpec(onnx=str(source), target=wanted.target, out=str(engine), **options)

    def inputs() -> Inputs:
        versions: dict[str, str | None] = {
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
    target = out / bench_json(label)

    def inputs() -> Inputs:
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
    page = out / REPORT_HTML

    def inputs() -> Inputs:
        boards = sorted(out.glob(DEPLOYED))
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
