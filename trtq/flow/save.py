"""The folder of a quantized model: float ONNX, Q/DQ ONNX, encodings, and the record last."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from trtq.files import MODEL_FILES, QUANTIZE_JSON
from trtq.flow.pair import save_pair
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
    run.clock.started = time.perf_counter()  # what a program did since is no step
    work = Workspace(out, QUANTIZE_JSON, run.progress, run.clock)
    with work.locked():
        work.remove_leftovers(MODEL_FILES)
        return write_quantized(quantized, work, _spec(quantized, out))


def write_quantized(
    quantized: Quantized, work: Workspace, spec: Mapping[str, object]
) -> QuantizeRecord:
    """Write the files into a folder that the caller has locked.

    Args:
        quantized: the model.
        work: the folder.
        spec: what was asked for, for the record.
    """
    run, done = quantized.inputs.run, quantized.done
    paths = save_pair(quantized.fp32, done.qdq, done.encodings, work.staging())
    run.clock.lap("write")
    files = file_records(paths.values())
    record = record_of(quantized, spec, files)
    work.publish(files, record)
    return record


def _spec(quantized: Quantized, out: Path) -> dict[str, object]:
    """Return what a program asked for, in the words of a spec."""
    own = {
        "model": quantized.inputs.model.name,
        "data": quantized.inputs.samples.name,
        "out": str(out),
    }
    return {**own, **quantized.asked.without()}
