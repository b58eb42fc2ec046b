"""One table of what each release of TensorRT reads and offers.

The table also has what a release takes on its command line and has in its Python API. Nothing is
found out by trial.

Sources: the tags 8.0.1 to 11.1 of NVIDIA's open-source repository (sampleOptions.cpp, the ONNX
parser, NvInfer.h), release notes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtq.errors import EngineError

Version = tuple[int, int]
Span = tuple[Version, Version | None]
OLDEST: Version = (8, 0)

# Flag of trtexec: first and last version that accept it (None: still there in 11).
FLAGS: Mapping[str, Span] = {
    "onnx": ((8, 0), None),
    "saveEngine": ((8, 0), None),
    "minShapes": ((8, 0), None),
    "optShapes": ((8, 0), None),
    "maxShapes": ((8, 0), None),
    "buildOnly": ((8, 0), (9, 3)),
    "skipInference": ((8, 6), None),
    "fp16": ((8, 0), (10, 16)),
    "int8": ((8, 0), (10, 16)),
    "calib": ((8, 0), (10, 16)),
    "workspace": ((8, 0), (9, 3)),
    "memPoolSize": ((8, 4), None),
    "stronglyTyped": ((9, 1), None),
    "precisionConstraints": ((8, 2), (10, 16)),
    "layerPrecisions": ((8, 4), (10, 16)),
    "layerOutputTypes": ((8, 4), (10, 16)),
    "timingCacheFile": ((8, 0), None),
    "builderOptimizationLevel": ((8, 6), None),
    "useDLACore": ((8, 0), None),
    "allowGPUFallback": ((8, 0), None),
    "versionCompatible": ((8, 6), None),
    "hardwareCompatibilityLevel": ((8, 6), None),
    "stripWeights": ((10, 0), None),
    "profilingVerbosity": ((8, 2), None),
    "exportLayerInfo": ((8, 2), None),
    "loadEngine": ((8, 0), None),
    "shapes": ((8, 0), None),
    "duration": ((8, 0), None),
    "warmUp": ((8, 0), None),
    "useCudaGraph": ((8, 0), (10, 16)),
    "noCudaGraph": ((11, 0), None),
    "useSpinWait": ((8, 0), (10, 16)),
    "includeDataTransfers": ((11, 0), None),
    "iterations": ((8, 0), None),
    "exportTimes": ((8, 0), None),
}

# What else depends on the release. "typed": the graph has the types; an option of 10, the only way
# of 11.
FEATURES: Mapping[str, Span] = {
    "typed": ((10, 0), None),
    "calibration cache": ((8, 0), (10, 16)),
    "layer report": ((8, 2), None),
    "LayerNormalization": ((8, 6), None),
    "Gelu": ((10, 0), None),
    "HardSwish": ((8, 4), None),
    "stored INT8 weights": ((10, 0), None),
    "INT4 weights": ((10, 1), None),
    "FP8": ((10, 0), None),
    "FP4": ((10, 8), None),
    "DLA": ((8, 0), (10, 7)),
    "optimization level": ((8, 6), None),
    "version-compatible engines": ((8, 6), None),
    "hardware-compatible engines": ((8, 6), None),
    "engines without weights": ((10, 0), None),
    "precision by layer": ((8, 4), (10, 16)),
}

# A name of the Python API that trtq calls, by its last part: first and last version that have it
# (pyCore.cpp, pyGraph.cpp of the tags).
API: Mapping[str, Span] = {
    "EXPLICIT_BATCH": ((8, 0), (10, 16)),
    "STRONGLY_TYPED": ((9, 1), None),
    "FP16": ((8, 0), (10, 16)),
    "INT8": ((8, 0), (10, 16)),
    "OBEY_PRECISION_CONSTRAINTS": ((8, 2), (10, 16)),
    "set_output_type": ((8, 0), (10, 16)),
    "VERSION_COMPATIBLE": ((8, 6), None),
    "STRIP_PLAN": ((10, 0), None),
    "max_workspace_size": ((8, 0), (9, 3)),
    "set_memory_pool_limit": ((8, 4), None),
    "builder_optimization_level": ((8, 6), None),
    "hardware_compatibility_level": ((8, 6), None),
    "progress_monitor": ((9, 1), None),
    "set_compute_capability": ((11, 0), None),
    "create_engine_inspector": ((8, 2), None),
    "profiling_verbosity": ((8, 2), None),
    "num_io_tensors": ((8, 5), None),
    "num_bindings": ((8, 0), (9, 3)),
    "engine_host_code_allowed": ((8, 6), None),
}
# TensorRT for RTX counts from 1 and has the API of this release.
LIKE_RTX: Version = (11, 0)
NOT_IN_RTX = (
    "version-compatible engines",
    "hardware-compatible engines",
    "engines without weights",
    "DLA",
)

# From the first version on: the newest opset its parser reads (21 from 10 on for the INT4 type),
# and the newest in which every op that trtq writes exists there (LayerNormalization, opset 17, from
# 8.6 on).
READS: tuple[tuple[Version, int], ...] = (((8, 0), 13), ((8, 4), 17), ((10, 0), 21), ((11, 0), 25))
WRITES: tuple[tuple[Version, int], ...] = (((8, 0), 13), ((8, 4), 16), ((8, 6), 17), ((10, 0), 20))

# The TensorRT of the newest JetPack each board has had for most of its life (facts: JetPack 4.6.1+,
# 5.1.x, 6.1+, 7.0).
OF_BOARDS: Mapping[int, Version] = {53: (8, 2), 62: (8, 2), 72: (8, 5), 87: (10, 3), 110: (10, 13)}
# The patch of what JetPack ships: calibration caches are read by the very release alone.
PATCHES: Mapping[Version, int] = {(8, 2): 1, (8, 5): 2}
# The first release with kernels for a compute capability, where there was an older one without.
FIRST: Mapping[int, Version] = {
    87: (8, 4),
    89: (8, 5),
    90: (8, 5),
    100: (10, 8),
    110: (10, 13),
    120: (10, 8),
}
# The last release with kernels for a compute capability, where there was one.
LAST: Mapping[int, Version] = {
    53: (8, 2),
    60: (8, 6),
    61: (8, 6),
    62: (8, 2),
    70: (10, 4),
    72: (8, 5),
}


def shown(version: Version) -> str:
    """Return ``8.5`` for (8, 5)."""
    return f"{version[0]}.{version[1]}"


def within(span: Span, version: Version) -> bool:
    """Whether a version lies in a span, both ends included."""
    first, last = span
    return first <= version and (last is None or version <= last)


def offers(feature: str, version: Version) -> bool:
    """Whether a release has a feature of the table.

    >>> offers("calibration cache", (10, 16)), offers("calibration cache", (11, 0))
    (True, False)
    >>> offers("typed", (8, 6))
    False
    """
    return within(FEATURES[feature], version)


def has_api(name: str, version: Version) -> bool:
    """Whether a release's Python API has a name of the table.

    >>> has_api("FP16", (10, 3)), has_api("FP16", (11, 4)), has_api("progress_monitor", (8, 6))
    (True, False, False)
    """
    return within(API[name], version)


def release_of_module(module: Any) -> Version:
    """Return the release whose Python API a module has."""
    if module.__name__ == "tensorrt_rtx":
        return LIKE_RTX
    major, minor = str(module.__version__).split(".")[:2]
    return int(major), int(minor)


def newest_opset(version: Version, table: tuple[tuple[Version, int], ...] = READS) -> int:
    """Return the newest opset that this version's parser reads.

    With ``WRITES``, return the one that trtq writes for it.

    Raises:
        EngineError: older than TensorRT 8.0.
    """
    known = [opset for first, opset in table if version >= first]
    if not known:
        raise EngineError(
            f"TensorRT {shown(version)} is too old",
            f"trtq knows TensorRT from {shown(OLDEST)} on",
            "Install a newer TensorRT",
        )
    return known[-1]
