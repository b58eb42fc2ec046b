"""The training loop: steps, epochs, checkpoints, several processes.

Everything random is a function of the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import fx, nn

from trtq.data.labels import Labels
from trtq.data.metrics import confusion, hit_rate, mean_overlap
from trtq.data.preprocess import Preprocess, ahead
from trtq.data.source import Source
from trtq.errors import ArtifactError, CalibrationError, first_line
from trtq.progress import Progress
from trtq.specs import FinetuneSpec
from trtq.train.learned import LeanMemory
from trtq.train.objective import Objective, Part
from trtq.train.run_state import (
    Draws,
    Position,
    RunState,
    keep_freed_memory_,
    rate,
    read_state,
    stops,
)
from trtq.train.training_graph import TrainingGraph
from trtq.workers import Workers

SAVE_EVERY = 50  # steps
NORM_IMAGES = 256  # that kept BatchNorms get their first statistics from
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Images and what is wanted of them."""

    source: Source
    targets: Labels | None
    preprocess: Preprocess

    def walk(
        self, parts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield images [N, C, H, W] and their targets, one part after the other.

        The next part is decoded in the background.
        """

        def decode(part: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
            images = torch.stack([self.preprocess.apply(self.source.image(i)) for i in part])
            return images, self.targets.of(part) if self.targets is not None else None

        return ahead(parts, decode)


class Trainer:
    """Trains a graph.

    Args:
        spec: rates, schedule, epochs and the rest.
        graph: what learns, on its device.
        teacher: the float model, on the same device.
        objective: the loss.
        train: images to learn from.
        val: images every epoch is measured on, and which of them; None without.
        batch: images a step, over all processes.
        classes: outputs of the model.
        workers: the processes.
        key: everything else the result depends on.
        folder: of the checkpoint.
        told: receives what happens.
    """

    def __init__(
        self,
        spec: FinetuneSpec,
        graph: TrainingGraph,
        teacher: fx.GraphModule,
        objective: Objective,
        *,
        train: Examples,
        val: tuple[Examples, list[int]] | None,
        batch: int,
        classes: int,
        workers: Workers,
        key: object,
        folder: Path,
        told: Progress,
    ) -> None:
        self.spec, self.graph, self.teacher, self.objective = spec, graph, teacher, objective
        self.train_on, self.val, self.batch, self.classes, self.workers, self.told = (
            train,
            val,
            batch,
            classes,
            workers,
            told,
        )
        self.device = next(iter(graph.module.parameters())).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=spec.amp == "fp16")
        self._optimizers()
        found = read_state(folder, key)
        self.position = found[0] if found is not None else Position(history=[])
        self._begin(found is None)
        # Only now: first statistics are part of what is averaged and kept.
        self.averages = [w.detach().clone() for w in graph.trained] if spec.ema else []
        self.kept = [*graph.trained, *graph.ranges, *graph.moving]  # what a result is made of
        self.best = [p.detach().clone() for p in self.kept]
        self.state = RunState(folder, key, [*self.kept, *self.best], self.optimizers, self.averages)
        if found is not None:
            self.state.take_up(found[1])
            if self.scaler.is_enabled():
                at = self.position
                self.scaler.load_state_dict(
                    {**self.scaler.state_dict(), "scale": at.scale, "_growth_tracker": at.growth}
                )
        self._require_same_start()
        self.run: nn.Module = graph.module
        if workers.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.run = nn.parallel.DistributedDataParallel(
                self.run, device_ids=ids, broadcast_buffers=False
            )
        if spec.compile:
            self.run = torch.compile(self.run)  # type: ignore[assignment]

    def _optimizers(self) -> None:
        spec = self.spec
        self.optimizers: list[torch.optim.Optimizer] = []
        if self.graph.trained:
            many, few = (
                [w for w in self.graph.trained if w.ndim > 1],
                [w for w in self.graph.trained if w.ndim <= 1],
            )
            # biases and norms do not decay
            groups = [
                {"params": g, "weight_decay": d, "base": spec.lr}
                for g, d in ((many, spec.weight_decay), (few, 0.0))
                if g
            ]
            sgd = spec.optimizer == "sgd"
            kind = (
                torch.optim.SGD(groups, lr=spec.lr, momentum=0.9)
                if sgd
                else torch.optim.AdamW(groups, lr=spec.lr)
            )
            self.optimizers.append(kind)
        if self.graph.ranges:
            self.optimizers.append(
                torch.optim.Adam(
                    [{"params": self.graph.ranges, "base": spec.lr_amax}], lr=spec.lr_amax
                )
            )

    def _require_same_start(self) -> None:
        """Refuse processes that found different checkpoints.

        Raises:
            ArtifactError: the folder is not the same one for all of them.
        """
        at = self.position
        mine = torch.tensor(
            [float(at.epoch), float(at.step)], dtype=torch.float64, device=self.device
        )
        total = self.workers.sum_(mine.clone())
        if not torch.equal(total, mine * self.workers.world):
            raise ArtifactError(
                "The processes do not go on from the same checkpoint",
                f"this one is at epoch {at.epoch + 1}, step {at.step}, others are not",
                "Give an --out that every machine sees, and remove its checkpoint folder",
            )

    def _begin(self, fresh: bool) -> None:
        """Bring the graph to the state of the run.

        Sets the width of the current epoch and, in a fresh run, the first statistics of kept
        BatchNorms.
        """
        self.graph.widen_(self._width(self.position.epoch))
        if self.graph.norms and fresh:
            chosen = self.train_on.source.sample(NORM_IMAGES, self.spec.seed)
            parts = [chosen[i : i + self.batch] for i in range(0, len(chosen), self.batch)]
            with self._enough_memory():
                self.graph.settle_norms_(
                    images.to(self.device) for images, _ in self.train_on.walk(parts)
                )

    def _width(self, epoch: int) -> int:
        """Return the bits that narrower quantizers take in an epoch, 0 for their own."""
        lower = self.spec.lower_bits
        return lower[epoch] if epoch < len(lower) else 0

    def train(self) -> None:
        """Run the epochs that are left.

        Raises:
            CalibrationError: the loss is not finite, or memory ran out; the last checkpoint stays.
            KeyboardInterrupt: the process was told to stop; the checkpoint was written.
        """
        at = self.position
        keep_freed_memory_()
        with stops() as stopped:
            while at.epoch < self.spec.epochs and not self._tired():
                self._epoch(stopped)
                if self._told(stopped):  # after the last step that looks
                    self._stop()

    def _told(self, stopped: list[int]) -> bool:
        """Whether one of the processes was told to stop."""
        return bool(self.workers.sum_(torch.tensor(float(bool(stopped)), device=self.device)) > 0)

    def _stop(self) -> None:
        at = self.position
        self.told.note(
            f"stopped at epoch {at.epoch + 1}, step {at.step}: the same command goes on from there"
        )
        raise KeyboardInterrupt

    def take_best_(self) -> None:
        """Put the best epoch's values into the graph."""
        with torch.no_grad():
            for p, kept in zip(self.kept, self.best, strict=True):
                p.copy_(kept)

    def _tired(self) -> bool:
        return self.spec.patience is not None and self.position.stale >= self.spec.patience

    def _mode(self, training: bool) -> None:
        at, frozen_from = self.position, self.spec.freeze_bn
        self.graph.module.train(training)
        if frozen_from is not None and at.epoch >= frozen_from:
            for norm in self.graph.norms.values():
                norm.eval()

    def _epoch(self, stopped: list[int]) -> None:
        spec, at = self.spec, self.position
        order = [
            int(i)
            for i in np.random.default_rng([spec.seed, at.epoch]).permutation(
                len(self.train_on.source)
            )
        ][: spec.limit]
        parts = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        self.told.begin(f"Epoch {at.epoch + 1} of {spec.epochs}", len(order))
        self.told.advance(at.step * self.batch)
        self._mode(True)
        began, seen = time.perf_counter(), 0
        # A process that gets no image of the last, short batch computes one that counts for
        # nothing.
        shares = [self.workers.share(part) or part[:1] for part in parts]
        for images, wanted in self.train_on.walk(shares[at.step :]):
            part = parts[at.step]
            with self._enough_memory():
                loss, told_to_stop = self._step(images, wanted, part, len(parts), bool(stopped))
            at.total, at.count, at.step = (
                at.total + loss * len(part),
                at.count + len(part),
                at.step + 1,
            )
            seen += len(part)
            self.told.status(f"loss {at.total / at.count:.4f}")
            self.told.advance(len(part))
            if at.step % spec.accumulate:
                continue  # gradients are half added: nothing is kept here
            if told_to_stop or at.step % SAVE_EVERY < spec.accumulate:
                self._save(images)
            if told_to_stop:
                self._stop()
        self._close_epoch(seen / max(time.perf_counter() - began, 1e-9))

    def _close_epoch(self, speed: float) -> None:
        spec, at = self.spec, self.position
        score = self._score()
        row = {
            "loss": at.total / max(at.count, 1),
            "lr": spec.lr * at.factor * rate(spec.schedule, (at.epoch + 1) / spec.epochs),
        }
        row |= {} if score is None else {"score": score}
        at.history.append(row | {"images_per_s": round(speed, 2)})
        self._remember(score)
        left = (spec.epochs - at.epoch - 1) * at.count / max(speed, 1e-9)
        at.epoch, at.step, at.total, at.count = at.epoch + 1, 0, 0.0, 0
        if self._width(at.epoch) != self._width(at.epoch - 1):
            self.graph.widen_(self._width(at.epoch))
        self._save(None)
        shown = (
            f", {self.measure} {score:.2f} % on --val (torch, codes in place)"
            if score is not None
            else ""
        )
        rest = f", about {left:.0f} s left" if left else ""
        self.told.note(
            f"epoch {at.epoch}: loss {row['loss']:.4f}{shown}; {speed:.0f} images/s{rest}"
        )

    @property
    def measure(self) -> str:
        """What an epoch's score is."""
        dense = (
            self.val is not None and self.val[0].targets is not None and self.val[0].targets.dense
        )
        return "mIoU" if dense else "top-1"

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as exc:
            if not isinstance(exc, MemoryError) and not any(w in str(exc) for w in MEMORY_WORDS):
                raise
            batch, more = max(1, self.batch // 2), self.spec.accumulate * 2
            mend = (
                f"--batch-size {batch} --accumulate {more} takes half of it for the same updates"
                if self.batch > 1
                else ""
            )
            raise CalibrationError(
                f"Out of memory at {self.batch} images a step", first_line(str(exc)), mend
            ) from exc

    def _step(
        self,
        images: torch.Tensor,
        wanted: torch.Tensor | None,
        part: list[int],
        steps: int,
        stopped: bool,
    ) -> tuple[float, bool]:
        """Learn from one batch; return its loss and whether a process was told to stop.

        Both are over all processes.
        """
        spec, at = self.spec, self.position
        mine = list(self.workers.share(range(len(part))))
        seed = ((spec.seed * 1_000_003 + at.epoch) * 1_000_003 + at.step) % (1 << 63)
        for norm in self.graph.norms.values():
            norm.counts = bool(mine)
        drawn = Draws(
            spec.augment, len(part), images.shape[2:], torch.Generator().manual_seed(seed)
        )
        images, wanted = drawn.vary(images, wanted, mine or [0])
        images = images.to(self.device, memory_format=torch.channels_last)
        wanted = wanted.to(self.device) if wanted is not None else None
        updates = (at.step + 1) % spec.accumulate == 0 or at.step + 1 == steps
        teacher = None
        cast = (
            torch.autocast(self.device.type, AMP[spec.amp]) if spec.amp != "none" else nullcontext()
        )
        if spec.distill > 0.0:
            with torch.no_grad(), cast:
                teacher = self.teacher(images)
        waits = self.run.no_sync() if self.workers.world > 1 and not updates else nullcontext()  # type: ignore[operator]
        with waits:
            with cast, nullcontext() if spec.compile else LeanMemory():
                answer = self.run(images)
            parts = self.objective.parts(answer, wanted, teacher)
            loss, value, any_stopped = self._gather(parts, bool(mine), stopped)
            if not math.isfinite(value):
                raise CalibrationError(
                    f"The loss is {value} in epoch {at.epoch + 1}, step {at.step + 1}",
                    f"first not finite: {self.graph.first_non_finite(images)}",
                    f"Lower --lr or --lr-amax{self._checkpoint()}",
                )
            # The step at which this update began.
            first = at.step // spec.accumulate * spec.accumulate
            torch.autograd.backward(self.scaler.scale(loss / min(spec.accumulate, steps - first)))
        if updates:  # at the share when it began: the last one still counts
            self._move((at.epoch + first / steps) / spec.epochs)
        return value, any_stopped

    def _gather(
        self, parts: list[Part], counts: bool, stopped: bool
    ) -> tuple[torch.Tensor, float, bool]:
        """Return the loss for backward, its value, and whether a process was told to stop.

        The value and the stop are over all processes.
        """
        weight = 1.0 if counts else 0.0
        numbers = [p.norm.detach() * weight for p in parts] + [
            p.total.detach() * weight for p in parts
        ]
        told = self.workers.sum_(
            torch.stack([*numbers, numbers[0].new_tensor(float(stopped))]).double()
        )
        norms, totals = told[: len(parts)].clamp_min(1e-12), told[len(parts) : -1]
        value = sum(p.share * float(t / n) for p, t, n in zip(parts, totals, norms, strict=True))
        # Gradients are averaged over the processes; the norms are already those of all of them.
        terms = [
            p.total * (p.share * weight * self.workers.world) / n.to(p.total.dtype)
            for p, n in zip(parts, norms, strict=True)
        ]
        return torch.stack(terms).sum(), value, bool(told[-1] > 0)

    def _move(self, done: float) -> None:
        spec = self.spec
        factor = rate(spec.schedule, done) * self.position.factor
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * factor
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        with torch.no_grad():
            for average, weight in zip(self.averages, self.graph.trained, strict=False):
                average.lerp_(weight, 1.0 - spec.ema)

    def _checkpoint(self) -> str:
        return f"; the last good state is {self.state.path}" if self.state.path.is_file() else ""

    def _save(self, images: torch.Tensor | None) -> None:
        """Write the checkpoint, unless it contains a value that is not finite."""
        at = self.position
        at.scale, at.growth = (
            self.scaler.get_scale(),
            int(self.scaler.state_dict().get("_growth_tracker", 0)),
        )
        broken = next((p for p in self.kept if not bool(torch.isfinite(p).all())), None)
        if broken is not None:
            where = (
                self.graph.first_non_finite(images.to(self.device))
                if images is not None
                else "a trained value"
            )
            raise CalibrationError(
                f"Training left the finite numbers by epoch {at.epoch + 1}, step {at.step}",
                f"first not finite: {where}",
                f"Lower --lr or --lr-amax{self._checkpoint()}",
            )
        if self.workers.rank == 0:
            self.state.save(at)

    def _score(self) -> float | None:
        """Return top-1 or mIoU on the validation images in percent.

        It is measured with the averaged weights when there are any.
        """
        if self.val is None:
            return None
        examples, indices = self.val
        assert examples.targets is not None
        mine, ignore = list(self.workers.share(indices)), examples.targets.ignore
        counts = np.zeros((self.classes, self.classes), dtype=np.int64)
        self._mode(False)
        with self._enough_memory(), self._averaged(), torch.no_grad():
            for images, wanted in examples.walk(
                [mine[i : i + self.batch] for i in range(0, len(mine), self.batch)]
            ):
                assert wanted is not None
                answer = self.graph.module(
                    images.to(self.device, memory_format=torch.channels_last)
                )
                found = confusion(
                    answer.argmax(dim=1).cpu().numpy(), wanted.numpy(), answer.shape[1], ignore
                )
                counts += found
        total = self.workers.sum_(torch.from_numpy(counts).to(self.device)).cpu().numpy()
        return mean_overlap(total) if examples.targets.dense else hit_rate(total)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Use the averaged weights for a while."""
        held = [w.detach().clone() for w in self.graph.trained] if self.averages else []
        with torch.no_grad():
            for weight, average in zip(self.graph.trained, self.averages, strict=False):
                weight.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(self.graph.trained, held, strict=False):
                    weight.copy_(value)

    def _remember(self, score: float | None) -> None:
        """Keep the best epoch; without validation images that is the last one.

        An epoch at wider widths is no result.
        """
        at = self.position
        if self._width(at.epoch):
            return
        if score is None or score > at.best:
            at.best, at.stale, at.best_epoch = score if score is not None else at.best, 0, at.epoch
            with self._averaged(), torch.no_grad():
                for kept, p in zip(self.best, self.kept, strict=True):
                    kept.copy_(p)
            return
        at.stale += 1
        if self.spec.schedule == "plateau":
            at.factor /= 10.0
