"""``trtq evaluate``: accuracy of an ONNX file or an engine, also against another file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtq.artifact import (
    check_record,
    ensure_writable_dir,
    read_json,
    spec_values,
    write_json,
)
from trtq.commands.loading import open_given, require_no_picture
from trtq.data.answers import TASK, kind_in
from trtq.data.classes import (
    require_calibrated_classes,
    require_known_classes,
    require_one_class_list,
)
from trtq.data.opened import Data
from trtq.data.samples import Samples
from trtq.data.source import Source, spread
from trtq.data.stored_preprocess import file_preprocess
from trtq.engine.manifest import manifest_path, read_manifest
from trtq.engine.needs import needs_of
from trtq.engine.open_engine import is_engine, open_engine, rebuild_engine
from trtq.engine.runner import OnnxRunner, Runner
from trtq.errors import DataError, EngineError, UsageError
from trtq.export.onnx_file import digest_onnx, get_metadata, load_onnx, made_with
from trtq.files import EVALUATE_JSON, FINETUNE_JSON, PICTURES, QUANTIZE_JSON
from trtq.flow.evaluate import Evaluation, Evaluator
from trtq.flow.evaluate_record import Measured, evaluation_record
from trtq.flow.gallery import Gallery
from trtq.progress import Notes, Progress, or_silent
from trtq.records.evaluate import EvaluateRecord, PictureRow
from trtq.specs import EvaluateSpec
from trtq.tasks import Task, find_task, stored_task


def evaluate(spec: EvaluateSpec, progress: Progress | None = None) -> EvaluateRecord:
    """Run images through an ONNX file or an engine and count.

    The Q/DQ pairs are computed as the file says, in float: what TensorRT's explicit quantization
    means, not ONNX Runtime's own integer kernels.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Returns:
        The record; it is written to ``spec.out`` where that is given.

    Raises:
        TrtqError: the file, the images or their sizes do not fit.
    """
    progress = or_silent(progress)
    note = Notes(progress.note)
    path = Path(spec.onnx)
    runner, metadata, maker_metadata, path = _open(spec, path, progress)
    note(*runner.notes)
    reference = OnnxRunner(Path(spec.reference)) if spec.reference else None

    task = _task(spec, metadata.get(TASK), note)
    data = open_given(spec, note, limit=spec.limit)
    if spec.masks is None and data.source is not None and data.source.labels is not None:
        require_numbers(data.source, metadata, path.parent)
    samples = _samples(spec, data, runner, metadata, maker_metadata, note)
    if data.source is None and samples.dense:
        samples.ignore = spec.ignore_index
    samples = samples.select(_chosen(spec, samples))
    shared = _shared_with_calibration(spec, path, samples, note)
    evaluator = Evaluator(
        runner,
        reference,
        known=kind_in(metadata),
        task=task,
        names=(spec.onnx, str(spec.reference)),
        note=note,
        metadata=maker_metadata,
        gallery=Gallery(samples) if pictures_folder(spec) is not None else None,
    )
    seen = evaluator.run(samples, spec.batch_size, progress)
    measured = Measured(
        spec=spec_values(spec),
        onnx_sha256=digest_onnx(path),
        reference_sha256=digest_onnx(Path(spec.reference)) if spec.reference else None,
        calibration_images=0 if spec.exclude else shared,
        runtime=runner.label,
        notes=note.lines,
        pictures=_save_pictures(spec, evaluator, seen),
    )
    record = evaluation_record(seen, samples, measured)
    if spec.out:
        write_json(ensure_writable_dir(Path(spec.out)) / EVALUATE_JSON, record)
    return record


def _task(spec: EvaluateSpec, stored: object, note: Callable[..., None]) -> Task | None:
    """Return the task that was asked for, else that of the file; None where neither says one."""
    if spec.task is not None:
        return find_task(spec.task)
    own = stored_task(stored)
    if own is not None:
        note(f"the task is {own}, as {Path(spec.onnx).name} says (--task)")
        return find_task(own)
    if stored is not None:
        note(f"{Path(spec.onnx).name} names a task of your own: give it with --task")
    return None


def pictures_folder(spec: EvaluateSpec) -> Path | None:
    """Return the folder for pictures of the samples that differ most; None for no pictures.

    Args:
        spec: with ``save_pictures``, or ``out`` and ``reference``, there are pictures.

    Raises:
        UsageError: there is nothing to differ from.
    """
    if spec.save_pictures and not spec.reference:
        raise UsageError(
            "--save-pictures needs --reference",
            "the pictures show where two models differ",
            "Give the float file: --reference OUT/model.fp32.onnx",
        )
    if spec.save_pictures:
        return Path(spec.save_pictures)
    return Path(spec.out) / PICTURES if spec.out and spec.reference else None


def _save_pictures(spec: EvaluateSpec, evaluator: Evaluator, seen: Evaluation) -> list[PictureRow]:
    folder = pictures_folder(spec)
    if folder is None or evaluator.gallery is None:
        return []
    return evaluator.gallery.save(seen.task, folder)


def _excluded(spec: EvaluateSpec) -> frozenset[str]:
    """Return the content digests of the images to leave out.

    Raises:
        UsageError: the record does not say which images they are.
    """
    if not spec.exclude:
        return frozenset()
    used = _calibration_images(Path(spec.exclude))
    if used is None:
        raise UsageError(
            f"Cannot leave out the images of {spec.exclude}",
            "it does not say which images calibration looked at",
            "Give the quantize.json of the calibration",
        )
    return used


def _shared_with_calibration(
    spec: EvaluateSpec, path: Path, samples: Samples, note: Callable[..., None]
) -> int | None:
    """Return how many of the samples calibrated the file, and note it; None where unknown."""
    known = path.parent / QUANTIZE_JSON
    if spec.exclude or not known.is_file():
        return None
    seen = _calibration_images(known)
    if not seen:
        return None
    shared = sum(content in seen for content in samples.contents())
    if shared:
        note(
            f"{shared} of these images were used for calibration (--exclude {known} leaves "
            "them out)"
        )
    return shared


def _samples(
    spec: EvaluateSpec,
    data: Data,
    runner: Runner,
    metadata: Mapping[str, Any],
    maker_metadata: Mapping[str, str],
    note: Callable[..., None],
) -> Samples:
    """Return data as the inputs of a file or an engine.

    Raises:
        UsageError: settings of images for data that are none.
        DataError: samples do not fit the file.
    """
    if data.source is not None:
        stored = metadata.get("preprocess")
        preprocess, notes = file_preprocess(
            spec.picture, stored, runner.input_shape, maker_metadata
        )
        note(*notes)
        return data.make(None, preprocess)
    require_no_picture(spec, data)
    return data.make(needs_of(runner.inputs, metadata, spec.onnx), None)


def _open(
    spec: EvaluateSpec, path: Path, progress: Progress
) -> tuple[Runner, Mapping[str, Any], Mapping[str, str], Path]:
    """Return what runs the file, what it says, what its maker said, and what really runs."""
    if not is_engine(path):
        model = load_onnx(path)
        return OnnxRunner(path, provider=spec.provider), get_metadata(model), made_with(model), path
    try:
        runner = open_engine(path, trust=spec.trust)
    except EngineError as exc:
        if not spec.rebuild or not manifest_path(path).is_file():
            raise
        progress.note(f"{exc.message}: {exc.reason}; building it again")
        path = rebuild_engine(path, progress)
        runner = open_engine(path)
    manifest = read_manifest(path) if manifest_path(path).is_file() else None
    if manifest is None:
        return runner, {}, {}, path
    known = {"preprocess": manifest.preprocess, TASK: manifest.task}
    metadata = {key: value for key, value in known.items() if value is not None}
    return runner, metadata, manifest.made_with, path


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


def _chosen(spec: EvaluateSpec, samples: Samples) -> list[int]:
    """Return the positions of the samples to evaluate on, drawn evenly.

    Raises:
        DataError: none is left.
    """
    used = _excluded(spec)
    contents = samples.contents() if used else [""] * len(samples)
    return _left(samples.name, contents, spec.limit, used)


def _left(name: str, contents: Sequence[str], limit: int | None, used: frozenset[str]) -> list[int]:
    positions = [i for i, content in enumerate(contents) if content not in used]
    if not positions:
        raise DataError(
            f"No image of {name} is left to evaluate",
            "all of them were used for calibration",
            "Use fewer --calib-images",
        )
    return [positions[i] for i in spread(len(positions), limit)]
