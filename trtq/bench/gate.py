"""``trtq gate``: compare a record with its baseline to decide whether to merge.

Exit codes: 0 yes, 1 no, 3 these records cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import (
    Environment,
    Record,
    check_record,
    environment,
    explain_os_error,
    header,
    read_json,
)
from trtq.bench.gate_accuracy import Check, Outcome, accuracy_checks
from trtq.bench.machine_card import differences, different_machines, incomplete
from trtq.bench.record import BenchRecord, BenchRow
from trtq.bench.statistics import Quantile
from trtq.errors import ArtifactError, UsageError
from trtq.specs import GateSpec
from trtq.terminal import stack

EXIT = {"passed": 0, "failed": 1, "not valid": 3}


class GateRecord(Record, frozen=True, kw_only=True):
    """Result of the gate.

    With any ``reasons`` the outcome is not valid, unless a score of accuracy failed: scores do not
    depend on the load of a machine.

    Attributes:
        checks: one for each figure that a limit applies to.
        reasons: why the two records cannot be compared at all.
        notes: what does not change the outcome, such as rows without a baseline.
        outcome: ``failed`` by accuracy, else ``not valid`` by ``reasons``, else the worst of the
            checks: ``failed``, ``not valid``, ``passed``.
    """

    checks: list[Check]
    reasons: list[str]
    notes: list[str]
    outcome: Outcome
    environment: Environment

    @property
    def exit_code(self) -> int:
        """0, 1 or 3."""
        return EXIT[self.outcome]

    @property
    def summary(self) -> str:
        """A table in Markdown."""
        lines = [f"### trtq gate: {self.outcome}", ""]
        if self.checks:
            lines += [
                "| what | baseline | candidate | change | limit | outcome |",
                "|---|---|---|---|---|---|",
            ]
            lines += [
                f"| {c.what} | {c.baseline} | {c.candidate} | {c.change} | {c.limit} | "
                f"{c.outcome}{f': {c.why}' if c.why else ''} |"
                for c in self.checks
            ]
        lines += ["", *(f"- not valid: {r}" for r in self.reasons), *(f"- {n}" for n in self.notes)]
        return stack(lines)


def read_record(path: Path) -> BenchRecord:
    """Return a record of ``trtq bench``.

    Args:
        path: its bench.json.

    Raises:
        ArtifactError: it cannot be read, is not such a record, or its machine card is incomplete.
    """
    content = read_json(path, kind="bench record")
    if content.get("verb") != "bench":
        raise ArtifactError(
            f"{path} is no record of trtq bench",
            f"its verb is {content.get('verb')!r}",
            "Make one: trtq bench FILE --out DIR",
        )
    record = check_record(content, path, BenchRecord, kind="bench record")
    lacking = incomplete(record.card)
    if lacking:
        raise ArtifactError(
            f"{path} cannot be compared",
            f"its machine card says nothing of {', '.join(lacking)}",
            "Make it again: trtq bench FILE --out DIR",
        )
    return record


def share(text: str, option: str) -> float:
    """Return 0.03 for ``3%`` or ``0.03``.

    Args:
        text: a share of 0 or more, as typed.
        option: its option, for the error.

    Raises:
        UsageError: it is neither, negative, or no finite number.
    """
    try:
        value = float(text.rstrip("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < math.inf:
        raise UsageError(
            f"Cannot read {option} {text!r}", "expected a share", "Write it like 3% or 0.03"
        )
    return value


def gate(spec: GateSpec) -> GateRecord:
    """Compare a record with its baseline.

    Args:
        spec: the two records and the limits, or ``accuracy`` alone; ``max_slowdown``,
            ``max_energy`` and ``max_memory`` are shares such as ``3%``, the limits of accuracy are
            in the units of the scores. With ``summary`` the table is appended to that file.

    Raises:
        ArtifactError: a record is missing, or lacks what a comparison needs.
        UsageError: a limit cannot be read, or one record is missing.
    """
    limits = {"slowdown": share(spec.max_slowdown, "--max-slowdown")}
    for name, option in (("energy", spec.max_energy), ("memory", spec.max_memory)):
        if option is not None:
            limits[name] = share(option, f"--max-{name}")
    measured = _measured(spec, limits)
    scores = accuracy_checks(spec)
    record = GateRecord(
        **header("gate", spec),
        checks=[*measured.checks, *scores],
        reasons=measured.reasons,
        notes=measured.notes,
        outcome=_worst(measured.checks, scores, measured.reasons),
        environment=environment(),
    )
    if spec.summary:
        try:
            with Path(spec.summary).open("a", encoding="utf-8") as handle:
                handle.write(f"{record.summary}\n")
        except OSError as exc:
            raise explain_os_error(exc, Path(spec.summary), option="--summary") from exc
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Comparison of two records of ``trtq bench``; empty without them."""

    checks: list[Check] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _measured(spec: GateSpec, limits: Mapping[str, float]) -> _Measured:
    """Compare the figures of two records, or none where accuracy alone is compared.

    Raises:
        UsageError: one record is missing, or both without a score to compare or with limits that
            only they could meet.
        ArtifactError: a record lacks what a comparison needs.
    """
    missing = [n for n, v in (("RECORD", spec.record), ("--baseline", spec.baseline)) if not v]
    if len(missing) == 2 and spec.accuracy is not None:
        alone = [f"--max-{name}" for name in limits if name != "slowdown"]
        if alone:
            raise UsageError(
                f"{alone[0]} needs RECORD and --baseline",
                "an evaluation has no such figure in it",
                "Run trtq bench FILE --out DIR, and give DIR/bench.json",
            )
        return _Measured(notes=["accuracy alone: without RECORD no latency is compared"])
    if missing:
        raise UsageError(
            f"trtq gate needs {' and '.join(missing)}",
            "latencies are compared between two records of trtq bench",
            "Accuracy alone: trtq gate --accuracy out/evaluate.json --max-accuracy-drop 0.5",
        )
    candidate = read_record(Path(spec.record))
    baseline = read_record(Path(spec.baseline))
    pairs, unpaired, extra = _pair(baseline, candidate)
    return _Measured(
        checks=[c for pair in pairs for c in _row_checks(pair, limits)],
        reasons=[*_doubts(baseline, candidate), *unpaired],
        notes=[*_notes(baseline, candidate), *extra],
    )


def _doubts(baseline: BenchRecord, candidate: BenchRecord) -> list[str]:
    """Return why two records cannot be compared: their own reasons, machines, packages."""
    reasons = [
        f"{name}, {r.file}: {why}"
        for name, record in (("candidate", candidate), ("baseline", baseline))
        for r in record.rows
        for why in r.reasons
    ]
    machines = different_machines(baseline.card, candidate.card)
    packages = differences(_packages(baseline), _packages(candidate))
    reasons += [f"the machines differ: {text}" for text in machines]
    return reasons + [f"the packages differ: {text}" for text in packages]


def _packages(record: BenchRecord) -> dict[str, str]:
    packages = record.environment.packages
    return {name: version for name, version in packages.items() if name != "trtq"}


def _notes(baseline: BenchRecord, candidate: BenchRecord) -> list[str]:
    same_host = candidate.card.host == baseline.card.host
    return [
        *([] if same_host else ["the two records come from two hosts"]),
        "two runs at two times: trtq compare lets the files take turns, which is the stronger test",
    ]


def _worst(checks: Sequence[Check], scores: Sequence[Check], reasons: Sequence[str]) -> Outcome:
    if any(c.outcome == "failed" for c in scores):
        return "failed"
    if reasons:
        return "not valid"
    outcomes = {c.outcome for c in (*checks, *scores)}
    return next((o for o in ("failed", "not valid") if o in outcomes), "passed")


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two rows that belong together, and what a person calls them."""

    label: str
    before: BenchRow
    after: BenchRow


def _pair(
    baseline: BenchRecord, candidate: BenchRecord
) -> tuple[list[_Pair], list[str], list[str]]:
    """Return rows that can be compared, why others cannot, and notes on rows without a baseline.

    Rows belong together by the file's name, mode and batch; where both records have one file alone,
    its name may differ. Files of one name are told apart by the folders above them.
    """
    files = [{Path(r.file).parts for r in record.rows} for record in (baseline, candidate)]
    one = all(len(paths) == 1 for paths in files)
    longest = max((len(parts) for paths in files for parts in paths), default=1)
    depths = (
        k for k in range(1, longest) if all(len({p[-k:] for p in f}) == len(f) for f in files)
    )
    depth = next(depths, longest)

    def name(row: BenchRow) -> str:
        return "/".join(Path(row.file).parts[-depth:])

    def key(row: BenchRow) -> tuple[str, str, int]:
        return "" if one else name(row), row.mode, row.batch

    def label(row: BenchRow) -> str:
        return f"{name(row)}, {row.mode}, batch {row.batch}"

    new = {key(r): r for r in candidate.rows}
    pairs, why = [], []
    for row in baseline.rows:
        other = new.pop(key(row), None)
        if other is None:
            why.append(f"the candidate has no row for {label(row)}")
            continue
        unlike = differences(row_setup(row), row_setup(other))
        why += [f"the rows of {label(row)} differ: {d}" for d in unlike]
        pairs.append(_Pair(label(other), row, other))
    return pairs, why, [f"not compared: the baseline has no {label(r)}" for r in new.values()]


def row_setup(row: BenchRow) -> dict[str, Any]:
    """Return what two rows must share to be compared: shapes, settings, and a file's runtime.

    The label of an engine's device has the version of TensorRT, which may differ.
    """
    settings: dict[str, Any] = msgspec.to_builtins(row.settings)
    device = {} if row.kind == "engine" else {"device": row.device}
    return {"input_shape": row.request_shape, **device, **settings}


def _row_checks(pair: _Pair, limits: Mapping[str, float]) -> list[Check]:
    label, before, after = pair.label, pair.before, pair.after
    speed = _speed_check(label, before, after, limits["slowdown"])
    growth = [
        _growth_check(f"{label}: {figure.name}", before, after, figure, limits[figure.name])
        for figure in FIGURES
        if figure.name in limits
    ]
    return [*([speed] if speed is not None else []), *growth]


def _speed_check(label: str, before: BenchRow, after: BenchRow, limit: float) -> Check | None:
    """Compare the medians of the GPU, else of the whole request, else the throughput."""
    kinds = [k for k in ("gpu", "e2e") if k in before.latencies and k in after.latencies]
    if kinds:
        old = before.latencies[kinds[0]].median
        new = after.latencies[kinds[0]].median
        return _median_check(f"{label}: {kinds[0]} median", old, new, limit)
    if before.throughput is None or after.throughput is None:
        return None
    old_rate = before.throughput.images_per_s
    new_rate = after.throughput.images_per_s
    if old_rate <= 0.0 or new_rate <= 0.0:
        return _no_check(f"{label}: throughput", limit, "a throughput is not above 0")
    return _check(
        f"{label}: throughput",
        f"{old_rate:.1f} /s",
        f"{new_rate:.1f} /s",
        f"{new_rate / old_rate - 1.0:+.2%}",
        limit,
        "passed" if old_rate / new_rate - 1.0 <= limit else "failed",
    )


def _median_check(what: str, old: Quantile, new: Quantile, limit: float) -> Check:
    """Compare medians: passed or failed only where the interval of the change says so.

    The change is between new.low / old.high - 1 and new.high / old.low - 1. A limit inside that
    interval decides nothing: medians of 10.0 [9.9, 10.1] and 10.3 [10.2, 10.4] ms are between +1.0
    % and +5.1 % apart, so a limit of 3 % is not valid and one of 6 % passes.
    """
    if old.value is None or old.low is None or old.high is None:
        return _no_check(what, limit, "too few samples")
    if new.value is None or new.low is None or new.high is None:
        return _no_check(what, limit, "too few samples")
    low = new.low / old.high - 1.0
    high = new.high / old.low - 1.0
    outcome: Outcome = "not valid"
    if low > limit:
        outcome = "failed"
    elif high <= limit:
        outcome = "passed"
    inside = "the limit is inside the interval: measure longer (trtq bench --duration)"
    return _check(
        what,
        f"{old.value:.3f} ms",
        f"{new.value:.3f} ms",
        f"{new.value / old.value - 1.0:+.2%} [{low:+.2%}, {high:+.2%}]",
        limit,
        outcome,
        inside if outcome == "not valid" else "",
    )


@dataclass(frozen=True, slots=True)
class _Figure:
    """A figure of a row that may grow up to a limit.

    Attributes:
        name: as in the options.
        unit: that a person reads.
        scale: from the record's unit to it.
        of: the figure of a row, None where it has none.
    """

    name: str
    unit: str
    scale: float
    of: Callable[[BenchRow], float | None]


FIGURES = (
    _Figure("energy", "mJ an image", 1e3, lambda row: row.energy.gross_j if row.energy else None),
    _Figure("memory", "MB", 1e-6, lambda row: float(row.memory.process) if row.memory else None),
)


def _growth_check(
    what: str, before: BenchRow, after: BenchRow, figure: _Figure, limit: float
) -> Check:
    old = figure.of(before)
    new = figure.of(after)
    if old is None or new is None:
        owner = "baseline" if old is None else "candidate"
        return _no_check(what, limit, f"the {owner} has no {figure.name}")
    if old <= 0.0:
        return _no_check(what, limit, f"the baseline's {figure.name} is not above 0")
    change = new / old - 1.0
    return _check(
        what,
        f"{figure.scale * old:.3g} {figure.unit}",
        f"{figure.scale * new:.3g} {figure.unit}",
        f"{change:+.2%}",
        limit,
        "passed" if change <= limit else "failed",
    )


def _no_check(what: str, limit: float, why: str) -> Check:
    return _check(what, "n/a", "n/a", "n/a", limit, "not valid", why)


def _check(
    what: str,
    baseline: str,
    candidate: str,
    change: str,
    limit: float,
    outcome: Outcome,
    why: str = "",
) -> Check:
    return Check(
        what=what,
        baseline=baseline,
        candidate=candidate,
        change=change,
        limit=f"{limit:+.1%}",
        outcome=outcome,
        why=why,
    )
