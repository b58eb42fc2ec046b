"""From encodings of a model to its files: float ONNX, Q/DQ ONNX and the encodings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from trtq.export.fp16_ranges import IMAGES, mark_float_nodes_
from trtq.export.onnx_file import save_onnx
from trtq.files import ENCODINGS, FP32, QDQ
from trtq.flow.inputs import Inputs
from trtq.graph.feed import arrays_of
from trtq.quant.encodings import Encodings

AT_ONCE = 4  # samples: every tensor of the file is in memory beside its twin
FEWEST = 2  # samples whose ranges of FP16 are looked at, however large they are


def mark_fp16_ranges_(inputs: Inputs, models: Iterable[onnx.ModelProto]) -> None:
    """Write into ONNX models which nodes leave the range of FP16 on the samples, and note it.

    Args:
        inputs: the samples.
        models: changed in place: their metadata names the nodes.
    """
    count = inputs.of_usual_size(IMAGES, least=FEWEST)
    images = [arrays_of(feed) for feed in inputs.images(count, AT_ONCE)]
    lines = [line for model in models if (line := mark_float_nodes_(model, images))]
    inputs.run.note(*lines[:1])  # each file has its own marks; their figures differ in digits
    inputs.run.clock.lap("half ranges")


def save_pair(
    fp32: onnx.ModelProto, qdq: onnx.ModelProto, encodings: Encodings, folder: Path
) -> dict[str, Path]:
    """Write the files of a quantized model and return the path of each.

    Args:
        fp32: the float model.
        qdq: the quantized model.
        encodings: of it.
        folder: must exist.

    Returns:
        Paths by the name of the file.
    """
    return {
        FP32: save_onnx(fp32, folder / FP32),
        QDQ: save_onnx(qdq, folder / QDQ),
        ENCODINGS: encodings.save(folder / ENCODINGS),
    }
