"""``trtq finetune``: train a quantized model further with its codes in place, and export it as ``trtq quantize`` does."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from trtq.artifact import SCHEMA, digest_of, ensure_writable_dir, environment, locked, sha256_file, write_json
from trtq.data.preprocess import Preprocess, batches
from trtq.data.source import Source, describe, open_source, spread
from trtq.errors import CalibrationError, DataError, EncodingsError, UsageError
from trtq.export.onnx_file import export_onnx, save_onnx, set_metadata_
from trtq.export.parity import ParityRecord, check_parity, require_parity
from trtq.graph.capture import CapturedGraph, capture
from trtq.methods.qat import TrainingGraph
from trtq.methods.training import Position, RunState, augment, keep_freed_memory_, rate
from trtq.quant.digest import structure_digest, weights_digest
from trtq.quant.encodings import Encodings
from trtq.quant.simulate import insert_fake_quantize
from trtq.recipe import EvaluateSpec, FinetuneSpec
from trtq.verbs.evaluate import EvaluateRecord, evaluate
from trtq.verbs.opening import open_model, open_preprocess
from trtq.verbs.progress import Progress, Silent
from trtq.verbs.quantize import ENCODINGS, FP32, QDQ
from trtq.verbs.records import Clock, FileRecord

RECORD, EVALUATION, CHECKPOINT = "finetune.json", "evaluate.json", "checkpoint"
SAVE_EVERY = 50  # steps
CLASSIFIER_AXES = 2


class FinetuneRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What ``trtq finetune`` did.

    Attributes:
        trained: how many weights and biases, and how many ranges, learned.
        history: loss, learning rate, and accuracy on the validation images, by epoch; measured in torch with the codes in place.
        best_epoch: the one that was written.
        parity: torch against ONNX Runtime on the exported file.
        evaluation: of the exported file against the float one, None without --val.
    """

    schema: int
    verb: str
    spec: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    preprocess: Preprocess
    trained: dict[str, int]
    history: list[dict[str, float]]
    best_epoch: int
    parity: ParityRecord
    evaluation: EvaluateRecord | None
    files: dict[str, FileRecord]
    notes: list[str]
    seconds: dict[str, float]
    environment: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line for a person."""
        losses = f"loss {self.history[0]['loss']:.4f} to {self.history[-1]['loss']:.4f} in {len(self.history)} epochs"
        trained = f"{self.trained['weights']} weights and biases, {self.trained['ranges']} ranges"
        said = f"{trained}; {losses}; epoch {self.best_epoch + 1} was written"
        return f"{said}; {self.evaluation.summary}" if self.evaluation is not None else said


def finetune(spec: FinetuneSpec, progress: Progress | None = None) -> FinetuneRecord:
    """Train and write ``OUT/model.fp32.onnx``, ``model.qdq.onnx``, ``encodings.safetensors`` and ``finetune.json``.

    A run that was stopped goes on from ``OUT/checkpoint``; on a CPU with as many threads it ends in the same bits.

    Raises:
        TrtqError: the encodings are of another model, the images have no labels, or the loss is not finite.
        KeyboardInterrupt: the process was told to stop; the checkpoint was written.
    """
    told = progress or Silent()
    with locked(ensure_writable_dir(Path(spec.out)) / ".trtq.lock", waiting=told.note):
        job = _Job(spec, told)
        job.train()
        return job.write()


class _Job:
    """One run: the model, the images, what learns, and where it is."""

    def __init__(self, spec: FinetuneSpec, told: Progress) -> None:
        self.spec, self.told, self.clock, self.notes = spec, told, Clock(), list[str]()
        self.out = Path(spec.out)
        if Path(spec.encodings).resolve().parent == self.out.resolve():
            why = "training would overwrite what it starts from"
            raise UsageError(f"--out {spec.out} is where the encodings lie", why, "Give another folder")
        if spec.val is None and (spec.patience is not None or spec.schedule == "plateau"):
            asked = "--patience" if spec.patience is not None else "--schedule plateau"
            raise UsageError(f"{asked} needs --val", "without it no epoch is better than another", "Give labelled images with --val")
        self.source = open_source(spec.data, Path(spec.class_index) if spec.class_index else None)
        if self.source.labels is None and spec.distill < 1.0:
            raise DataError(
                f"Cannot train on {self.source.name}",
                "it has no labels",
                "Give a folder of class folders, or --distill 1 to learn from the float model",
            )
        self.val = self._validation()
        self.loaded = open_model(spec)
        self.preprocess, said = open_preprocess(spec, self.loaded)
        for line in said:
            self.note(line)
        self.captured: CapturedGraph = capture(self.loaded.module, self.preprocess.input_size)
        self._require_classifier()
        self.encodings = Encodings.load(Path(spec.encodings))
        weights, structure = weights_digest(self.captured.module), structure_digest(self.captured.module)
        if self.encodings.origin.get("weights_sha256") != weights:
            raise EncodingsError(
                f"The encodings {spec.encodings} were made for another model",
                f"its weights are {str(self.encodings.origin.get('weights_sha256'))[:12]}, this model's are {weights[:12]}",
                "Give the model and the checkpoint they were made with",
            )
        if self.encodings.origin.get("structure_sha256", structure) != structure:
            raise EncodingsError(
                f"Cannot train from {spec.encodings}",
                f"its methods ({self.encodings.origin.get('methods')}) put ops into the graph that training does not have",
                "Quantize without qads and integer-softmax, and train from that",
            )
        self.graph = TrainingGraph(self.captured.module, self.encodings, learn_amax=spec.learn_amax, freeze=spec.freeze)
        self.weights = list(self.graph.weights.values())
        self.ranges = [q.log_step for q in self.graph.quantizers.values() if q.log_step.requires_grad]
        if not self.weights and not self.ranges:
            raise CalibrationError("Nothing is left to train", "every layer is frozen and ranges do not learn")
        self._optimizers()
        where = ("out", "checkpoint", "encodings", "parity_images", "opset")
        settings = {k: v for k, v in msgspec.to_builtins(spec).items() if k not in where}
        images = [_identity(self.source), _identity(self.val[0]) if self.val else None]
        key = [settings, weights, self.encodings.digest(), images]
        folder = ensure_writable_dir(self.out / CHECKPOINT)
        self.state = RunState(folder, key, [*self.weights, *self.ranges, *self.best], self.optimizers, self.averages)
        self.position = self.state.load() or Position(history=[])
        if self.position.epoch or self.position.step:
            self.note(f"going on from epoch {self.position.epoch + 1}, step {self.position.step}")
        self.clock.lap("prepare")

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.told.note(text)

    def _require_classifier(self) -> None:
        with torch.no_grad():
            answer = self.captured.module(self.captured.example)
        if not isinstance(answer, torch.Tensor) or answer.ndim != CLASSIFIER_AXES:
            shape = list(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
            raise UsageError(f"Cannot train {self.spec.model}", f"its output is {shape}, and only classifiers, [N, C], are trained so far")
        if not self.captured.dynamic_batch:
            self.note(f"the graph has a fixed batch: every step is one image, not {self.spec.batch_size} (--accumulate adds steps)")

    def _validation(self) -> tuple[Source, list[int]] | None:
        spec = self.spec
        if spec.val is None:
            return None
        index = spec.val_class_index or spec.class_index
        val = open_source(spec.val, Path(index) if index else None)
        if val.labels is None:
            raise DataError(f"Cannot measure accuracy on {spec.val}", "it has no labels", "Give a folder of class folders")
        return val, spread(len(val), spec.val_limit)

    def _optimizers(self) -> None:
        spec = self.spec
        self.optimizers: list[torch.optim.Optimizer] = []
        if self.weights:
            many, few = [w for w in self.weights if w.ndim > 1], [w for w in self.weights if w.ndim <= 1]  # biases and norms do not decay
            groups = [{"params": g, "weight_decay": d, "base": spec.lr} for g, d in ((many, spec.weight_decay), (few, 0.0)) if g]
            sgd = spec.optimizer == "sgd"
            kind = torch.optim.SGD(groups, lr=spec.lr, momentum=0.9) if sgd else torch.optim.AdamW(groups, lr=spec.lr)
            self.optimizers.append(kind)
        if self.ranges:
            self.optimizers.append(torch.optim.Adam([{"params": self.ranges, "base": spec.lr_amax}], lr=spec.lr_amax))
        self.averages = [w.detach().clone() for w in self.weights] if spec.ema else []
        self.best = [p.detach().clone() for p in (*self.weights, *self.ranges)]

    def train(self) -> None:
        """Run the epochs that are left.

        Raises:
            CalibrationError: the loss is not finite.
            KeyboardInterrupt: the process was told to stop.
        """
        spec, at = self.spec, self.position
        keep_freed_memory_()
        with _stops() as stopped:
            while at.epoch < spec.epochs and not self._tired():
                self._epoch(stopped)
        self.clock.lap("train")

    def _tired(self) -> bool:
        return self.spec.patience is not None and self.position.stale >= self.spec.patience

    def _epoch(self, stopped: list[int]) -> None:
        spec, at = self.spec, self.position
        order = [int(i) for i in np.random.default_rng([spec.seed, at.epoch]).permutation(len(self.source))][: spec.limit]
        size = spec.batch_size if self.captured.dynamic_batch else 1
        steps = math.ceil(len(order) / size)
        self.told.begin(f"Epoch {at.epoch + 1} of {spec.epochs}", len(order))
        self.told.advance(at.step * size)
        left = order[at.step * size :]
        for images in batches(self.source, left, self.preprocess, size):
            chosen = order[at.step * size : at.step * size + len(images)]
            loss = self._step(images, chosen, steps)
            at.total, at.count, at.step = at.total + loss * len(images), at.count + len(images), at.step + 1
            self.told.advance(len(images))
            if at.step % spec.accumulate:
                continue  # gradients are half added: nothing is kept here
            if stopped or at.step % SAVE_EVERY < spec.accumulate:
                self.state.save(at)
            if stopped:
                self.told.note(f"stopped at epoch {at.epoch + 1}, step {at.step}: the same command goes on from there")
                raise KeyboardInterrupt
        accuracy = self._accuracy()
        row = {"loss": at.total / max(at.count, 1), "lr": spec.lr * at.factor * rate(spec.schedule, (at.epoch + 1) / spec.epochs)}
        at.history.append(row | ({"accuracy": accuracy} if accuracy is not None else {}))
        self._remember(accuracy)
        at.epoch, at.step, at.total, at.count = at.epoch + 1, 0, 0.0, 0
        self.state.save(at)
        shown = f", accuracy {accuracy:.2f} % on --val (torch, codes in place)" if accuracy is not None else ""
        self.told.note(f"epoch {at.epoch}: loss {row['loss']:.4f}{shown}")

    def _step(self, images: torch.Tensor, chosen: list[int], steps: int) -> float:
        spec, at = self.spec, self.position
        drawn = torch.Generator().manual_seed((spec.seed * 1_000_003 + at.epoch) * 1_000_003 + at.step)
        images = augment(images, spec.augment, drawn)
        answer = self.graph.module(images)
        loss = torch.zeros(())
        if spec.distill < 1.0 and self.source.labels is not None:
            labels = torch.tensor([self.source.labels[i] for i in chosen])
            if int(labels.max()) >= answer.shape[1]:
                raise DataError(
                    f"The labels of {self.source.name} do not fit the model",
                    f"it has {len(self.source.classes)} classes, the model {answer.shape[1]}",
                )
            loss = loss + (1.0 - spec.distill) * torch.nn.functional.cross_entropy(answer, labels)
        if spec.distill > 0.0:
            with torch.no_grad():
                teacher = self.captured.module(images)
            loss = loss + spec.distill * _divergence(answer, teacher, spec.temperature)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise CalibrationError(f"The loss is {value} in epoch {at.epoch + 1}, step {at.step + 1}", mend="Lower --lr or --lr-amax")
        torch.autograd.backward(loss / spec.accumulate)
        if (at.step + 1) % spec.accumulate == 0 or at.step + 1 == steps:
            first = at.step // spec.accumulate * spec.accumulate  # the share when this update began: the last one still counts
            self._move((at.epoch + first / steps) / spec.epochs)
        return value

    def _move(self, done: float) -> None:
        spec = self.spec
        factor = rate(spec.schedule, done) * self.position.factor
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average, weight in zip(self.averages, self.weights, strict=False):
                average.lerp_(weight, 1.0 - spec.ema)

    def _accuracy(self) -> float | None:
        """Return top-1 on the validation images in percent, with the averaged weights when there are."""
        if self.val is None:
            return None
        source, indices = self.val
        assert source.labels is not None
        right, done = 0, 0
        with self._averaged(), torch.inference_mode():
            for images in batches(source, indices, self.preprocess, self.spec.batch_size if self.captured.dynamic_batch else 1):
                labels = torch.tensor([source.labels[i] for i in indices[done : done + len(images)]])
                right += int((self.graph.module(images).argmax(dim=1) == labels).sum())
                done += len(images)
        return 100.0 * right / max(done, 1)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averaged weights in place for a while."""
        held = [w.detach().clone() for w in self.weights] if self.averages else []
        with torch.no_grad():
            for weight, average in zip(self.weights, self.averages, strict=False):
                weight.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(self.weights, held, strict=False):
                    weight.copy_(value)

    def _remember(self, accuracy: float | None) -> None:
        """Keep the best epoch; without validation images it is the last one."""
        at = self.position
        if accuracy is None or accuracy > at.best:
            at.best, at.stale, at.best_epoch = accuracy if accuracy is not None else at.best, 0, at.epoch
            with self._averaged(), torch.no_grad():
                for kept, p in zip(self.best, (*self.weights, *self.ranges), strict=True):
                    kept.copy_(p)
            return
        at.stale += 1
        if self.spec.schedule == "plateau":
            at.factor /= 10.0

    def write(self) -> FinetuneRecord:
        """Write the best epoch's files, the record last.

        Raises:
            ParityError: torch and ONNX Runtime do not compute the same.
        """
        with torch.no_grad():
            for kept, p in zip(self.best, (*self.weights, *self.ranges), strict=True):
                p.copy_(kept)
        encodings = self.graph.learned()
        simulated = insert_fake_quantize(self.captured.module, self.graph.placement, encodings)
        fp32 = self._export(self.captured.module, precision="fp32")
        qdq = self._export(simulated, precision="int8", encodings_sha256=encodings.digest())
        compared = self.source.sample(self.spec.parity_images, self.spec.seed)
        self.told.begin("Comparing torch and ONNX Runtime", len(compared))
        size = 16 if self.captured.dynamic_batch else 1
        parity, _ = check_parity(
            self.captured.module, simulated, qdq, list(batches(self.source, compared, self.preprocess, size)), progress=self.told.advance
        )
        require_parity(parity)
        for name in (RECORD, EVALUATION):
            (self.out / name).unlink(missing_ok=True)
        paths = {
            FP32: save_onnx(fp32, self.out / FP32),
            QDQ: save_onnx(qdq, self.out / QDQ),
            ENCODINGS: encodings.save(self.out / ENCODINGS),
        }
        self.clock.lap("export")
        evaluation = self._evaluate()
        record = FinetuneRecord(
            schema=SCHEMA, verb="finetune", spec=msgspec.to_builtins(self.spec),
            model={"name": self.loaded.name, "weights": self.loaded.weights, **encodings.origin}, data=describe(self.source),
            preprocess=self.preprocess, trained={"weights": len(self.weights), "ranges": len(self.ranges)}, history=self.position.history,
            best_epoch=self.position.best_epoch, parity=parity, evaluation=evaluation,
            files={n: FileRecord(sha256=sha256_file(p), bytes=p.stat().st_size) for n, p in paths.items()}, notes=self.notes,
            seconds=self.clock.seconds, environment=environment(),
        )  # fmt: skip
        write_json(self.out / RECORD, record)
        return record

    def _export(self, graph: torch.fx.GraphModule, **metadata: str) -> Any:
        model = export_onnx(
            graph,
            self.captured.example,
            dynamic_batch=self.captured.dynamic_batch,
            opset=self.spec.opset,
            int4=self.spec.weight_storage == "int4",
            note=self.note,
        )
        set_metadata_(model, {"preprocess": self.preprocess, "model": self.loaded.name, "weights": self.loaded.weights, **metadata})
        return model

    def _evaluate(self) -> EvaluateRecord | None:
        spec = self.spec
        if spec.val is None:
            return None
        found = evaluate(
            EvaluateSpec(
                onnx=str(self.out / QDQ), reference=str(self.out / FP32), data=spec.val,
                class_index=spec.val_class_index or spec.class_index, limit=spec.val_limit,
            ), self.told,
        )  # fmt: skip
        write_json(self.out / EVALUATION, found)
        self.clock.lap("evaluate")
        return found


def _identity(source: Source) -> list[object]:
    """Return what tells two sources apart without reading every image: names, labels, and the content of 64 images."""
    return [digest_of(source.ids), digest_of(source.labels), source.digest(range(0, len(source), max(1, len(source) // 64)))]


def _divergence(answer: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return KL(teacher || answer) at a temperature, times its square (Hinton et al. 2015), mean over the images."""
    ours, theirs = (answer / temperature).log_softmax(dim=1), (teacher / temperature).log_softmax(dim=1)
    return torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Yield a list that SIGTERM fills; the run then ends after its step. Elsewhere than in the main thread nothing is caught."""
    stopped: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    except ValueError:
        yield stopped
        return
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)
