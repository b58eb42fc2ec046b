"""Missing steps of a run, with the command for each."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from trtq.files import FINETUNE_FOLDER, FP32, QDQ, QUANTIZE_JSON
from trtq.report.contents import RunRecords

TARGET = "rtx4090"  # of the example of a build


class Step(NamedTuple):
    """A step, and the command that does it.

    Attributes:
        why: what it is for.
        command: one line for a shell.
    """

    why: str
    command: str


def next_steps(run: RunRecords, folder: Path) -> list[Step]:
    """Return the steps that lead from a run to an engine that is measured and shipped.

    Args:
        run: its records.
        folder: that they are in.
    """
    files = folder / FINETUNE_FOLDER if run.training is not None else folder
    engines = [folder / name for name in run.engines if (folder / name).is_file()]
    steps = []
    if run.evaluate is None:
        steps.append(
            Step(
                "Measure accuracy on samples that calibration did not see",
                _evaluate(run, folder, files),
            )
        )
    if not engines:
        built = folder / f"{TARGET}.engine"
        words = ["build", files / QDQ, "--target", TARGET, "--out", built]
        steps.append(Step("Build an engine; trtq targets lists the devices", _line(*words)))
        return steps
    if not any(r.device.startswith("cuda") for record in run.bench.values() for r in record.rows):
        words = ["bench", *engines[:2], "--device", "cuda:0", "--out", folder]
        steps.append(Step("Measure latency on the device itself", _line(*words)))
    quantized = [path for path in engines if run.engines[path.name].has_codes]
    words = ["package", *(quantized or engines)[:1], "--for", "python", "--out", folder / "app"]
    steps.append(Step("Make a program of an engine; triton, cpp and others as well", _line(*words)))
    return steps


def _evaluate(run: RunRecords, folder: Path, files: Path) -> str:
    spec = run.quantize.spec
    tokenizer = spec.get("tokenizer")
    return _line(
        *("evaluate", files / QDQ, "--reference", folder / FP32),
        *("--data", spec.get("data") or "IMAGES"),
        *(("--tokenizer", tokenizer) if tokenizer else ()),
        *("--exclude", folder / QUANTIZE_JSON, "--out", folder),
    )


def _line(*words: object) -> str:
    return shlex.join(["trtq", *map(str, words)])
