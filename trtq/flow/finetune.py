"""Quantization-aware training of a quantized model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trtq.artifact import SCHEMA, ensure_writable_dir, environment, sha256_bytes
from trtq.data.answers import HAVE_PREDICTIONS
from trtq.data.samples import ImageSamples, Samples
from trtq.data.source import spread
from trtq.data.tensor_samples import TensorSamples
from trtq.engine.runner import OnnxRunner
from trtq.errors import UsageError
from trtq.export.parity import require_same_float
from trtq.export.to_onnx import export_onnx
from trtq.flow.encoded import quantized_from, require_own
from trtq.flow.evaluate import Evaluator
from trtq.flow.evaluate_record import Measured, evaluation_record
from trtq.flow.finetune_checks import (
    augment_images,
    check_samples,
    note_outputs,
    note_shared,
    require_analysis_of,
    require_fit,
    require_scorable,
    require_task_options,
    require_trainable,
    worst_layers,
)
from trtq.flow.inputs import Inputs
from trtq.flow.model import Model, placed
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.flow.task import bind_task
from trtq.platform.target import check_files, opset_of
from trtq.quant.encodings import Encodings
from trtq.records.analyze import AnalyzeRecord
from trtq.records.evaluate import EvaluateRecord
from trtq.records.finetune import FinetuneRecord, Trained, TrainingConditions
from trtq.specs import FinetuneOptions, QuantizeOptions
from trtq.tasks import Task
from trtq.train.examples import TrainingSetup
from trtq.train.objective import Objective, class_weights
from trtq.train.trainer import Trainer
from trtq.train.training_graph import TrainingGraph
from trtq.typed import present
from trtq.user_code import import_named, source_digest
from trtq.workers import Workers

# Settings that do not change the result; the content of samples is in the key.
NOT_IN_KEY = ("parity_images", "opset", "target", "device", "compile")
PARITY_BATCH = 16
WEIGHED_IMAGES = 1000  # whose masks are counted for class weights


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where training starts.

    Attributes:
        model: captured, float32; it is not changed.
        encodings: of the model.
        name: what to call the encodings, in errors.
        analysis: ranks the layers to train; None trains all.
        ranking: what to call the analysis, in errors.
    """

    model: Model
    encodings: Encodings
    name: str = "of the quantized model"
    analysis: AnalyzeRecord | None = None
    ranking: str = "this analysis"


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """A model after quantization-aware training.

    Attributes:
        record: what was done.
        quantized: the model of the best epoch.
    """

    record: FinetuneRecord
    quantized: Quantized

    @property
    def summary(self) -> str:
        """One line for a person."""
        return self.record.summary


class Training:
    """One run: the model, the samples, and what trains it.

    Args:
        start: the model and its encodings.
        train: samples to learn from.
        val: samples that every epoch and the result are measured on; None without.
        options: how to train.
        folder: of the checkpoint; a run that was stopped continues from it.
        run: the listener, the notes and the clock.
        workers: the processes that share every step.
        task: what the outputs mean; default: that of the options, else what is known of the model.

    Raises:
        TrtqError: the encodings are of another model, there are no targets, or they do not fit.
    """

    def __init__(
        self,
        start: Start,
        samples: tuple[Samples, Samples | None],
        options: FinetuneOptions,
        folder: Path,
        *,
        run: Run | None = None,
        workers: Workers | None = None,
        task: Task | None = None,
    ) -> None:
        self.run = run or Run()
        self.workers = workers or Workers()
        model = placed(start.model, options.device, self.run, self.workers)
        self.start, self.device = replace(start, model=model), model.device
        start = self.start
        self.train_samples, self.val = samples
        self.note, self.clock = self.run.note, self.run.clock
        check_files(options)
        if options.worst is not None and start.analysis is None:
            raise UsageError("--worst needs --sensitivity")
        own = import_named(options.loss, "loss") if options.loss is not None else None
        check_samples(*samples, options, task)
        self.options = options = augment_images(start.model, options, self.run)
        if self.val is not None:
            note_shared(self.val, self.train_samples, self.note)
        self.task = self._task(task)
        if self.task is None:
            note_outputs(start.model, options, self.note)
        elif self.val is not None:
            require_scorable(self.task, start.model, self.val)
        classes = self._classes()
        self.answer = start.model.answer_kind(
            self.train_samples.classes,
            scored=self.train_samples.has_targets and options.loss is None and self.task is None,
        )
        self._require_exportable()
        weights = require_own(start.encodings, start.model.graph.module, start.name, "train from")
        self.graph = self._graph(weights)
        setup = self._setup(classes, self._objective(classes, own))
        self.trainer = Trainer(
            options,
            self.graph,
            setup,
            workers=self.workers,
            key=self._key(weights),
            folder=ensure_writable_dir(folder),
            progress=self.run.progress,
        )
        at = self.trainer.position
        if at.epoch or at.step:
            self.note(f"resuming from epoch {at.epoch + 1}, step {at.step}")
        self.clock.lap("prepare")

    def _task(self, task: Task | None) -> Task | None:
        """Return the task whose answers are learned; None for scores of classes."""
        options, model, train = self.options, self.start.model, self.train_samples
        bound = bind_task(task or options.task, model, train, self.run)
        if bound is None or bound.kind in HAVE_PREDICTIONS:
            return None
        require_task_options(options, bound)
        if train.has_targets:
            self.note(f"{bound.label}: the model learns from the float model's answers, not labels")
        return bound

    def _classes(self) -> int:
        """Return the number of classes, once output, targets and their sizes fit."""
        if not self.start.model.graph.dynamic_batch:
            self.note(
                "the graph has a fixed batch: every step is one image, not "
                f"{self.options.batch_size} (--accumulate adds steps)"
            )
        if self.task is not None:
            return 0
        counted = [self.train_samples] if self.options.distill < 1.0 else []
        counted += [self.val] if self.val is not None else []
        return require_fit(self.start.model, counted)

    def _require_exportable(self) -> None:
        """Find a graph that cannot be written before it is trained."""
        graph = self.start.model.graph
        exported = export_onnx(graph.module, opset=opset_of(self.options), note=self.note)
        require_same_float(graph.module, exported, graph.examples)

    def _graph(self, weights: str) -> TrainingGraph:
        start, options = self.start, self.options
        only = None
        if start.analysis is not None:
            require_analysis_of(start.analysis, weights, start.ranking)
            only = worst_layers(start.analysis, options.worst, start.encodings, self.note)
        graph = TrainingGraph(
            start.model.graph.module,
            start.encodings,
            learn_amax=options.learn_amax,
            freeze=options.freeze,
            only=only,
            keep_norms=options.batch_norm == "kept",
            codebook=options.codebook,
        )
        require_trainable(options, graph)
        return graph

    def _setup(self, classes: int, objective: Objective) -> TrainingSetup:
        captured, val = self.start.model.graph, self.val
        return TrainingSetup(
            objective=objective,
            task=self.task,
            outputs=[t.name for t in captured.signature.outputs],
            teacher=captured.module,
            train=self.train_samples,
            val=None if val is None else val.select(spread(len(val), self.options.val_limit)),
            batch=self.options.batch_size if captured.dynamic_batch else 1,
            classes=classes,
            names=self.start.model.input_names,
            labelled=self.task is None and self.options.distill < 1.0,
        )

    def _objective(self, classes: int, own: object) -> Objective:
        options, train = self.options, self.train_samples
        weights = None
        if train.has_targets and options.class_weights != "none":
            picks = spread(len(train), WEIGHED_IMAGES if train.dense else None)
            targets = train.select(picks).targets()
            weights = class_weights(options.class_weights, targets, classes, train.ignore)
        return Objective(
            distill=options.distill,
            temperature=options.temperature,
            weights=weights.to(self.device) if weights is not None else None,
            ignore=train.ignore,
            own=own if callable(own) else None,
            scores=self.answer in HAVE_PREDICTIONS,
        )

    def _key(self, weights: str) -> object:
        """Return everything that the result depends on."""
        options, analysis = self.options, self.start.analysis
        sets = present((self.train_samples, self.val))
        return [
            options.without(*NOT_IN_KEY),
            weights,
            self.start.encodings.digest(),
            [_identity(s) for s in sets],
            None if analysis is None else [[v.name, v.loss] for v in analysis.layers],
            source_digest(options.loss, "loss") if options.loss else None,
            None if self.task is None else self.task.label,
        ]

    def train(self) -> None:
        """Run the epochs that are left.

        Raises:
            CalibrationError: the loss is not finite, or memory ran out; the last checkpoint is
                kept.
            KeyboardInterrupt: the process was told to stop; the checkpoint was written.
        """
        self.trainer.train()
        self.clock.lap("train")

    def finish(self) -> Finetuned:
        """Return the model of the best epoch.

        Raises:
            ParityError: torch and ONNX Runtime do not compute the same.
        """
        self.trainer.take_best_()
        options, train = self.options, self.train_samples
        inputs = Inputs(
            model=self.start.model,
            samples=train.take(options.parity_images, options.seed),
            answer=self.answer,
            run=self.run,
            task=self.task,
            origin=_class_names(train),
        )
        quantize_options = QuantizeOptions.of(options, bits="w8a8", batch_size=PARITY_BATCH)
        quantized = quantized_from(inputs, self.graph.learned(), quantize_options)
        self.clock.lap("export")
        evaluation = self._evaluate(quantized)
        return Finetuned(record=self._record(quantized, evaluation), quantized=quantized)

    def _record(self, quantized: Quantized, evaluation: EvaluateRecord | None) -> FinetuneRecord:
        options, model, at = self.options, self.start.model, self.trainer.position
        graph, encodings = self.graph, quantized.encodings
        return FinetuneRecord(
            schema=SCHEMA,
            verb="finetune",
            spec={"model": model.name, "data": self.train_samples.name, **options.without()},
            model={"name": model.name, "weights": model.weights, **encodings.origin},
            data=self.train_samples.describe(),
            preprocess=model.preprocess or self.train_samples.preprocess,
            encodings_sha256=self.start.encodings.digest(),
            measure=self.trainer.measure,
            history=at.history,
            best_epoch=at.best_epoch,
            trained=Trained(
                weights=len(graph.weights),
                ranges=len(graph.ranges),
                norms=len(graph.norms),
                codebooks=len(graph.codebooks),
            ),
            training=TrainingConditions(
                device=str(self.device),
                processes=self.workers.world,
                threads=torch.get_num_threads(),
                amp=options.amp,
                compile=options.compile,
            ),
            codebooks={name: book.values.tolist() for name, book in graph.codebooks.items()},
            parity=quantized.done.parity,
            evaluation=evaluation,
            files={},
            notes=self.note.lines,
            seconds=self.clock.seconds,
            environment=environment(),
        )

    def _evaluate(self, quantized: Quantized) -> EvaluateRecord | None:
        """Return the scores of the exported model beside the float one; None without samples."""
        setup, name = self.trainer.setup, self.start.model.name
        if setup.val is None:
            return None
        note, models = Run(self.run.progress).note, (quantized.done.qdq, quantized.fp32)
        runner, reference = (OnnxRunner(m) for m in models)
        evaluator = Evaluator(
            runner,
            reference,
            known=self.answer,
            task=self.task,
            names=(name, f"the float {name}"),
            note=note,
            metadata=self.start.model.metadata,
        )
        seen = evaluator.run(setup.val, PARITY_BATCH, self.run.progress)
        self.clock.lap("evaluate")
        ours, theirs = (sha256_bytes(m.SerializeToString()) for m in models)
        measured = Measured(
            spec={
                "onnx": name,
                "data": setup.val.name,
                "limit": self.options.val_limit,
                **({} if self.task is None else {"task": self.task.label}),
            },
            onnx_sha256=ours,
            reference_sha256=theirs,
            calibration_images=None,
            runtime=runner.label,
            notes=note.lines,
        )
        return evaluation_record(seen, setup.val, measured)


def finetune_model(
    start: Start,
    samples: tuple[Samples, Samples | None],
    options: FinetuneOptions,
    folder: Path,
    run: Run | None = None,
    *,
    task: Task | None = None,
) -> Finetuned:
    """Train a quantized model in this process; :class:`Training` has the arguments."""
    training = Training(start, samples, options, folder, run=run, task=task)
    training.train()
    return training.finish()


def _identity(samples: Samples) -> list[object]:
    """Return what tells two sets apart; samples that vary are told apart by their number."""
    if isinstance(samples, TensorSamples) and samples.varies:
        return [samples.name, len(samples)]
    classes = samples.source.classes if isinstance(samples, ImageSamples) else samples.classes
    return [classes, samples.digest(), samples.targets_identity()]


def _class_names(samples: Samples) -> dict[str, object]:
    """Return the metadata that names the classes of the images; empty without names."""
    if not isinstance(samples, ImageSamples) or samples.dense or not samples.source.classes:
        return {}
    return {"classes": samples.source.classes}
