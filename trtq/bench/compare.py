"""``trtq compare``: compare files that take turns on one device, or two records."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from trtq.artifact import (
    Environment,
    Record,
    ensure_writable_dir,
    environment,
    header,
    require_writable_dir,
    write_json,
)
from trtq.bench.gate import read_record, row_setup
from trtq.bench.history import remember_verdicts
from trtq.bench.int8_verdict import judge_files
from trtq.bench.interleaved import TurnSettings
from trtq.bench.machine_card import Card, differences, different_machines
from trtq.bench.meters.nvml import Gpu
from trtq.bench.record import BenchRecord, BenchRow, Verdict, shown
from trtq.bench.system_info import open_gpu, take_card
from trtq.bench.workload import LoadOptions, device_for, device_of_load
from trtq.errors import ArtifactError, UsageError
from trtq.files import COMPARE_JSON
from trtq.progress import Progress, or_silent
from trtq.specs import CompareSpec
from trtq.terminal import stack


class CompareRecord(Record, frozen=True, kw_only=True):
    """The verdict on each file against the first, or the differences of two records.

    Attributes:
        verdicts: one for each file but the first; empty for two records.
        differences: what two records differ in and should not: machine, packages, shapes, settings;
            empty for files.
        notes: for each pair of rows of two records, both medians and the ratio second / first.
        card: the machine of this comparison, not that of the records.
        valid: whether every verdict is valid; for records, whether both are and nothing differs.
        seconds: duration of the comparison.
    """

    verdicts: list[Verdict]
    differences: list[str]
    notes: list[str]
    card: Card
    valid: bool
    seconds: float
    environment: Environment

    @property
    def summary(self) -> str:
        """One line per verdict."""
        return stack(
            [
                *(v.summary for v in self.verdicts),
                *(f"differs: {d}" for d in self.differences),
                *self.notes,
            ]
        )


def compare(spec: CompareSpec, progress: Progress | None = None) -> CompareRecord:
    """Compare files that take turns on one device, or two records of ``trtq bench``.

    Verdicts are added to the history; where that fails, a note of ``progress`` says so.

    Args:
        spec: ``file`` has two or more ``.onnx`` or engine files, or exactly two ``.json`` records.
        progress: receives progress.

    Returns:
        the record; with ``spec.out`` it is also written there as compare.json.

    Raises:
        UsageError: fewer than two files, files and records mixed, or records without a common kind
            of latency, mode and batch.
        ArtifactError: a record lacks what a comparison needs.
        EngineError, ExportError, BenchError: a file cannot be loaded or timed.
    """
    progress = or_silent(progress)
    began = time.perf_counter()
    paths = [Path(f) for f in spec.file]
    records = _require_comparable(paths)
    out = require_writable_dir(Path(spec.out)) if spec.out else None
    device = device_for(spec.device, *paths)
    gpu, _ = open_gpu(device)
    if records:
        verdicts: list[Verdict] = []
        unlike, notes, valid = _records(*paths)
    else:
        verdicts = _verdicts(spec, paths, gpu, progress)
        unlike, notes = [], []
        valid = all(v.valid for v in verdicts)
    record = CompareRecord(
        **header("compare", spec),
        verdicts=verdicts,
        differences=unlike,
        notes=notes,
        card=take_card(device, gpu=gpu),
        valid=valid,
        seconds=round(time.perf_counter() - began, 3),
        environment=environment(),
    )
    if out is not None:
        write_json(ensure_writable_dir(out) / COMPARE_JSON, record)
    try:
        remember_verdicts(verdicts, record.card, record.environment.time)
    except ArtifactError as exc:
        progress.note(exc.coded)
    return record


def _require_comparable(paths: list[Path]) -> bool:
    """Return whether two records are compared, and not files that take turns.

    Raises:
        UsageError: fewer than two, or files and records mixed.
    """
    if len(paths) < 2:
        raise UsageError(
            "trtq compare needs two files or more", f"got {len(paths)}", "See trtq compare --help"
        )
    records = [p for p in paths if p.suffix == ".json"]
    if records and (len(records) != len(paths) or len(paths) != 2):
        raise UsageError(
            "Cannot compare records with files", "give two records, or files that can take turns"
        )
    return bool(records)


def _verdicts(
    spec: CompareSpec, paths: list[Path], gpu: Gpu | None, progress: Progress
) -> list[Verdict]:
    """Return the verdict on each file against the first."""
    options = LoadOptions(
        device=device_of_load(spec.device, *paths),
        batch=spec.batch,
        trust=spec.trust,
        shapes=spec.shapes,
    )
    settings = TurnSettings(margin=spec.margin, block_s=spec.block, max_groups=spec.max_loads)
    verdicts = []
    for other in paths[1:]:
        progress.begin(f"{paths[0].name} and {other.name} take turns", 0)
        verdicts.append(
            judge_files(paths[0], other, options, gpu=gpu, settings=settings, profile=spec.profile)
        )
    return verdicts


def _records(first: Path, second: Path) -> tuple[list[str], list[str], bool]:
    """Return the differences of two records, notes on their medians, and their validity.

    The last is whether both records are valid and their machines are alike.
    """
    a = read_record(first)
    b = read_record(second)
    unlike = [f"card, {d}" for d in different_machines(a.card, b.card)]
    packages = a.environment.packages, b.environment.packages
    unlike += [f"package, {d}" for d in differences(*packages)]
    pairs = [
        (x, y)
        for x, y in itertools.product(a.rows, b.rows)
        if (x.mode, x.batch) == (y.mode, y.batch) and _common_kind(x, y)
    ]
    # Files of one name belong together; where no name is in both records, any two may be compared.
    pairs = [(x, y) for x, y in pairs if Path(x.file).name == Path(y.file).name] or pairs
    if not pairs:
        why = f"{first} has {_kinds(a)}, {second} has {_kinds(b)}"
        raise UsageError(
            "These records have no latency of one kind, mode and batch in common",
            why,
            "Measure both alike: trtq bench",
        )
    for x, y in pairs:
        setup = differences(row_setup(x), row_setup(y))
        unlike += [f"settings of {Path(y.file).name}, {d}" for d in setup]
    notes = [_medians(x, y) for x, y in pairs]
    return unlike, notes, a.valid and b.valid and not unlike


def _common_kind(x: BenchRow, y: BenchRow) -> str:
    """Return the kind of latency that both rows have: ``e2e``, ``gpu``, or "" for none."""
    shared = [k for k in x.latencies if k in y.latencies]
    return shared[0] if shared else ""


def _medians(x: BenchRow, y: BenchRow) -> str:
    """Return the medians of two rows and their ratio in a line."""
    kind = _common_kind(x, y)
    before = x.latencies[kind].median
    after = y.latencies[kind].median
    ratio = "n/a"
    if before.value and after.value is not None:
        ratio = f"x {after.value / before.value:.4f}"
    what = f"{Path(x.file).name} to {Path(y.file).name}, {x.mode}, batch {x.batch}, {kind}"
    return (
        f"{what}: {shown(before)} to {shown(after)}, {ratio}; from two runs, which did not take "
        "turns"
    )


def _kinds(record: BenchRecord) -> str:
    kinds = [f"{k} of {r.mode}, batch {r.batch}" for r in record.rows for k in r.latencies]
    return "; ".join(dict.fromkeys(kinds)) or "no latency"
