"""Files as other tools write them: ONNX with Q/DQ pairs or a plugin, FP16, archives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from front_common import Door, image
from front_inputs import SIZE, Siamese, small_net
from onnx import TensorProto, helper
from smoke import scratch
from torch import nn


def exported(module: nn.Module, *inputs: torch.Tensor, **options: Any) -> Path:
    """Return the file that PyTorch's exporter writes of a module, with an open batch."""
    path = scratch() / "model.onnx"
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    torch.onnx.export(
        module.eval(), inputs, path, dynamo=True, dynamic_shapes=shapes, verbose=False, **options
    )
    return path


def plain() -> str:
    return str(exported(small_net(), image()))


def external() -> str:
    return str(exported(small_net(), image(), external_data=True))


def two_inputs() -> str:
    return str(exported(Siamese(), image(), image()))


def half() -> str:
    """A file in FP16, as converters for GPUs write it."""
    path = exported(small_net().half(), image().half())
    return str(path)


class _Reader:
    """What ONNX Runtime's quantizer reads samples from."""

    def __init__(self, name: str) -> None:
        self.left = [{name: image(3, SIZE, 1).numpy()} for _ in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None

    def set_range(self, start_index: int, end_index: int) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.left)


def by_ort(form: str) -> Callable[[], str]:
    """Return what quantizes a file with ONNX Runtime's own tool."""

    def make() -> str:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        source = exported(small_net(), image())
        target = source.with_name("quantized.onnx")
        first = onnx.load(source).graph.input[0].name
        quantize_static(
            source,
            target,
            _Reader(first),
            quant_format=QuantFormat[form],
            per_channel=True,
            activation_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True},
        )
        return str(target)

    return make


def plugin() -> str:
    """A detector that ends in TensorRT's own NMS."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU())
            self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 5, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen = self.body(x)
            boxes, scores = (h(seen).flatten(2).mT for h in (self.boxes, self.scores))
            return boxes, scores.sigmoid()

    path = exported(Heads(), image())
    model = onnx.load(path)
    names = ("num_dets", "det_boxes", "det_scores", "det_classes")
    types = (TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32)
    shapes = (["batch", 1], ["batch", 100, 4], ["batch", 100], ["batch", 100])
    node = helper.make_node(
        "EfficientNMS_TRT",
        [o.name for o in model.graph.output],
        names,
        "nms",
        domain="TRT",
        background_class=-1,
        box_coding=0,
        iou_threshold=0.5,
        max_output_boxes=100,
        plugin_version="1",
        score_activation=0,
        score_threshold=0.25,
    )
    model.graph.node.append(node)
    del model.graph.output[:]
    rows = zip(names, types, shapes, strict=True)
    model.graph.output.extend(helper.make_tensor_value_info(n, t, s) for n, t, s in rows)
    model.opset_import.append(helper.make_opsetid("TRT", 1))
    onnx.save(model, path)
    return str(path)


def archive() -> str:
    path = scratch() / "model.pt2"
    torch.export.save(_program(), path)
    return str(path)


def _program() -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(small_net().eval(), (image(),), dynamic_shapes=({0: batch},))


ONNX_FILES = {
    "file of torch.onnx": Door(make=plain),
    "file of torch.onnx, external data": Door(make=external),
    "file of torch.onnx, two inputs": Door(make=two_inputs),
    "file in FP16": Door(make=half),
    "file with Q/DQ pairs (ONNX Runtime), requantized": Door(
        make=by_ort("QDQ"), options={"requantize": True}
    ),
    "file with a plugin (EfficientNMS_TRT)": Door(make=plugin),
    ".pt2 archive": Door(make=archive),
    "ExportedProgram": Door(make=_program),
}
