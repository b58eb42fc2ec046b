"""``trtq gate``: compare a record with its baseline to decide whether to merge.

Exit codes: 0 yes, 1 no, 3 these records cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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
from trtq.bench.record import BenchRecord, BenchRow
from trtq.bench.system_info import differences, incomplete
from trtq.errors import ArtifactError, UsageError
from trtq.specs import GateSpec
from trtq.terminal import stack

EXIT = {"passed": 0, "failed": 1, "not valid": 3}
Outcome = Literal["passed", "failed", "not valid"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison: what, baseline, candidate, change and limit.

    The change includes its interval where there is one.
    """

    what: str
    baseline: str
    candidate: str
    change: str
    limit: str
    outcome: Outcome
    why: str = ""


class GateRecord(Record, frozen=True, kw_only=True):
    """Result of the gate: ``outcome`` is the worst of its checks.

    With any ``reasons`` the outcome is not valid, regardless of the checks.
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

    Raises:
        ArtifactError: it is not such a record, or its machine card is incomplete.
    """
    held = read_json(path, kind="bench record")
    if held.get("verb") != "bench":
        raise ArtifactError(
            f"{path} is no record of trtq bench",
            f"its verb is {held.get('verb')!r}",
            "Make one: trtq bench FILE --out DIR",
        )
    record = check_record(held, path, BenchRecord, kind="bench record")
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

    Raises:
        UsageError: it is neither.
    """
    try:
        value = float(text.rstrip("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        value = -1.0
    if value < 0.0:
        raise UsageError(
            f"Cannot read {option} {text!r}", "expected a share", "Write it like 3% or 0.03"
        )
    return value


def gate(spec: GateSpec) -> GateRecord:
    """Compare a record with its baseline.

    Raises:
        ArtifactError: a record is missing, or lacks what a comparison needs.
        UsageError: a limit cannot be read.
    """
    limits = {"slowdown": share(spec.max_slowdown, "--max-slowdown")}
    for name in ("energy", "memory"):
        given = getattr(spec, f"max_{name}")
        if given is not None:
            limits[name] = share(given, f"--max-{name}")
    candidate, baseline = read_record(Path(spec.record)), read_record(Path(spec.baseline))
    reasons = [
        f"{name}, {r.file}: {why}"
        for name, rec in (("candidate", candidate), ("baseline", baseline))
        for r in rec.rows
        for why in r.reasons
    ]
    unlike = differences(baseline.card, candidate.card)
    reasons += [f"the machines differ: {text}" for text in unlike]
    packages = baseline.environment.packages, candidate.environment.packages
    reasons += [
        f"the packages differ: {text}"
        for text in differences(*({k: v for k, v in p.items() if k != "trtq"} for p in packages))
    ]
    pairs, why = _pair(baseline, candidate)
    reasons += why
    checks: list[Check] = []
    for before, after in pairs:
        checks += _row_checks(before, after, limits)
    if spec.max_accuracy_drop is not None:
        checks.append(_accuracy(spec))
    notes = (
        []
        if candidate.card.get("host") == baseline.card.get("host")
        else ["the two records come from two hosts"]
    )
    notes.append(
        "two runs at two times: trtq compare lets the files take turns, which is the stronger test"
    )
    worst: Outcome = "failed" if any(c.outcome == "failed" for c in checks) else "passed"
    if reasons or (worst == "passed" and any(c.outcome == "not valid" for c in checks)):
        worst = "not valid"
    made = GateRecord(
        **header("gate", spec),
        checks=checks,
        reasons=reasons,
        notes=notes,
        outcome=worst,
        environment=environment(),
    )
    if spec.summary:
        try:
            with Path(spec.summary).open("a", encoding="utf-8") as handle:
                handle.write(f"{made.summary}\n")
        except OSError as exc:
            raise explain_os_error(exc, Path(spec.summary), option="--summary") from exc
    return made


def _pair(
    baseline: BenchRecord, candidate: BenchRecord
) -> tuple[list[tuple[BenchRow, BenchRow]], list[str]]:
    """Return rows that can be compared, and why others cannot.

    Rows belong together by the file's name, mode and batch; where either record has one file alone,
    its name may differ.
    """
    one = len({r.file for r in baseline.rows}) == 1 and len({r.file for r in candidate.rows}) == 1

    def key(row: BenchRow) -> tuple[str, str, int]:
        return "" if one else Path(row.file).name, row.mode, row.batch

    new = {key(r): r for r in candidate.rows}
    found, why = [], []
    for row in baseline.rows:
        other, label = new.get(key(row)), f"{Path(row.file).name}, {row.mode}, batch {row.batch}"
        if other is None:
            why.append(f"the candidate has no row for {label}")
            continue
        unlike = differences(
            {"input_shape": row.input_shape, "device": row.device, **row.settings},
            {"input_shape": other.input_shape, "device": other.device, **other.settings},
        )
        why += [
            f"the rows of {label} differ: {d}"
            for d in unlike
            if not d.startswith("device: ") or row.kind != "engine"
        ]
        found.append((row, other))
    return found, why


def _row_checks(before: BenchRow, after: BenchRow, limits: Mapping[str, float]) -> list[Check]:
    label = f"{Path(after.file).name}, {after.mode}, batch {after.batch}"
    checks = []
    kind = "gpu" if before.gpu is not None and after.gpu is not None else "e2e"
    old, new = getattr(before, kind), getattr(after, kind)
    if old is not None and new is not None:
        a, b = old.median, new.median
        if None in (a.value, a.low, a.high, b.value, b.low, b.high):
            checks.append(
                _check(
                    f"{label}: {kind} median",
                    "n/a",
                    "n/a",
                    "n/a",
                    limits["slowdown"],
                    "not valid",
                    "too few samples",
                )
            )
        else:
            low, high = b.low / a.high - 1.0, b.high / a.low - 1.0
            outcome: Outcome = (
                "failed"
                if low > limits["slowdown"]
                else "passed"
                if high <= limits["slowdown"]
                else "not valid"
            )
            why = (
                "the limit lies inside the interval: measure longer"
                if outcome == "not valid"
                else ""
            )
            checks.append(
                _check(
                    f"{label}: {kind} median",
                    f"{a.value:.3f} ms",
                    f"{b.value:.3f} ms",
                    f"{b.value / a.value - 1.0:+.2%} [{low:+.2%}, {high:+.2%}]",
                    limits["slowdown"],
                    outcome,
                    why,
                )
            )
    elif before.throughput is not None and after.throughput is not None:
        x, y = before.throughput.images_per_s, after.throughput.images_per_s
        outcome = "passed" if x / y - 1.0 <= limits["slowdown"] else "failed"
        checks.append(
            _check(
                f"{label}: throughput",
                f"{x:.1f} /s",
                f"{y:.1f} /s",
                f"{y / x - 1.0:+.2%}",
                limits["slowdown"],
                outcome,
            )
        )
    for name, unit, scale in (("energy", "mJ an image", 1e3), ("memory", "MB", 1e-6)):
        if name not in limits:
            continue
        least, most = _figure(before, name), _figure(after, name)
        if least is None or most is None:
            who = "baseline" if least is None else "candidate"
            checks.append(
                _check(
                    f"{label}: {name}",
                    "n/a",
                    "n/a",
                    "n/a",
                    limits[name],
                    "not valid",
                    f"the {who} has no {name}",
                )
            )
            continue
        change = most / least - 1.0
        outcome = "passed" if change <= limits[name] else "failed"
        shown = f"{scale * least:.3g} {unit}", f"{scale * most:.3g} {unit}"
        checks.append(_check(f"{label}: {name}", *shown, f"{change:+.2%}", limits[name], outcome))
    return checks


def _figure(row: BenchRow, name: str) -> float | None:
    if name == "energy":
        return row.energy.gross_j if row.energy is not None else None
    return float(row.memory.process) if row.memory is not None else None


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


class _Evaluation(msgspec.Struct):
    """What the gate reads of an evaluation; other tools may write it, too."""

    top1: float | None = None
    reference_top1: float | None = None
    miou: float | None = None
    reference_miou: float | None = None
    images: int | None = None
    data: Any = None


def _evaluation(path: str) -> _Evaluation:
    return check_record(
        read_json(Path(path), kind="evaluation"), Path(path), _Evaluation, kind="evaluation"
    )


def _accuracy(spec: GateSpec) -> Check:
    """Compare the records of ``trtq evaluate``."""
    assert spec.max_accuracy_drop is not None
    if spec.accuracy is None:
        raise UsageError(
            "--max-accuracy-drop needs --accuracy",
            "a bench record has no accuracy in it",
            "trtq evaluate FILE --data ... --json > A.json",
        )
    new = _evaluation(spec.accuracy)
    old = _evaluation(spec.baseline_accuracy) if spec.baseline_accuracy else None
    for measure, unit in (("miou", "mIoU"), ("top1", "top-1")):
        after = getattr(new, measure)
        before = getattr(new, f"reference_{measure}") if old is None else getattr(old, measure)
        if after is None or before is None:
            continue
        outcome: Outcome = "passed" if before - after <= spec.max_accuracy_drop else "failed"
        why = ""
        if old is not None and (old.images, old.data) != (new.images, new.data):
            outcome, why = "not valid", "the two evaluations saw other images"
        return Check(
            what=f"{unit} on {new.images} images",
            baseline=f"{before:.2f}",
            candidate=f"{after:.2f}",
            change=f"{after - before:+.2f}",
            limit=f"-{spec.max_accuracy_drop:g}",
            outcome=outcome,
            why=why,
        )
    raise ArtifactError(
        f"There is no accuracy in {spec.accuracy}",
        "neither top-1 nor mIoU of both sides",
        "Evaluate with labels and --reference",
    )
