"""The record that ``trtq finetune`` returns and writes."""

from __future__ import annotations

from typing import Any

import msgspec

from trtq.artifact import Environment, FileRecord, Record
from trtq.data.preprocess import Preprocess
from trtq.export.parity import ParityRecord
from trtq.records.evaluate import EvaluateRecord
from trtq.train.epoch import Epoch


class TrainingConditions(msgspec.Struct, frozen=True, kw_only=True):
    """The device and the arithmetic of a training.

    Attributes:
        device: such as ``cpu`` or ``cuda:0``.
        processes: how many shared a step.
        threads: of torch.
        amp: narrower floats, ``none`` for none.
        compile: whether torch.compile fused the step.
    """

    device: str
    processes: int
    threads: int
    amp: str
    compile: bool


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """How many tensors learned.

    Attributes:
        weights: weights and biases.
        ranges: of quantizers.
        norms: BatchNorms that were kept.
        codebooks: of weights.
    """

    weights: int
    ranges: int
    norms: int = 0
    codebooks: int = 0


class FinetuneRecord(Record, frozen=True, kw_only=True):
    """The result of ``trtq finetune``; written as finetune.json.

    Attributes:
        model: name, weights and digests.
        data: what samples say of themselves.
        preprocess: how images became the input; None for inputs.
        encodings_sha256: of the file that training started from.
        trained: what learned.
        measure: what ``score`` in the history is: top-1 or mIoU on the validation images, in torch
            with quantization simulated.
        history: one row an epoch, on the device named in ``training``.
        best_epoch: the one that was written, counted from 0.
        training: device, processes, arithmetic.
        codebooks: values by quantizer, relative to its range; simulated.
        parity: torch against ONNX Runtime on the exported file.
        evaluation: of the exported file against the float one, None without --val.
        files: written, by name.
        notes: every automatic choice.
        seconds: by step.
        environment: software and machine.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    preprocess: Preprocess | None
    encodings_sha256: str
    trained: Trained
    measure: str
    history: list[Epoch]
    best_epoch: int
    training: TrainingConditions
    codebooks: dict[str, list[float]]
    parity: ParityRecord
    evaluation: EvaluateRecord | None
    files: dict[str, FileRecord]
    notes: list[str]
    seconds: dict[str, float]
    environment: Environment

    @property
    def summary(self) -> str:
        """One line for a person."""
        losses = (
            f"loss {self.history[0].loss:.4f} to {self.history[-1].loss:.4f} in "
            f"{len(self.history)} epochs"
        )
        trained = f"{self.trained.weights} weights and biases, {self.trained.ranges} ranges"
        books = (
            f"; {len(self.codebooks)} weights on codebooks (simulated: engines compute them in "
            "float)"
            if self.codebooks
            else ""
        )
        training = f"{trained}; {losses}; epoch {self.best_epoch + 1} was written{books}"
        return f"{training}; {self.evaluation.summary}" if self.evaluation is not None else training
