"""The history of all records made here: one SQLite file, one row per file, batch and mode."""

from __future__ import annotations

import datetime
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import sha256_bytes
from trtq.bench.machine_card import Card
from trtq.bench.record import BenchRecord, BenchRow, Verdict
from trtq.errors import NO_HOME, ArtifactError, SystemRefusalError, UsageError
from trtq.paths import path_variable, user_folder
from trtq.terminal import visible

TABLE = (
    "\nCREATE TABLE IF NOT EXISTS rows (\n"
    "    id TEXT PRIMARY KEY, time TEXT NOT NULL, file TEXT NOT NULL, file_sha256 TEXT NOT NULL, "
    "device TEXT NOT NULL, mode TEXT NOT NULL,\n"
    "    batch INTEGER NOT NULL, median_ms REAL, images_per_s REAL, joule REAL, "
    "process_bytes INTEGER, valid INTEGER NOT NULL,\n"
    "    host TEXT, machine TEXT, row TEXT NOT NULL, card TEXT NOT NULL\n"
    ")"
)
INSERT = (
    "INSERT OR IGNORE INTO rows VALUES (:id, :time, :file, :file_sha256, :device, :mode, :batch, "
    ":median_ms, :images_per_s, :joule, :process_bytes, :valid, :host, :machine, :row, :card)"
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history.

    Attributes:
        time: when the record was written, ISO 8601 with the offset from UTC.
        file: as it was given; for ``compare`` the name of the second file.
        device: as the workload labels itself.
        mode: of ``trtq bench``, or ``compare``.
        batch: samples in a request.
        median_ms: end to end; GPU time for rows of boards.
        images_per_s: of mode ``throughput``.
        joule: of an image, gross.
        process_bytes: growth of the process.
        machine: name of the GPU, the board or the CPU.
    """

    time: str
    file: str
    device: str
    mode: str
    batch: int
    median_ms: float | None
    images_per_s: float | None
    joule: float | None
    process_bytes: int | None
    valid: bool
    machine: str


def history_path() -> Path:
    """Return the path of the history.

    It is ``$TRTQ_HISTORY``, else trtq/history.sqlite in the user's data folder.

    Raises:
        SystemRefusalError: the user has no home.
    """
    variable = path_variable("TRTQ_HISTORY")
    if variable is not None:
        return Path(variable)
    base = user_folder("XDG_DATA_HOME", ".local/share")
    if base is None:
        raise SystemRefusalError("There is no home folder", NO_HOME, "Set HOME, or XDG_DATA_HOME")
    return base / "trtq/history.sqlite"


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        link = sqlite3.connect(path, timeout=30.0)
    except (OSError, sqlite3.Error) as exc:
        raise ArtifactError(
            f"Cannot open the history {path}",
            str(exc),
            "Set TRTQ_HISTORY to a file that can be written",
        ) from exc
    try:
        with link:
            link.execute(TABLE)
            yield link
    except sqlite3.Error as exc:
        raise ArtifactError(
            f"Cannot use the history {path}", str(exc), "Move it away: a new one is made"
        ) from exc
    finally:
        link.close()


def remember(record: BenchRecord, path: Path | None = None) -> None:
    """Add the rows of a record; a row that is there already is not added again.

    Args:
        record: of ``trtq bench``.
        path: of the history; None for :func:`history_path`.

    Raises:
        ArtifactError: the file cannot be written.
        SystemRefusalError: the user has no home.
    """
    time = record.environment.time
    card = msgspec.json.encode(record.card)
    rows = [
        {
            **_whole(row, record.card),
            "id": sha256_bytes(msgspec.json.encode(row) + card + time.encode()),
            "time": time,
            "file": row.file,
            "file_sha256": row.file_sha256,
            "device": row.device,
            "mode": row.mode,
            "batch": row.batch,
            "median_ms": row.median_ms,
            "images_per_s": row.throughput.images_per_s if row.throughput else None,
            "joule": row.energy.gross_j if row.energy else None,
            "process_bytes": row.memory.process if row.memory else None,
            "valid": int(row.valid),
        }
        for row in record.rows
    ]
    with _open(path or history_path()) as link:
        link.executemany(INSERT, rows)


def _whole(row: BenchRow | Verdict, card: Card) -> dict[str, object]:
    """Return the fields that hold a row and its machine as they were recorded."""
    return {
        "host": card.host,
        "machine": card.machine,
        "row": msgspec.json.encode(row).decode(),
        "card": msgspec.json.encode(card).decode(),
    }


def remember_verdicts(
    verdicts: Sequence[Verdict], card: Card, time: str, path: Path | None = None
) -> None:
    """Add the verdicts of ``trtq compare``.

    Each verdict is a row of mode ``compare`` for the second file of the pair; the row contains the
    whole verdict.

    Args:
        verdicts: of one comparison.
        card: the machine.
        time: of the comparison, ISO 8601 with the offset from UTC.
        path: of the history; None for :func:`history_path`.

    Raises:
        ArtifactError: the file cannot be written.
        SystemRefusalError: the user has no home.
    """
    rows = [
        {
            **_whole(v, card),
            **dict.fromkeys(("images_per_s", "joule", "process_bytes")),
            "id": sha256_bytes(msgspec.json.encode(v) + time.encode()),
            "time": time,
            "file": v.second,
            "file_sha256": "",
            "device": v.device,
            "mode": "compare",
            "batch": v.batch,
            "median_ms": v.second_ms,
            "valid": int(v.valid),
        }
        for v in verdicts
    ]
    with _open(path or history_path()) as link:
        link.executemany(INSERT, rows)


def recall(
    *,
    file: str | None = None,
    device: str | None = None,
    mode: str | None = None,
    since: str | None = None,
    valid: bool = False,
    path: Path | None = None,
) -> list[Entry]:
    """Return what was measured here, the oldest first.

    Args:
        file: a pattern with * and ?, of the file's name.
        device: the same, as records label it.
        mode: of ``trtq bench``.
        since: a date such as 2026-11-01, of this machine's time zone.
        valid: leave out what is not valid.
        path: of the history.

    Raises:
        UsageError: ``since`` is no date.
        ArtifactError: the history cannot be read.
    """
    after = _since(since)
    columns = Entry.__struct_fields__
    query = f"SELECT {', '.join(columns)} FROM rows ORDER BY time, file, batch"  # noqa: S608
    with _open(path or history_path()) as link:
        table = link.execute(query).fetchall()
    rows = [dict(zip(columns, values, strict=True)) for values in table]
    entries = (Entry(**{**row, "valid": bool(row["valid"])}) for row in rows)
    timed = [(_moment(e.time), e) for e in entries]
    return [
        e
        for moment, e in sorted(timed, key=lambda pair: pair[0])  # zones may differ
        if _matches(file, Path(e.file).name, e.file)
        and _matches(device, e.device)
        and mode in (None, e.mode)
        and (after is None or moment >= after)
        and (e.valid or not valid)
    ]


def _moment(text: str) -> datetime.datetime:
    """Return the time of a record; one without an offset is of this machine's zone.

    Raises:
        ArtifactError: it is no time.
    """
    try:
        # Python 3.10 reads no offset without a colon by itself.
        return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        pass
    try:
        return datetime.datetime.fromisoformat(text).astimezone()
    except ValueError as exc:
        raise ArtifactError(
            f"Cannot read the time {text!r} of an entry of the history",
            "expected one such as 2026-11-01T12:00:00+0100",
            "Name another file in TRTQ_HISTORY, or remove this entry",
        ) from exc


def _since(text: str | None) -> datetime.datetime | None:
    """Return the start of a day here, None without one.

    Raises:
        UsageError: it is no date.
    """
    if text is None:
        return None
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").astimezone()
    except ValueError as exc:
        raise UsageError(
            f"Cannot read --since {text!r}", "expected a date", "Write it like 2026-11-01"
        ) from exc


def _matches(pattern: str | None, *texts: str) -> bool:
    """Return whether one of the texts matches a pattern with * and ?; None matches all."""
    return pattern is None or any(fnmatch(text, pattern) for text in texts)


def plot(entries: list[Entry], out: Path) -> Path:
    """Plot the medians over time, one line for each file, device, mode and batch.

    Hollow points are not valid.

    Args:
        entries: as :func:`recall` returns them; those without a median are left out.
        out: a .png, .svg or .pdf file.

    Returns:
        ``out``.

    Raises:
        UsageError: the file extension is not that of an image format.
        ArtifactError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from trtq.artifact import write_atomic

    known = ("png", "svg", "pdf")
    if out.suffix[1:] not in known:
        raise UsageError(
            f"Cannot draw {out}", f"its ending is {out.suffix!r}", f"Use .{', .'.join(known)}"
        )
    with mpl.rc_context({"text.parse_math": False}):  # a name may hold a dollar
        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        lines = _draw(axes, entries)
        axes.set(ylabel="median of a request, ms", title="Latency over time")
        axes.set_ylim(bottom=0)
        if lines:
            axes.legend(*zip(*lines, strict=True), fontsize=8)
        figure.autofmt_xdate()
        write_atomic(out, lambda tmp: figure.savefig(tmp, format=out.suffix[1:]))
    plt.close(figure)
    return out


def _tail(path: str, others: Sequence[str]) -> str:
    """Return the end of a path that tells it from others: its name, or with folders before it."""
    parts = Path(path).parts
    for count in range(1, len(parts)):
        tail = parts[-count:]
        if not any(o != path and Path(o).parts[-count:] == tail for o in others):
            return "/".join(tail)
    return path


def _draw(axes: Any, entries: list[Entry]) -> list[tuple[Any, str]]:
    """Draw one line per file, device, mode and batch; return the lines with their labels."""
    series: dict[tuple[str, str, str, int], list[Entry]] = {}
    for e in entries:
        if e.median_ms is not None:
            path = os.path.normpath(e.file)
            series.setdefault((path, e.device, e.mode, e.batch), []).append(e)
    paths = [path for path, *_ in series]
    lines = []
    for (path, device, mode, batch), rows in series.items():
        times = [_moment(e.time) for e in rows]
        values = [e.median_ms for e in rows]
        (line,) = axes.plot(times, values)
        color = line.get_color()
        for e, t, v in zip(rows, times, values, strict=True):
            axes.plot(t, v, "o", color=color, markerfacecolor=color if e.valid else "none")
        label = visible(f"{_tail(path, paths)}, {device}, {mode}, batch {batch}")
        lines.append(
            (line, f" {label}" if label.startswith("_") else label)
        )  # matplotlib hides such a label
    return lines
