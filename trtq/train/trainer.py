"""The training loop: steps, epochs, checkpoints, several processes.

Everything random is a function of the step.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trtq.errors import ArtifactError, CalibrationError, first_line
from trtq.graph.device import device_of
from trtq.graph.feed import IMAGE_AXES, Feed, outputs_of
from trtq.layouts import pixels_of
from trtq.progress import Progress
from trtq.specs import FinetuneOptions
from trtq.tasks import Figure
from trtq.train.epoch import Epoch
from trtq.train.examples import TrainingSetup, in_steps, walk
from trtq.train.learned import LeanMemory
from trtq.train.objective import Part
from trtq.train.run_state import (
    Draws,
    Position,
    RunState,
    keep_freed_memory_,
    rate,
    read_state,
    stops,
)
from trtq.train.task_score import hits_of, task_score
from trtq.train.training_graph import TrainingGraph
from trtq.train.updates import Updates
from trtq.workers import Workers

SAVE_EVERY = 50  # steps
NORM_IMAGES = 256  # that kept BatchNorms get their first statistics from
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory")


class Trainer:
    """Trains a graph.

    Args:
        spec: rates, schedule, epochs and the rest.
        graph: what learns, on its device.
        setup: what it learns.
        workers: the processes.
        key: everything else the result depends on.
        folder: of the checkpoint; a run that was stopped continues from it.
        progress: receives what happens.

    Attributes:
        position: where the run is.
        measure: what an epoch's score is.

    Raises:
        ArtifactError: the checkpoint is of another run or torn, or the processes have different
        ones.
    """

    def __init__(
        self,
        spec: FinetuneOptions,
        graph: TrainingGraph,
        setup: TrainingSetup,
        *,
        workers: Workers,
        key: object,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.spec = spec
        self.graph = graph
        self.setup = setup
        self.workers = workers
        self.progress = progress
        self.measure = setup.measure
        self.device = device_of(graph.module)
        self.updates = Updates(spec, graph)
        stored = read_state(folder, key)
        self.position = stored[0] if stored is not None else Position(history=[])
        self._begin(fresh=stored is None)
        # Only now: first statistics are part of what is averaged and kept.
        self.updates.start_averages()
        self.result = [*graph.trained, *graph.ranges, *graph.moving]
        self.best = [p.detach().clone() for p in self.result]
        tensors = [*self.result, *self.best]
        updates = self.updates
        self.state = RunState(folder, key, tensors, updates.optimizers, updates.averages)
        if stored is not None:
            self.state.take_up(stored[1])
            updates.load_scale_(self.position)
        self._require_same_start()
        self.run = self._runner()

    def _runner(self) -> Any:
        """Return what a step calls: the graph, over all processes, compiled where requested."""
        run: nn.Module = self.graph.module
        if self.workers.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            run = nn.parallel.DistributedDataParallel(run, device_ids=ids, broadcast_buffers=False)
        return torch.compile(run) if self.spec.compile else run

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
                "The processes do not resume from the same checkpoint",
                f"this one is at epoch {at.epoch + 1}, step {at.step}, others are not",
                "Give an --out that every machine sees, and remove its checkpoint folder",
            )

    def _begin(self, *, fresh: bool) -> None:
        """Bring the graph to the state of the run.

        Sets the width of the current epoch and, in a fresh run, the first statistics of kept
        BatchNorms.
        """
        self.graph.widen_(self._width(self.position.epoch))
        if self.graph.norms and fresh:
            drawn = self.setup.train.take(NORM_IMAGES, self.spec.seed)
            with self._enough_memory():
                self.graph.settle_norms_(
                    tuple(t.to(self.device) for t in feed)
                    for feed in drawn.inputs(len(drawn), self.setup.batch, self.setup.names)
                )

    def _width(self, epoch: int) -> int:
        """Return the bits that narrower quantizers take in an epoch, 0 for their own."""
        lower = self.spec.lower_bits
        return lower[epoch] if epoch < len(lower) else 0

    def train(self) -> None:
        """Run the epochs that are left.

        Raises:
            CalibrationError: the loss is not finite, or memory ran out; the last checkpoint
                remains.
            KeyboardInterrupt: the process was told to stop; the checkpoint was written.
        """
        at = self.position
        keep_freed_memory_()
        with stops() as stopped:
            while at.epoch < self.spec.epochs and not self._tired():
                self._epoch(stopped)
                if self._any_stopped(stopped):  # after the last step that looks
                    self._stop()

    def _any_stopped(self, stopped: list[int]) -> bool:
        """Whether one of the processes was told to stop."""
        return bool(self.workers.sum_(torch.tensor(float(bool(stopped)), device=self.device)) > 0)

    def _stop(self) -> None:
        at = self.position
        self.progress.note(
            f"stopped at epoch {at.epoch + 1}, step {at.step}: the same command resumes there"
        )
        raise KeyboardInterrupt

    def take_best_(self) -> None:
        """Put the best epoch's values into the graph."""
        with torch.no_grad():
            for p, value in zip(self.result, self.best, strict=True):
                p.copy_(value)

    def _tired(self) -> bool:
        return self.spec.patience is not None and self.position.stale >= self.spec.patience

    def _mode(self, *, training: bool) -> None:
        frozen_from = self.spec.freeze_bn
        self.graph.module.train(training)
        if frozen_from is not None and self.position.epoch >= frozen_from:
            for norm in self.graph.norms.values():
                norm.eval()

    def _epoch(self, stopped: list[int]) -> None:
        spec = self.spec
        at = self.position
        generator = np.random.default_rng([spec.seed, at.epoch])
        order = generator.permutation(len(self.setup.train)).tolist()[: spec.limit]
        parts = in_steps(order, self.setup.batch)
        self.progress.begin(f"Epoch {at.epoch + 1} of {spec.epochs}", len(order))
        self.progress.advance(at.step * self.setup.batch)
        self._mode(training=True)
        began = time.perf_counter()
        first_count = at.count
        # A process that gets no image of the last, short batch computes one that counts for
        # nothing.
        shares = [self.workers.share(part) or part[:1] for part in parts]
        setup, left = self.setup, shares[at.step :]
        for feed, wanted in walk(setup.train, left, setup.names, labelled=setup.labelled):
            part = parts[at.step]
            with self._enough_memory():
                loss, stops_here = self._step(feed, wanted, part, len(parts), bool(stopped))
            at.total += loss * len(part)
            at.count += len(part)
            at.step += 1
            self.progress.status(f"loss {at.total / at.count:.4f}")
            self.progress.advance(len(part))
            if at.step % spec.accumulate:
                continue  # gradients are half added: nothing is kept here
            if stops_here or at.step % SAVE_EVERY < spec.accumulate:
                self._save(feed)
            if stops_here:
                self._stop()
        seconds = max(time.perf_counter() - began, 1e-9)
        self._close_epoch((at.count - first_count) / seconds)

    def _close_epoch(self, speed: float) -> None:
        """Score the epoch, keep it where it is the best, and continue to the next.

        Args:
            speed: images per second.
        """
        spec = self.spec
        at = self.position
        score = self._score()
        loss = at.total / max(at.count, 1)
        lr = spec.lr * at.factor * rate(spec.schedule, (at.epoch + 1) / spec.epochs)
        value = None if score is None else score.value
        row = Epoch(loss=loss, lr=lr, score=value, images_per_s=round(speed, 2))
        at.history.append(row)
        self._remember(score)
        remaining_s = (spec.epochs - at.epoch - 1) * at.count / max(speed, 1e-9)
        at.epoch += 1
        at.step = 0
        at.total = 0.0
        at.count = 0
        if self._width(at.epoch) != self._width(at.epoch - 1):
            self.graph.widen_(self._width(at.epoch))
        self._save(None)
        shown = f", {score.words} on --val (torch, quantized)" if score is not None else ""
        rest = f", about {remaining_s:.0f} s left" if remaining_s else ""
        summary = f"loss {loss:.4f}{shown}; {speed:.0f} images/s{rest}"
        self.progress.note(f"epoch {at.epoch}: {summary}")

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Raise an error that names the batch size where memory runs out inside.

        Raises:
            CalibrationError: with the options that halve it for the same updates.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as exc:
            if not isinstance(exc, MemoryError) and not any(w in str(exc) for w in MEMORY_WORDS):
                raise
            batch = self.setup.batch
            smaller = max(1, batch // 2)
            more = self.spec.accumulate * 2
            advice = (
                f"--batch-size {smaller} --accumulate {more} takes half of it for the same updates"
            )
            raise CalibrationError(
                f"Out of memory at {batch} images a step",
                first_line(str(exc)),
                advice if batch > 1 else "",
            ) from exc

    def _step(
        self,
        feed: Feed,
        wanted: torch.Tensor | None,
        part: list[int],
        steps: int,
        stopped: bool,
    ) -> tuple[float, bool]:
        """Learn from one batch; return its loss and whether a process was told to stop.

        Both are over all processes.
        """
        spec = self.spec
        at = self.position
        mine = list(self.workers.share(range(len(part))))
        for norm in self.graph.norms.values():
            norm.counts = bool(mine)
        feed, wanted = self._varied(feed, wanted, len(part), mine or [0])
        moves = (at.step + 1) % spec.accumulate == 0 or at.step + 1 == steps
        teachers = self._teach(feed)
        first = at.step // spec.accumulate * spec.accumulate  # the step at which this update began
        with self._gradients(shared=moves):
            with self._cast(), nullcontext() if spec.compile else LeanMemory():
                answers = outputs_of(self.run(*feed))
            parts = self.setup.parts(answers, wanted, teachers)
            loss, value, any_stopped = self._gather(parts, bool(mine), stopped)
            if not math.isfinite(value):
                raise CalibrationError(
                    f"The loss is {value} in epoch {at.epoch + 1}, step {at.step + 1}",
                    f"first not finite: {self.graph.first_non_finite(feed)}",
                    f"Lower --lr or --lr-amax{self._checkpoint()}",
                )
            share = min(spec.accumulate, steps - first)
            torch.autograd.backward(self.updates.scaler.scale(loss / share))
        if moves:  # at the share when it began: the last one still counts
            done = (at.epoch + first / steps) / spec.epochs
            self.updates.step_(rate(spec.schedule, done) * at.factor)
        return value, any_stopped

    def _varied(
        self, feed: Feed, wanted: torch.Tensor | None, count: int, picks: list[int]
    ) -> tuple[Feed, torch.Tensor | None]:
        """Return inputs and targets with the variation of this step, on the device."""
        if self.spec.augment != "none":
            at = self.position
            seed = ((self.spec.seed * 1_000_003 + at.epoch) * 1_000_003 + at.step) % (1 << 63)
            generator = torch.Generator().manual_seed(seed)
            (images,) = feed
            drawn = Draws(self.spec.augment, count, pixels_of(images.shape), generator)
            images, wanted = drawn.vary(images, wanted, picks)
            feed = (images,)
        return self._placed(feed), wanted.to(self.device) if wanted is not None else None

    def _placed(self, feed: Feed) -> Feed:
        """Return inputs on the device, images with their channels last."""
        layouts = {IMAGE_AXES: torch.channels_last}
        return tuple(
            t.to(self.device, memory_format=layouts.get(t.ndim, torch.contiguous_format))
            for t in feed
        )

    def _cast(self) -> AbstractContextManager[Any]:
        """Compute in the narrower floats of ``--amp``."""
        amp = self.spec.amp
        return torch.autocast(self.device.type, AMP[amp]) if amp != "none" else nullcontext()

    def _teach(self, feed: Feed) -> Feed | None:
        """Return the float model's answers; None without distillation."""
        if not self.setup.teaches:
            return None
        with torch.no_grad(), self._cast():
            return outputs_of(self.setup.teacher(*feed))

    def _gradients(self, *, shared: bool) -> AbstractContextManager[Any]:
        """Average the gradients over the processes, or leave that to a later step."""
        if shared or self.workers.world == 1:
            return nullcontext()
        waits: AbstractContextManager[Any] = self.run.no_sync()
        return waits

    def _gather(
        self, parts: list[Part], counts: bool, stopped: bool
    ) -> tuple[torch.Tensor, float, bool]:
        """Return the loss for backward, its value, and whether a process was told to stop.

        The value and the stop are over all processes.

        Args:
            parts: terms of this process's share of the batch.
            counts: False where this process has a placeholder for no image.
            stopped: this process was told to stop.
        """
        weight = 1.0 if counts else 0.0
        numbers = [p.norm.detach() * weight for p in parts]
        numbers += [p.total.detach() * weight for p in parts]
        numbers.append(numbers[0].new_tensor(float(stopped)))
        sums = self.workers.sum_(torch.stack(numbers).double())
        norms = sums[: len(parts)].clamp_min(1e-12)
        totals = sums[len(parts) : -1]
        value = sum(p.share * float(t / n) for p, t, n in zip(parts, totals, norms, strict=True))
        # Gradients are averaged over the processes; the norms are already those of all of them.
        terms = [
            p.total * (p.share * weight * self.workers.world) / n.to(p.total.dtype)
            for p, n in zip(parts, norms, strict=True)
        ]
        return torch.stack(terms).sum(), value, bool(sums[-1] > 0)

    def _checkpoint(self) -> str:
        return f"; the last good state is {self.state.path}" if self.state.path.is_file() else ""

    def _save(self, feed: Feed | None) -> None:
        """Write the checkpoint, unless it contains a value that is not finite."""
        at = self.position
        self.updates.store_scale(at)
        if not all(bool(torch.isfinite(p).all()) for p in self.result):
            first = self.graph.first_non_finite
            where = "a trained value" if feed is None else first(self._placed(feed))
            raise CalibrationError(
                f"Training produced non-finite parameters by epoch {at.epoch + 1}, step {at.step}",
                f"first not finite: {where}",
                f"Lower --lr or --lr-amax{self._checkpoint()}",
            )
        if self.workers.rank == 0:
            self.state.save(at)

    def _score(self) -> Figure | None:
        """Return the score on the validation images: top-1, mIoU, or the first of the task.

        It is measured with the averaged weights when there are any.
        """
        if self.setup.val is None:
            return None
        self._mode(training=False)
        with self._enough_memory(), self.updates.averaged(), torch.no_grad():
            if self.setup.task is None:
                hits = hits_of(self.setup, self.graph.module, self._placed, self.workers)
                return Figure(name=self.measure, value=hits)
            score = task_score(self.setup, self.graph.module, self._placed)
        self.measure = score.name
        return score

    def _remember(self, score: Figure | None) -> None:
        """Keep the best epoch; without validation images that is the last one.

        An epoch at wider widths is no result.
        """
        at = self.position
        if self._width(at.epoch):
            return
        good = None if score is None else _goodness(score)
        if good is None or at.best is None or good > at.best:
            at.best = at.best if good is None else good
            at.best_epoch = at.epoch
            at.stale = 0
            with self.updates.averaged(), torch.no_grad():
                for value, p in zip(self.best, self.result, strict=True):
                    value.copy_(p)
            return
        at.stale += 1
        if self.spec.schedule == "plateau":
            at.factor /= 10.0


def _goodness(score: Figure) -> float:
    """Return a score as a number that is higher where it is better; NaN is the worst."""
    value = math.nan if score.value is None else score.value
    sign = 1.0 if score.better == "higher" else -1.0
    return sign * value if math.isfinite(value) else -sys.float_info.max
