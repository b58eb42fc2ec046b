"""``trtq compare``: compare files that take turns on one device, or two records."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from trtq.artifact import (
    Environment,
    Record,
    ensure_writable_dir,
    environment,
    header,
    write_json,
)
from trtq.bench.gate import read_record
from trtq.bench.history import remember_verdicts
from trtq.bench.int8_verdict import judge_files
from trtq.bench.record import BenchRecord, Verdict, shown
from trtq.bench.system_info import differences, open_gpu, take_card
from trtq.bench.workload import device_for, parse_device
from trtq.errors import ArtifactError, UsageError
from trtq.files import COMPARE_JSON
from trtq.progress import Progress, Silent
from trtq.specs import CompareSpec
from trtq.terminal import stack


class CompareRecord(Record, frozen=True, kw_only=True):
    """The verdict on each file against the first.

    For two records: ``differences``, and the ratio of their medians in ``notes``.
    """

    verdicts: list[Verdict]
    differences: list[str]
    notes: list[str]
    card: dict[str, Any]
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
    """Compare files, or two records.

    Raises:
        UsageError: fewer than two files, or files and records mixed.
        ArtifactError: a record lacks what a comparison needs.
        EngineError, ExportError, BenchError: a file cannot be loaded or timed.
    """
    told, began = progress or Silent(), time.perf_counter()
    paths = [Path(f) for f in spec.file]
    if len(paths) < 2:
        raise UsageError(
            "trtq compare needs two files or more", f"got {len(paths)}", "See trtq compare --help"
        )
    records = [p for p in paths if p.suffix == ".json"]
    if records and (len(records) != len(paths) or len(paths) != 2):
        raise UsageError(
            "Cannot compare records with files", "give two records, or files that can take turns"
        )
    out = ensure_writable_dir(Path(spec.out)) if spec.out else None
    verdicts: list[Verdict] = []
    unlike, notes = list[str](), list[str]()
    parse_device(spec.device)
    device = device_for(spec.device, *paths)
    gpu, _ = open_gpu(device)
    valid = True
    if records:
        unlike, notes, valid = _records(*paths)
    else:
        for other in paths[1:]:
            told.begin(f"{paths[0].name} and {other.name} take turns", 0)
            verdicts.append(
                judge_files(
                    paths[0],
                    other,
                    device=device,
                    batch=spec.batch,
                    trust=spec.trust,
                    gpu=gpu,
                    margin=spec.margin,
                    block_s=spec.block,
                    max_groups=spec.max_loads,
                    profile=spec.profile,
                )
            )
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
        write_json(out / COMPARE_JSON, record)
    try:
        remember_verdicts(verdicts, spec.batch, record.card, record.environment.time)
    except ArtifactError as exc:
        told.note(str(exc))
    return record


def _records(first: Path, second: Path) -> tuple[list[str], list[str], bool]:
    """Return the differences of two records, notes on their medians, and their validity.

    The last is whether both records are valid and their machines are alike.
    """
    a, b = read_record(first), read_record(second)
    unlike = [f"card, {d}" for d in differences(a.card, b.card)]
    packages = a.environment.packages, b.environment.packages
    unlike += [f"package, {d}" for d in differences(*packages)]
    notes = []
    for x in a.rows:
        for y in b.rows:
            kind = next(
                (
                    k
                    for k in ("e2e", "gpu")
                    if getattr(x, k) is not None and getattr(y, k) is not None
                ),
                None,
            )
            if (x.mode, x.batch) != (y.mode, y.batch) or kind is None:
                continue
            before, after = getattr(x, kind), getattr(y, kind)
            unlike += [
                f"settings of {Path(y.file).name}, {d}" for d in differences(x.settings, y.settings)
            ]
            ratio = (
                "n/a"
                if not before.median.value or after.median.value is None
                else f"x {after.median.value / before.median.value:.4f}"
            )
            what = f"{Path(x.file).name} to {Path(y.file).name}, {x.mode}, batch {x.batch}, {kind}"
            notes.append(
                f"{what}: {shown(before.median)} to {shown(after.median)}, {ratio}; from two "
                "runs, which did not take turns"
            )
    if not notes:
        why = f"{first} has {_kinds(a)}, {second} has {_kinds(b)}"
        raise UsageError(
            "These records have no latency of one kind, mode and batch in common",
            why,
            "Measure both alike: trtq bench",
        )
    return unlike, notes, a.valid and b.valid and not unlike


def _kinds(record: BenchRecord) -> str:
    found = [
        f"{k} of {r.mode}, batch {r.batch}"
        for r in record.rows
        for k in ("e2e", "gpu")
        if getattr(r, k) is not None
    ]
    return "; ".join(dict.fromkeys(found)) or "no latency"
