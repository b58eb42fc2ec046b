"""The folder of a quantized model: float ONNX, Q/DQ ONNX, encodings, and the record last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtq.export.parity import USUAL_MARGIN_DB
from trtq.files import MODEL_FILES, QUANTIZE_JSON
from trtq.flow.pair import mark_fp16_ranges_, save_pair
from trtq.flow.quantize_record import record_of
from trtq.flow.quantized import Quantized
from trtq.records.quantize import QuantizeRecord
from trtq.workspace import Workspace, file_records


def save_quantized(quantized: Quantized, out: Path) -> QuantizeRecord:
    """Write the files of a quantized model to a folder, the record last.

    A folder with quantize.json holds a whole, consistent set of files.

    Args:
        quantized: the model.
        out: folder, made when missing.

    Raises:
        ArtifactError: another process writes there, or the disk refuses.
    """
    run = quantized.inputs.run
    work = Workspace(out, QUANTIZE_JSON, run.progress, run.clock)
    with work.locked():
        work.remove_leftovers(MODEL_FILES)
        return write_quantized(quantized, work, _spec(quantized, out))


def write_quantized(quantized: Quantized, work: Workspace, spec: dict[str, Any]) -> QuantizeRecord:
    """Write the files into a folder that the caller has locked.

    Args:
        quantized: the model.
        work: the folder.
        spec: what was asked for, for the record.
    """
    run, done = quantized.inputs.run, quantized.done
    _note_margin(quantized)
    mark_fp16_ranges_(quantized.inputs, quantized.asked, (quantized.fp32, done.qdq))
    paths = save_pair(quantized.fp32, done.qdq, done.encodings, work.staging())
    run.clock.lap("write")
    files = file_records(paths.values())
    record = record_of(quantized, spec, files)
    work.publish(files, record)
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
