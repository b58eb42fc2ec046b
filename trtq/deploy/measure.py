"""Measure an engine on a board with the board's own trtexec.

The agent reads the board's sensors during the measurement.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from trtq.artifact import digest_of, sha256_file
from trtq.bench.latency import doubts, summarize
from trtq.bench.record import BenchRow, RowSettings
from trtq.bench.sampling import Samples, Warmup
from trtq.bench.statistics import Values
from trtq.bench.trtexec_bench import Duration, Fed, command
from trtq.deploy import board_readings
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Done, Result, Written
from trtq.deploy.board import Board
from trtq.deploy.board_readings import (
    WARMUP_MS,
    Readings,
    Run,
    energy_of,
    load_of,
    memory_of,
    read_milliseconds,
    read_readings,
    slowest_pinned,
)
from trtq.deploy.jobs import BoardJob, JobPower, JobStep, advice, do
from trtq.deploy.stream import MIB
from trtq.engine.manifest import EngineManifest
from trtq.engine.random_inputs import random_feed
from trtq.engine.sizes import Sizes
from trtq.engine.trtexec_log import TrtexecLog, read_log
from trtq.errors import BoardError, UsageError
from trtq.platform.catalogue import board_row, catalogue
from trtq.specs import DeployOptions

LOADS, BLOCK = 3, 50
IDLE_S, SAMPLE_S = 1.5, 0.2
TIMES, SLOWEST_S = "times.json", 600.0
MOST_PACKED = 64 * MIB
MARKS = {"inference": "Starting inference", "end": "Performance summary"}


def measure(
    agent: Agent,
    board: Board,
    manifest: EngineManifest,
    path: str,
    options: DeployOptions,
    power: JobPower,
    folder: Path,
    nonce: str,
) -> list[BenchRow]:
    """Return a row for each batch of an engine on a board.

    Args:
        agent: on the board.
        board: as it was probed.
        manifest: of the engine.
        path: of the engine there.
        options: which batches, for how long, energy.
        power: power mode and pinning of the jobs.
        folder: where the times and the readings go.
        nonce: of this measurement: one that was interrupted is found again by it, one that is done
            is never mistaken for a new one.

    Raises:
        BoardError: there is no trtexec, or the engine does not run.
        UsageError: a batch that the engine does not take.
    """
    bench = BoardBench(agent, board, manifest, path, options, power)
    rows = [bench.run(batch, folder, nonce) for batch in options.bench_batch]
    if bench.sent:
        agent.ask("remove", Done, names=sorted(bench.sent))
    return rows


class BoardBench:
    """One engine on one board.

    Args:
        agent: on the board.
        board: as it was probed.
        manifest: of the engine.
        path: of the engine there.
        options: for how long, energy.
        power: power mode and pinning.

    Attributes:
        sent: files of integer inputs in the work folder.

    Raises:
        BoardError: there is no trtexec, or the manifest names no input.
        UsageError: a batch that the engine does not take.
    """

    def __init__(
        self,
        agent: Agent,
        board: Board,
        manifest: EngineManifest,
        path: str,
        options: DeployOptions,
        power: JobPower,
    ) -> None:
        if not board.has_trtexec:
            raise BoardError(
                f"Cannot measure on {agent.device.name}",
                "there is no trtexec",
                "on the board: sudo apt-get install libnvinfer-bin",
            )
        self.agent, self.board, self.manifest, self.path = agent, board, manifest, path
        self.options, self.power = options, power
        self.graph = options.cuda_graph and options.dla is None  # a DLA takes no graphs
        self.sent = set[str]()  # files of inputs in the work folder
        _require_batches(options.bench_batch, manifest.batch)
        if not manifest.input_rows or not all(r.name for r in manifest.input_rows):
            raise BoardError(
                f"Cannot measure {path} on {agent.device.name}",
                "its manifest names no input",
                "Deploy it again",
            )

    def run(self, batch: int, folder: Path, nonce: str) -> BenchRow:
        """Measure one batch (or find it measured) and return its row.

        Args:
            batch: images in a request.
            folder: where the times and the readings go.
            nonce: of this measurement.

        Raises:
            BoardError: the engine does not run, or the answer cannot be read.
        """
        sizes = self.manifest.sizes(batch, name=Path(self.path).name)
        steps = self._steps(sizes)
        key = digest_of(
            {
                "steps": msgspec.to_builtins(steps),
                "engine": self.manifest.engine_sha256,
                "trtexec": self.board.number,
                "nonce": nonce,
                **msgspec.to_builtins(self.power),
            }
        )[:32]
        limit_s = 3 * self.seconds + SLOWEST_S
        job = BoardJob(
            title=f"the measurement at batch {batch}",
            steps=[msgspec.structs.replace(s, limit_s=limit_s) for s in steps],
            rest_s=self._rest_s,
            sample_s=SAMPLE_S,
            power=self.power,
        )
        self.agent.told.begin(f"Measuring on {self.agent.device.name}, batch {batch}", 0)
        result, lines = do(self.agent, key, job)
        logs = [read_log(t) for t in _by_step("\n".join(lines))]
        self._require_done(result, logs)
        times = result.steps[-1].files.get(f"{TIMES}.gz")
        watch, before, after = result.watch, result.before, result.after
        times = times if len(logs) == len(steps) else None
        if times is None or watch is None or before is None or after is None:
            raise BoardError(
                f"Cannot read the measurement of {self.agent.device.name}",
                "its times, its log or its readings are missing",
            )
        ms, seen = self._fetch(key, times, batch, folder)
        run = Run(
            steps=result.steps,
            watch=watch,
            before=before,
            after=after,
            log=logs[-1],
            loads=logs[:-1],
            ms=ms,
            seen=seen,
        )
        return self._row(sizes, run, batch)

    @property
    def seconds(self) -> float:
        """Least duration of the timed run, seconds; a window for the energy must fit into it."""
        return max(self.options.duration, self._rest_s)

    @property
    def _rest_s(self) -> float:
        """Return how long the board is watched at rest, s."""
        window = board_readings.ENERGY_WINDOW_S + board_readings.SETTLE_S
        return window if self.options.energy else 0.0

    def _fed(self, sizes: Sizes) -> Fed:
        """Return shapes and files for trtexec; integer inputs are sent, which it draws wrongly."""
        manifest = self.manifest
        integers = [s for s in manifest.input_slots if np.dtype(s.dtype).kind != "f"]
        fed = Fed(
            shapes={i.name: sizes.usual[i.name] for i in sizes.inputs if i.is_open},
            arrays=random_feed(integers, sizes.usual, manifest.tables),
        )
        with tempfile.TemporaryDirectory(prefix="trtq-inputs-") as folder:
            local = fed.written(Path(folder)).files
            board_paths = {n: self._send(Path(path)) for n, path in local.items()}
        return replace(fed, files=board_paths)

    def _send(self, path: Path) -> str:
        digest = sha256_file(path)
        name = f"files/{digest}.bin"
        self.agent.upload(path, name, digest)
        self.sent.add(name)
        return f"{self.board.home}/{name}"

    def _steps(self, sizes: Sizes) -> list[JobStep]:
        """Return the steps of the job: loads of the engine, then the timed run."""
        trtexec = self.board.trtexec.path if self.board.trtexec is not None else ""
        spell = partial(
            command,
            trtexec,
            self.board.release,
            Path(self.path),
            fed=self._fed(sizes),
            dla=self.options.dla,
        )
        load = spell(graph=False, duration=Duration(warmup_ms=0, seconds=0, requests=1))
        timed = spell(
            graph=self.graph,
            duration=Duration(
                warmup_ms=WARMUP_MS, seconds=self.seconds, requests=self.options.min_samples
            ),
            times=TIMES,
        )
        return [
            *(
                JobStep(
                    name=f"load {i + 1} of {LOADS}",
                    argv=load,
                    marks=MARKS,
                    idle_s=IDLE_S if i == 0 else 0.0,
                )
                for i in range(LOADS)
            ),
            JobStep(
                name="latency",
                argv=timed,
                marks=MARKS,
                idle_s=board_readings.ENERGY_WINDOW_S if self.options.energy else IDLE_S,
                makes=[(TIMES, f"{TIMES}.gz")],
            ),
        ]

    def _require_done(self, result: Result, logs: list[TrtexecLog]) -> None:
        """Refuse a job that failed.

        Raises:
            BoardError: names what trtexec said.
        """
        if not result.ok:
            errors = logs[-1].errors if logs else []
            raise BoardError(
                f"{self.agent.device.name} cannot run the engine",
                (errors[0] if errors else result.why)[:400],
                advice(result, self.agent),
            )

    def _fetch(
        self, key: str, written: Written, batch: int, folder: Path
    ) -> tuple[Values, Readings]:
        """Copy the file of times and the file of readings here, and read them."""
        times = self.agent.download(
            f"jobs/{key}/{TIMES}.gz",
            folder / f"times.b{batch}.json.gz",
            digest=written.sha256,
            most=MOST_PACKED,
        )
        readings = self.agent.download(
            f"jobs/{key}/watch.json.gz", folder / f"readings.b{batch}.json.gz", most=MOST_PACKED
        )
        return read_milliseconds(times, self.board), read_readings(readings, self.board.name)

    def _row(self, sizes: Sizes, run: Run, batch: int) -> BenchRow:
        """Return the row of a record."""
        log, shapes = run.log, sizes.usual
        before, pinned = run.before, run.before.clocks.pinned
        ns = np.asarray(run.ms * 1e6, dtype=np.int64)
        samples = Samples(ns, list(range(0, len(ns), BLOCK)), "trtexec's duration and iterations")
        gpu = summarize("gpu", samples)
        reasons = [*doubts(gpu, Warmup(0, True, 0.0), samples), *self._doubts(run)]
        energy, no_energy = None, "not asked for (--energy)"
        if self.options.energy:
            energy, no_energy = energy_of(run, batch)
        memory, no_memory = memory_of(run.timed, run.starts, run.seen, run.log, self._bytes(shapes))
        load = load_of(run.starts, run.loads, gpu)
        missing = {
            "e2e": "trtexec gives no elapsed time of a request: its latency is the sum of copies "
            "and GPU time",
            "enqueue": "not measured on boards",
            **({} if energy is not None else {"energy": no_energy}),
            **({} if memory is not None else {"memory": no_memory}),
            **({} if load else {"load": "trtexec did not say when inference began"}),
        }
        if energy is not None:
            reasons += [f"energy: {r}" for r in energy.reasons]
        notes = list(log.advice)
        if not pinned:
            notes.append("clocks were not pinned (--lock-clocks)")
        if self.graph and not log.cuda_graph:
            notes.append("no CUDA graph was captured")
        return BenchRow(
            file=self.path,
            file_sha256=self.manifest.engine_sha256,
            file_bytes=self.manifest.engine_bytes,
            kind="engine",
            device=f"{self.board.name} (trtexec {log.version or self.board.release[0]})",
            mode="latency",
            batch=batch,
            input_shape=next(iter(shapes.values())),
            input_shapes=shapes,
            gpu=gpu,
            load=load,
            memory=memory,
            energy=energy,
            unavailable=missing,
            settings=RowSettings(
                power_mode=before.power_mode,
                clocks="pinned" if pinned else "not pinned",
                graph="captured" if log.cuda_graph else "not used",
                transfers=log.transfers,
                warmup_ms=WARMUP_MS,
            ),
            state={
                "latency_ms": log.rows["latency"].median if "latency" in log.rows else None,
                "before": msgspec.to_builtins(before),
                "after": msgspec.to_builtins(run.after),
                "hottest_c": run.watch.hottest_c,
                "least_free_bytes": run.watch.least_free,
            },
            valid=not reasons,
            reasons=reasons,
            notes=notes,
        )

    def _bytes(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Return how many bytes the inputs have."""
        slots = self.manifest.input_slots
        return sum(np.dtype(s.dtype).itemsize * math.prod(shapes[s.name]) for s in slots)

    def _doubts(self, run: Run) -> list[str]:
        """Return what the board did during the run that makes its times doubtful."""
        watch, before = run.watch, run.before
        hottest, name = watch.hottest_c or 0.0, self.board.board or ""
        mode = self.power.mode or self.board.power_mode.name
        slow = slowest_pinned(run.seen, run.timed, before.clocks)
        reasons = []
        if watch.throttled:
            counted = ", ".join(f"{k} {v}" for k, v in watch.throttled.items())
            reasons.append(
                f"the board throttled during the run ({counted}; hottest {hottest:.0f} C)"
            )
        if watch.swapped > 2**20:
            reasons.append(f"{watch.swapped / 1e6:.0f} MB were swapped during the run")
        if mode is not None and before.power_mode != mode:
            reasons.append(f"the board was in power mode {before.power_mode}, not {mode}")
        if slow is not None:
            reasons.append(
                f"the GPU's pinned clock fell to {slow:.0%} during the run: it throttled"
            )
        row = board_row(name)
        if row is not None and hottest >= row.throttles_c:
            title = catalogue().devices[name].title
            reasons.append(
                f"it was {hottest:.0f} C hot: {title} throttles from {row.throttles_c:g} C on"
            )
        if before.boot != run.after.boot:
            reasons.append("the board was restarted during the run")
        return reasons


def _require_batches(wanted: Sequence[int], built: tuple[int, int, int]) -> None:
    """Refuse a batch that the engine does not take.

    Raises:
        UsageError: names the batches that it takes.
    """
    least, _, most = built
    wrong = next((b for b in wanted if not least <= b <= most), None)
    if wrong is not None:
        low, high = min(least, wrong), max(most, wrong)
        raise UsageError(
            f"Cannot measure batch {wrong}",
            f"the engine takes {least} to {most}",
            f"Build it for that: --batch {low}:{wrong}:{high}",
        )


def _by_step(text: str) -> list[str]:
    """Return what each step wrote: the agent begins each with a line of its own."""
    return [part.partition("\n")[2] for part in ("\n" + text).split("\n### ")[1:]]
