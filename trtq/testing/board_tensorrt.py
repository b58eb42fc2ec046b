"""Stand-ins for TensorRT's Python module on a board without NVIDIA's software.

They run on Python 3.6 with the standard library alone.

An engine is any file; it takes one float32 input [N, C, H, W] called ``input`` and answers with the
mean of every channel, [N, C]: what a model of one global average pooling computes. Where ``io`` of
the board's folder has inputs (names and types: INT64 or INT32, [N, L]), it answers with the sums of
their products, FLOAT [N, 1]. Addresses are of
ordinary memory, as ``CUDART`` of :mod:`trtq.testing.board` hands them out. Its builder knows the
names of the release that is in ``release.json`` beside it, and writes what it was told into the
engine. What a real one would stumble over is in the model's ``doc_string``: ``refuse-me``,
``memory:N`` (killed above a workspace of N MiB).
"""

import array
import ctypes
import json
import os
import re
import signal
import sys

_TOLD = {
    "release": [8, 5],
    "names": {},
}  # what the board's folder says instead: names with their first and last release
_BESIDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "release.json")
if os.path.exists(_BESIDE):
    with open(_BESIDE) as _handle:
        _TOLD = json.load(_handle)
__version__ = "%d.%d.2.2" % tuple(_TOLD["release"])


def _has(name):
    first, last = _TOLD["names"].get(name, ([0, 0], [99, 0]))
    return first <= _TOLD["release"] <= last


def _members(kind, *names):
    """An enumeration with the members of the release alone."""
    return type(
        kind, (), {n: i for i, n in enumerate(n for n in names if _has("%s.%s" % (kind, n)))}
    )


class Logger:
    ERROR, WARNING = 1, 2

    def __init__(self, severity):
        pass

    def error(self, text):
        """Write as TensorRT's own logger does."""
        sys.stderr.write("[11/21/2026-10:00:01] [TRT] [E] %s\n" % text)


NetworkDefinitionCreationFlag = _members(
    "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED"
)
BuilderFlag = _members("BuilderFlag", "FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "GPU_FALLBACK")
DeviceType = _members("DeviceType", "GPU", "DLA")
MemoryPoolType = _members("MemoryPoolType", "WORKSPACE")
ProfilingVerbosity = _members("ProfilingVerbosity", "LAYER_NAMES_ONLY", "DETAILED")
LayerInformationFormat = _members("LayerInformationFormat", "ONELINE", "JSON")
float32 = "float32"


class _Layer:
    num_outputs = 1

    def __init__(self, name):
        self.name, self.precision, self.kinds = name, None, {}

    def set_output_type(self, index, kind):
        self.kinds[index] = kind


class _Network:
    def __init__(self, mask):
        self.mask, self.model, self.layers = mask, b"", []

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, index):
        return self.layers[index]


class _ParserError:
    def node(self):
        return 0

    def desc(self):
        return "no importer for this one"


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.num_errors = network, 0

    def parse(self, model):
        self.network.model, self.num_errors = model, int(b"refuse-me" in model)
        self.network.layers = [_Layer(n.decode()) for n in re.findall(b"node_[a-z]+", model)]
        return not self.num_errors

    def get_error(self, index):
        return _ParserError()


class _Config:
    KNOWN = (
        "told",
        "max_workspace_size",
        "builder_optimization_level",
        "profiling_verbosity",
        "default_device_type",
        "DLA_core",
    )

    def __init__(self):
        self.told = {"flags": [], "profiles": [], "workspace": None}

    def __setattr__(self, name, value):
        if name not in self.KNOWN or not _has("config.%s" % name):
            raise AttributeError("IBuilderConfig of TensorRT %s has no %s" % (__version__, name))
        object.__setattr__(self, name, value)

    def __getattr__(self, name):
        if name == "set_memory_pool_limit" and _has("config.set_memory_pool_limit"):
            return lambda pool, size: self.told.update(workspace=size >> 20)
        raise AttributeError("IBuilderConfig of TensorRT %s has no %s" % (__version__, name))

    def set_flag(self, flag):
        self.told["flags"].append(flag)

    def add_optimization_profile(self, profile):
        self.told["profiles"].append(profile.shapes)


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, usual, most):
        self.shapes[name] = [least, usual, most]


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        workspace = (
            config.told["workspace"] or (getattr(config, "max_workspace_size", 0) >> 20) or 8192
        )
        most = re.search(b"memory:(\\d+)", network.model)
        if most is not None and workspace > int(most.group(1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if b"no-gpu" in network.model:
            self.logger.error(
                "1: [cudaResources.cpp::ScopedCudaStream::47] Error Code 1: Cuda Runtime "
                "(unknown error)"
            )
            return None
        flags = {i: n for n, i in vars(BuilderFlag).items() if isinstance(i, int)}
        creation = {
            i: n for n, i in vars(NetworkDefinitionCreationFlag).items() if isinstance(i, int)
        }
        settings = dict(
            config.told,
            workspace=workspace,
            flags=sorted(flags[f] for f in config.told["flags"]),
            creation=[n for i, n in sorted(creation.items()) if network.mask >> i & 1],
            float=sorted({la.name for la in network.layers if la.precision}),
            dla=getattr(config, "DLA_core", None),
            level=getattr(config, "builder_optimization_level", None),
        )
        return b"not an engine: " + json.dumps(settings).encode()


class TensorIOMode:
    INPUT, OUTPUT = 0, 1


class _Context:
    def __init__(self):
        self.shape, self.places = None, {}

    def set_input_shape(self, name, shape):
        self.shape = list(shape)

    def get_tensor_shape(self, name):
        if _IO is not None:
            return self.shape if name in _IO["inputs"] else [self.shape[0], 1]
        return self.shape if name == "input" else self.shape[:2]

    def set_tensor_address(self, name, address):
        self.places[name] = address

    def execute_async_v3(self, stream):
        if _IO is not None:
            return self._sums()
        count, channels, size = self.shape[0], self.shape[1], self.shape[2] * self.shape[3]
        values = array.array("f")
        values.frombytes(ctypes.string_at(self.places["input"], 4 * count * channels * size))
        means = array.array(
            "f", [sum(values[i * size : (i + 1) * size]) / size for i in range(count * channels)]
        )
        ctypes.memmove(self.places["output"], means.tobytes(), 4 * count * channels)
        return True

    def _sums(self):
        count, length = self.shape
        columns = []
        for name, kind in sorted(_IO["inputs"].items()):
            code, size = {"INT64": ("q", 8), "INT32": ("i", 4)}[kind]
            values = array.array(code)
            values.frombytes(ctypes.string_at(self.places[name], size * count * length))
            columns.append(values)
        products = columns[0]
        for column in columns[1:]:
            products = [a * b for a, b in zip(products, column)]  # noqa: B905 - Python 3.6
        sums = [float(sum(products[i * length : (i + 1) * length])) for i in range(count)]
        ctypes.memmove(self.places["output"], array.array("f", sums).tobytes(), 4 * count)
        return True


_IO = _TOLD.get("io")


class _Engine:
    num_io_tensors = 2 if _IO is None else len(_IO["inputs"]) + 1

    def get_tensor_name(self, index):
        return self._names()[index]

    def _names(self):
        return ["input", "output"] if _IO is None else [*sorted(_IO["inputs"]), "output"]

    def get_tensor_mode(self, name):
        return TensorIOMode.OUTPUT if name == "output" else TensorIOMode.INPUT

    def get_tensor_dtype(self, name):
        return "DataType." + ("FLOAT" if _IO is None else _IO["inputs"].get(name, "FLOAT"))

    def create_execution_context(self):
        return _Context()

    def create_engine_inspector(self):
        return _Inspector()


class _Inspector:
    def get_engine_information(self, kind):
        return json.dumps({"Layers": [], "Bindings": ["input", "output"]})


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        _, _, settings = plan.partition(b": {")
        core = json.loads(b"{" + settings).get("dla") if settings else None
        return _Engine() if plan and core == getattr(self, "DLA_core", None) else None
