"""The folder of a trained model: its files, its curves, its accuracy, the record last."""

from __future__ import annotations

import msgspec

from trtq.artifact import write_bytes, write_json
from trtq.files import CURVES_SVG, EVALUATE_JSON, FINETUNE_JSON, FP32, MODEL_FILES, QDQ
from trtq.flow.finetune import Finetuned
from trtq.flow.pair import save_pair
from trtq.records.evaluate import EvaluateRecord
from trtq.records.finetune import FinetuneRecord
from trtq.workspace import Workspace, file_records

FILES = (*MODEL_FILES, CURVES_SVG, FINETUNE_JSON, EVALUATE_JSON)


def save_finetuned(finetuned: Finetuned, record: FinetuneRecord, work: Workspace) -> FinetuneRecord:
    """Write a trained model into a folder that the caller has locked; return its record.

    Args:
        finetuned: the model.
        record: of it, as it is to be written but for the files.
        work: the folder.
    """
    # matplotlib is slow to import, and only this needs it.
    from trtq.report.figures import training_figure

    quantized, staging = finetuned.quantized, work.staging()
    paths = save_pair(quantized.fp32, quantized.done.qdq, quantized.encodings, staging)
    curves = training_figure(record.history, record.measure).encode()
    paths[CURVES_SVG] = write_bytes(staging / CURVES_SVG, curves)
    names = list(paths)
    evaluation = record.evaluation
    if evaluation is not None:
        evaluation = _of_files(evaluation, work)
        write_json(staging / EVALUATE_JSON, evaluation)
        names.append(EVALUATE_JSON)
    record = msgspec.structs.replace(
        record, evaluation=evaluation, files=file_records(paths.values())
    )
    work.publish(names, record, outdated=(EVALUATE_JSON,))
    return record


def _of_files(evaluation: EvaluateRecord, work: Workspace) -> EvaluateRecord:
    """Return an evaluation that says which files it is of."""
    files = {"onnx": str(work.folder / QDQ), "reference": str(work.folder / FP32)}
    return msgspec.structs.replace(evaluation, spec={**evaluation.spec, **files})
