"""An ONNX file as a loaded model: where its weights come from, and what must be known of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from trtq.data.image_size import image_hints
from trtq.models.load import LoadedModel
from trtq.reader.module import OnnxModule
from trtq.reader.read import read_onnx

IMAGE_CHANNELS = (1, 3)


def load_onnx_model(
    source: Path | onnx.ModelProto, name: str = "", fixed: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Return the model of an ONNX file.

    Args:
        source: a file, or a model in memory.
        name: of a model in memory.
        fixed: values of inputs that become constants, by name.

    Raises:
        UsageError: a value of ``fixed`` does not fit an input.
        ExportError: the file is missing, damaged or incomplete.
        ModelError: it is quantized in a form that has no float model, or of an unknown opset.
    """
    module = read_onnx(source, fixed)
    return LoadedModel(
        module=module,
        name=name or (str(source) if isinstance(source, Path) else "ONNX model"),
        weights="the file's own",
        notes=tuple(module.notes),
        input_hints=_hints(module),
    )


def _hints(module: OnnxModule) -> Mapping[str, Any]:
    """Return what the file says of its images, where its one input has four axes."""
    if len(module.inputs) != 1:
        return {}
    hints = image_hints(module.inputs[0].shape, module.origin.metadata)
    return hints if hints.get("input_size", (0,))[0] in IMAGE_CHANNELS else {}
