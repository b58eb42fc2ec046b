"""The request to a builder's process, here or on a board: one JSON object."""

from __future__ import annotations

import msgspec

Shapes = dict[str, list[list[int]]]


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One build through TensorRT's Python API.

    Attributes:
        onnx, out: the file to read and the plan to write.
        shapes: min, opt and max shape of every dynamic input.
        more: the same of further profiles.
        sm: compute capability to build for ahead of time; None for the GPU of the machine.
        typed: the graph has the types; fp16, int8 and float_nodes say otherwise what may run in.
        workspace: most scratch memory of a kernel, MiB.
        level: builder optimization level.
        hardware: ``ampere+`` or ``none``.
        timing_cache: to read; ``timing_cache_out`` to write.
        report: file for TensorRT's own report of the layers.
    """

    onnx: str
    out: str
    shapes: Shapes
    sm: int | None
    typed: bool
    fp16: bool
    int8: bool
    float_nodes: list[str]
    workspace: int | None
    level: int | None
    version_compatible: bool
    hardware: str
    strip_weights: bool
    dla: int | None
    gpu_fallback: bool
    timing_cache: str | None
    timing_cache_out: str | None
    report: str | None
    more: list[Shapes] = []
