"""What a builder is told, whichever builder it is, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trtq.artifact import sha256_bytes
from trtq.engine.targets import Target
from trtq.engine.versions import NOT_IN_RTX, Version, offers, shown
from trtq.errors import EngineError
from trtq.specs import BuildOptions

Shapes = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One build.

    Attributes:
        target: for which device.
        shapes: min, opt and max shape of every dynamic input, empty for a static model.
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
    options: BuildOptions = field(default_factory=BuildOptions)
    calibration: Path | None = None
    float_nodes: tuple[str, ...] = ()
    workspace: int | None = None

    def typed(self, version: Version) -> bool:
        """Whether the graph has the types.

        Ranges from a cache exist in weakly typed networks only.
        """
        return offers("typed", version) and self.calibration is None


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
        away: digest and size of an engine that stays on the board where it was built; ``plan`` is
            empty then.
    """

    plan: bytes
    version: str
    tensors: list[dict[str, Any]]
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
    """Makes an engine of an ONNX file, in a process of its own."""

    name: str
    version: Version
    workspace: int | None  # MiB, of a build that names none; None for what the device has

    def build(self, source: Path, settings: Settings) -> Built:
        """Build; raises EngineError with the builder's words."""

    def keeps(self, node: str) -> bool:
        """Whether a node can be kept in float32 where the builder chooses precisions."""

    def show(self, source: Path, out: Path, settings: Settings) -> str:
        """Return what would run: a command line, or Python."""


# Option of BuildOptions: the feature of the version table it needs.
NEEDS: Mapping[str, str] = {
    "optimization_level": "optimization level",
    "version_compatible": "version-compatible engines",
    "hardware_compatible": "hardware-compatible engines",
    "strip_weights": "engines without weights",
    "dla": "DLA",
}


def require_dla(core: int, target: Target) -> None:
    """Refuse a DLA core where there is none.

    Raises:
        EngineError: names the device.
    """
    if not target.dla:
        raise EngineError(
            f"Cannot build for DLA core {core}", f"{target.device} has no DLA", "Leave --dla out"
        )


def require_offered(options: BuildOptions, builder: Builder, target: Target) -> None:
    """Refuse what this release or this device does not have, before anything is built.

    Raises:
        EngineError: names the option and the releases that have it.
    """
    unset = BuildOptions()
    for name, feature in NEEDS.items():
        rtx = builder.name == "tensorrt-rtx"
        there = feature not in NOT_IN_RTX if rtx else offers(feature, builder.version)
        if getattr(options, name) != getattr(unset, name) and not there:
            option, who = (
                f"--{name.replace('_', '-')}",
                "TensorRT for RTX" if rtx else f"TensorRT {shown(builder.version)}",
            )
            raise EngineError(
                f"Cannot build with {option}", f"{who} has no {feature}", f"Leave {option} out"
            )
    if options.dla is not None:
        require_dla(options.dla, target)
    if options.hardware_compatible == "ampere+" and target.sm < 80:
        raise EngineError(
            "Cannot build with --hardware-compatible ampere+",
            f"{target.device} has compute capability {target.capability}, below 8.0",
            "Leave --hardware-compatible out",
        )
