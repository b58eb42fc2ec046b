"""Measure an engine on a board with the board's own trtexec.

The agent reads the board's sensors during the measurement.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtq.agent import Watch
from trtq.artifact import decode_json, digest_of
from trtq.bench.latency import doubts, summarize
from trtq.bench.record import BenchRow, Energy, Load, Memory, Phase, Timing
from trtq.bench.sampling import Samples, Warmup
from trtq.bench.statistics import Values
from trtq.bench.trtexec_bench import Duration, command
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import ClocksDict, Number, Result, Step, Watched
from trtq.deploy.board import Board
from trtq.deploy.jobs import advice, do
from trtq.deploy.profiles import profiles
from trtq.deploy.stream import MIB, gunzip
from trtq.engine.manifest import EngineManifest
from trtq.engine.trtexec_log import TrtexecLog, read_log, read_times
from trtq.errors import BoardError, UsageError, reason
from trtq.specs import DeployOptions

LOADS, WARMUP_MS, BLOCK = 3, 2000, 50
SETTLE_S, ENERGY_WINDOW_S, IDLE_S, SAMPLE_S = 2.0, 20.0, 1.5, 0.2
STILL_PINNED = 0.9  # a dip of a per cent is sampling noise
MIN_READINGS = 50  # INA3221 settles within some hundred ms; five a second over 20 s leave a hundred
TIMES, SLOWEST_S = "times.json", 600.0
MOST_PACKED = 64 * MIB
MOST_MS = 1e7  # of one request
MARKS = {"inference": "Starting inference", "end": "Performance summary"}


def measure(
    agent: Agent,
    board: Board,
    manifest: EngineManifest,
    path: str,
    options: DeployOptions,
    power: dict[str, Any],
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
            is never taken for a new one.

    Raises:
        BoardError: there is no trtexec, or the engine does not run.
        UsageError: a batch that the engine does not take.
    """
    bench = BoardBench(agent, board, (path, manifest.engine_sha256), power)
    least, _, most = manifest.batch
    wrong = next((b for b in options.bench_batch if not least <= b <= most), None)
    if wrong is not None:
        low, high = min(least, wrong), max(most, wrong)
        raise UsageError(
            f"Cannot measure batch {wrong}",
            f"the engine takes {least} to {most}",
            f"Build it for that: --batch {low}:{wrong}:{high}",
        )
    given = next((t for t in manifest.tensors if t.get("mode") == "input"), None)
    if given is None or not {"name", "shape"} <= given.keys():
        raise BoardError(
            f"Cannot measure {path} on {agent.device.name}",
            "its manifest names no input",
            "Deploy it again",
        )
    graph, rows = options.cuda_graph and options.dla is None, []  # a DLA takes no graphs
    for batch in options.bench_batch:
        shape = [batch, *given["shape"][1:]]
        shapes = f"{given['name']}:{'x'.join(map(str, shape))}" if least != most else ""
        found = bench.run(
            shapes,
            batch,
            seconds=options.duration,
            requests=options.min_samples,
            energy=options.energy,
            graph=graph,
            dla=options.dla,
            nonce=nonce,
            folder=folder,
        )
        rows.append(
            row_of(
                board,
                *found,
                engine=path,
                sha256=manifest.engine_sha256,
                size=manifest.engine_bytes,
                batch=batch,
                shape=shape,
                energy=options.energy,
                graph=graph,
                mode=power["mode"] or board.power_mode["name"],
            )
        )
    return rows


class BoardBench:
    """One engine on one board.

    Args:
        agent: on the board.
        board: as it was probed.
        engine: path of the engine there, and its digest.
        power: power mode and pinning.
    """

    def __init__(
        self, agent: Agent, board: Board, engine: tuple[str, str], power: dict[str, Any]
    ) -> None:
        if not board.has_trtexec:
            raise BoardError(
                f"Cannot measure on {agent.device.name}",
                "there is no trtexec",
                "on the board: sudo apt-get install libnvinfer-bin",
            )
        self.agent, self.board, self.power = agent, board, power
        self.path, self.sha256 = engine

    def run(
        self,
        shapes: str,
        batch: int,
        *,
        seconds: float,
        requests: int,
        energy: bool,
        graph: bool,
        dla: int | None,
        nonce: str,
        folder: Path,
    ) -> tuple[Result, TrtexecLog, list[TrtexecLog], Path, Path]:
        """Run the job (or find it done) and fetch what it gave.

        Returns:
            the agent's result, what trtexec printed in the timed run and in the loads, the files of
                times and of readings.
        """
        number, trtexec = (
            self.board.number,
            self.board.trtexec["path"] if self.board.trtexec is not None else "",
        )
        version, engine = self.board.release, Path(self.path)
        seconds = max(seconds, ENERGY_WINDOW_S + SETTLE_S) if energy else seconds
        load = command(
            trtexec,
            version,
            engine,
            shapes=shapes,
            graph=False,
            duration=Duration(warmup_ms=0, seconds=0, requests=1),
            dla=dla,
        )
        timed = command(
            trtexec,
            version,
            engine,
            shapes=shapes,
            graph=graph,
            duration=Duration(warmup_ms=WARMUP_MS, seconds=seconds, requests=requests),
            times=TIMES,
            dla=dla,
        )
        idle = ENERGY_WINDOW_S if energy else IDLE_S
        steps: list[dict[str, Any]] = [
            {
                "name": f"load {i + 1} of {LOADS}",
                "argv": load,
                "marks": MARKS,
                "idle_s": IDLE_S if i == 0 else 0.0,
            }
            for i in range(LOADS)
        ]
        steps.append(
            {
                "name": "latency",
                "argv": timed,
                "marks": MARKS,
                "idle_s": idle,
                "makes": [[TIMES, f"{TIMES}.gz"]],
            }
        )
        job = {
            "title": f"the measurement at batch {batch}",
            "steps": steps,
            "rest_s": ENERGY_WINDOW_S + SETTLE_S if energy else 0.0,
            "sample_s": SAMPLE_S,
            **self.power,
        }
        key = digest_of(
            {"steps": steps, "engine": self.sha256, "trtexec": number, "nonce": nonce, **self.power}
        )[:32]
        for step in steps:
            step["limit_s"] = 3 * seconds + SLOWEST_S
        self.agent.told.begin(f"Measuring on {self.agent.device.name}, batch {batch}", 0)
        result, lines = do(self.agent, key, job)
        logs = [read_log(t) for t in _by_step("\n".join(lines))]
        if not result["ok"]:
            failed = logs[-1] if logs else None
            why = failed.errors[0] if failed is not None and failed.errors else result["why"]
            raise BoardError(
                f"{self.agent.device.name} cannot run the engine",
                why[:400],
                advice(result, self.agent),
            )
        made = result["steps"][-1]["files"].get(f"{TIMES}.gz")
        if (
            made is None
            or len(logs) != len(steps)
            or not {"watch", "before", "after"} <= result.keys()
        ):
            raise BoardError(
                f"Cannot read the measurement of {self.agent.device.name}",
                "its times, its log or its readings are missing",
            )
        local = self.agent.download(
            f"jobs/{key}/{TIMES}.gz",
            folder / f"times.b{batch}.json.gz",
            digest=made["sha256"],
            most=MOST_PACKED,
        )
        readings = self.agent.download(
            f"jobs/{key}/watch.json.gz", folder / f"readings.b{batch}.json.gz", most=MOST_PACKED
        )
        return result, logs[-1], logs[:-1], local, readings


def _by_step(text: str) -> list[str]:
    """Return what each step wrote: the agent begins each with a line of its own."""
    return [part.partition("\n")[2] for part in ("\n" + text).split("\n### ")[1:]]


def row_of(
    board: Board,
    result: Result,
    log: TrtexecLog,
    loads: list[TrtexecLog],
    times: Path,
    readings: Path,
    *,
    engine: str,
    sha256: str,
    size: int,
    batch: int,
    shape: list[int],
    energy: bool,
    graph: bool,
    mode: str | None,
) -> BenchRow:
    """Return the row of a record from what a board gave."""
    version = board.release
    found = read_times(
        gunzip(times, board.name).decode("utf-8", "replace"), version, warmup_ms=WARMUP_MS
    )
    ms = np.asarray(found.compute, dtype=np.float64)
    if not len(ms) or not (ms > 0).all() or not (ms < MOST_MS).all():
        raise BoardError(
            f"Cannot read the times of {board.name}",
            f"{len(ms)} times, expected some between 0 and {MOST_MS:g} ms",
        )
    ns = np.asarray(ms * 1e6, dtype=np.int64)
    samples = Samples(ns, list(range(0, len(ns), BLOCK)), "trtexec's duration and iterations")
    gpu = summarize("gpu", samples)
    seen = _readings(readings, board.name)
    timed, starts = result["steps"][-1], result["steps"][:-1]
    watch, notes, reasons = (
        result["watch"],
        list(log.advice),
        doubts(gpu, Warmup(0, True, 0.0), samples),
    )
    if watch["throttled"]:
        counted = ", ".join(f"{k} {v}" for k, v in watch["throttled"].items())
        reasons.append(
            f"the board throttled meanwhile ({counted}; hottest {watch['hottest_c'] or 0:.0f} C)"
        )
    if watch["swapped"] > 2**20:
        reasons.append(f"{watch['swapped'] / 1e6:.0f} MB went to swap meanwhile")
    before = result["before"]
    if not before["clocks"]["pinned"]:
        notes.append("clocks were not pinned (--lock-clocks)")
    if mode is not None and before["power_mode"] != mode:
        reasons.append(f"the board was in power mode {before['power_mode']}, not {mode}")
    slow = _slowest_pinned(seen, timed, before["clocks"])
    if slow is not None:
        reasons.append(f"the GPU's pinned clock fell to {slow:.0%} meanwhile: it throttled")
    profile = profiles().get(board.board or "")
    if profile is not None and (watch["hottest_c"] or 0.0) >= profile.throttles_c:
        reasons.append(
            f"it was {watch['hottest_c']:.0f} C hot: {profile.name} throttles from "
            f"{profile.throttles_c:g} C on"
        )
    if before["boot"] != result["after"]["boot"]:
        reasons.append("the board was started again meanwhile")
    missing = {
        "e2e": "trtexec gives no elapsed time of a request: its latency is the sum of copies and "
        "GPU time",
        "enqueue": "not measured on boards",
    }
    measured, why = (
        _energy(timed, seen, watch, log, batch) if energy else (None, "not asked for (--energy)")
    )
    if measured is None:
        missing["energy"] = why
    else:
        reasons += [f"energy: {r}" for r in measured.reasons]
    if graph and not log.cuda_graph:
        notes.append("no CUDA graph was captured")
    memory, why = _memory(timed, starts, seen, log, shape)
    if memory is None:
        missing["memory"] = why
    load = _load(starts, loads, gpu)
    if not load:
        missing["load"] = "trtexec did not say when inference began"
    return BenchRow(
        file=engine,
        file_sha256=sha256,
        file_bytes=size,
        kind="engine",
        device=f"{board.name} (trtexec {log.version or version[0]})",
        mode="latency",
        batch=batch,
        input_shape=shape,
        gpu=gpu,
        load=load,
        memory=memory,
        energy=measured,
        unavailable=missing,
        settings={
            "power_mode": before["power_mode"],
            "clocks": "pinned" if before["clocks"]["pinned"] else "not pinned",
            "graph": "captured" if log.cuda_graph else "not used",
            "transfers": log.transfers,
            "warmup_ms": WARMUP_MS,
        },
        state={
            "latency_ms": log.rows["latency"].median if "latency" in log.rows else None,
            "before": before,
            "after": result["after"],
            "hottest_c": watch["hottest_c"],
            "least_free_bytes": watch["least_free"],
        },
        valid=not reasons,
        reasons=reasons,
        notes=notes,
    )


class _Readings(msgspec.Struct):
    columns: list[str]
    rows: list[
        tuple[
            Number | None, Number | None, Number | None, Number | None, Number | None, Number | None
        ]
    ]


def _readings(path: Path, name: str) -> dict[str, Values]:
    """Return the agent's readings by column; NaN where there was none."""
    try:
        data = decode_json(gunzip(path, name, 64 * MIB), _Readings)
    except msgspec.MsgspecError as exc:
        raise BoardError(f"Cannot read the readings of {name}", reason(exc)) from exc
    if data.columns != list(Watch.COLUMNS):
        raise BoardError(
            f"Cannot read the readings of {name}",
            f"it has {', '.join(data.columns)[:200]}, not {', '.join(Watch.COLUMNS)}",
        )
    rows = np.asarray(
        [[np.nan if v is None else v for v in r] for r in data.rows], dtype=np.float64
    ).reshape(-1, len(data.columns))
    return {name: rows[:, i] for i, name in enumerate(data.columns)}


def _load(starts: list[Step], logs: list[TrtexecLog], gpu: Timing) -> list[Load]:
    """Return the load times of an engine.

    A load lasts from the start of the process until it begins to infer. Deserializing is separate
    where trtexec reports it.
    """
    whole = [
        1e3 * (s["marks"]["inference"] - s["begin"]) for s in starts if "inference" in s["marks"]
    ]
    if not whole:
        return []
    apart = [1e3 * log.numbers["deserialized_s"] for log in logs if "deserialized_s" in log.numbers]
    phases = [_phase("deserialize", apart)] if len(apart) == len(whole) else []
    rest = [w - a for w, a in zip(whole, apart, strict=True)] if phases else whole
    phases.append(
        _phase(
            "process, libraries, reading, context" if phases else "process up to inference", rest
        )
    )
    second = Phase(
        name="next request (GPU time)", median=gpu.median.value or 0.0, low=gpu.min, high=gpu.max
    )
    return [
        Load(
            cache="warm",
            phases=phases,
            total=_phase("inference begins", whole),
            second=second,
            processes=len(whole),
            lazy="as the board has it",
        )
    ]


def _slowest_pinned(seen: dict[str, Values], timed: Step, clocks: ClocksDict) -> float | None:
    """Return the share by which the pinned GPU clock fell under load.

    The result is None where it did not fall or is not pinned.
    """
    top = clocks["gpu"].get("max_freq")
    inside = seen["gpu_hz"][
        (seen["t"] >= timed["marks"].get("inference", timed["begin"])) & (seen["t"] <= timed["end"])
    ]
    inside = inside[~np.isnan(inside)]
    if not clocks["pinned"] or not top or not len(inside):
        return None
    share = float(np.median(inside)) / top
    return share if share < STILL_PINNED else None


def _phase(name: str, values: list[float]) -> Phase:
    return Phase(name=name, median=float(np.median(values)), low=min(values), high=max(values))


def _memory(
    timed: Step, starts: list[Step], seen: dict[str, Values], log: TrtexecLog, shape: list[int]
) -> tuple[Memory | None, str]:
    """Return how much the shared memory of CPU and GPU grew while the engine ran.

    The reference is the memory in use just before the first load.
    """
    t, ram = seen["t"], seen["ram_bytes"]
    before = ram[(t < starts[0]["begin"]) & ~np.isnan(ram)]
    during = ram[(t >= timed["begin"]) & (t <= timed["end"]) & ~np.isnan(ram)]
    if not len(before) or not len(during):
        return None, "the board's memory could not be read beside the run"
    growth = int(during.max() - np.median(before))
    if growth <= 0:
        return (
            None,
            "the board's used memory did not grow while it ran: something else gave memory back",
        )
    whole = (
        "growth of the board's used memory, CPU and GPU together, trtexec and CUDA's libraries "
        "included"
    )
    sizes = {k: int(v) for k, v in log.numbers.items() if k.endswith("_bytes") and 0 <= v < 1 << 50}
    weights, activations = (
        sizes.get("weights_bytes"),
        sizes.get("activation_bytes", sizes.get("context_bytes")),
    )
    return Memory(
        weights=weights,
        activations=activations,
        io=4 * int(np.prod(shape)),
        process=growth,
        process_peak=growth,
        device=growth,
        sources={
            "process": whole,
            "device": whole,
            "weights": "trtexec's log",
            "activations": "trtexec's log",
            "io": "float32 input",
        },
    ), ""


def _energy(
    timed: Step, seen: dict[str, Values], watch: Watched, log: TrtexecLog, batch: int
) -> tuple[Energy | None, str]:
    """Return the energy per image.

    It is the mean power over the timed run without its edges, divided by the images served per
    second.
    """
    if watch["failed"]:
        return None, watch["failed"]
    t, mw = seen["t"], seen["mw"]
    there = ~np.isnan(mw)
    if not there.any():
        return None, watch["scope"] or "the board has no power rails that can be read"
    rate = log.numbers.get("throughput_qps")
    if rate is None or not 0 < rate < 1e9 or "inference" not in timed["marks"]:
        return None, "trtexec did not say when inference began, or how many requests it served"
    begin = timed["marks"]["inference"] + SETTLE_S
    end = timed["marks"].get("end", timed["end"]) - 0.2
    inside = there & (t >= begin) & (t <= end)
    idle = there & (
        ((t > timed["begin"] - ENERGY_WINDOW_S + SETTLE_S) & (t < timed["begin"] - 0.2))
        | (t > timed["end"] + SETTLE_S)
    )
    if inside.sum() < 2 or idle.sum() < 2:
        return (
            None,
            f"{int(inside.sum())} readings under load and {int(idle.sum())} idle are too few",
        )
    if not (np.diff(t[inside]) > 0).all():
        return None, "the times of the readings do not grow"
    power = float(np.trapezoid(mw[inside], t[inside]) / (t[inside][-1] - t[inside][0])) / 1e3
    rest = float(np.mean(mw[idle])) / 1e3
    window, readings, images = float(t[inside][-1] - t[inside][0]), int(inside.sum()), rate * batch
    reasons = []
    if readings < MIN_READINGS or window < 0.8 * ENERGY_WINDOW_S:
        reasons.append(f"too short to measure: {readings} readings in {window:.1f} s")
    limits = [
        "the carrier board is not in it",
        "one step of the sensor is 40 to 150 mW",
        "idle power is that of the board without the model",
        "one window: there is no range",
        "trtexec spins on one CPU core while it waits: that power is in it",
    ]
    if watch["scope"].startswith("sum"):
        limits.append("a sum of monitored rails is less than what the board draws")
    return Energy(
        meter=watch["source"],
        scope=watch["scope"],
        method="power integrated",
        load="trtexec, requests one after another",
        gross_j=power / images,
        net_j=(power - rest) / images,
        low_j=power / images,
        high_j=power / images,
        power_w=power,
        idle_w=rest,
        images_per_s=images,
        window_s=window,
        repeats=1,
        readings=readings,
        valid=not reasons,
        reasons=reasons,
        limits=limits,
    ), ""
