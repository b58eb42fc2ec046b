"""Run samples through a model and a reference, compare them, and score both.

The one place that joins answers with targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from trtq.data.answers import HAVE_PREDICTIONS, Kind, OutputComparison, Tally, kind_of_array
from trtq.data.classes import require_calibrated_classes, require_one_class_list
from trtq.data.metrics import Array
from trtq.data.samples import Batch, ImageSamples, Samples
from trtq.engine.runner import OnnxRunner, Runner
from trtq.errors import UsageError
from trtq.export.onnx_file import made_with
from trtq.flow.data import open_samples
from trtq.flow.gallery import Gallery
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.flow.task import facts_of_batch, fitting_targets
from trtq.progress import Progress
from trtq.tasks import Facts, Figure, Score, Task, find_task, task_for
from trtq.tasks.equal_predictions import AGREEMENT

Outputs = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a model, and of its reference.

    Attributes:
        samples: how many samples were run.
        task: what the first output means.
        score, reference_score: counts against targets; the second is None without a reference.
        alike: counts against the reference's answers; None without one, and for tasks that compare
            outputs as numbers.
        outputs: every output against the reference's, or against itself without one.
        notes: what the user should know.
    """

    samples: int
    task: Task
    score: Score
    reference_score: Score | None
    alike: Score | None = None
    outputs: list[OutputComparison]
    notes: list[str] = field(default_factory=list)

    @property
    def compared(self) -> bool:
        """Whether there is a reference."""
        return self.reference_score is not None

    @property
    def figures(self) -> dict[str, Figure]:
        """Scores by name."""
        return {f.name: f for f in self.score.figures}

    @property
    def reference(self) -> dict[str, Figure]:
        """The reference's scores by name."""
        return (
            {}
            if self.reference_score is None
            else {f.name: f for f in self.reference_score.figures}
        )

    @property
    def agreement(self) -> dict[str, Figure]:
        """Scores of the two models' answers by the task, by name."""
        return {} if self.alike is None else {f.name: f for f in self.alike.figures}

    def __str__(self) -> str:
        return self.summary

    @property
    def summary(self) -> str:
        """One line: samples, scores beside the float model's, agreement and SQNR."""
        parts = [f"{self.samples} samples"]
        for name, figure in self.figures.items():
            other = self.reference.get(name)
            known = other is not None and other.value is not None
            beside = f" (float {other.amount})" if known and other else ""
            parts.append(f"{figure.words}{beside}")
        parts += [f.words for f in self.agreement.values() if f.name != AGREEMENT]
        if self.compared:
            for output in self.outputs:
                lead = "" if len(self.outputs) == 1 else f"{output.name}: "
                parts.append(f"against float: {lead}{output.words}")
        return "; ".join(parts)


def evaluate_quantized(
    quantized: Quantized, data: object, task: str | Task | None, *, batch_size: int
) -> Evaluation:
    """Return the scores of an exported model beside its float model's, in ONNX Runtime.

    Args:
        quantized: the model.
        data: as for :func:`~trtq.flow.data.open_samples`.
        task: what the outputs mean; None for what is known.
        batch_size: samples in a call.

    Raises:
        UsageError: an unknown task, or answers and targets do not fit.
        DataError: class numbers mean other classes than in calibration.
    """
    inputs = quantized.inputs
    chosen_task = inputs.task if task is None else find_task(task)
    run = Run(inputs.run.progress)
    samples = open_samples(data, inputs.model, note=run.note)
    _require_same_classes(samples, inputs.samples)
    evaluator = Evaluator(
        OnnxRunner(quantized.done.qdq),
        OnnxRunner(quantized.fp32),
        known=inputs.answer,
        task=chosen_task,
        names=(inputs.model.name, f"the float {inputs.model.name}"),
        note=run.note,
        metadata=made_with(quantized.done.qdq),
    )
    seen = evaluator.run(samples, batch_size, run.progress)
    known = set(inputs.samples.contents())
    shared = sum(content in known for content in samples.contents())
    if shared:
        run.note(f"{shared} of these samples were used for calibration")
    return replace(seen, notes=run.note.lines)


def _require_same_classes(samples: Samples, calibrated: Samples) -> None:
    """Refuse images whose class numbers mean other classes than in calibration."""
    if not isinstance(samples, ImageSamples) or not isinstance(calibrated, ImageSamples):
        return
    if not samples.has_targets or samples.dense:
        return
    require_one_class_list(samples.source)
    classes = calibrated.source.classes
    if classes:
        require_calibrated_classes(samples.source, classes, "the calibration images")


@dataclass
class Evaluator:
    """Runs samples through a model and its reference, and counts.

    Attributes:
        runner: the model.
        reference: what it is compared with; None for nothing.
        known: what the first output is, where its file says it.
        task: what the outputs mean; None for what is known.
        names: of the model and the reference, for errors.
        metadata: what the maker of the file wrote into it.
        gallery: keeps the samples on which the two differ most; None for no pictures.
        note: receives a line that the user should read.
        tallies: sums by output, filled by :meth:`run`.
        told: lines that :attr:`note` has received.
    """

    runner: Runner
    reference: Runner | None
    known: Kind | None
    task: Task | None
    names: tuple[str, str]
    note: Callable[[str], None]
    metadata: Mapping[str, str] = field(default_factory=dict)
    gallery: Gallery | None = None
    tallies: dict[str, Tally] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def run(self, samples: Samples, batch_size: int, progress: Progress) -> Evaluation:
        """Run all samples.

        Args:
            samples: with targets where scores are wanted.
            batch_size: samples in a call, 1 or more.
            progress: receives progress.

        Raises:
            UsageError: the two models have different outputs, or answers and targets do not fit.
            DataError: a sample is damaged, or a target is of a class that the model does not have.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(
                f"Cannot evaluate in batches of {batch_size}", "expected a whole number from 1 on"
            )
        progress.begin(f"Evaluating: {self.runner.label}", len(samples))
        scores: list[Score] = []
        alike: Score | None = None
        task: Task | None = None
        for batch in samples.batches(batch_size):
            arrays = {n: t.numpy() for n, t in batch.inputs.items()}
            ours = self.runner.run(arrays)
            theirs = ours if self.reference is None else self.reference.run(arrays)
            pairs = self._pair(ours, theirs)
            task = task or self._task_of(ours, samples, batch)
            sides = [ours] if self.reference is None else [ours, {n: w for n, w, _ in pairs}]
            answers = [task.decode(side, batch.places) for side in sides]
            targets = self._targets(answers[0], task, samples, batch)
            self._compare(pairs)
            if not scores:
                scores = [task.score(ignore=samples.ignore) for _ in answers]
                alike = None if self.reference is None else task.agreement()
            for score, answer in zip(scores, answers, strict=True):
                score.add(answer, targets)
            if alike is not None:
                alike.add(*answers)
            if self.gallery is not None and self.reference is not None:
                self.gallery.add(task, batch, answers, targets)
            progress.advance(len(batch))
        assert task is not None  # Samples are never empty
        figures = scores[0].figures
        if samples.boxed and figures and all(f.value is None for f in figures):
            self._tell(
                f"the labels of {samples.name} name no object that can be found: "
                f"{figures[0].name} has nothing to count"
            )
        return Evaluation(
            samples=len(samples),
            task=task,
            score=scores[0],
            reference_score=None if self.reference is None else scores[1],
            alike=alike,
            outputs=[t.result for t in self.tallies.values()],
        )

    def _compare(self, pairs: list[tuple[str, Array, Array]]) -> None:
        for i, (name, wanted, answer) in enumerate(pairs):
            kind = self.known if i == 0 else None
            self.tallies.setdefault(name, Tally(name, kind)).add(wanted, answer)

    def _pair(self, ours: Outputs, theirs: Outputs) -> list[tuple[str, Array, Array]]:
        """Return name, reference and answer of every output.

        Outputs are paired by name, or in order where the names differ.

        Raises:
            UsageError: the two do not have the same outputs.
        """
        same = set(ours) == set(theirs)
        if len(ours) != len(theirs) or (not same and set(ours) & set(theirs)):
            raise self._differ(f"outputs {', '.join(ours)} and {', '.join(theirs)} differ")
        names = list(ours) if same else list(theirs)
        if names != list(ours):
            self._tell(
                f"outputs are compared in order, their names differ: {', '.join(ours)} and "
                f"{', '.join(theirs)}"
            )
        pairs = [(mine, theirs[other], ours[mine]) for mine, other in zip(ours, names, strict=True)]
        for name, wanted, answer in pairs:
            if wanted.shape != answer.shape and not _behind_selection(wanted, answer):
                raise self._differ(
                    f"outputs {list(answer.shape)} and {list(wanted.shape)} differ ({name})"
                )
        return pairs

    def _differ(self, reason: str) -> UsageError:
        return UsageError(f"Cannot compare {self.names[0]} with {self.names[1]}", reason)

    def _task_of(self, outputs: Outputs, samples: Samples, batch: Batch) -> Task:
        """Return what the outputs mean.

        It is what was asked for, else what the file says, else scores where there are masks or as
        many classes as columns, else boxes where the targets are and one decoder fits; never a
        guess.

        Raises:
            UsageError: the model lacks the outputs of the task that was asked for.
        """
        answer = next(iter(outputs.values()))
        facts = facts_of_batch(outputs, batch, samples, self.metadata)
        if self.task is not None:
            self.known = self.task.kind
            return self.task.bound(facts)
        if samples.boxed:
            return self._of_boxes(facts)
        if samples.dense:
            self.known = "pixels"
        elif (
            self.known not in HAVE_PREDICTIONS
            and answer.ndim == 2
            and answer.shape[1] == samples.classes
        ):
            self.known = "classes"
        task = task_for(self.known)
        return task if samples.dense and not facts.channels_last else task.bound(facts)

    def _of_boxes(self, facts: Facts) -> Task:
        """Return the task of samples with boxes: detection where one decoder fits, else none."""
        try:
            task = find_task("detection").bound(facts)
        except UsageError as exc:
            self._tell(f"no scores of boxes: {exc.message}: {exc.reason} (--task)")
            return task_for(None)
        self._tell(f"the task is {task.label}: the targets are boxes, and its outputs fit")
        return task

    def _targets(
        self, answer: Any, task: Task, samples: Samples, batch: Batch
    ) -> npt.NDArray[Any] | None:
        """Return the targets of a batch; None where the answers have no meaning.

        Raises:
            UsageError: their shapes do not fit the answer.
            DataError: they are of classes that the model does not have.
        """
        if not samples.has_targets:
            return None
        if self.task is not None or samples.boxed:  # the task itself says what fits
            return self._read(answer, task, samples, batch) if task.takes_targets else None
        if not samples.dense and kind_of_array(answer, self.known) != "classes":
            self._tell(
                "no top-1: its output is not known to be scores of classes: give --task "
                "classification, or folders or --class-index of as many as it has columns"
            )
            return None
        if samples.dense and (answer.ndim != 4 or answer.dtype.kind != "f"):
            raise UsageError(
                f"Cannot compare {self.names[0]} with masks",
                f"its output is {list(answer.shape)}, not [N, classes, H, W]",
            )
        return self._read(answer, task, samples, batch)

    def _read(
        self, answer: Any, task: Task, samples: Samples, batch: Batch
    ) -> npt.NDArray[Any] | None:
        """Return the targets of a batch, once they are known to fit the answer."""
        if task.kind in HAVE_PREDICTIONS and answer.ndim > 1:
            samples.expect(int(answer.shape[1]), self.names[0])
        values = fitting_targets(self.names[0], task, answer, batch, samples)
        if values is not None:
            self._tell(task.remark(answer, values))
        return values

    def _tell(self, text: str) -> None:
        if text and text not in self.told:
            self.told.add(text)
            self.note(text)


def _behind_selection(wanted: Array, answer: Array) -> bool:
    """Whether two answers differ only in the number of rows they chose."""
    return wanted.ndim == answer.ndim and wanted.shape[1:] == answer.shape[1:]
