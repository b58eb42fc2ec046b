"""A device and the TensorRT that it has: parsed once, and asked what the two can do.

It includes what files for it can hold, which is known before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from trtq.errors import TrtqError, UsageError, suggest
from trtq.platform.catalogue import Capability, DeviceRow, catalogue, dotted
from trtq.platform.releases import (
    Runtime,
    Span,
    Version,
    offers,
    opset_written,
    parse_version,
    releases,
    shown,
)
from trtq.specs import OPSET, FinetuneOptions, QuantizeOptions, QuantizeSpec

TYPED_ONLY = (11, 0)  # releases without flags of precision
INT4_OPSET = 21  # the first with INT4
CODE_OPSETS = {"INT4 weights": INT4_OPSET, "FP8": 19, "FP4": 23}  # the first that holds each
ForFiles = QuantizeOptions | QuantizeSpec | FinetuneOptions


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU to build for.

    Attributes:
        name: as asked for, without a release.
        sm: compute capability times ten, such as 86.
        device: what people call it.
        version: of TensorRT, when the target names one (``orin@10.3``).
    """

    name: str
    sm: int
    device: str
    version: Version | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target that ``text`` names.

        The text is a device or a compute capability (``sm86``, ``sm_86``), with or without ``@``
        and a TensorRT version.

        Raises:
            UsageError: unknown (the nearest are suggested), or a TensorRT without kernels for it.

        >>> Target.parse("rtx3080").capability, Target.parse("sm_120").capability
        ('8.6', '12.0')
        >>> Target.parse("nano").release, Target.parse("nano@8.2").formats
        ((8, 2), ('FP16',))
        >>> Target.parse("orin@10.3").opset, Target.parse("xavier").opset
        (20, 16)
        """
        name, at, release = text.strip().lower().replace(" ", "").partition("@")
        version = _version(release, text) if at else None
        target = _named(name, text, version)
        if version is not None:
            _require_kernels(target, version)
        return target

    @classmethod
    def given(cls, text: str | None) -> Target | None:
        """Return the target that ``text`` names, None where there is no text.

        Raises:
            UsageError: as :meth:`parse`.
        """
        return cls.parse(text) if text is not None else None

    @property
    def text(self) -> str:
        """The target as ``--target`` takes it."""
        return self.name if self.version is None else f"{self.name}@{shown(self.version)}"

    @property
    def row(self) -> DeviceRow | None:
        """Its row of the catalogue; None where only the compute capability is named."""
        return catalogue().devices.get(self.name)

    @property
    def facts(self) -> Capability:
        """Row of the catalogue about its compute capability."""
        return catalogue().capabilities[self.sm]

    @property
    def capability(self) -> str:
        """Compute capability, such as ``8.6``."""
        return dotted(self.sm)

    @property
    def release(self) -> Version | None:
        """The TensorRT to write for.

        It is the one that was named, or else that of the board's JetPack; None where any may be
        installed.
        """
        return self.version or self.facts.shipped

    @property
    def patch(self) -> int:
        """The patch of ``release`` that the board's JetPack ships; 0 where any may be installed."""
        return self.facts.patch if self.release == self.facts.shipped else 0

    @property
    def opset(self) -> int:
        """The opset of the ONNX files for it."""
        return OPSET if self.release is None else opset_written(self.release)

    @property
    def formats(self) -> tuple[str, ...]:
        """Number formats it multiplies in beside FP32."""
        return self.facts.formats

    @property
    def dla(self) -> bool:
        """Whether it has deep-learning accelerators beside the GPU."""
        return self.row is not None and self.row.board is not None and self.row.board.dla > 0

    @property
    def rtx(self) -> bool:
        """Whether TensorRT for RTX builds for it ahead of time: no release is named."""
        return self.version is None and bool(self.facts.rtx)

    @property
    def runtime(self) -> Runtime:
        """Runtime that reads files for it: TensorRT for RTX where that builds for it."""
        return Runtime(self.release, self.rtx)

    @property
    def placement(self) -> str:
        """The name of the rules that place quantizers for it."""
        return self.facts.placement

    @property
    def typed(self) -> bool:
        """Whether its release takes graphs that have the types; so does any that is not named."""
        return self.release is None or offers("typed", self.release)

    def lacks(self, feature: str, runtime: Runtime | None = None) -> str:
        """Return why a format or a feature is missing, "" where it is there.

        Args:
            feature: a number format (INT8), DLA, or a feature of the catalogue of releases.
            runtime: that will be used, in place of the target's own.
        """
        used = runtime or Runtime(self.release)
        if feature == "DLA" and used.version is not None and used.version >= TYPED_ONLY:
            feature = "typed DLA"
        device = _device_lacks(self, feature)
        if device or feature not in releases().features:
            return device
        return "" if used == Runtime() else used.lacks(feature)

    def require(
        self,
        feature: str,
        *,
        doing: str,
        called: str = "",
        hint: str = "",
        runtime: Runtime | None = None,
        error: type[TrtqError] = UsageError,
    ) -> None:
        """Refuse a format or a feature that the device or its release lacks.

        Args:
            feature: as ``lacks`` takes it.
            doing: what needs it, a verb such as ``export``.
            called: what the user calls it, such as an option; else its own name.
            hint: the alternative.
            runtime: as ``lacks`` takes it.
            error: class of the error.

        Raises:
            TrtqError: an ``error`` that names feature, device, reason and alternative.

        >>> Target.parse("orin@10.3").require("INT8", doing="export")
        >>> Target.parse("nano").require("INT8", doing="export", hint="Build FP16")
        Traceback (most recent call last):
        trtq.errors.UsageError: Cannot export INT8 for Jetson Nano: compute capability 5.3 has no
        INT8 arithmetic. Build FP16.
        """
        reason = self.lacks(feature, runtime)
        if reason:
            raise error(f"Cannot {doing} {called or feature} for {self.device}", reason, hint)

    def contradicts(self, other: Target) -> bool:
        """Whether a file for one of the two is not a file for the other.

        That is so for other compute capabilities, and for other releases where both name one.

        Args:
            other: the second target.

        >>> a, b = Target.parse("orin@10.3"), Target.parse("orin")
        >>> a.contradicts(b), a.contradicts(Target.parse("xavier"))
        (False, True)
        """
        named = self.version is not None and other.version is not None
        return self.sm != other.sm or (named and self.version != other.version)


def capabilities_with(number_format: str) -> str:
    """Return the compute capabilities that multiply in a format, for a message.

    >>> "8.6" in capabilities_with("INT8")
    True
    """
    return ", ".join(dotted(sm) for sm in catalogue().having(number_format))


def rtx_capabilities() -> str:
    """Return what TensorRT for RTX builds for ahead of time, for a message."""
    return ", ".join(f"sm{sm}" for sm in catalogue().rtx)


def _device_lacks(target: Target, feature: str) -> str:
    if catalogue().having(feature) and feature not in target.formats:
        return f"compute capability {target.capability} has no {feature} arithmetic"
    stored, _, kind = feature.partition(" ")
    if kind == "weights" and stored not in target.facts.weights:
        return f"compute capability {target.capability} has no kernels for {feature}"
    if feature in ("DLA", "typed DLA") and not target.dla:
        return "it has no DLA"
    if feature == "typed DLA" and not (
        target.row and target.row.board and target.row.board.typed_dla
    ):
        return "from TensorRT 11 on a DLA is supported on Jetson AGX Orin alone"
    return ""


def _named(name: str, text: str, version: Version | None) -> Target:
    known = catalogue()
    number = re.fullmatch(r"sm_?(\d{2,3})", name)
    if number is not None:
        sm = int(number.group(1))
        if sm not in known.capabilities:
            names = ", ".join(f"sm{s}" for s in known.capabilities)
            raise UsageError(
                f"Unknown target {text!r}", hint=f"Known compute capabilities: {names}"
            )
        return Target(f"sm{sm}", sm, f"compute capability {dotted(sm)}", version)
    row = known.targets.get(name)
    if row is None:
        raise UsageError(f"Unknown target {text!r}", hint=suggest(name, known.targets))
    return Target(name, row.sm, row.title, version)


def _require_kernels(target: Target, version: Version) -> None:
    """Refuse a release without kernels for the device.

    Raises:
        UsageError: names the first or the last release that has them.
    """
    span: Span = target.facts.kernels
    message = f"Cannot build for {target.device} with TensorRT {shown(version)}"
    if span.last is not None and version > span.last:
        last = shown(span.last)
        raise UsageError(
            message,
            f"the last release with kernels for it is {last}",
            f"Write {target.name}@{last}",
        )
    if version < span.first:
        first = shown(span.first)
        raise UsageError(
            message,
            f"the first release with kernels for it is {first}",
            f"Write {target.name}@{first} or later",
        )


def _version(text: str, whole: str) -> Version:
    if re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*", text) is None:
        raise UsageError(
            f"Cannot read the TensorRT version of {whole!r}",
            f"found {text!r}",
            "Write it like orin@10.3",
        )
    version, oldest = parse_version(text), releases().oldest
    if version < oldest:
        raise UsageError(
            f"Cannot build for {whole}",
            f"trtq knows TensorRT from {shown(oldest)} on",
            "Install a newer TensorRT",
        )
    return version


def opset_of(spec: ForFiles, needs: Collection[str] = ()) -> int:
    """Return the opset of the files: what was asked for, else what the target's TensorRT reads.

    Args:
        spec: what was asked for.
        needs: formats that the files hold.

    Raises:
        UsageError: the target's TensorRT does not read what was asked for.
    """
    target, least = Target.given(spec.target), least_opset(needs)
    if target is None:
        return spec.opset or max(OPSET, least)
    runtime = Runtime(target.release)
    newest = target.opset
    if not any(target.lacks(n) for n in needs):
        newest = max(newest, least)
    if spec.weight_storage == "int4" and not runtime.lacks("INT4 weights"):
        newest = max(newest, INT4_OPSET)
    if spec.opset is not None and target.release is not None and spec.opset > newest:
        why = f"{runtime.title} has every op that trtq writes up to opset {newest}"
        raise UsageError(
            f"Cannot write opset {spec.opset} for {target.device}", why, "Leave --opset out"
        )
    return spec.opset or newest


def least_opset(needs: Collection[str]) -> int:
    """Return the first opset of ONNX that holds formats, 0 for any.

    Args:
        needs: formats as :meth:`Target.require` takes them; unknown ones need none.

    >>> least_opset(["INT8"]), least_opset(["FP8", "INT4 weights"])
    (0, 21)
    """
    return max((CODE_OPSETS.get(n, 0) for n in needs), default=0)


def require_format(target: Target, need: str, *, doing: str, hint: str) -> None:
    """Refuse a format that a target has no arithmetic for, or whose files its release cannot read.

    Args:
        target: for which.
        need: the format, as :meth:`Target.require` takes it.
        doing: what needs it, a verb such as ``export``.
        hint: the alternative.

    Raises:
        UsageError: names the format, the reason and the alternative.
    """
    target.require(need, doing=doing, hint=hint)
    runtime, least = Runtime(target.release), least_opset([need])
    if least > runtime.opset:
        why = f"{runtime.title} reads ONNX up to opset {runtime.opset}, expected {least}"
        raise UsageError(f"Cannot {doing} {need} for {target.device}", why, hint)


def check_files(spec: ForFiles, needs: Collection[str] = ("INT8",)) -> None:
    """Refuse files that their target cannot compute, or that cannot hold what was asked for.

    Args:
        spec: what was asked for.
        needs: formats that the files hold, as :meth:`Target.require` takes them.

    Raises:
        UsageError: names what contradicts what.
    """
    target = Target.given(spec.target)
    if target is not None:
        fallback = (
            f"Leave --target out, and build with trtq build ... --target {spec.target} "
            "--fallback: FP16 of the same model"
        )
        for need in sorted(needs):
            hint = fallback if need == "INT8" else "Give other --bits, such as w8a8"
            require_format(target, need, doing="quantize to", hint=hint)
    least, opset = least_opset(needs), opset_of(spec, needs)
    if opset < least:
        formats = ", ".join(n for n in sorted(needs) if n in CODE_OPSETS)
        why = f"ONNX has it from opset {least} on, asked for {opset}"
        raise UsageError(f"Cannot write {formats}", why, f"Give --opset {least}, or leave it out")
    if spec.weight_storage == "int4" and opset < INT4_OPSET:
        why = f"ONNX has INT4 from opset {INT4_OPSET} on, asked for {opset}"
        raise UsageError("Cannot store weights as INT4", why, f"Give --opset {INT4_OPSET}")
