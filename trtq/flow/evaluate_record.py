"""The record of an evaluation: scores by name, and the samples and models they are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import msgspec

from trtq.artifact import SCHEMA, environment
from trtq.data.samples import Samples
from trtq.flow.evaluate import Evaluation
from trtq.records.evaluate import EvaluateRecord, PictureRow
from trtq.tasks import Figure
from trtq.tasks.base import HasCurve
from trtq.tasks.segmentation import PixelScore


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The evaluated models and data.

    Attributes:
        spec: what was asked for, as plain values.
        onnx_sha256, reference_sha256: of the model and of its reference; None without one.
        calibration_images: how many of the samples calibrated the model; None where unknown.
        runtime: what computed the outputs.
        notes: for the user.
        pictures: that were written.
    """

    spec: Mapping[str, object]
    onnx_sha256: str
    reference_sha256: str | None
    calibration_images: int | None
    runtime: str
    notes: list[str]
    pictures: list[PictureRow] = []


class _Scores(TypedDict):
    top1: float | None
    top5: float | None
    reference_top1: float | None
    miou: float | None
    pixel_accuracy: float | None
    iou: list[float | None] | None
    reference_miou: float | None
    agreement: float | None
    sqnr_db: float | None


class _TaskFields(TypedDict, total=False):
    task: str
    figures: list[Figure]
    reference_figures: list[Figure]
    agreement_figures: list[Figure]
    by_class: list[float | None]
    reference_by_class: list[float | None]
    class_names: list[str]
    curve: list[tuple[float, float]]
    reference_curve: list[tuple[float, float]]


def evaluation_record(seen: Evaluation, samples: Samples, measured: Measured) -> EvaluateRecord:
    """Return the record of an evaluation.

    Args:
        seen: what was counted.
        samples: what it was counted on.
        measured: the models and how they ran.
    """
    return EvaluateRecord(
        schema=SCHEMA,
        verb="evaluate",
        spec=dict(measured.spec),
        onnx_sha256=measured.onnx_sha256,
        reference_sha256=measured.reference_sha256,
        images=seen.samples,
        **_scores(seen),
        **_task_fields(seen, samples, measured.spec.get("task")),
        outputs=seen.outputs if seen.compared else [],
        finite=all(o.finite for o in seen.outputs),
        constant=[seen.outputs[0].name] if seen.outputs[0].constant else [],
        calibration_images=measured.calibration_images,
        data={**samples.describe(), "images_sha256": samples.digest()},
        preprocess=samples.preprocess,
        runtime=measured.runtime,
        pictures=measured.pictures or msgspec.UNSET,
        notes=measured.notes,
        environment=environment(),
    )


def _task_fields(seen: Evaluation, samples: Samples, task: object) -> _TaskFields:
    """Return the fields of a record about a task: one asked for, or with no fields of its own."""
    if task is None and (seen.task.kind is not None or not seen.task.takes_targets):
        return {}
    fields = _TaskFields(
        task=seen.task.label,
        figures=list(seen.figures.values()),
        reference_figures=list(seen.reference.values()),
    )
    if seen.alike is not None:
        fields["agreement_figures"] = list(seen.agreement.values())
    by_class = getattr(seen.score, "by_class", None)
    if by_class is not None and seen.figures:
        fields["class_names"] = list(samples.class_names or getattr(seen.task, "classes", ()))
        if not isinstance(seen.score, PixelScore):
            fields["by_class"] = list(by_class)
    theirs = getattr(seen.reference_score, "by_class", None)
    if theirs is not None and seen.figures:
        fields["reference_by_class"] = list(theirs)
    if isinstance(seen.score, HasCurve) and seen.figures:
        fields["curve"] = seen.score.curve()
    if isinstance(seen.reference_score, HasCurve) and seen.figures:
        fields["reference_curve"] = seen.reference_score.curve()
    return fields


def _scores(seen: Evaluation) -> _Scores:
    """Return the fields of a record that hold scores."""

    def value(figures: Mapping[str, Figure], name: str) -> float | None:
        return figures[name].value if name in figures else None

    ours, theirs, first = seen.figures, seen.reference, seen.outputs[0]
    return {
        "top1": value(ours, "top-1"),
        "top5": value(ours, "top-5"),
        "reference_top1": value(theirs, "top-1"),
        "miou": value(ours, "mIoU"),
        "pixel_accuracy": value(ours, "pixel accuracy"),
        "iou": seen.score.by_class if isinstance(seen.score, PixelScore) else None,
        "reference_miou": value(theirs, "mIoU"),
        "agreement": first.agreement if seen.compared else None,
        "sqnr_db": first.sqnr_db if seen.compared else None,
    }
