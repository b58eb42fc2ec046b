"""From an ONNX file to a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from trtq.reader.module import OnnxModule
from trtq.reader.prepare import prepare
from trtq.reader.ranges import foreign_of


def read_onnx(source: Path | onnx.ModelProto, fixed: Mapping[str, Any] | None = None) -> OnnxModule:
    """Return an ONNX model as a module in eval mode.

    Args:
        source: a file, or a model in memory, which is not changed.
        fixed: values of inputs that become constants, by name.

    Raises:
        UsageError: a value of ``fixed`` does not fit an input.
        ExportError: the file is missing, damaged or incomplete.
        ModelError: it is quantized in a form that has no float model, or of an unknown opset.
        EncodingsError: a scale of its Q/DQ pairs is not finite or below 0, or none of the layers
        behind
            them remains.
    """
    ready = prepare(source, fixed=fixed)
    module = OnnxModule(
        ready.graph,
        opset=ready.opset,
        constants=ready.constants,
        domains=ready.domains,
        metadata=ready.metadata,
    )
    module.notes += ready.notes
    if ready.ranges:
        paths = {name: path for path, (name, _) in module.origin.names.items()}
        module.ranges = foreign_of(ready.ranges, paths, ready.name)
    return module.eval()
