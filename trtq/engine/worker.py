"""The builder process: one ONNX file in, one plan out.

It runs apart, because a bad graph can crash a native builder.

Usage: ``TRTQ_TENSORRT=MODULE python -m trtq.engine.worker < REQUEST.json``, where MODULE is
``tensorrt`` or ``tensorrt_rtx``: one API. TensorRT is loaded before the request is read: a worker
can be started early. Without a request it ends. Writes one JSON object a line to standard output:
``{"event": "log", ...}``, ``"error"``, ``"phase"``, ``"step"``; at the end ``"done"``. Calls that
only some releases have are made when the version table says so; mypy checks the calls
against the types of 10.13.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trtq.engine.request import BuildRequest
from trtq.platform.releases import Version, has_api, release_of_module

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = importlib.import_module(os.environ.get("TRTQ_TENSORRT", "tensorrt"))


def _number() -> str:
    return str(getattr(trt, "__version__"))  # noqa: B009 - the published types leave it out


def _emit(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


class _Logger(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Pass on what a user should read."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING):
            _emit("log", severity=str(severity).rsplit(".", 1)[-1].lower(), text=msg)


def _monitor() -> Any:
    """Return a progress monitor; the class exists from 9.1 on only."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                _emit("phase", name=phase_name, steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            _emit("step", name=phase_name, step=step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass  # its steps have said so

    return Monitor()


def _create_network(
    builder: trt.Builder, version: Version, *, typed: bool
) -> trt.INetworkDefinition:
    flags, mask = trt.NetworkDefinitionCreationFlag, 0
    if version < (10, 0) and has_api("EXPLICIT_BATCH", version):  # 0 means an implicit batch there
        mask |= 1 << int(getattr(flags, "EXPLICIT_BATCH"))  # noqa: B009
    if typed and has_api("STRONGLY_TYPED", version):
        mask |= 1 << int(flags.STRONGLY_TYPED)
    return builder.create_network(mask)


def _parse(
    network: trt.INetworkDefinition, logger: trt.ILogger, request: BuildRequest, version: Version
) -> bool:
    parser, model = trt.OnnxParser(network, logger), Path(request.onnx).read_bytes()
    if request.dla is not None and has_api("ADJUST_FOR_DLA", version):
        parser.set_flag(getattr(trt.OnnxParserFlag, "ADJUST_FOR_DLA"))  # noqa: B009
    if parser.parse(model):
        return True
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        has_name = hasattr(error, "node_name")  # from 10 on; before, only the number of the node
        node = error.node_name() if has_name else f"node {error.node()}"
        _emit(
            "error",
            kind="parser",
            node=node,
            op=error.node_operator() if has_name else "",
            text=error.desc(),
        )
    return False


def _configure(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    request: BuildRequest,
    version: Version,
) -> None:
    if not request.typed:
        _set_precision(network, config, request, version)
    if request.sm is not None and has_api("set_compute_capability", version):
        ahead: Any = config  # TensorRT for RTX: no GPU needs to be here
        ahead.num_compute_capabilities = 1
        capabilities = getattr(trt, "ComputeCapability")  # noqa: B009
        ahead.set_compute_capability(getattr(capabilities, f"SM{request.sm}"), 0)
    _set_effort(config, request, version)
    _set_form(config, request, version)
    if request.report and has_api("profiling_verbosity", version):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if has_api("progress_monitor", version):
        config.progress_monitor = _monitor()
    for shapes in filter(None, (request.shapes, *request.more)):
        profile = builder.create_optimization_profile()
        for name, sizes in shapes.items():
            profile.set_shape(name, *(trt.Dims(list(s)) for s in sizes))
        config.add_optimization_profile(profile)


def _set_precision(
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    request: BuildRequest,
    version: Version,
) -> None:
    """Let the builder choose the precision of what is not quantized, but for nodes in float32."""
    for name, wanted in (("FP16", request.fp16), ("INT8", request.int8)):
        if wanted and has_api(name, version):
            config.set_flag(getattr(trt.BuilderFlag, name))
    kept = set(request.float_nodes)
    if not (kept and request.fp16 and has_api("OBEY_PRECISION_CONSTRAINTS", version)):
        return
    config.set_flag(getattr(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"))  # noqa: B009
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.name in kept:
            layer.precision = trt.float32
            for k in range(layer.num_outputs):
                layer.set_output_type(k, trt.float32)


def _set_effort(config: trt.IBuilderConfig, request: BuildRequest, version: Version) -> None:
    """Set how much memory and time the builder may take."""
    if request.workspace is not None:
        size = request.workspace << 20
        if has_api("set_memory_pool_limit", version):
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
        else:
            setattr(config, "max_workspace_size", size)  # noqa: B010
    if request.level is not None and has_api("builder_optimization_level", version):
        config.builder_optimization_level = request.level


def _set_form(config: trt.IBuilderConfig, request: BuildRequest, version: Version) -> None:
    """Set where the engine will run."""
    flags = trt.BuilderFlag
    if request.version_compatible and has_api("VERSION_COMPATIBLE", version):
        config.set_flag(flags.VERSION_COMPATIBLE)
    if request.hardware == "ampere+" and has_api("hardware_compatibility_level", version):
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.strip_weights and has_api("STRIP_PLAN", version):
        config.set_flag(flags.STRIP_PLAN)
    if request.dla is not None:
        config.default_device_type, config.DLA_core = trt.DeviceType.DLA, request.dla
        if request.gpu_fallback:
            config.set_flag(flags.GPU_FALLBACK)


def _read_timing_cache(config: trt.IBuilderConfig, path: Path) -> None:
    timings = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(timings)
    if timings and (cache is None or not config.set_timing_cache(cache, False)):
        text = f"ignoring the incompatible timing cache {path}; creating a new one"
        _emit("log", severity="warning", text=text)
        cache, timings = config.create_timing_cache(b""), b""
    if not timings and cache is not None:
        config.set_timing_cache(cache, False)


def _tensors(network: trt.INetworkDefinition) -> list[dict[str, object]]:
    inputs = [("input", network.get_input(i)) for i in range(network.num_inputs)]
    outputs = [("output", network.get_output(i)) for i in range(network.num_outputs)]
    return [
        {
            "name": t.name,
            "dtype": str(t.dtype).rsplit(".", 1)[-1],
            "shape": [t.shape[k] for k in range(len(t.shape))],
            "mode": mode,
        }
        for mode, t in (*inputs, *outputs)
    ]


def _report(plan: bytes, logger: trt.ILogger, version: Version, out: Path) -> None:
    """Write TensorRT's own report of the layers; that takes the GPU the engine is for."""
    if not has_api("create_engine_inspector", version):
        return
    runtime = trt.Runtime(logger)
    if has_api("engine_host_code_allowed", version):
        runtime.engine_host_code_allowed = (
            True  # version-compatible plans hold code; this one was made a moment ago
        )
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is not None:
        out.write_text(
            engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        )


def build(request: BuildRequest) -> bool:
    """Build as ``request`` says; True when the plan was written.

    Messages of the parser and the builder are written to standard output, as the module describes.
    """
    version, logger = release_of_module(trt), _Logger()
    builder = trt.Builder(logger)
    network = _create_network(builder, version, typed=request.typed)
    if not _parse(network, logger, request, version):
        return False
    config = builder.create_builder_config()
    _configure(builder, network, config, request, version)
    if request.timing_cache is not None:
        _read_timing_cache(config, Path(request.timing_cache))
    tensors, layers = _tensors(network), network.num_layers
    host_memory = builder.build_serialized_network(network, config)
    if host_memory is None:
        return False
    plan = bytes(host_memory)
    Path(request.out).write_bytes(plan)
    if request.timing_cache_out is not None and (cache := config.get_timing_cache()) is not None:
        Path(request.timing_cache_out).write_bytes(bytes(cache.serialize()))
    if request.report:
        _report(plan, logger, version, Path(request.report))
    _emit("done", version=_number(), tensors=tensors, network_layers=layers)
    return True


def build_json(text: str) -> bool:
    """Build as a request in JSON says; True when the plan was written."""
    return build(msgspec.json.decode(text, type=BuildRequest))


if __name__ == "__main__":
    wanted = sys.stdin.read()
    sys.exit(0 if not wanted or build_json(wanted) else 1)
