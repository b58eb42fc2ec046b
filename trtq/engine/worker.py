"""The builder process: one ONNX file in, one plan out. It runs apart, because a bad graph can crash a native builder.

Usage: ``python -m trtq.engine.worker REQUEST.json``. Writes one JSON object a line to standard output:
``{"event": "log", ...}``, ``{"event": "error", ...}`` and, at the end, ``{"event": "done", ...}``.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def _emit(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING):
                _emit("log", severity=str(severity).rsplit(".", 1)[-1].lower(), text=msg)

    return Logger()


def _parse(trt: Any, network: Any, logger: Any, model: bytes) -> bool:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(model):
        return True
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        _emit("error", kind="parser", node=error.node_name(), op=error.node_operator(), text=error.desc())
    return False


def _profile(builder: Any, network: Any, config: Any, batch: list[int]) -> None:
    """One optimisation profile for a dynamic batch; static inputs need none."""
    profile, dynamic = builder.create_optimization_profile(), False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = list(tensor.shape)
        if -1 in shape:
            dynamic = True
            profile.set_shape(tensor.name, *[tuple(b if d == -1 else d for d in shape) for b in batch])
    if dynamic:
        config.add_optimization_profile(profile)


def build(request: dict[str, Any]) -> bool:
    """Build as ``request`` says; True when the plan was written."""
    trt = importlib.import_module(request["module"])
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    # Strong typing is the only mode of TensorRT 11 and RTX, and an option of 10.
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED))
    if not _parse(trt, network, logger, Path(request["onnx"]).read_bytes()):
        return False
    config = builder.create_builder_config()
    if request["sm"] is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{request['sm']}"), 0)
    _profile(builder, network, config, request["batch"])
    tensors = [
        {"name": t.name, "dtype": str(t.dtype).rsplit(".", 1)[-1], "shape": list(t.shape), "mode": mode}
        for mode, t in [
            *(("input", network.get_input(i)) for i in range(network.num_inputs)),
            *(("output", network.get_output(i)) for i in range(network.num_outputs)),
        ]
    ]
    layers = network.num_layers
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return False
    Path(request["out"]).write_bytes(bytes(plan))
    _emit("done", version=trt.__version__, tensors=tensors, network_layers=layers)
    return True


if __name__ == "__main__":
    sys.exit(0 if build(json.loads(Path(sys.argv[1]).read_text())) else 1)
