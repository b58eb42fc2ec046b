"""From encodings to the files that ship: float ONNX, Q/DQ ONNX and the encodings.

They are written once torch and ONNX Runtime agree on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trtq.data.answers import ANSWER, Kind
from trtq.export.fp16_ranges import IMAGES, mark_float_nodes_
from trtq.export.onnx_file import save_onnx, set_metadata_
from trtq.export.parity import ParityRecord, check_parity, require_parity
from trtq.export.to_onnx import export_onnx
from trtq.flow.files import ENCODINGS, FP32, QDQ
from trtq.graph.capture import CapturedGraph
from trtq.progress import Progress
from trtq.quant.encodings import Encodings
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize


def ship(
    captured: CapturedGraph,
    encodings: Encodings,
    images: Sequence[torch.Tensor],
    out: Path,
    *,
    origin: Mapping[str, Any],
    opset: int,
    int4: bool,
    records: Sequence[str],
    told: Progress,
    note: Callable[[str], None],
    answer: Kind,
) -> tuple[ParityRecord, dict[str, Path]]:
    """Write the three files and return what the parity gate saw and where they are.

    Args:
        captured: the float model, on the CPU.
        encodings: of it.
        images: batches that torch and ONNX Runtime are compared on.
        out: folder; ``records`` in it are removed first, they would vouch for other files.
        origin: metadata of both ONNX files.
        opset: of both.
        int4: store weights of 4 bits as INT4.
        records: names of record files.
        told: receives progress.
        note: receives what a user should read.
        answer: what the model's output is.

    Raises:
        ParityError: torch and ONNX Runtime do not compute the same; nothing was written.
    """
    simulated = insert_fake_quantize(
        captured.module, placement_of(captured.module, encodings), encodings
    )
    made = []
    for graph, more in (
        (captured.module, {"precision": "fp32"}),
        (simulated, {"precision": "int8", "encodings_sha256": encodings.digest()}),
    ):
        model = export_onnx(graph, opset=opset, int4=int4, note=note)
        set_metadata_(model, {**origin, ANSWER: answer, **more})
        made.append(model)
    fp32, qdq = made
    told.begin("Comparing torch and ONNX Runtime", sum(map(len, images)))
    parity, _ = check_parity(
        captured.module, simulated, qdq, images, known=answer, progress=told.advance
    )
    require_parity(parity)
    looked_at = [b.numpy() for i, b in enumerate(images) if i * len(images[0]) < IMAGES]
    for said in dict.fromkeys(mark_float_nodes_(model, looked_at) for model in made):
        if said:
            note(said)
    for name in records:
        (out / name).unlink(missing_ok=True)
    return parity, {
        FP32: save_onnx(fp32, out / FP32),
        QDQ: save_onnx(qdq, out / QDQ),
        ENCODINGS: encodings.save(out / ENCODINGS),
    }
