"""``trtq evaluate``: accuracy of an ONNX file in ONNX Runtime, and how it compares with another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import SCHEMA, environment, read_json, sha256_file
from trtq.data.metrics import Scores
from trtq.data.preprocess import Preprocess, batches, resolve_preprocess
from trtq.data.source import Source, describe, open_source, spread
from trtq.errors import DataError, UsageError
from trtq.export.onnx_file import get_metadata, load_onnx
from trtq.export.ort import input_shape, open_session, run_batch
from trtq.recipe import EvaluateSpec
from trtq.verbs.progress import Progress, Silent


class EvaluateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What ``trtq evaluate`` measured.

    Attributes:
        images: how many images were run.
        top1, top5: percent of labels that were first, or among the first five; None without labels.
        agreement: percent of predictions equal to the reference's; None without a reference.
        sqnr_db: logits of the reference over the difference, dB; None without a reference or without difference.
        reference_top1: the reference's own accuracy on the same images.
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
    agreement: float | None
    sqnr_db: float | None
    calibration_images: int | None
    data: dict[str, Any]
    preprocess: Preprocess
    runtime: str
    notes: list[str]
    environment: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.images} images"]
        if self.top1 is not None:
            parts.append(f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %")
        if self.reference_top1 is not None:
            parts.append(f"reference top-1 {self.reference_top1:.2f} %")
        if self.agreement is not None:
            sqnr = "no difference" if self.sqnr_db is None else f"SQNR {self.sqnr_db:.2f} dB"
            parts.append(f"agreement {self.agreement:.2f} %, {sqnr}")
        return "; ".join(parts)


def evaluate(spec: EvaluateSpec, progress: Progress | None = None) -> EvaluateRecord:
    """Run images through an ONNX file and count.

    The Q/DQ pairs are computed as the file says, in float: what TensorRT's explicit quantization means, not ONNX Runtime's own
    integer kernels.

    Raises:
        TrtqError: the file, the images or their sizes do not fit.
    """
    progress = progress or Silent()
    notes: list[str] = []
    path = Path(spec.onnx)
    metadata = get_metadata(load_onnx(path))
    session = open_session(path)
    reference = open_session(Path(spec.reference)) if spec.reference else None
    source = open_source(spec.data, Path(spec.class_index) if spec.class_index else None)
    preprocess, said = _preprocess(spec, metadata, input_shape(session))
    used = _calibration_images(Path(spec.exclude)) if spec.exclude else frozenset[str]()
    indices = _choose(source, spec, used)
    known = path.parent / "quantize.json"
    overlap = None
    if not spec.exclude and known.is_file():
        seen = _calibration_images(known)
        overlap = sum(source.content(i) in seen for i in indices) if seen else None
        if overlap:
            said.append(f"{overlap} of these images were used for calibration (--exclude {known} leaves them out)")
    for line in said:
        notes.append(line)
        progress.note(line)

    def note_classes(found: int, outputs: int) -> None:
        if found != outputs:
            notes.append(
                f"{source.name} has {found} classes, the model {outputs}: accuracy is right only if these are its first (--class-index)"
            )
            progress.note(notes[-1])

    scores, reference_scores = Scores(), Scores()
    progress.begin("Evaluating in ONNX Runtime (CPU)", len(indices))
    done = 0
    for batch in batches(source, indices, preprocess, spec.batch_size):
        array = batch.numpy()
        labels = [source.labels[i] for i in indices[done : done + len(array)]] if source.labels is not None else None
        logits = run_batch(session, array)[0]
        other = run_batch(reference, array)[0] if reference is not None else None
        if other is not None and other.shape != logits.shape:
            raise UsageError(
                f"Cannot compare {spec.onnx} with {spec.reference}", f"outputs {list(logits.shape)} and {list(other.shape)} differ"
            )
        if labels is not None and logits.ndim == 2 and max(labels) >= logits.shape[1]:
            raise DataError(
                f"The labels of {source.name} do not fit {spec.onnx}",
                f"the highest class index is {max(labels)}, the model has {logits.shape[1]} classes",
                "Give the class order with --class-index",
            )
        if done == 0 and spec.class_index is None and labels is not None and logits.ndim == 2:
            note_classes(len(source.classes), logits.shape[1])
        scores.add(logits, labels, other)
        if other is not None:
            reference_scores.add(other, labels, None)
        done += len(array)
        progress.advance(len(array))
    labelled = source.labels is not None and scores.images > 0 and logits.ndim == 2
    return EvaluateRecord(
        schema=SCHEMA,
        verb="evaluate",
        spec=msgspec.to_builtins(spec),
        onnx_sha256=sha256_file(path),
        reference_sha256=sha256_file(Path(spec.reference)) if spec.reference else None,
        images=scores.images,
        top1=_percent(scores.top1, scores.images) if labelled else None,
        top5=_percent(scores.top5, scores.images) if labelled else None,
        reference_top1=_percent(reference_scores.top1, scores.images) if labelled and reference is not None else None,
        agreement=None if scores.agreement is None else round(scores.agreement, 4),
        sqnr_db=None if scores.sqnr_db is None else round(scores.sqnr_db, 3),
        calibration_images=0 if spec.exclude else overlap,
        data=describe(source),
        preprocess=preprocess,
        runtime="ONNX Runtime, CPU, Q/DQ computed as written",
        notes=notes,
        environment=environment(),
    )


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


def _calibration_images(path: Path) -> frozenset[str]:
    """Return the content digests of the images a record says calibration looked at."""
    data = read_json(path, kind="quantize record").get("data")
    return frozenset(data.get("calibration_sha256", ())) if isinstance(data, dict) else frozenset()


def _choose(source: Source, spec: EvaluateSpec, used: frozenset[str]) -> list[int]:
    indices = [i for i in range(len(source)) if not used or source.content(i) not in used]
    if not indices:
        raise DataError(
            f"No image of {source.name} is left to evaluate", "all of them were used for calibration", "Use fewer --calib-images"
        )
    return [indices[i] for i in spread(len(indices), spec.limit)]
