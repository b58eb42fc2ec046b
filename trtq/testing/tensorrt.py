"""A stand-in for TensorRT's Python module: the names of the release it plays, and no others.

``write_fake_tensorrt(folder, "8.6.1")`` puts a package called ``tensorrt`` there, for the front of
the path. Its builder writes a plan that holds the ONNX file; its runtime computes that file with
ONNX Runtime, reading and writing host memory at the addresses it is given, through whichever API
the release has. What a real builder would stumble over is in the model's ``doc_string``
(:mod:`trtq.testing.trtexec`).
"""

from __future__ import annotations

import ctypes
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtq.onnx_session import exact_session
from trtq.testing.trtexec import DEFAULT_WORKSPACE, trouble

MAGIC = b"no plan of TensorRT\n"
NEWEST = (99, 0)
# Independent of trtq.platform on purpose: facts, section 3. Name: first and last release
# that have it.
NAMES = {
    "OnnxParserFlag.ADJUST_FOR_DLA": ((10, 16), NEWEST),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": ((8, 0), (10, 16)),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": ((9, 1), NEWEST),
    "BuilderFlag.FP16": ((8, 0), (10, 16)),
    "BuilderFlag.INT8": ((8, 0), (10, 16)),
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": ((8, 2), (10, 16)),
    "BuilderFlag.VERSION_COMPATIBLE": ((8, 6), NEWEST),
    "BuilderFlag.STRIP_PLAN": ((10, 0), NEWEST),
    "BuilderFlag.GPU_FALLBACK": ((8, 0), NEWEST),
    "config.max_workspace_size": ((8, 0), (9, 3)),
    "config.set_memory_pool_limit": ((8, 4), NEWEST),
    "config.builder_optimization_level": ((8, 6), NEWEST),
    "config.hardware_compatibility_level": ((8, 6), NEWEST),
    "config.progress_monitor": ((9, 1), NEWEST),
    "config.profiling_verbosity": ((8, 2), NEWEST),
    "layer.precision": ((8, 0), (10, 16)),
    "IProgressMonitor": ((9, 1), NEWEST),
    "MemoryPoolType": ((8, 4), NEWEST),
    "HardwareCompatibilityLevel": ((8, 6), NEWEST),
    "engine.names": ((8, 5), NEWEST),
    "engine.bindings": ((8, 0), (9, 3)),
    "engine.create_engine_inspector": ((8, 2), NEWEST),
}


def write_fake_tensorrt(folder: Path, version: str) -> Path:
    """Write the package and return the folder to put on the path."""
    package = folder / "tensorrt"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(
        f"from trtq.testing.tensorrt import names_of\nglobals().update(names_of({version!r}))\n"
    )
    return folder


def names_of(version: str) -> dict[str, Any]:
    """Return what the module of this release has in it."""
    major, minor = (int(v) for v in version.split(".")[:2])

    def has(name: str) -> bool:
        first, last = NAMES.get(name, ((0, 0), NEWEST))
        return first <= (major, minor) <= last

    def enum(kind: str, *members: str) -> Any:
        release_members = [m for m in members if has(f"{kind}.{m}")]
        return types.SimpleNamespace(**{m: i for i, m in enumerate(release_members)})

    flags = enum(
        "BuilderFlag",
        "FP16",
        "INT8",
        "OBEY_PRECISION_CONSTRAINTS",
        "VERSION_COMPATIBLE",
        "STRIP_PLAN",
        "GPU_FALLBACK",
    )
    creation = enum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED")
    release = _Release(has, version, flags, creation)
    parser = enum("OnnxParserFlag", "ADJUST_FOR_DLA")
    module: dict[str, Any] = {
        "__version__": version,
        "ILogger": _Logger,
        "Logger": _Logger,
        "BuilderFlag": flags,
        "NetworkDefinitionCreationFlag": creation,
        "Builder": lambda logger: _Builder(release, logger),
        "OnnxParser": _Parser,
        "OnnxParserFlag": parser,
        "Runtime": lambda logger: _Runtime(release),
        "Dims": list,
        "float32": "float32",
        "DeviceType": types.SimpleNamespace(DLA="DLA", GPU="GPU"),
        "ProfilingVerbosity": types.SimpleNamespace(DETAILED="detailed"),
        "LayerInformationFormat": types.SimpleNamespace(JSON="json"),
        "TensorIOMode": types.SimpleNamespace(INPUT="in", OUTPUT="out"),
        "MemoryPoolType": types.SimpleNamespace(WORKSPACE="workspace"),
        "nptype": np.dtype,
        "HardwareCompatibilityLevel": types.SimpleNamespace(AMPERE_PLUS="ampere+"),
        "IProgressMonitor": type("IProgressMonitor", (), {}),
        "IProfiler": type("IProfiler", (), {}),
    }
    return {name: value for name, value in module.items() if has(name)}


class _Logger:
    ERROR, INTERNAL_ERROR, WARNING = "Severity.ERROR", "Severity.INTERNAL_ERROR", "Severity.WARNING"
    Severity = str

    def __init__(self, severity: str = "") -> None:
        self.severity = severity

    def log(self, severity: str, msg: str) -> None:
        """Say nothing: the base of loggers."""


class _Release:
    def __init__(self, has: Any, version: str, flags: Any, creation: Any) -> None:
        self.has, self.version, self.flags, self.creation = has, version, flags, creation


class _Of:
    """An object that has the attributes of its release alone."""

    KIND = ""
    release: _Release

    def __init__(self, release: _Release) -> None:
        object.__setattr__(self, "release", release)

    def __setattr__(self, name: str, value: Any) -> None:
        if not self.release.has(f"{self.KIND}.{name}"):
            raise AttributeError(f"{self.KIND} of TensorRT {self.release.version} has no {name}")
        object.__setattr__(self, name, value)


class _Layer(_Of):
    KIND = "layer"
    name: str
    num_outputs = 1

    def __init__(self, release: _Release, name: str) -> None:
        super().__init__(release)
        object.__setattr__(self, "name", name)

    def set_output_type(self, index: int, kind: str) -> None:
        if not self.release.has("layer.precision"):
            raise AttributeError(
                f"layers of TensorRT {self.release.version} have no set_output_type"
            )


class _Network:
    def __init__(self, release: _Release, mask: int) -> None:
        self.release, self.mask = release, mask
        self.model = onnx.ModelProto()
        self.layers: list[_Layer] = []
        self.parser_flags: list[int] = []

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, i: int) -> _Layer:
        return self.layers[i]

    def get_input(self, i: int) -> Any:
        return _tensor(self.model.graph.input[i])

    def get_output(self, i: int) -> Any:
        return _tensor(self.model.graph.output[i])


def _tensor(value: onnx.ValueInfoProto) -> Any:
    dims = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
    name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    kind = {"FLOAT16": "HALF", "BFLOAT16": "BF16"}.get(name, name)
    return types.SimpleNamespace(name=value.name, shape=dims, dtype=f"DataType.{kind}")


class _Parser:
    def __init__(self, network: _Network, logger: _Logger) -> None:
        self.network, self.num_errors, self.said = network, 0, ""

    def set_flag(self, flag: int) -> None:
        self.network.parser_flags.append(flag)

    def parse(self, model: bytes) -> bool:
        self.network.model = onnx.load_from_string(model)
        self.network.layers = [
            _Layer(self.network.release, n.name) for n in self.network.model.graph.node
        ]
        implicit = not self.network.mask and self.network.release.version.startswith("8.")
        self.said = "Network must have an explicit batch" if implicit else ""
        self.num_errors = int(implicit)
        return not implicit

    def get_error(self, i: int) -> Any:
        return types.SimpleNamespace(node=lambda: 0, desc=lambda: self.said)


class _Config(_Of):
    KIND = "config"

    def __init__(self, release: _Release) -> None:
        super().__init__(release)
        self.told: dict[str, Any] = {
            "flags": 0,
            "profiles": 0,
            "workspace": DEFAULT_WORKSPACE,
            "cache": "",
        }

    def set_flag(self, flag: int) -> None:
        self.told["flags"] |= 1 << flag

    def add_optimization_profile(self, profile: Any) -> None:
        self.told["profiles"] += 1

    def create_timing_cache(self, timings: bytes) -> Any:
        if timings and not timings.startswith(b"timings "):
            return None
        return types.SimpleNamespace(held=timings, serialize=lambda: timings + b"timings ")

    def set_timing_cache(self, cache: Any, ignore: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    def __getattr__(self, name: str) -> Any:  # what was not set
        if name == "set_memory_pool_limit" and self.release.has("config.set_memory_pool_limit"):
            return lambda pool, size: self.told.update(workspace=size >> 20)
        raise AttributeError(f"config of TensorRT {self.release.version} has no {name}")


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, *shapes: list[int]) -> None:
        self.shapes[name] = list(shapes)


class _Builder:
    def __init__(self, release: _Release, logger: _Logger) -> None:
        self.release, self.logger = release, logger
        self.profiles: list[_Profile] = []

    def create_network(self, mask: int) -> _Network:
        return _Network(self.release, mask)

    def create_builder_config(self) -> _Config:
        return _Config(self.release)

    def create_optimization_profile(self) -> _Profile:
        self.profiles.append(_Profile())
        return self.profiles[-1]

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        workspace = (
            int(getattr(config, "max_workspace_size", 0) or 0) >> 20 or config.told["workspace"]
        )
        monitor = (
            getattr(config, "progress_monitor", None)
            if self.release.has("config.progress_monitor")
            else None
        )
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
        error, layers = trouble(network.model.SerializeToString(), int(workspace))
        if error:
            self.logger.log(_Logger.ERROR, error)
            return None
        leveled = self.release.has("config.builder_optimization_level")
        flags = {
            n: bool(config.told["flags"] >> b & 1) for n, b in vars(self.release.flags).items()
        }
        creation = {n: bool(network.mask >> b & 1) for n, b in vars(self.release.creation).items()}
        kept = [
            layer.name for layer in network.layers if getattr(layer, "precision", None) == "float32"
        ]
        head = {
            "version": self.release.version,
            "flags": flags,
            "creation": creation,
            "adjusted for DLA": bool(network.parser_flags),
            "workspace": workspace,
            "float": kept,
            "shapes": self.profiles[0].shapes if self.profiles else {},
            "profiles": [p.shapes for p in self.profiles],
            "level": getattr(config, "builder_optimization_level", None) if leveled else None,
            "report": (layers or b"").decode(),
        }
        written: bytes = network.model.SerializeToString()
        return MAGIC + json.dumps(head).encode() + b"\n" + written


def read_fake_plan(plan: bytes) -> tuple[dict[str, Any], bytes]:
    """Return what a builder was told, and the model in a plan."""
    magic, head, model = plan.split(b"\n", 2)
    if magic + b"\n" != MAGIC:
        raise ValueError("this is no plan of the stand-in")
    return json.loads(head), model


class _Runtime:
    def __init__(self, release: _Release) -> None:
        self.release = release

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        try:
            head, model = read_fake_plan(plan)
        except ValueError:
            return None
        return (
            _Engine(self.release, head, model) if head["version"] == self.release.version else None
        )


class _Engine:
    """Has ``num_io_tensors`` and its kin, or ``num_bindings`` and its kin, or both."""

    def __init__(self, release: _Release, head: dict[str, Any], model: bytes) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        self.session = exact_session(model, options)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = {o.name: o for o in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]
        self.release, self.head = release, head
        self.layers = [
            n.name
            for n in onnx.load_from_string(model).graph.node
            if n.op_type in ("Conv", "Gemm", "MatMul")
        ]
        self.device_memory_size_v2 = 4096
        if release.has("engine.names"):
            self.num_io_tensors = len(self.names)
            self.get_tensor_name = self.names.__getitem__
            self.get_tensor_mode = lambda name: "in" if name in self.inputs else "out"
            self.get_tensor_dtype = self._dtype
        if release.has("engine.bindings"):
            self.num_bindings = len(self.names)
            self.get_binding_name = self.names.__getitem__
            self.get_binding_index = self.names.index
            self.binding_is_input = lambda i: self.names[i] in self.inputs
            self.get_binding_dtype = lambda i: self._dtype(self.names[i])
        if release.has("engine.create_engine_inspector"):
            self.create_engine_inspector = lambda: types.SimpleNamespace(
                get_engine_information=lambda kind: head["report"]
            )

    def _dtype(self, name: str) -> str:
        kind = str((self.inputs | self.outputs)[name].type)[len("tensor(") : -1]
        return {"float": "float32", "double": "float64"}.get(kind, kind)

    def create_execution_context(self) -> Any:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.addresses = engine, dict[str, int]()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.profiler: Any = None
        names = engine.names
        if engine.release.has("engine.names"):
            self.set_input_shape = self._set
            self.get_tensor_shape = self._shape_of
            self.set_tensor_address = self.addresses.__setitem__
            self.execute_async_v3 = lambda stream: self._execute()
        if engine.release.has("engine.bindings"):
            self.set_binding_shape = lambda i, shape: self._set(names[i], shape)
            self.get_binding_shape = lambda i: self._shape_of(names[i])
            self.execute_async_v2 = lambda addresses, stream: self._execute(
                dict(zip(names, addresses, strict=True))
            )

    def _set(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.head["shapes"].get(name, (shape,) * 3)
        fits = (a <= s <= b for a, s, b in zip(least, shape, most, strict=True))
        if len(shape) != len(least) or not all(fits):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def _shape_of(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        value = (self.engine.inputs | self.engine.outputs)[name]
        dims = [d if isinstance(d, int) else -1 for d in value.shape]
        if self.shapes.keys() != self.engine.inputs.keys() or (dims and -1 not in dims):
            return tuple(dims)
        blank = {n: np.zeros(s, self.engine._dtype(n)) for n, s in self.shapes.items()}
        return tuple(self.engine.session.run([name], blank)[0].shape)

    def _execute(self, addresses: dict[str, int] | None = None) -> bool:
        at = addresses or self.addresses
        given = {n: _memory(at[n], s, self.engine._dtype(n)) for n, s in self.shapes.items()}
        outputs = self.engine.session.run(list(self.engine.outputs), given)
        for out, value in zip(self.engine.outputs, outputs, strict=True):
            _memory(at[out], value.shape, self.engine._dtype(out))[...] = value
        if self.profiler is not None:
            for layer in self.engine.layers:
                self.profiler.report_layer_time(layer, 0.5)
        return True


def _memory(address: int, shape: tuple[int, ...], dtype: str) -> Any:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer: Any = (ctypes.c_char * count).from_address(address)
    return np.frombuffer(buffer, dtype=np.dtype(dtype)).reshape(shape)
