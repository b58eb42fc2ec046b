"""Settings and results of every builder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from trtq.artifact import sha256_bytes
from trtq.errors import EngineError
from trtq.platform.catalogue import dotted
from trtq.platform.releases import Runtime, Version, offers
from trtq.platform.target import Target
from trtq.specs import BuildOptions

RTX = "tensorrt-rtx"  # the builder of TensorRT for RTX
AMPERE = 80  # the oldest of --hardware-compatible ampere+
Shapes = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One build.

    Attributes:
        target: for which device.
        shapes: min, opt and max shape of every dynamic input, empty for a static model.
        more: the same of further profiles.
        quantized: the model has Q/DQ pairs.
        half: what is not quantized may run in FP16.
        options: what the user chose beside that.
        calibration: a cache whose ranges make a model without pairs INT8.
        float_nodes: nodes that must compute in float32 where ``half`` leaves the choice to the
            builder.
        workspace: most scratch memory of a kernel, MiB.
    """

    target: Target
    shapes: Shapes
    quantized: bool
    half: bool
    more: Sequence[Shapes] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    calibration: Path | None = None
    float_nodes: tuple[str, ...] = ()
    workspace: int | None = None

    def typed(self, version: Version) -> bool:
        """Whether the graph has the types.

        Ranges from a cache exist in weakly typed networks only.
        """
        return offers("typed", version) and self.calibration is None


NUMPY = {"FLOAT": "float32", "HALF": "float16", "DOUBLE": "float32", "BF16": "float32"}


class TensorRow(msgspec.Struct, frozen=True, kw_only=True):
    """An input or an output of an engine.

    Attributes:
        name: as in the file.
        dtype: as TensorRT calls it, such as ``FLOAT``, ``HALF`` or ``INT64``.
        shape: sizes; an open one is -1.
        mode: ``input`` or ``output``.
    """

    name: str = ""
    dtype: str = ""
    shape: list[int] = []
    mode: str = ""

    @property
    def numpy_dtype(self) -> str:
        """The type as NumPy calls it."""
        return NUMPY.get(self.dtype, self.dtype.lower())


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine, and what its builder said.

    Attributes:
        plan: the engine file's bytes.
        version: of the builder.
        tensors: name, dtype, shape and mode of inputs and outputs.
        log: warnings.
        numbers: times and sizes that trtexec printed, seconds and bytes.
        layers: the builder's own report of the layers, JSON; None where it gives none.
        away: digest and size of an engine that is kept on the board where it was built; ``plan`` is
            empty then.
    """

    plan: bytes
    version: str
    tensors: list[TensorRow]
    log: list[str]
    numbers: dict[str, float] = field(default_factory=dict)
    layers: bytes | None = None
    away: tuple[str, int] | None = None

    @property
    def sha256(self) -> str:
        """Digest of the engine, wherever it is."""
        return self.away[0] if self.away is not None else sha256_bytes(self.plan)

    @property
    def size(self) -> int:
        """Bytes of the engine."""
        return self.away[1] if self.away is not None else len(self.plan)


class Builder(Protocol):
    """Makes an engine of an ONNX file, in a process of its own.

    Attributes:
        name: ``tensorrt``, ``tensorrt-rtx`` or ``trtexec``.
        version: of its TensorRT.
        workspace: MiB, of a build that names none; None for what the device has.
    """

    name: str
    version: Version
    workspace: int | None  # MiB, of a build that names none; None for what the device has

    def build(self, source: Path, settings: Settings) -> Built:
        """Return the engine of an ONNX file.

        Raises:
            EngineError: with the builder's words.
        """

    def keeps(self, node: str) -> bool:
        """Whether a node can be kept in float32 where the builder chooses precisions."""

    def show(self, source: Path, out: Path, settings: Settings) -> str:
        """Return what would run: a command line, or Python."""


# Option of BuildOptions: the feature of the catalogue that it needs.
NEEDS: Mapping[str, str] = {
    "optimization_level": "optimization level",
    "version_compatible": "version-compatible engines",
    "hardware_compatible": "hardware-compatible engines",
    "strip_weights": "engines without weights",
    "dla": "DLA",
}


def runtime_of(builder: Builder) -> Runtime:
    """Return what reads the files that a builder is given, and runs its engines."""
    return Runtime(rtx=True) if builder.name == RTX else Runtime(builder.version)


def require_offered(options: BuildOptions, runtime: Runtime, target: Target) -> None:
    """Refuse what this release or this device does not have, before anything is built.

    Args:
        options: of the build; those left at their defaults ask for nothing.
        runtime: of the builder.
        target: to build for.

    Raises:
        EngineError: names the option and the releases that have it.
    """
    unset = BuildOptions()
    for name, feature in NEEDS.items():
        if getattr(options, name) != getattr(unset, name):
            option = f"--{name.replace('_', '-')}"
            target.require(
                feature,
                doing="build with",
                called=option,
                hint=f"Leave {option} out",
                runtime=runtime,
                error=EngineError,
            )
    if options.hardware_compatible == "ampere+" and target.sm < AMPERE:
        raise EngineError(
            "Cannot build with --hardware-compatible ampere+",
            f"{target.device} has compute capability {target.capability}, below {dotted(AMPERE)}",
            "Leave --hardware-compatible out",
        )
