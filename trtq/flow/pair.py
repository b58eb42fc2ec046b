"""From encodings of a model to its files: float ONNX, Q/DQ ONNX and the encodings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from trtq.export.fp16_ranges import IMAGES, mark_float_nodes_
from trtq.export.onnx_file import save_onnx
from trtq.export.parity import ParityRecord, require_parity
from trtq.files import ENCODINGS, FP32, QDQ
from trtq.flow.ptq import Inputs, compare_simulation, quantized_metadata
from trtq.quant.encodings import Encodings
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize
from trtq.specs import QuantizeOptions


def write_encoded(
    inputs: Inputs,
    encodings: Encodings,
    options: QuantizeOptions,
    out: Path,
    *,
    records: Iterable[str],
) -> tuple[ParityRecord, dict[str, Path]]:
    """Write the three files once torch and ONNX Runtime agree on them.

    Args:
        inputs: the float model and the samples that the two are compared on.
        encodings: of the model.
        options: opset, storage of weights, batch size and number of compared samples.
        out: folder.
        records: names of record files in it that would vouch for other files: they are removed.

    Returns:
        What the parity gate saw, and the path of each file.

    Raises:
        ParityError: torch and ONNX Runtime do not compute the same; nothing was written.
    """
    graph = inputs.model.graph.module
    simulated = insert_fake_quantize(graph, placement_of(graph, encodings), encodings)
    fp32 = inputs.export(graph, options, precision="fp32")
    qdq = inputs.export(simulated, options, **quantized_metadata(encodings))
    parity, _ = compare_simulation(inputs, options, simulated, qdq)
    require_parity(parity)
    mark_fp16_ranges_(inputs, options, (fp32, qdq))
    for name in records:
        (out / name).unlink(missing_ok=True)
    return parity, save_pair(fp32, qdq, encodings, out)


def mark_fp16_ranges_(
    inputs: Inputs, options: QuantizeOptions, models: Iterable[onnx.ModelProto]
) -> None:
    """Write into ONNX models which nodes leave the range of FP16 on the samples, and note it."""
    images = [[t.numpy() for t in feed] for feed in inputs.images(IMAGES, options.batch_size)]
    lines = [mark_float_nodes_(model, images) for model in models]
    inputs.run.note(*(line for line in dict.fromkeys(lines) if line))
    inputs.run.clock.lap("half ranges")


def save_pair(
    fp32: onnx.ModelProto, qdq: onnx.ModelProto, encodings: Encodings, folder: Path
) -> dict[str, Path]:
    """Write the files of a quantized model and return the path of each."""
    return {
        FP32: save_onnx(fp32, folder / FP32),
        QDQ: save_onnx(qdq, folder / QDQ),
        ENCODINGS: encodings.save(folder / ENCODINGS),
    }
