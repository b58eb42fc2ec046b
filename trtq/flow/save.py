"""The folder of a quantized model: float ONNX, Q/DQ ONNX, encodings, and the record last."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from trtq.artifact import ensure_writable_dir, leftovers, locked, sha256_file, write_json
from trtq.export.parity import USUAL_MARGIN_DB
from trtq.flow.files import FILES, RECORD, STAGING
from trtq.flow.pair import mark_fp16_ranges_, save_pair
from trtq.flow.quantize_record import record_of
from trtq.flow.quantized import Quantized
from trtq.flow.records import FileRecord, QuantizeRecord


def save_quantized(
    quantized: Quantized, out: Path, spec: dict[str, Any] | None = None
) -> QuantizeRecord:
    """Write the files of a quantized model to ``out``, the record last.

    A folder with quantize.json holds a whole, consistent set of files.

    Args:
        quantized: the model.
        out: folder, made when missing.
        spec: what was asked for, for the record; default: the options.

    Raises:
        ArtifactError: another process writes there, or the disk refuses.
    """
    out = ensure_writable_dir(out)
    with locked(out / ".trtq.lock", waiting=quantized.inputs.run.tell):
        remove_leftovers(out)
        return write_quantized(quantized, out, _spec(quantized, out) if spec is None else spec)


def remove_leftovers(out: Path) -> None:
    """Remove files of a run that was killed."""
    for folder in (out, out / STAGING):
        for left in leftovers(folder, FILES):
            left.unlink()


def write_quantized(quantized: Quantized, out: Path, spec: dict[str, Any]) -> QuantizeRecord:
    """Write the files into a folder that the caller has locked."""
    run, done = quantized.inputs.run, quantized.done
    _note_margin(quantized)
    mark_fp16_ranges_(quantized.inputs, quantized.asked, (quantized.fp32, done.qdq))
    staging = ensure_writable_dir(out / STAGING)
    paths = save_pair(quantized.fp32, done.qdq, done.encodings, staging)
    run.clock.lap("write")
    files = {n: FileRecord(sha256=sha256_file(p), bytes=p.stat().st_size) for n, p in paths.items()}
    record = record_of(quantized, spec, files)
    write_json(staging / RECORD, record)
    # Everything is on the disk: now the old record goes, the files move, the new record comes
    # last and vouches for them.
    (out / RECORD).unlink(missing_ok=True)
    for name in (*files, RECORD):
        (staging / name).replace(out / name)
    with contextlib.suppress(OSError):  # it holds files of another origin
        staging.rmdir()
    return record


def _note_margin(quantized: Quantized) -> None:
    margin = quantized.done.parity.margin_db
    if margin is not None and margin < USUAL_MARGIN_DB:
        quantized.inputs.run.note(
            f"torch and ONNX Runtime drift apart to {margin:.1f} dB below the "
            f"quantization error (usual: {USUAL_MARGIN_DB:g} dB or more): step by step their "
            "codes are equal but for ties, which multiply in a deep model"
        )


def _spec(quantized: Quantized, out: Path) -> dict[str, Any]:
    """Return what a program asked for, in the words of a spec."""
    own = {
        "model": quantized.inputs.model.name,
        "data": quantized.inputs.samples.name,
        "out": str(out),
    }
    return {**own, **quantized.asked.without()}
