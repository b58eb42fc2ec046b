"""The measurements of ``trtq evaluate``."""

from __future__ import annotations

from typing import Any

import msgspec

from trtq.artifact import Environment, Record
from trtq.data.answers import OutputComparison
from trtq.data.preprocess import Preprocess
from trtq.tasks.base import Figure, with_fields

IN_FIELDS = ("top-1", "top-5", "mIoU", "pixel accuracy")  # figures that have a field of their own


class PictureRow(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of one sample: the answers of the reference and of the model, side by side.

    Attributes:
        file: its name in the folder of pictures.
        sample: id.
        difference: by which samples were ordered, 0 is none.
        score, reference_score: the task's first score of this one sample, by the model and by the
            reference; unset without targets.
        agreement: the task's first score of the two answers; unset for tasks without one.
    """

    file: str
    sample: str
    difference: float
    score: Figure | msgspec.UnsetType = msgspec.UNSET
    reference_score: Figure | msgspec.UnsetType = msgspec.UNSET
    agreement: Figure | msgspec.UnsetType = msgspec.UNSET

    @property
    def words(self) -> str:
        """The scores of the sample and its difference as a person reads them."""
        parts = []
        if self.score and self.reference_score:
            parts.append(f"{self.score.words} (float {self.reference_score.amount})")
        if self.agreement:
            parts.append(self.agreement.words)
        return "; ".join([*parts, f"difference {self.difference:.3g}"])


class EvaluateRecord(Record, frozen=True, kw_only=True):
    """The measurements of ``trtq evaluate``.

    Attributes:
        images: how many images were run.
        top1, top5: percent of labels that were first, or among the first five; None without labels.
        agreement: percent of the first output's predictions equal to the reference's; None without
            a reference, and where the output is not known to be scores of classes.
        sqnr_db: first output of the reference over the difference, dB; None without a reference or
            without difference.
        outputs: every output against the reference's; empty without one.
        finite: no output was NaN or infinite, the reference's included.
        constant: the first output, where it was the same for every image; others may be constants,
            such as anchors.
        reference_top1: the reference's own accuracy on the same images.
        miou: mean intersection over union of pixels, percent; None without masks.
        pixel_accuracy: share of right pixels, percent.
        iou: by class index, percent; None for a class that is nowhere.
        reference_miou: the reference's own.
        task: what the first output means; unset where no task was asked for.
        figures, reference_figures: the scores of that task, of the file and of the reference.
        agreement_figures: what the task says of the file's answers against the reference's.
        by_class: the task's first score of each class, by index; None for a class that is nowhere.
        reference_by_class: the reference's own, of the classes or of ``iou``.
        class_names: in the same order; empty where nobody says them.
        curve, reference_curve: recall and the task's precision there, 0 to 1.
        pictures: of the samples where the two models differ most; their folder is beside the
            record.
        calibration_images: how many of the images were used for calibration; None when that is not
            known.
        runtime: what computed the outputs.
        onnx_sha256, reference_sha256: of the two files; None without a reference.
        data: what samples say of themselves.
        preprocess: how images became the input; None for inputs.
        notes: every automatic choice.
        environment: software and machine.
    """

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
    task: str | msgspec.UnsetType = msgspec.UNSET
    figures: list[Figure] | msgspec.UnsetType = msgspec.UNSET
    reference_figures: list[Figure] | msgspec.UnsetType = msgspec.UNSET
    agreement_figures: list[Figure] | msgspec.UnsetType = msgspec.UNSET
    by_class: list[float | None] | msgspec.UnsetType = msgspec.UNSET
    reference_by_class: list[float | None] | msgspec.UnsetType = msgspec.UNSET
    class_names: list[str] | msgspec.UnsetType = msgspec.UNSET
    curve: list[tuple[float, float]] | msgspec.UnsetType = msgspec.UNSET
    reference_curve: list[tuple[float, float]] | msgspec.UnsetType = msgspec.UNSET
    pictures: list[PictureRow] | msgspec.UnsetType = msgspec.UNSET
    agreement: float | None
    sqnr_db: float | None
    outputs: list[OutputComparison] = []
    finite: bool = True
    constant: list[str] = []
    calibration_images: int | None
    data: dict[str, Any]
    preprocess: Preprocess | None
    runtime: str
    notes: list[str]
    environment: Environment

    @property
    def judged(self) -> tuple[Figure, Figure | None] | None:
        """The score that models are compared by and the reference's own.

        It is the task's first, ``mIoU`` with masks, ``top-1`` with labels, else what the task says
        of the two models' answers, else their equal predictions; None without any.
        """
        own, theirs = self._scored, self._reference
        if own is not None and own.value is not None:
            return own, theirs
        alike = next(iter(self.agreement_figures or ()), None)
        if alike is not None:
            return alike, None
        if self.agreement is None:
            return None
        return Figure(name="agreement", value=self.agreement), None

    @property
    def scores(self) -> dict[str, tuple[Figure, Figure | None]]:
        """Every score by name with the reference's own.

        Scores of the two models' agreement have none of the reference; a score of the same name
        against targets takes their place.
        """
        fields = {"mIoU": self.miou, "pixel accuracy": self.pixel_accuracy}
        fields |= {"top-1": self.top1, "top-5": self.top5}
        own = with_fields(self.figures, fields)
        theirs = {f.name: f for f in self.reference_figures or ()}
        for name, value in (("top-1", self.reference_top1), ("mIoU", self.reference_miou)):
            theirs.setdefault(name, Figure(name=name, value=value))
        scores = {f.name: (f, theirs.get(f.name)) for f in own}
        alike = list(self.agreement_figures or ())
        if self.agreement is not None:
            alike.append(Figure(name="agreement", value=self.agreement))
        return scores | {f.name: (f, None) for f in alike if f.name not in scores}

    @property
    def _scored(self) -> Figure | None:
        fields = {"mIoU": self.miou, "top-1": self.top1}
        return next(iter(with_fields(self.figures, fields)), None)

    @property
    def _reference(self) -> Figure | None:
        fields = {"mIoU": self.reference_miou, "top-1": self.reference_top1}
        return next(iter(with_fields(self.reference_figures, fields)), None)

    @property
    def measure(self) -> str:
        """The name of :attr:`score`, such as ``mAP``, ``mIoU``, ``top-1`` or ``agreement``."""
        return "agreement" if self.judged is None else self.judged[0].name

    @property
    def doubt(self) -> str:
        """Why the figures are meaningless, "" when they are not."""
        if not self.finite:
            return "some answers are NaN or infinite, or have other shapes than the reference's"
        return f"the output {self.constant[0]} is the same for every image" if self.constant else ""

    @property
    def valid(self) -> bool:
        """Whether the figures are meaningful."""
        return not self.doubt

    @property
    def score(self) -> float | None:
        """The number by which models are compared, in the unit of its figure."""
        return None if self.judged is None else self.judged[0].value

    @property
    def reference_score(self) -> float | None:
        """The reference's own; None when agreement is all there is."""
        if self.judged is None or self.judged[1] is None:
            return None
        return self.judged[1].value

    @property
    def images_words(self) -> str:
        """How many samples of what kind, as a person reads it."""
        plain = "samples" if self.preprocess is None else "images"
        return f"{self.images} {'random inputs' if self.data.get('random') else plain}"

    @property
    def summary(self) -> str:
        """One line for a person."""
        parts = [self.images_words]
        if self.top1 is not None:
            parts.append(f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %")
        if self.miou is not None:
            parts.append(f"mIoU {self.miou:.2f} %, {self.pixel_accuracy:.2f} % of the pixels right")
        parts += [f.words for f in self.figures or () if f.name not in IN_FIELDS]
        if self.reference_score is not None and self.measure in IN_FIELDS:
            parts.append(f"reference {self.measure} {self.reference_score:.2f} %")
        others = [f.words for f in self.reference_figures or () if f.name not in IN_FIELDS]
        parts += [f"reference {words}" for words in others]
        parts += [f.words for f in self.agreement_figures or () if f.name != "agreement"]
        for output in self.outputs:
            parts.append(
                output.words if len(self.outputs) == 1 else f"{output.name}: {output.words}"
            )
        if self.doubt:
            parts.append(f"NOT VALID: {self.doubt}")
        if len(parts) == 1:
            parts.append(
                "no labels, no masks and no reference: there is nothing to compare with "
                "(--reference, --masks)"
            )
        return "; ".join(parts)
