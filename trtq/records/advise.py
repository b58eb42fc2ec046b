"""The recommendation of ``trtq advise``."""

from __future__ import annotations

from typing import Literal

import msgspec

from trtq.artifact import Environment, FileRecord, Record
from trtq.engine.regions import Region


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that the advice is based on.

    Attributes:
        family: of the model.
        counted: why it is of that family.
        images: how many the data have.
        labels: whether these have labels.
        training: labelled images one may train on.
        target: the device; None when none was named.
        int8: whether it has INT8 kernels; None when none was named.
        bits: the widest uniform weights that meet every budget, 16 where FP16 meets them, None
            where nothing does.
        strict: at most half a point may go.
        int8_change: points that a measured INT8 model lost, as a number below 0; None where none
            was given.
    """

    family: str
    counted: str
    images: int
    labels: bool
    training: int
    target: str | None
    int8: bool | None
    bits: int | None
    strict: bool
    int8_change: float | None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the matrix.

    Attributes:
        scenario, data, precision, strategy: as S2 prints them; the first line is ours.
        applies: the facts fit.
        why: what of the facts decided.
    """

    scenario: str
    data: str
    precision: str
    strategy: str
    applies: bool
    why: str


class Int8Advice(msgspec.Struct, frozen=True, kw_only=True):
    """Which regions of a quantized model lose from INT8 on a device.

    Attributes:
        onnx_sha256: of the Q/DQ file.
        device: what people call it.
        batch: samples in a call.
        basis: ``predicted`` (a roofline) or ``measured`` (a profile on a device).
        source: what it was predicted over or measured with.
        how: what the figures are.
        regions: those first in which FP16 saves most.
        int8_ms, fp16_ms, chosen_ms: of a call: every region in INT8, every one in FP16, and only
            the losing regions in FP16.
        undecided: quantized layers that the source does not name; they remain in INT8.
        unnamed: kernels that name no layer.
        unnamed_ms: their time.
        removed: quantizers that the new file does not have.
        files: what was written.
    """

    onnx_sha256: str
    device: str
    batch: int
    basis: Literal["predicted", "measured"]
    source: str
    how: str
    regions: list[Region]
    int8_ms: float
    fp16_ms: float
    chosen_ms: float
    undecided: list[str] = []
    unnamed: int = 0
    unnamed_ms: float = 0.0
    removed: list[str] = []
    files: dict[str, FileRecord] = {}

    @property
    def losing(self) -> list[Region]:
        """The regions that lose from INT8."""
        return [r for r in self.regions if r.loses]

    @property
    def summary(self) -> str:
        """One line for a person."""
        lose = "lose" if self.basis == "measured" else "are predicted to lose"
        return (
            f"{len(self.losing)} of {len(self.regions)} regions {lose} from INT8 on the "
            f"{self.device}: {self.int8_ms:.4f} ms in INT8, {self.fp16_ms:.4f} ms in FP16, "
            f"{self.chosen_ms:.4f} ms with them in FP16 ({self.basis}: {self.source})"
        )


class AdviseRecord(Record, frozen=True, kw_only=True):
    """How to quantize a model; the first line of the matrix that fits is the advice.

    Attributes:
        facts, rows: of a float model; None and empty for a quantized one.
        strategy, precision: the advice.
        commands: what to type.
        notes: what does not fit the table, and every automatic choice.
        int8: of a quantized model, which regions lose from INT8.
    """

    model: str
    facts: Facts | None
    rows: list[Row]
    strategy: str
    precision: str
    commands: list[str]
    notes: list[str]
    environment: Environment
    int8: Int8Advice | None = None

    @property
    def summary(self) -> str:
        """One line for a person."""
        if self.int8 is not None:
            return f"{self.model}: {self.strategy} ({self.precision}); {self.int8.summary}"
        row = next(r for r in self.rows if r.applies)
        return f"{self.model}: {self.strategy} ({self.precision}), because {row.why}"
