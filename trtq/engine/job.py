"""From a build spec to a builder's input: target, model as built, and settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec
import onnx

from trtq.artifact import Stamp
from trtq.engine.runner import OnnxRunner
from trtq.engine.select_builder import refuse_missing_kernels, require_readable
from trtq.engine.settings import Builder, Settings, require_offered, runtime_of
from trtq.engine.shapes import inputs_of, split_profiles
from trtq.engine.sizes import Request, Sizes, choose_sizes
from trtq.errors import EngineError, UsageError, reason
from trtq.export.calibration_cache import ENTROPY_2, CalibrationCacheText, cache_number, read_cache
from trtq.export.codes import count_qdq
from trtq.export.feeds import InputSlot
from trtq.export.fp16 import convert_to_half, has_half
from trtq.export.fp16_ranges import FLOAT_NODES, constants_beyond_half
from trtq.export.onnx_file import TARGET, get_metadata, read_onnx
from trtq.export.strip import strip_at, strip_qdq
from trtq.onnx_node import names_of
from trtq.platform.releases import Version, offers, shown
from trtq.platform.target import TYPED_ONLY, Target
from trtq.specs import BuildOptions, BuildSpec


@dataclass(frozen=True, kw_only=True)
class Job:
    """One build, before a builder is chosen.

    Attributes:
        spec: as asked for, or as the fallback made it.
        target: parsed.
        model: the file, without its pairs where the fallback took them out.
        stamp: of the file, where it is ``model`` unchanged: it can be built from without a copy,
            and must not change until then.
        pairs: Q/DQ pairs of ``model``.
        onnx_sha256: of the file, as it was read.
        sizes: of the inputs, to build for.
        more: sizes of further profiles.
        float_nodes: nodes that must compute in float32 beside FP16, and why; empty when nothing
            becomes FP16.
        fallback: why this is not what was asked for, "" when it is.
        notes: what a user should know.
    """

    spec: BuildSpec
    target: Target
    model: onnx.ModelProto
    stamp: Stamp | None
    pairs: int
    onnx_sha256: str
    sizes: Sizes
    more: list[Sizes]
    float_nodes: dict[str, str]
    fallback: str
    notes: list[str]

    @property
    def batch(self) -> tuple[int, int, int]:
        """Smallest, usual and largest batch."""
        return self.sizes.batch

    @cached_property
    def slots(self) -> Sequence[InputSlot]:
        """The inputs of the file, as ONNX Runtime takes them."""
        return OnnxRunner(self.model).inputs

    @property
    def half(self) -> bool:
        """Whether what is not quantized may run in FP16."""
        return self.spec.precision == "fp16"

    def settings(self, builder: Builder, number: int | None = None) -> Settings:
        """Return what this builder is told, once it is known that it can.

        Args:
            builder: the one to use, or imagined.
            number: of the trtexec that is here, down to the patch.

        Raises:
            EngineError: this release cannot read the file, or lacks an option.
        """
        require_readable(self.model, builder.version, self.spec)
        options = BuildOptions(**{n: getattr(self.spec, n) for n in BuildOptions.__struct_fields__})
        require_offered(options, runtime_of(builder), self.target)
        if self.more:
            self.target.require(
                "several profiles",
                doing="build",
                hint="Give each input once in --shapes",
                runtime=runtime_of(builder),
                error=EngineError,
            )
        if self.spec.dla is not None:
            self._require_fit_for_dla()
        settings = Settings(
            target=self.target,
            shapes=self.sizes.shapes,
            more=[s.shapes for s in self.more],
            quantized=self.pairs > 0,
            half=self.half,
            options=options,
            calibration=self._calibration(builder.version, number),
            workspace=self.spec.workspace,
        )
        typed = settings.typed(builder.version)
        return replace(
            settings, float_nodes=tuple(n for n in self.float_nodes if typed or builder.keeps(n))
        )

    def _calibration(self, version: Version, number: int | None) -> Path | None:
        """Return the calibration cache to build with.

        It is returned once it is known that this trtexec (``number``, where it is here) will read
        it.

        Raises:
            EngineError: TensorRT would ignore it and take ranges from random numbers.
        """
        file = self.spec.calibration
        if file is None:
            return None
        where = f"Cannot build {self.spec.onnx} with {file}"
        if self.pairs:
            raise EngineError(
                where,
                "it has Q/DQ pairs, and TensorRT then reads no cache",
                "Give the float file, or leave --calibration out",
            )
        if not offers("calibration cache", version):
            raise EngineError(
                where,
                f"TensorRT {shown(version)} reads no calibration caches",
                f"Make a Q/DQ file of it: trtq import-calib {file} --onnx {self.spec.onnx} "
                "--out DIR",
            )
        try:
            cache = read_cache(Path(file).read_text(encoding="utf-8-sig"), file)
        except (OSError, UnicodeDecodeError) as exc:
            raise EngineError(where, reason(exc)) from exc
        self._require_read(cache, where, version, number)
        names = names_of(self.model.graph.input)
        if not cache.scales.keys() & names.union(*(n.output for n in self.model.graph.node)):
            first = ", ".join(list(cache.scales)[:3])
            why = f"the cache names no tensor of the model (it has {first})"
            raise EngineError(where, why, "Give the ONNX file that the cache was made for")
        return Path(file).resolve()

    def _require_read(
        self, cache: CalibrationCacheText, where: str, version: Version, number: int | None
    ) -> None:
        """Refuse a cache of another release or algorithm, which TensorRT ignores.

        Raises:
            EngineError: names both numbers.
        """
        same = number in (None, cache.number) and cache.version == version
        if not same or cache.algorithm != ENTROPY_2:
            here = number if number is not None else cache_number(version)
            release = f"{self.target.name}@{shown(version)} --release-number {here}"
            again = f"trtq export-calib MODEL.qdq.onnx --target {release} --out CACHE"
            raise EngineError(
                where,
                f"it is of TRT-{cache.number}, {cache.algorithm}; TRT-{here} ignores it and "
                "calibrates on random numbers",
                f"Write it for this release: {again}",
            )

    def _require_fit_for_dla(self) -> None:
        release = self.target.release
        if self.pairs and release is not None and release >= TYPED_ONLY:
            raise EngineError(
                f"Cannot build {self.spec.onnx} for the DLA",
                "of TensorRT 11 the documents say how the DLA computes FP16 graphs, not Q/DQ pairs",
                "Build the float file with --precision fp16",
            )
        if self.pairs:
            raise EngineError(
                f"Cannot build {self.spec.onnx} for the DLA",
                "the DLA does not support Q/DQ nodes",
                "Export a calibration cache (trtq export-calib) and build the float file with "
                "--calibration",
            )
        if not self.half and self.spec.calibration is None:
            why = "it computes in FP16 and INT8 alone: everything would run on the GPU"
            raise EngineError(
                f"Cannot build {self.spec.onnx} for the DLA in FP32",
                why,
                "Add --precision fp16, or --calibration",
            )

    def unkept(self, settings: Settings) -> list[str]:
        """Return what a user must know about nodes that should remain in FP32 and cannot."""
        lost = [n for n in self.float_nodes if n not in settings.float_nodes]
        if not lost:
            return []
        more = ", ..." if len(lost) > 3 else ""
        names = f"{', '.join(lost[:3])}{more}"
        return [
            f"this builder cannot keep {len(lost)} nodes in FP32 that FP16 harms ({names}): "
            "--precision fp32 is safe"
        ]

    def source(
        self, settings: Settings, version: Version, without: Collection[str] = ()
    ) -> onnx.ModelProto:
        """Return the model as it is built.

        Args:
            settings: of the build.
            version: of the builder: the graph has FP16 types where that release wants them.
            without: names of nodes that lose their pairs.

        Returns:
            ``self.model`` itself where nothing changes.

        Raises:
            ExportError: a weight does not fit FP16, or the graph has branches.
        """
        model = strip_at(self.model, without) if without else self.model
        return (
            convert_to_half(model, self.float_nodes)
            if self.half and settings.typed(version)
            else model
        )


def prepare(spec: BuildSpec) -> Job:
    """Read the file and check what can be checked without a builder.

    Raises:
        EngineError: the device lacks what the model needs, and ``spec.fallback`` does not allow the
            alternative.
        ExportError: the file cannot be read.
        UsageError: no target, a calibration cache without trtexec, or sizes that do not fit the
            model.
    """
    if spec.calibration is not None and spec.backend != "trtexec":
        raise UsageError(
            "--calibration needs --backend trtexec",
            "the other builders take the scales of Q/DQ pairs",
            "Build the Q/DQ file",
        )
    requested_target = Target.given(spec.target)
    model, stamp, digest = read_onnx(Path(spec.onnx))
    notes: list[str] = []
    target, fallback = _target(requested_target, model, spec.onnx, notes), ""
    spec = msgspec.structs.replace(spec, target=target.text)
    if spec.fallback and count_qdq(model) and target.lacks("INT8"):
        fallback = (
            f"{target.device} (compute capability {target.capability}) has no INT8 arithmetic: "
            "FP16 of the same model"
        )
        model, stamp, spec = strip_qdq(model), None, msgspec.structs.replace(spec, precision="fp16")
    pairs = count_qdq(model)
    refuse_missing_kernels(model, target)
    sizes, *more = (
        choose_sizes(inputs_of(model), Request(texts=texts, batch=spec.batch, file=spec.onnx))
        for texts in split_profiles(spec.shapes)
    )
    notes += sizes.notes
    float_nodes = _float_nodes(model, notes) if spec.precision == "fp16" else {}
    return Job(
        spec=spec,
        target=target,
        model=model,
        stamp=stamp,
        pairs=pairs,
        onnx_sha256=digest,
        sizes=sizes,
        more=more,
        float_nodes=float_nodes,
        fallback=fallback,
        notes=notes,
    )


def _target(
    requested_target: Target | None, model: onnx.ModelProto, file: str, notes: list[str]
) -> Target:
    """Return the target to build for: the one asked for, else the one that the file names.

    Raises:
        UsageError: there is neither.
    """
    stored = get_metadata(model).get(TARGET)
    if requested_target is not None:
        if stored is not None and requested_target.contradicts(Target.parse(stored)):
            notes.append(
                f"{file} was written for {stored}, and is built for {requested_target.text}"
            )
        return requested_target
    if stored is None:
        raise UsageError(
            "trtq build needs --target",
            f"{file} does not say which device it is for",
            "trtq targets lists what there is",
        )
    notes.append(f"the target is {stored}: {file} was written for it")
    return Target.parse(stored)


def _float_nodes(model: onnx.ModelProto, notes: list[str]) -> dict[str, str]:
    if has_half(model):
        notes.append("FP16: the types in the file are kept")
        return {}
    stored = get_metadata(model).get(FLOAT_NODES)
    node_names = names_of(model.graph.node)
    float_nodes = (
        {k: v for k, v in stored.items() if k in node_names}
        if stored is not None
        else constants_beyond_half(model)
    )
    if stored is None:
        notes.append(
            "FP16: the file does not say which tensors leave its range, only constants were "
            "looked at (trtq export looks at images)"
        )
    if float_nodes:
        notes.append(
            f"{len(float_nodes)} node{'s remain' if len(float_nodes) > 1 else ' remains'} in FP32: "
            f"{', '.join(list(float_nodes)[:3])}{', ...' if len(float_nodes) > 3 else ''}"
        )
    return float_nodes
