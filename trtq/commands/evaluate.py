"""``trtq evaluate``: accuracy of an ONNX file or an engine, also against another file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from trtq.artifact import (
    check_record,
    ensure_writable_dir,
    environment,
    header,
    read_json,
    write_json,
)
from trtq.data.answers import (
    HAVE_PREDICTIONS,
    Kind,
    Tally,
    kind_in,
    kind_of_array,
)
from trtq.data.classes import (
    require_calibrated_classes,
    require_known_classes,
    require_one_class_list,
)
from trtq.data.labels import Labels, open_labels
from trtq.data.metrics import Array, Scores, hit_rate, mean_overlap, overlap
from trtq.data.preprocess import Preprocess, batches, resolve_preprocess
from trtq.data.source import Source, describe, open_source, spread
from trtq.engine.manifest import manifest_path, read_manifest
from trtq.engine.open_engine import is_engine, open_engine, rebuild_engine
from trtq.engine.runner import OnnxRunner, Runner
from trtq.errors import DataError, EngineError, UsageError
from trtq.export.onnx_file import digest_onnx, get_metadata, load_onnx
from trtq.files import EVALUATE_JSON, FINETUNE_JSON, QUANTIZE_JSON
from trtq.progress import Notes, Progress, Silent
from trtq.records.evaluate import EvaluateRecord
from trtq.specs import EvaluateSpec

Outputs = Mapping[str, Array]


def evaluate(spec: EvaluateSpec, progress: Progress | None = None) -> EvaluateRecord:
    """Run images through an ONNX file or an engine and count.

    The Q/DQ pairs are computed as the file says, in float: what TensorRT's explicit quantization
    means, not ONNX Runtime's own integer kernels.

    Raises:
        TrtqError: the file, the images or their sizes do not fit.
    """
    progress = progress or Silent()
    note = Notes(progress.note)
    path = Path(spec.onnx)
    runner, metadata, path = _open(spec, path, progress)
    reference = OnnxRunner(Path(spec.reference)) if spec.reference else None

    source = open_source(spec.data, spec.class_index, note)
    if spec.masks is None:
        require_numbers(source, metadata, path.parent)
    preprocess, said = _preprocess(spec, metadata, runner.input_shape)
    used = _calibration_images(Path(spec.exclude)) if spec.exclude else frozenset[str]()
    if used is None:
        why = "it does not say which images calibration looked at"
        raise UsageError(
            f"Cannot leave out the images of {spec.exclude}",
            why,
            "Give the quantize.json of the calibration",
        )
    indices = _choose(source, spec, used)
    known = path.parent / QUANTIZE_JSON
    shared = None
    if not spec.exclude and known.is_file():
        seen = _calibration_images(known)
        shared = (
            sum(content in seen for content in source.short_contents(indices)) if seen else None
        )
        if shared:
            said.append(
                f"{shared} of these images were used for calibration (--exclude {known} leaves "
                "them out)"
            )
    note(*said)
    targets = open_labels(source, spec.masks, preprocess, spec.ignore_index)
    count = _Count(spec, runner, reference, kind_in(metadata), note)
    count.run(source, preprocess, indices, targets, progress)
    scores, other = count.scores, count.others if reference is not None else None
    pixels = scores.confusion
    labelled = scores.labelled > 0
    outputs = [t.result for t in count.tallies.values()]
    compared = outputs if reference is not None else []
    record = EvaluateRecord(
        **header("evaluate", spec),
        onnx_sha256=digest_onnx(path),
        reference_sha256=digest_onnx(Path(spec.reference)) if spec.reference else None,
        images=scores.images,
        top1=_percent(scores.top1, scores.images) if labelled else None,
        top5=_percent(scores.top5, scores.images) if labelled else None,
        reference_top1=_percent(other.top1, scores.images)
        if labelled and other is not None
        else None,
        miou=None if pixels is None else round(mean_overlap(pixels), 4),
        pixel_accuracy=None if pixels is None else round(hit_rate(pixels), 4),
        iou=None
        if pixels is None
        else [round(v, 4) if math.isfinite(v) else None for v in overlap(pixels).tolist()],
        reference_miou=None
        if other is None or other.confusion is None
        else round(mean_overlap(other.confusion), 4),
        agreement=compared[0].agreement if compared else None,
        sqnr_db=compared[0].sqnr_db if compared else None,
        outputs=compared,
        finite=all(o.finite for o in outputs),
        constant=[outputs[0].name] if outputs[0].constant else [],
        calibration_images=0 if spec.exclude else shared,
        data={**describe(source), "images_sha256": source.digest(indices)},
        preprocess=preprocess,
        runtime=runner.label,
        notes=note.lines,
        environment=environment(),
    )
    if spec.out:
        write_json(ensure_writable_dir(Path(spec.out)) / EVALUATE_JSON, record)
    return record


def _open(
    spec: EvaluateSpec, path: Path, progress: Progress
) -> tuple[Runner, dict[str, Any], Path]:
    """Return what runs the file, what it says of its images, and the file that really runs."""
    if not is_engine(path):
        metadata = get_metadata(load_onnx(path))
        return OnnxRunner(path, provider=spec.provider), metadata, path
    try:
        runner = open_engine(path, trust=spec.trust)
    except EngineError as exc:
        if not spec.rebuild or not manifest_path(path).is_file():
            raise
        progress.note(f"{exc.message}: {exc.reason}; building it again")
        path = rebuild_engine(path, progress)
        runner = open_engine(path)
    known = read_manifest(path).preprocess if manifest_path(path).is_file() else None
    return runner, {"preprocess": known} if known is not None else {}, path


class _Count:
    """Runs images through a file and its reference, and counts."""

    def __init__(
        self,
        spec: EvaluateSpec,
        runner: Runner,
        reference: Runner | None,
        known: Kind | None,
        note: Callable[[str], None],
    ) -> None:
        self.spec, self.runner, self.reference, self.known, self.note = (
            spec,
            runner,
            reference,
            known,
            note,
        )
        self.scores, self.others = Scores(), Scores()
        self.tallies: dict[str, Tally] = {}
        self.said = False

    def run(
        self,
        source: Source,
        preprocess: Preprocess,
        indices: list[int],
        targets: Labels | None,
        progress: Progress,
    ) -> None:
        """Run all images."""
        self.scores.ignore = self.others.ignore = targets.ignore if targets is not None else -100
        progress.begin(f"Evaluating: {self.runner.label}", len(indices))
        done = 0
        for batch in batches(source, indices, preprocess, self.spec.batch_size):
            array = batch.numpy()
            ours = self.runner.run(array)
            theirs = self.reference.run(array) if self.reference is not None else ours
            pairs = self._pair(ours, theirs)
            first = next(iter(ours.values()))
            if self.known not in HAVE_PREDICTIONS:
                self.known = self._learned(first, source) or self.known
            wanted = self._wanted(first, targets, indices[done : done + len(array)])
            for i, (name, wants, has) in enumerate(pairs):
                self.tallies.setdefault(name, Tally(name, self.known if i == 0 else None)).add(
                    wants, has
                )
            self.scores.add(first, wanted)
            if self.reference is not None:
                self.others.add(pairs[0][1], wanted)
            done += len(array)
            progress.advance(len(array))

    def _pair(self, ours: Outputs, theirs: Outputs) -> list[tuple[str, Array, Array]]:
        """Return name, reference and answer of every output.

        Outputs are paired by name, or in order where the names differ.

        Raises:
            UsageError: the two do not have the same outputs.
        """
        names = list(ours) if set(ours) == set(theirs) else list(theirs)
        if len(ours) != len(theirs) or (set(ours) != set(theirs) and set(ours) & set(theirs)):
            raise UsageError(
                f"Cannot compare {self.spec.onnx} with {self.spec.reference}",
                f"outputs {', '.join(ours)} and {', '.join(theirs)} differ",
            )
        if names != list(ours):
            self._say(
                f"outputs are compared in order, their names differ: {', '.join(ours)} and "
                f"{', '.join(theirs)}"
            )
        pairs = [(mine, theirs[other], ours[mine]) for mine, other in zip(ours, names, strict=True)]
        for name, wants, has in pairs:
            if wants.shape != has.shape and not self._behind_selection(wants, has):
                raise UsageError(
                    f"Cannot compare {self.spec.onnx} with {self.spec.reference}",
                    f"outputs {list(has.shape)} and {list(wants.shape)} differ ({name})",
                )
        return pairs

    def _behind_selection(self, wants: Array, has: Array) -> bool:
        """Whether two answers differ only in the number of rows they chose."""
        return wants.ndim == has.ndim and wants.shape[1:] == has.shape[1:]

    def _learned(self, scores: Array, source: Source) -> Kind | None:
        """Return what the first output is, for a file that does not say.

        It is scores if there are masks, or as many classes as columns.
        """
        if self.spec.masks is not None:
            return "pixels"
        return "classes" if scores.ndim == 2 and scores.shape[1] == len(source.classes) else None

    def _wanted(
        self, scores: Array, targets: Labels | None, indices: list[int]
    ) -> npt.NDArray[np.int64] | None:
        """Return the labels or masks of a batch; None where the answers are no class scores."""
        if targets is None:
            return None
        if targets.dense and (scores.ndim != 4 or scores.dtype.kind != "f"):
            raise UsageError(
                f"Cannot compare {self.spec.onnx} with masks",
                f"its output is {list(scores.shape)}, not [N, classes, H, W]",
            )
        if not targets.dense and kind_of_array(scores, self.known) != "classes":
            why = (
                "its output is not known to be scores of classes: give folders, or "
                "--class-index, of as many as it has columns"
            )
            self._say(f"no top-1: {why}")
            return None
        targets.expect(scores.shape[1], self.spec.onnx)
        wanted = targets.of(indices).numpy()
        if targets.dense and wanted.shape[1:] != scores.shape[2:]:
            raise UsageError(
                f"Cannot compare {self.spec.onnx} with masks",
                f"its output is {list(scores.shape[2:])}, the masks are {list(wanted.shape[1:])}",
            )
        return wanted

    def _say(self, text: str) -> None:
        if not self.said:
            self.said = True
            self.note(text)


def _percent(count: int, total: int) -> float:
    return round(100.0 * count / total, 4)


def _preprocess(
    spec: EvaluateSpec, metadata: dict[str, Any], shape: list[Any]
) -> tuple[Preprocess, list[str]]:
    """What the user gave, else what the file carries, else ImageNet's."""
    given = {
        n: getattr(spec, n)
        for n in ("input_size", "mean", "std", "preset", "resize", "crop", "interpolation")
    }
    stored = metadata.get("preprocess")
    if stored is not None and all(v is None for v in given.values()):
        return msgspec.convert(stored, Preprocess), []
    if stored is not None:
        # What is not typed stays as the file has it; a new input size or preset brings its own rule
        # for what follows from it.
        keep = {"input_size", "mean", "std", "resize", "crop", "interpolation"}
        keep -= {"mean", "std"} if given["preset"] else set()
        keep -= {"resize", "crop"} if given["input_size"] else set()
        given = {k: stored.get(k) if v is None and k in keep else v for k, v in given.items()}
    if (
        given["input_size"] is None
        and len(shape) == 4
        and all(isinstance(v, int) for v in shape[1:])
    ):
        given["input_size"] = tuple(shape[1:])
    return resolve_preprocess(**given)


def require_numbers(source: Source, metadata: Mapping[str, Any], folder: Path) -> None:
    """Refuse labels whose class numbers differ from the model's, as far as those are known.

    The model's are the numbers it was trained with.

    Args:
        source: the labelled images.
        metadata: of the ONNX file; a trained one names its classes.
        folder: of the file, which may hold the records of training or calibration.

    Raises:
        DataError: names the classes that differ.
    """
    require_one_class_list(source)
    trained = metadata.get("classes") or _class_names(folder / FINETUNE_JSON)
    if trained and not source.indexed:
        require_known_classes(source, trained, "the training images")
    calibrated = _class_names(folder / QUANTIZE_JSON)
    if calibrated:
        require_calibrated_classes(source, calibrated, "the calibration images")


def _class_names(path: Path) -> list[str]:
    """Return the class names that a record gives its images.

    The list is empty without a record, or where the record gives none.
    """
    data = read_json(path).get("data") if path.is_file() else None
    names = data.get("class_names") if isinstance(data, dict) else None
    return [str(n) for n in names] if isinstance(names, list) else []


def _calibration_images(path: Path) -> frozenset[str] | None:
    """Return the content digests of the images that calibration saw, according to a record.

    Returns None where the record does not say.
    """
    data = read_json(path, kind="quantize record").get("data")
    known = data.get("calibration_sha256") if isinstance(data, dict) else None
    return (
        None
        if known is None
        else frozenset(check_record(known, path, list[str], kind="quantize record"))
    )


def _choose(source: Source, spec: EvaluateSpec, used: frozenset[str]) -> list[int]:
    contents = source.short_contents(range(len(source))) if used else []
    indices = [i for i in range(len(source)) if not used or contents[i] not in used]
    if not indices:
        raise DataError(
            f"No image of {source.name} is left to evaluate",
            "all of them were used for calibration",
            "Use fewer --calib-images",
        )
    return [indices[i] for i in spread(len(indices), spec.limit)]
