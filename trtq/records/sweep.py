"""The result of ``trtq sweep``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from trtq.artifact import Environment, Record
from trtq.tasks import Figure
from trtq.terminal import stack

State = Literal["done", "reused", "failed", "waiting"]
WEIGHTS = "weights"  # name of a size: packed codes, computed
SHOWN = 12  # digits of a key in tables


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run.

    Attributes:
        scores: of the quantized file, the one that counts first.
        reference: of the float file, where that was measured.
        sizes: bytes, by ``weights`` (packed codes, computed), name of an ONNX file or an engine.
        latency_ms: medians by ``fp32`` and ``qdq``, in ONNX Runtime.
        targets: devices that engines were built for.
        valid: False where the figures of a stage may not be used.
    """

    scores: list[Figure] = []
    reference: list[Figure] = []
    sizes: dict[str, int] = {}
    latency_ms: dict[str, float] = {}
    targets: list[str] = []
    valid: bool = True

    def score(self, name: str) -> Figure | None:
        """Return a score with a value by its name."""
        return next((f for f in self.scores if f.name == name and f.value is not None), None)


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a sweep.

    Attributes:
        name: its number, also of its recipe.
        key: its content address.
        settings: those that differ between runs.
        state: ``done`` here, ``reused`` from the store, ``failed``, or ``waiting`` where the sweep
            was interrupted or another driver has not finished it.
        seconds: that the run took; None where it did not end.
        measured: its figures; None where it did not end well.
        files: its folder, from the store on; "" for none.
        reason: of a failure or a wait.
    """

    name: str
    key: str
    settings: dict[str, Any]
    state: State
    seconds: float | None = None
    measured: Measured | None = None
    files: str = ""
    reason: str = ""

    @property
    def words(self) -> str:
        """Its settings as a person reads them."""
        return settings_words(self.settings)

    @property
    def line(self) -> str:
        """The row as one line of a table."""
        seconds = "" if self.seconds is None else f"{self.seconds:.1f} s"
        figures = self.measured
        scores = "" if figures is None else ", ".join(f.words for f in figures.scores[:1])
        doubt = "" if figures is None or figures.valid else "NOT VALID"
        parts = [f"{self.name}  {self.state:<7} {seconds:>8}  {self.words}", scores, doubt]
        return "; ".join(filter(None, [*parts, self.reason]))


def settings_words(settings: Mapping[str, object]) -> str:
    """Return settings as a person reads them, the table's name left out where that is clear.

    Args:
        settings: values by dotted name.

    >>> settings_words({"quantize.bits": "w4a8", "build.target": "t4"})
    'bits=w4a8 target=t4'
    """
    short = [n.rpartition(".")[2] for n in settings]
    names = [s if short.count(s) == 1 else n for n, s in zip(settings, short, strict=True)]
    return " ".join(f"{n}={plain_words(v)}" for n, v in zip(names, settings.values(), strict=True))


def plain_words(value: object) -> str:
    """Return the value of a setting as a person reads it: a text as it is, others as JSON.

    >>> plain_words("w4a8"), plain_words([1, 2]), plain_words(True)
    ('w4a8', '[1,2]', 'true')
    """
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


class SweepRecord(Record, frozen=True, kw_only=True):
    """The runs of a sweep; written as sweep.json.

    Attributes:
        rows: one for each run, in the order of the lists.
        out: folder of the sweep.
        store: where the files are.
        project: whose store it is.
        executor: where runs were executed.
        workers: runs at a time; 0 where no run was left to do.
        recipes: folder of the runs' recipes, relative to this file.
        notes: what was chosen, repaired or left out.
        seconds: of the sweep.
    """

    rows: list[SweepRow]
    out: str
    store: str
    project: str
    executor: str
    workers: int
    recipes: str
    notes: list[str]
    seconds: float
    environment: Environment

    def in_state(self, *states: State) -> list[SweepRow]:
        """Return the rows in one of some states."""
        return [r for r in self.rows if r.state in states]

    @property
    def failed(self) -> list[str]:
        """The runs that failed, each with the reason."""
        return [f"{r.name} ({r.words}): {r.reason}" for r in self.in_state("failed")]

    @property
    def valid(self) -> bool:
        """Whether the figures of all finished runs may be used."""
        return all(r.measured.valid for r in self.rows if r.measured is not None)

    @property
    def counts(self) -> str:
        """How many runs are in which state."""
        counts = {s: len(self.in_state(s)) for s in get_args(State)}
        words = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
        return f"{len(self.rows)} run{'' if len(self.rows) == 1 else 's'}: {words}"

    @property
    def summary(self) -> str:
        """Counts, and the reason of every failure."""
        doubt = [r.name for r in self.rows if r.measured is not None and not r.measured.valid]
        lines = [f"{self.counts}; {self.seconds:.1f} s on {self.executor}"]
        if doubt:
            lines.append(f"NOT VALID: {', '.join(doubt)}")
        return stack([*lines, *(f"failed: {text}" for text in self.failed)])
