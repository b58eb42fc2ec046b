"""``trtq bench``: measure all figures of every file and batch.

Each record names the machine and the reasons why a figure should not be used.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from trtq.artifact import ensure_writable_dir, environment, header, write_json
from trtq.bench.clocks import locked_clocks
from trtq.bench.history import remember
from trtq.bench.int8_verdict import find_baseline, is_quantized, judge_files
from trtq.bench.interleaved import TurnSettings
from trtq.bench.machine_card import Card
from trtq.bench.meters.nvml import Gpu
from trtq.bench.record import BenchRecord, BenchRow, Verdict
from trtq.bench.row import BenchContext, RowMeasurement, load_options
from trtq.bench.sampling import said
from trtq.bench.system_info import open_gpu, take_card
from trtq.bench.throughput import require_bound
from trtq.bench.workload import device_for, parse_device
from trtq.errors import BenchError, TrtqError, UsageError
from trtq.files import BENCH_JSON
from trtq.progress import Progress, or_silent
from trtq.specs import BenchSpec, changed_words

VERDICT_LOADS = 16  # half a minute; trtq compare takes more


def bench(spec: BenchSpec, progress: Progress | None = None) -> BenchRecord:
    """Measure files.

    A request that fails ends its row, Ctrl-C ends everything: what was measured until then is kept,
    written and marked as not valid.

    Args:
        spec: what to measure; every file is measured at every batch.
        progress: receives progress, and the record's notes at the end.

    Returns:
        the record; with ``spec.out`` it is also written there as bench.json, with the samples as
        .npy files. It is added to the history, too.

    Raises:
        UsageError: unknown device, nothing to measure, or a batch that a file does not take.
        BenchError: a file cannot be timed.
        EngineError, ExportError: a file cannot be loaded.
    """
    progress = or_silent(progress)
    began = time.perf_counter()
    paths = [Path(f) for f in spec.file]
    _require_measurable(spec, paths)
    out = ensure_writable_dir(Path(spec.out)) if spec.out else None
    device = device_for(spec.device, *paths)
    gpu, why_no_gpu = open_gpu(device)
    card = take_card(device, gpu=gpu)
    notes: list[str] = []
    if gpu is None and device != "cpu":
        notes.append(f"clocks, power and throttling are not watched: {why_no_gpu}")
    context = BenchContext(spec=spec, gpu=gpu, why_no_gpu=why_no_gpu, out=out, progress=progress)
    verdicts: list[Verdict] = []
    with _clocks(spec, gpu, card):
        rows, stopped = _measure_rows(context, paths)
        if spec.verdict and spec.mode == "latency" and not stopped:
            verdicts = _verdicts(context, paths, notes)
    record = BenchRecord(
        **header("bench", spec),
        command=shlex.join(["trtq", "bench", *spec.file, *changed_words(spec, "file")]),
        rows=rows,
        verdicts=verdicts,
        card=card,
        valid=all(r.valid for r in rows) and all(v.valid for v in verdicts),
        notes=notes,
        seconds=round(time.perf_counter() - began, 3),
        environment=environment(),
    )
    _keep(record, out, progress)
    return record


def _keep(record: BenchRecord, out: Path | None, progress: Progress) -> None:
    """Write a record, add it to the history, and report its notes."""
    if out is not None:
        write_json(out / BENCH_JSON, record)
    try:
        remember(record)
    except TrtqError as exc:
        progress.note(f"not in the history: {exc}")
    for line in record.notes:
        progress.note(line)


def _require_measurable(spec: BenchSpec, paths: Sequence[Path]) -> None:
    """Refuse everything that can be refused before anything is measured."""
    if not paths:
        raise UsageError("trtq bench needs a file", hint="See trtq bench --help")
    parse_device(spec.device)
    if spec.mode == "throughput":
        require_bound(spec.scenario, spec.latency_bound)
    if spec.baseline is not None and not Path(spec.baseline).is_file():
        raise BenchError(f"Cannot read the baseline {spec.baseline}", "there is no such file")
    for path, batch in itertools.product(paths, spec.batch):
        load_options(spec, batch, graph=False).open(path)


def _measure_rows(context: BenchContext, paths: Sequence[Path]) -> tuple[list[BenchRow], bool]:
    """Return a row for each file and batch, and whether Ctrl-C ended the run."""
    rows: list[BenchRow] = []
    for path, batch in itertools.product(paths, context.spec.batch):
        measurement = RowMeasurement(context, path, batch)
        rows.append(measurement.measure())
        if measurement.interrupted:
            return rows, True
    return rows, False


def _verdicts(context: BenchContext, paths: Sequence[Path], notes: list[str]) -> list[Verdict]:
    """Return the verdicts on the quantized files; notes say why others have none."""
    verdicts = []
    for path in paths:
        try:
            verdict = _verdict(context, path)
        except (TrtqError, KeyboardInterrupt) as exc:
            notes.append(f"no verdict on {path.name}: {said(exc)}")
            continue
        if isinstance(verdict, str):
            notes.append(f"no verdict on {path.name}: {verdict}")
        elif verdict is not None:
            verdicts.append(verdict)
    return verdicts


def _verdict(context: BenchContext, path: Path) -> Verdict | str | None:
    """Return the verdict on a file: None on a float one, a reason where it has no baseline."""
    spec = context.spec
    if not is_quantized(path):
        return None
    baseline, why = find_baseline(path, spec.baseline)
    if baseline is None:
        return why
    context.progress.begin(f"{path.name} and {baseline.name} take turns", 0)
    options = load_options(spec, spec.batch[0])
    settings = TurnSettings(max_groups=VERDICT_LOADS)
    return judge_files(baseline, path, options, gpu=context.gpu, settings=settings)


@contextlib.contextmanager
def _clocks(spec: BenchSpec, gpu: Gpu | None, card: Card) -> Iterator[None]:
    """Lock the GPU's clocks where that is requested; the card says what came of it."""
    if not spec.lock_clocks:
        yield
        return
    if gpu is None:
        card.missing["locked_clocks"] = "there is no GPU whose clocks could be held"
        yield
        return
    with locked_clocks(gpu) as outcome:
        if card.gpu is not None:
            card.gpu.locked_clocks = outcome
            card.missing.pop("locked_clocks", None)
        yield
