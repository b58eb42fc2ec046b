"""The record of a deployment, and the table of several."""

from __future__ import annotations

import msgspec

from trtq.artifact import Environment, Record
from trtq.bench.record import BenchRow
from trtq.deploy.board import Board
from trtq.engine.agreement import AgreementRecord
from trtq.engine.manifest import EngineManifest
from trtq.tasks import Figure
from trtq.terminal import stack


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """The engine on images, on the board.

    Attributes:
        images: how many; ``data``: where they are from.
        top1: percent, None without labels; ``reference_top1``: of the ONNX file in ONNX Runtime on
            the same images.
        agreement: the engine compared with the ONNX file.
        task: what the outputs mean; unset for classes, and where the file names no task.
        figures, reference_figures: the scores of that task with labels, of the engine and of the
            ONNX file.
    """

    images: int
    data: str
    top1: float | None
    reference_top1: float | None
    agreement: AgreementRecord
    task: str | msgspec.UnsetType = msgspec.UNSET
    figures: list[Figure] | msgspec.UnsetType = msgspec.UNSET
    reference_figures: list[Figure] | msgspec.UnsetType = msgspec.UNSET

    @property
    def words(self) -> str:
        """The scores with labels as a person reads them, "" without."""
        theirs = {f.name: f for f in self.reference_figures or ()}
        parts = [
            f"{f.words} (the ONNX file {theirs[f.name].amount})"
            for f in self.figures or ()
            if f.value is not None and f.name in theirs and theirs[f.name].value is not None
        ]
        if self.top1 is not None and self.reference_top1 is not None:
            parts.append(f"top-1 {self.top1:.2f} % (the ONNX file {self.reference_top1:.2f} %)")
        return "".join(f"{p}, " for p in parts)


class DeployRecord(Record, frozen=True, kw_only=True):
    """One model on one board; written as deploy.json.

    Attributes:
        device: as the user calls it; ``board``: as it was probed.
        onnx: the file that was sent.
        engine: path on the board; ``fetched``: where a copy is here, "" for none.
        built: False when the very engine was there already.
        manifest: of the engine.
        rows: what was measured, one for each batch; ``measured``: False when these figures were
            there already.
        accuracy: on images; None without any.
        sent, received: bytes over the link.
        restored: the power mode that was set back to, None where nothing had been set.
    """

    key: str
    device: str
    address: str
    board: Board
    onnx: str
    engine: str
    fetched: str
    built: bool
    manifest: EngineManifest
    rows: list[BenchRow]
    measured: bool
    accuracy: Accuracy | None
    unavailable: dict[str, str]
    notes: list[str]
    sent: int
    received: int
    seconds: float
    restored: str | None
    environment: Environment

    @property
    def valid(self) -> bool:
        """Whether every requested figure is usable and the engine agrees with the ONNX file.

        Agreement counts where images were run.
        """
        return not self.disagreement and (
            not self.spec.get("bench", True) or all(r.valid for r in self.rows)
        )

    def table(self, model: str) -> list[FleetRow]:
        """Return the rows of a table of devices, with ``model`` as the model's name."""
        return fleet_rows(
            self.device,
            str(self.board.model),
            model,
            self.manifest,
            self.rows,
            doubt=self.disagreement,
        )

    @property
    def disagreement(self) -> str:
        """Why the engine's answers are not those of the ONNX file.

        The text is empty where they are, or where no images were run.
        """
        wrong = self.accuracy is not None and not all(
            c.passed for c in self.accuracy.agreement.comparisons
        )
        return "the engine does not compute what the file says" if wrong else ""

    @property
    def summary(self) -> str:
        """A few lines for a person."""
        how = "built" if self.built else "was there already"
        lines = [f"{self.device}: {self.engine} {how}: {self.manifest.summary}"]
        lines += [f"{'' if self.measured else '(measured before) '}{r.summary}" for r in self.rows]
        if self.accuracy is not None:
            a = self.accuracy
            wrong = f"; NOT VALID: {self.disagreement}" if self.disagreement else ""
            lines.append(f"on {a.images} images of {a.data}: {a.words}{a.agreement.summary}{wrong}")
        lines += [f"{what} n/a: {why}" for what, why in self.unavailable.items()]
        return stack(lines)


FLEET_COLUMNS = (
    "device",
    "board",
    "model",
    "batch",
    "precision",
    "power mode",
    "load, ms",
    "latency, ms",
    "memory, MB",
    "mJ an image",
    "valid",
)


class FleetRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model and batch on one device; what is None is named in ``why``.

    Attributes:
        precision: of the engine, such as ``INT8 + fp16``.
        load_ms: from the start of a process until it infers; latency_ms: GPU time of a request,
            median with its 95 % interval.
        memory_bytes: growth of the board's used memory.
        millijoule: of an image, gross.
    """

    device: str
    board: str
    model: str
    batch: int = 0
    precision: str = ""
    power_mode: str = ""
    load_ms: float | None = None
    latency_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    memory_bytes: int | None = None
    millijoule: float | None = None
    engine_bytes: int | None = None
    valid: bool = False
    why: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of ``FLEET_COLUMNS``."""
        latency = _shown(self.latency_ms, ".3f")
        if self.low_ms is not None and self.high_ms is not None:
            latency += f" [{self.low_ms:.3f}, {self.high_ms:.3f}]"
        megabytes = self.memory_bytes / 1e6 if self.memory_bytes is not None else None
        return (
            self.device,
            self.board,
            self.model,
            str(self.batch or ""),
            self.precision,
            self.power_mode,
            _shown(self.load_ms, ".0f"),
            latency,
            _shown(megabytes, ".0f"),
            _shown(self.millijoule, ".3g"),
            "yes" if self.valid else "no",
        )


class FleetRecord(Record, frozen=True, kw_only=True):
    """Several models on several devices; written as fleet.json.

    Attributes:
        rows: one for each device, model and batch; a device that failed has one that says why.
        records: deploy.json of each, relative to this file.
    """

    rows: list[FleetRow]
    records: list[str]
    seconds: float
    environment: Environment

    @property
    def failed(self) -> list[str]:
        """The devices that gave nothing, each with the reason."""
        return [f"{_who(r)}: {r.why}" for r in self.rows if r.latency_ms is None and r.why]

    @property
    def valid(self) -> bool:
        """Whether every row may be used."""
        return all(r.valid for r in self.rows)

    @property
    def summary(self) -> str:
        """The table."""
        cells = [FLEET_COLUMNS, *(r.cells for r in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return stack([*lines, *(f"{_who(r)}: {r.why}" for r in self.rows if r.why)])


def _who(row: FleetRow) -> str:
    return ", ".join(filter(None, [row.device, row.model]))


def _shown(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def fleet_rows(
    device: str,
    board: str,
    model: str,
    manifest: EngineManifest,
    rows: list[BenchRow],
    *,
    doubt: str = "",
) -> list[FleetRow]:
    """Return the table rows for what was measured of one engine.

    Args:
        device: as the user calls it.
        board: model of the board.
        model: name of the model.
        manifest: of the engine.
        rows: what was measured, one for each batch.
        doubt: why the engine is not to be used; then no row is valid. "" for none.
    """
    codes = f"{manifest.codes} + " if manifest.has_codes else ""
    engine = FleetRow(
        device=device,
        board=board,
        model=model,
        precision=f"{codes}{manifest.precision}".replace("fp", "FP"),
        engine_bytes=manifest.engine_bytes,
        valid=not doubt,
        why="; ".join(filter(None, (doubt, manifest.fallback))),
    )
    return [_fleet_row(engine, row) for row in rows]


def _fleet_row(engine: FleetRow, row: BenchRow) -> FleetRow:
    """Return a row about an engine with what was measured."""
    median = row.gpu.median if row.gpu else None
    return msgspec.structs.replace(
        engine,
        batch=row.batch,
        power_mode=f"{row.settings.power_mode or 'unknown'}, clocks {row.settings.clocks}",
        load_ms=row.load[0].total.median if row.load else None,
        latency_ms=median.value if median else None,
        low_ms=median.low if median else None,
        high_ms=median.high if median else None,
        memory_bytes=row.memory.device if row.memory else None,
        millijoule=1e3 * row.energy.gross_j if row.energy else None,
        valid=row.valid and engine.valid,
        why="; ".join(filter(None, (*row.reasons, engine.why))),
    )
