"""``trtq evaluate``: accuracy of an ONNX file or an engine, and how it compares with another file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import SCHEMA, check_record, ensure_writable_dir, environment, read_json, sha256_file, write_json
from trtq.data.metrics import Scores, hit_rate, mean_overlap, overlap, sqnr_words
from trtq.data.preprocess import Preprocess, batches, resolve_preprocess
from trtq.data.source import Source, describe, open_source, spread
from trtq.data.targets import Targets, open_targets
from trtq.engine.manifest import manifest_path, read_manifest
from trtq.engine.open_engine import is_engine, open_engine, rebuild_engine
from trtq.engine.runner import OnnxRunner, Runner
from trtq.errors import DataError, EngineError, UsageError
from trtq.export.onnx_file import get_metadata, load_onnx
from trtq.progress import Progress, Silent
from trtq.specs import EvaluateSpec

RECORD = "evaluate.json"


class EvaluateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What ``trtq evaluate`` measured.

    Attributes:
        images: how many images were run.
        top1, top5: percent of labels that were first, or among the first five; None without labels.
        agreement: percent of predictions equal to the reference's; None without a reference.
        sqnr_db: logits of the reference over the difference, dB; None without a reference or without difference.
        finite: no logit was NaN or infinite, the reference's included.
        reference_top1: the reference's own accuracy on the same images.
        miou: mean intersection over union of pixels, percent; None without masks.
        pixel_accuracy: share of right pixels, percent.
        iou: by class index, percent; None for a class that is nowhere.
        reference_miou: the reference's own.
        calibration_images: how many of the images were used for calibration; None when that is not known.
        runtime: what computed the outputs.
    """

    schema: int
    verb: str
    spec: dict[str, Any]
    onnx_sha256: str
    reference_sha256: str | None
    images: int
    top1: float | None
    top5: float | None
    reference_top1: float | None
    miou: float | None = None
    pixel_accuracy: float | None = None
    iou: list[float | None] | None = None
    reference_miou: float | None = None
    agreement: float | None
    sqnr_db: float | None
    finite: bool = True
    calibration_images: int | None
    data: dict[str, Any]
    preprocess: Preprocess
    runtime: str
    notes: list[str]
    environment: dict[str, Any]

    @property
    def measure(self) -> str:
        """What :attr:`score` is: ``mIoU`` with masks, ``top-1`` with labels, else ``agreement`` with the reference."""
        return "mIoU" if self.miou is not None else "top-1" if self.top1 is not None else "agreement"

    @property
    def score(self) -> float | None:
        """The number by which models are compared, percent."""
        return self.miou if self.miou is not None else self.top1 if self.top1 is not None else self.agreement

    @property
    def reference_score(self) -> float | None:
        """The reference's own; None when agreement is all there is."""
        return self.reference_miou if self.miou is not None else self.reference_top1

    @property
    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.images} images"]
        if self.top1 is not None:
            parts.append(f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %")
        if self.miou is not None:
            parts.append(f"mIoU {self.miou:.2f} %, {self.pixel_accuracy:.2f} % of the pixels right")
        if self.reference_score is not None:
            parts.append(f"reference {self.measure} {self.reference_score:.2f} %")
        if self.agreement is not None:
            words = sqnr_words(self.sqnr_db, finite=self.finite)
            parts.append(f"agreement {self.agreement:.2f} %, {words if self.sqnr_db is None else f'SQNR {words}'}")
        elif not self.finite:
            parts.append("some answers are NaN or infinite")
        if len(parts) == 1:
            parts.append("no labels, no masks and no reference: there is nothing to compare with (--reference, --masks)")
        return "; ".join(parts)


def evaluate(spec: EvaluateSpec, progress: Progress | None = None) -> EvaluateRecord:
    """Run images through an ONNX file or an engine and count.

    The Q/DQ pairs are computed as the file says, in float: what TensorRT's explicit quantization means, not ONNX Runtime's own
    integer kernels.

    Raises:
        TrtqError: the file, the images or their sizes do not fit.
    """
    progress = progress or Silent()
    notes: list[str] = []
    path = Path(spec.onnx)
    runner, metadata, path = _open(spec, path, progress)
    reference = OnnxRunner(Path(spec.reference)) if spec.reference else None
    source = open_source(spec.data, Path(spec.class_index) if spec.class_index else None)
    preprocess, said = _preprocess(spec, metadata, runner.input_shape)
    used = _calibration_images(Path(spec.exclude)) if spec.exclude else frozenset[str]()
    if used is None:
        why = "it does not say which images calibration looked at"
        raise UsageError(f"Cannot leave out the images of {spec.exclude}", why, "Give the quantize.json of the calibration")
    indices = _choose(source, spec, used)
    known = path.parent / "quantize.json"
    shared = None
    if not spec.exclude and known.is_file():
        seen = _calibration_images(known)
        shared = sum(source.content(i) in seen for i in indices) if seen else None
        if shared:
            said.append(f"{shared} of these images were used for calibration (--exclude {known} leaves them out)")
    for line in said:
        notes.append(line)
        progress.note(line)

    targets = open_targets(source, spec.masks, preprocess, spec.ignore_index)
    scores, other = _run(spec, runner, reference, source, preprocess, indices, targets, notes, progress)
    pixels = scores.confusion
    labelled = scores.labelled > 0
    record = EvaluateRecord(
        schema=SCHEMA,
        verb="evaluate",
        spec=msgspec.to_builtins(spec),
        onnx_sha256=sha256_file(path),
        reference_sha256=sha256_file(Path(spec.reference)) if spec.reference else None,
        images=scores.images,
        top1=_percent(scores.top1, scores.images) if labelled else None,
        top5=_percent(scores.top5, scores.images) if labelled else None,
        reference_top1=_percent(other.top1, scores.images) if labelled and other is not None else None,
        miou=None if pixels is None else round(mean_overlap(pixels), 4),
        pixel_accuracy=None if pixels is None else round(hit_rate(pixels), 4),
        iou=None if pixels is None else [round(v, 4) if math.isfinite(v) else None for v in overlap(pixels).tolist()],
        reference_miou=None if other is None or other.confusion is None else round(mean_overlap(other.confusion), 4),
        agreement=None if scores.agreement is None else round(scores.agreement, 4),
        sqnr_db=None if scores.sqnr_db is None else round(scores.sqnr_db, 3),
        finite=scores.finite,
        calibration_images=0 if spec.exclude else shared,
        data=describe(source),
        preprocess=preprocess,
        runtime=runner.label,
        notes=notes,
        environment=environment(),
    )
    if spec.out:
        write_json(ensure_writable_dir(Path(spec.out)) / RECORD, record)
    return record


def _open(spec: EvaluateSpec, path: Path, progress: Progress) -> tuple[Runner, dict[str, Any], Path]:
    """Return what runs the file, what it says of its images, and the file that really runs."""
    if not is_engine(path):
        metadata = get_metadata(load_onnx(path))
        return OnnxRunner(path, provider=spec.provider), metadata, path
    try:
        runner = open_engine(path, trust=spec.trust)
    except EngineError as exc:
        if not spec.rebuild or not manifest_path(path).is_file():
            raise
        progress.note(f"{exc.what}: {exc.why}; building it again")
        path = rebuild_engine(path, progress)
        runner = open_engine(path)
    known = read_manifest(path).preprocess if manifest_path(path).is_file() else None
    return runner, {"preprocess": known} if known is not None else {}, path


def _run(
    spec: EvaluateSpec, runner: Runner, reference: Runner | None, source: Source, preprocess: Preprocess, indices: list[int],
    targets: Targets | None, notes: list[str], progress: Progress,
) -> tuple[Scores, Scores | None]:  # fmt: skip
    """Run the images through the file and the reference and count."""
    ignore = targets.ignore if targets is not None else -100
    scores, others = Scores(ignore=ignore), Scores(ignore=ignore) if reference is not None else None
    progress.begin(f"Evaluating: {runner.label}", len(indices))
    done = 0
    for batch in batches(source, indices, preprocess, spec.batch_size):
        array = batch.numpy()
        logits = next(iter(runner.run(array).values()))
        other = next(iter(reference.run(array).values())) if reference is not None else None
        if other is not None and other.shape != logits.shape:
            raise UsageError(
                f"Cannot compare {spec.onnx} with {spec.reference}", f"outputs {list(logits.shape)} and {list(other.shape)} differ"
            )
        wanted = None
        if targets is not None and logits.ndim == (4 if targets.dense else 2):
            targets.expect(logits.shape[1], spec.onnx)
            wanted = targets.of(indices[done : done + len(array)]).numpy()
            if done == 0 and not targets.dense and spec.class_index is None and len(source.classes) != logits.shape[1]:
                found = f"{source.name} has {len(source.classes)} classes, the model {logits.shape[1]}"
                notes.append(f"{found}: accuracy is right only if these are its first (--class-index)")
                progress.note(notes[-1])
        elif targets is not None and targets.dense:
            raise UsageError(f"Cannot hold {spec.onnx} against masks", f"its output is {list(logits.shape)}, not [N, classes, H, W]")
        if wanted is not None and wanted.ndim == 3 and wanted.shape[1:] != logits.shape[2:]:
            raise UsageError(
                f"Cannot hold {spec.onnx} against masks", f"its output is {list(logits.shape[2:])}, the masks are {list(wanted.shape[1:])}"
            )
        scores.add(logits, wanted, other)
        if others is not None and other is not None:
            others.add(other, wanted, None)
        done += len(array)
        progress.advance(len(array))
    return scores, others


def _percent(count: int, total: int) -> float:
    return round(100.0 * count / total, 4)


def _preprocess(spec: EvaluateSpec, metadata: dict[str, Any], shape: list[Any]) -> tuple[Preprocess, list[str]]:
    """What the user gave, else what the file carries, else ImageNet's."""
    given = {n: getattr(spec, n) for n in ("input_size", "mean", "std", "preset", "resize", "crop", "interpolation")}
    stored = metadata.get("preprocess")
    if stored is not None and all(v is None for v in given.values()):
        return msgspec.convert(stored, Preprocess), []
    if stored is not None:
        # What is not typed stays as the file has it; a new input size or preset brings its own rule for what follows from it.
        keep = {"input_size", "mean", "std", "resize", "crop", "interpolation"}
        keep -= {"mean", "std"} if given["preset"] else set()
        keep -= {"resize", "crop"} if given["input_size"] else set()
        given = {k: stored.get(k) if v is None and k in keep else v for k, v in given.items()}
    if given["input_size"] is None and len(shape) == 4 and all(isinstance(v, int) for v in shape[1:]):
        given["input_size"] = tuple(shape[1:])
    return resolve_preprocess(**given)


def _calibration_images(path: Path) -> frozenset[str] | None:
    """Return the content digests of the images a record says calibration looked at; None where it does not say."""
    data = read_json(path, kind="quantize record").get("data")
    known = data.get("calibration_sha256") if isinstance(data, dict) else None
    return None if known is None else frozenset(check_record(known, path, list[str], kind="quantize record"))


def _choose(source: Source, spec: EvaluateSpec, used: frozenset[str]) -> list[int]:
    indices = [i for i in range(len(source)) if not used or source.content(i) not in used]
    if not indices:
        raise DataError(
            f"No image of {source.name} is left to evaluate", "all of them were used for calibration", "Use fewer --calib-images"
        )
    return [indices[i] for i in spread(len(indices), spec.limit)]
