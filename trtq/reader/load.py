"""An ONNX file as a loaded model: where its weights come from, and what must be known of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from trtq.layouts import IMAGE_AXES, channels_first, layout_of
from trtq.models.load import LoadedModel
from trtq.reader.module import OnnxModule
from trtq.reader.read import read_onnx

IMAGE_CHANNELS = (1, 3)
OPEN_SIZE = 224  # of an image whose height or width is open


def load_onnx_model(source: Path | onnx.ModelProto, name: str = "") -> LoadedModel:
    """Return the model of an ONNX file.

    Args:
        source: a file, or a model in memory.
        name: of a model in memory.

    Raises:
        ExportError: the file is missing, damaged or incomplete.
        ModelError: it is quantized in a form that has no float model, or of an unknown opset.
    """
    module = read_onnx(source)
    return LoadedModel(
        module=module,
        name=name or (str(source) if isinstance(source, Path) else "ONNX model"),
        weights="the file's own",
        notes=tuple(module.notes),
        input_hints=_hints(module),
    )


def _hints(module: OnnxModule) -> Mapping[str, Any]:
    """Return the sizes of one input with four axes, where the file says them."""
    images = [p for p in module.inputs if len(p.shape) == IMAGE_AXES]
    if len(module.inputs) != 1 or not images:
        return {}
    layout = layout_of(images[0].shape) or "NCHW"
    channels, *sizes = channels_first(images[0].shape[1:], layout)
    if channels not in IMAGE_CHANNELS:
        return {}
    size = (channels, *(s if isinstance(s, int) else OPEN_SIZE for s in sizes))
    return {"input_size": size, "layout": layout}
