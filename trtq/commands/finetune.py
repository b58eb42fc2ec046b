"""``trtq finetune``: train a quantized model further with its codes in place, and export it.

The export is that of ``trtq quantize``.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import msgspec
import torch

from trtq.artifact import (
    FileRecord,
    ensure_writable_dir,
    environment,
    header,
    locked,
    read_record,
    sha256_file,
    write_bytes,
    write_json,
)
from trtq.commands.evaluate import evaluate
from trtq.commands.finetune_checks import (
    check_request,
    require_fit,
    require_labels,
    require_trainable,
    worst_layers,
)
from trtq.commands.loading import open_model, open_preprocess, require_own
from trtq.data.classes import mirrored_pair, require_one_class_list
from trtq.data.labels import open_labels
from trtq.data.samples import ImageSamples
from trtq.data.source import Source, describe, open_source, shared_images, spread
from trtq.errors import DataError, UsageError
from trtq.export.parity import require_same_float
from trtq.export.to_onnx import export_onnx
from trtq.files import CURVES_SVG, EVALUATE_JSON, FINETUNE_JSON, FP32, LOCK, QDQ
from trtq.flow.model import Model
from trtq.flow.opset import check_files, opset_of
from trtq.flow.pair import write_encoded
from trtq.flow.ptq import Inputs
from trtq.flow.run import Run
from trtq.graph.device import choose_device, to_device_
from trtq.progress import Progress, Silent
from trtq.quant.encodings import Encodings
from trtq.records.evaluate import EvaluateRecord
from trtq.records.finetune import FinetuneRecord
from trtq.report.figures import training_figure
from trtq.specs import EvaluateSpec, FinetuneSpec, QuantizeOptions
from trtq.train.examples import Examples, TrainingSetup
from trtq.train.objective import Objective, class_weights
from trtq.train.trainer import Trainer
from trtq.train.training_graph import TrainingGraph
from trtq.user_code import import_named, source_digest
from trtq.workers import Workers

CHECKPOINT = "checkpoint"
# Places, and what does not change the result; the content of files is in the key.
NOT_IN_KEY = (
    "out",
    "checkpoint",
    "encodings",
    "parity_images",
    "opset",
    "target",
    "device",
    "compile",
    "data",
    "val",
    "masks",
    "val_masks",
    "class_index",
    "val_class_index",
)
PARITY_BATCH = 16
WEIGHED_IMAGES = 1000  # whose masks are counted for class weights


def finetune(spec: FinetuneSpec, progress: Progress | None = None) -> FinetuneRecord:
    """Train a quantized model and write its files to ``OUT``.

    The files are ``model.fp32.onnx``, ``model.qdq.onnx``, ``encodings.safetensors``, ``curves.svg``
    and ``finetune.json``.

    A run that was stopped continues from ``OUT/checkpoint``; on a CPU with as many threads the
    result is the same to the bit. Started by torchrun, the processes share the images of every
    step; the first writes the files, and all return the same record.

    Raises:
        TrtqError: the encodings are of another model, there are no labels, memory ran out, or the
            loss is not finite.
        KeyboardInterrupt: the process was told to stop; the checkpoint was written.
    """
    workers = Workers.from_environment()
    first = workers.rank == 0
    told = (progress or Silent()) if first else Silent()
    device = choose_device(spec.device, workers)
    out = ensure_writable_dir(Path(spec.out))
    joined = workers.joined(gpu=device.type == "cuda", waiting=(progress or Silent()).note)
    with locked(out / LOCK, waiting=told.note) if first else nullcontext(), joined:
        job = _Job(spec, told, workers, device)
        workers.wait()  # no process writes while another still reads
        job.trainer.train()
        job.clock.lap("train")
        if first:
            record = job.write()
        workers.wait()
        return record if first else read_record(out / FINETUNE_JSON, FinetuneRecord)


class _Job:
    """One run: the model, the images, and what trains it."""

    def __init__(
        self, spec: FinetuneSpec, told: Progress, workers: Workers, device: torch.device
    ) -> None:
        self.spec, self.told, self.run = spec, told, Run(told)
        self.clock, self.note = self.run.clock, self.run.note
        self.workers, self.device, self.out = workers, device, Path(spec.out)
        check_request(spec)
        check_files(spec)
        self.own = import_named(spec.loss, "loss") if spec.loss is not None else None
        self.source = open_source(spec.data, spec.class_index, self.note)
        require_labels(spec, self.source)
        val = self._open_val()
        if spec.masks is None:
            require_one_class_list(self.source, val)
            _require_no_mirror(self.source, spec.augment)
        self.loaded = open_model(spec)
        self.preprocess, said = open_preprocess(spec, self.loaded)
        self.note(*said)
        self.train = Examples(
            source=self.source,
            labels=open_labels(self.source, spec.masks, self.preprocess, spec.ignore_index),
            preprocess=self.preprocess,
        )
        self.val: tuple[Examples, list[int]] | None = None
        if val is not None:
            targets = open_labels(val, spec.val_masks, self.preprocess, spec.ignore_index)
            self.val = (
                Examples(source=val, labels=targets, preprocess=self.preprocess),
                spread(len(val), spec.val_limit),
            )
        self.model = Model.of(self.loaded, self.preprocess)
        self.captured = self.model.graph
        classes = self._classes()
        self.answer = self.model.answer_kind(
            len(self.source.classes), scored=self.train.labels is not None and spec.loss is None
        )
        # A graph that cannot be written is found now.
        exported = export_onnx(self.captured.module, opset=opset_of(spec), note=self.note)
        require_same_float(self.captured.module, exported, self.captured.examples)
        self.encodings = Encodings.load(Path(spec.encodings))
        weights = require_own(self.encodings, self.captured.module, spec.encodings, "train from")
        self.graph = TrainingGraph(
            self.captured.module,
            self.encodings,
            learn_amax=spec.learn_amax,
            freeze=spec.freeze,
            only=worst_layers(spec, self.encodings, weights, self.note),
            keep_norms=spec.batch_norm == "kept",
            codebook=spec.codebook,
        )
        require_trainable(spec, self.graph)
        to_device_(self.graph.module, device)
        self.trainer = self._trainer(classes, weights)
        at = self.trainer.position
        if at.epoch or at.step:
            self.note(f"going on from epoch {at.epoch + 1}, step {at.step}")
        self.clock.lap("prepare")

    def _classes(self) -> int:
        """Return the number of classes, once output, labels or masks and their sizes fit."""
        if not self.captured.dynamic_batch:
            self.note(
                "the graph has a fixed batch: every step is one image, not "
                f"{self.spec.batch_size} (--accumulate adds steps)"
            )
        every = [self.train, *([self.val[0]] if self.val else [])]
        labels = [examples.labels for examples in every if examples.labels is not None]
        return require_fit(self.spec.model, self.model.reference, labels, self.preprocess)

    def _images(self) -> ImageSamples:
        return ImageSamples(
            source=self.source, picture=self.preprocess, indices=range(len(self.source))
        )

    def _open_val(self) -> Source | None:
        spec = self.spec
        if spec.val is None:
            return None
        val = open_source(spec.val, spec.val_class_index or spec.class_index, self.note)
        if spec.masks is not None and spec.val_masks is None:
            raise UsageError(
                "--val needs --val-masks",
                "the model is trained on masks",
                "Give the masks of the validation images",
            )
        if val.labels is None and spec.val_masks is None:
            raise DataError(
                f"Cannot measure accuracy on {spec.val}",
                "it has no labels",
                "Give a folder of class folders, or --val-masks",
            )
        shared = shared_images(val, self.source)
        if shared:
            self.note(
                f"{len(shared)} of {len(val)} images of {val.name} are also in "
                f"{self.source.name}, such as {val.ids[shared[0]]}: "
                "accuracy on them is not that of new images"
            )
        return val

    def _trainer(self, classes: int, weights: str) -> Trainer:
        spec = self.spec
        objective = self._objective(classes)
        settings = {k: v for k, v in msgspec.to_builtins(spec).items() if k not in NOT_IN_KEY}
        seen = [
            (e.source, e.labels)
            for e in (self.train, self.val[0] if self.val else None)
            if e is not None
        ]
        images = [
            [source.identity(), targets.identity() if targets is not None else None]
            for source, targets in seen
        ]
        ranked = sha256_file(Path(spec.sensitivity)) if spec.sensitivity else None
        key = [
            settings,
            weights,
            self.encodings.digest(),
            images,
            ranked,
            source_digest(spec.loss, "loss") if spec.loss else None,
        ]
        return Trainer(
            spec,
            self.graph,
            TrainingSetup(
                objective=objective,
                teacher=to_device_(self.captured.module, self.device),
                train=self.train,
                val=self.val,
                batch=spec.batch_size if self.captured.dynamic_batch else 1,
                classes=classes,
            ),
            workers=self.workers,
            key=key,
            folder=ensure_writable_dir(self.out / CHECKPOINT),
            progress=self.told,
        )

    def _objective(self, classes: int) -> Objective:
        spec, labels = self.spec, self.train.labels
        weights = None
        if labels is not None:
            picks = spread(len(self.source), WEIGHED_IMAGES if labels.dense else None)
            targets = (labels.of([i]) for i in picks)
            weights = class_weights(spec.class_weights, targets, classes, labels.ignore)
        return Objective(
            distill=spec.distill,
            temperature=spec.temperature,
            weights=weights.to(self.device) if weights is not None else None,
            ignore=labels.ignore if labels is not None else -100,
            own=self.own,
        )

    def write(self) -> FinetuneRecord:
        """Write the best epoch's files, the record last.

        Raises:
            ParityError: torch and ONNX Runtime do not compute the same.
        """
        self.trainer.take_best_()
        to_device_(self.captured.module, torch.device("cpu"))
        encodings, spec = self.graph.learned(), self.spec
        classes = self.source.classes if spec.masks is None else []
        inputs = Inputs(
            model=self.model,
            samples=self._images().take(spec.parity_images, spec.seed),
            answer=self.answer,
            run=self.run,
            origin={"classes": classes} if classes else {},
        )
        options = QuantizeOptions.of(spec, bits="w8a8", batch_size=PARITY_BATCH)
        parity, paths = write_encoded(
            inputs, encodings, options, self.out, records=(FINETUNE_JSON, EVALUATE_JSON)
        )
        at, graph = self.trainer.position, self.graph
        paths[CURVES_SVG] = write_bytes(
            self.out / CURVES_SVG, training_figure(at.history, self.trainer.measure).encode()
        )
        self.clock.lap("export")
        evaluation = self._evaluate()
        record = FinetuneRecord(
            **header("finetune", spec),
            model={"name": self.loaded.name, "weights": self.loaded.weights, **encodings.origin},
            data=describe(self.source),
            preprocess=self.preprocess,
            encodings_sha256=sha256_file(Path(spec.encodings)),
            measure=self.trainer.measure,
            history=at.history,
            best_epoch=at.best_epoch,
            trained={
                "weights": len(graph.weights),
                "ranges": len(graph.ranges),
                "norms": len(graph.norms),
                "codebooks": len(graph.codebooks),
            },
            training={
                "device": str(self.device),
                "processes": self.workers.world,
                "threads": torch.get_num_threads(),
                "amp": spec.amp,
                "compile": spec.compile,
            },
            codebooks={name: book.values.tolist() for name, book in graph.codebooks.items()},
            parity=parity,
            evaluation=evaluation,
            files={n: FileRecord.of(p) for n, p in paths.items()},
            notes=self.note.lines,
            seconds=self.clock.seconds,
            environment=environment(),
        )
        write_json(self.out / FINETUNE_JSON, record)
        return record

    def _evaluate(self) -> EvaluateRecord | None:
        spec = self.spec
        if spec.val is None:
            return None
        found = evaluate(
            EvaluateSpec(
                onnx=str(self.out / QDQ),
                reference=str(self.out / FP32),
                data=spec.val,
                class_index=spec.val_class_index or spec.class_index,
                limit=spec.val_limit,
                masks=spec.val_masks,
                ignore_index=spec.ignore_index,
            ),
            self.told,
        )
        write_json(self.out / EVALUATE_JSON, found)
        self.clock.lap("evaluate")
        return found


def _require_no_mirror(source: Source, augment: str) -> None:
    """Refuse mirrored images of classes that a mirror exchanges, such as left and right."""
    pair = mirrored_pair(source.classes)
    if pair is not None and augment != "none":
        raise UsageError(
            f"Cannot mirror the images of {source.name}",
            f"a mirrored image of {pair[0]} shows {pair[1]}",
            "Add --augment none",
        )
