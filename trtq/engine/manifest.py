"""The manifest beside every engine: what it was built from, by what, and for what.

It is checked before anything trusts the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import (
    Environment,
    Record,
    decode_json,
    require_schema,
    sha256_bytes,
    sha256_file,
    size_words,
)
from trtq.engine.agreement import AgreementRecord
from trtq.engine.coverage import Coverage
from trtq.engine.plan_text import PlanAudit
from trtq.engine.retry import AttemptRow
from trtq.engine.settings import TensorRow
from trtq.engine.shapes import Axis, Input, Span
from trtq.engine.sizes import Request, Sizes, choose_sizes
from trtq.errors import EngineError, reason
from trtq.export.feeds import InputSlot


class BuiltBy(msgspec.Struct, frozen=True, omit_defaults=True):
    """The builder of an engine.

    Attributes:
        backend: ``tensorrt``, ``tensorrt-rtx`` or ``trtexec``.
        version: of the builder, down to the patch where it says so.
        module: of Python; "" for a command.
        command: the command line; "" for a module.
    """

    backend: str
    version: str
    module: str = ""
    command: str = ""


class BuiltFor(msgspec.Struct, frozen=True):
    """The target of an engine.

    Attributes:
        name: as ``--target`` takes it, without a release, such as ``orin``.
        device: what people call it.
        capability: compute capability, such as ``8.7``.
    """

    name: str
    device: str
    capability: str


class InputRow(msgspec.Struct, frozen=True, kw_only=True):
    """One input of an engine.

    Attributes:
        name: as in the file.
        axes: sizes; an open one is a text, its name in the file or "".
        least, usual, most: shapes that it was built for.
        table: rows of the table that its values index; None where it indexes none.
    """

    name: str
    axes: list[int | str]
    least: list[int]
    usual: list[int]
    most: list[int]
    table: int | None = None

    def __post_init__(self) -> None:
        if len({len(self.axes), len(self.least), len(self.usual), len(self.most)}) != 1:
            raise ValueError(f"the shapes of {self.name} differ in rank")

    @property
    def spans(self) -> list[Span]:
        """Smallest, usual and largest size of each axis."""
        return list(zip(self.least, self.usual, self.most, strict=True))

    @property
    def as_input(self) -> Input:
        """The input as its file has it."""
        axes = (Axis(a, "") if isinstance(a, int) else Axis(None, a) for a in self.axes)
        return Input(self.name, tuple(axes))


class EngineManifest(Record, frozen=True, kw_only=True):
    """The content of FILE.engine.json.

    Attributes:
        engine_sha256, engine_bytes: of the plan itself.
        precision: of what is not quantized.
        quantized_tensors: Q/DQ pairs in the ONNX file; 0 for a float model.
        codes: what they round to, such as ``INT8``, ``FP8`` or ``INT4, INT8``; "" for a float
            model.
        batch: min, opt, max.
        tensors: name, dtype, shape and mode of each input and output.
        inputs: the sizes that each input was built for, by the first profile.
        profiles: the same of further profiles.
        signature: of the model, as the ONNX file says; None where it does not.
        onnx_sha256, encodings_sha256: what it was built from.
        preprocess: how images become its input, as the ONNX file says.
        task: what its outputs mean, as the ONNX file says.
        answer: what its first output is, as the ONNX file says: ``classes``, ``pixels`` ...
        classes: their names in index order, as the ONNX file says; empty where it does not.
        made_with: what the maker of the first file wrote into its metadata.
        builder_log: warnings of the builder.
        audit: what the plan itself says about its precision; None where that cannot be read.
        quantized_convolutions: how many the Q/DQ model asks for.
        fallback: why this is not what was asked for, "" when it is.
        coverage: what of the Q/DQ graph computes in codes; None where the builder does not say.
        agreement: what was compared on images; None without any.
        float_nodes: nodes that were kept in FP32 beside FP16, and why.
        numbers: times and sizes that trtexec printed, seconds and bytes.
        attempts: builds that gave no engine before this one.
        workspace: of the build that did, MiB; None for what the device has.
        notes: what a user was told.
    """

    engine_sha256: str
    engine_bytes: int
    builder: BuiltBy
    target: BuiltFor
    precision: str
    quantized_tensors: int
    codes: str = "INT8"
    batch: tuple[int, int, int]
    tensors: list[TensorRow]
    inputs: list[InputRow] = []
    profiles: list[list[InputRow]] | msgspec.UnsetType = msgspec.UNSET
    signature: dict[str, Any] | None = None
    onnx_sha256: str
    onnx_bytes: int
    encodings_sha256: str | None
    model: str | None
    preprocess: dict[str, Any] | None = None
    task: str | None = None
    answer: str | None = None
    classes: list[str] = []
    made_with: dict[str, str] = {}
    builder_log: list[str]
    audit: PlanAudit | None
    quantized_convolutions: int
    fallback: str = ""
    coverage: Coverage | None = None
    agreement: AgreementRecord | None = None
    float_nodes: dict[str, str] = {}
    numbers: dict[str, float] = {}
    attempts: list[AttemptRow] = []
    workspace: int | None = None
    notes: list[str] = []
    seconds: float
    environment: Environment

    def __post_init__(self) -> None:
        if "onnx" not in self.spec:
            raise ValueError("spec lacks onnx")

    @property
    def source(self) -> Path:
        """The ONNX file that it was built from."""
        return Path(str(self.spec.get("onnx")))

    @property
    def input_rows(self) -> list[InputRow]:
        """The sizes of each input; an older manifest knows the batch alone."""
        return self.inputs or [
            InputRow(
                name=t.name,
                axes=[d if d >= 0 else "" for d in t.shape],
                least=_sized(t.shape, self.batch[0]),
                usual=_sized(t.shape, self.batch[1]),
                most=_sized(t.shape, self.batch[2]),
            )
            for t in self.tensors
            if t.mode == "input"
        ]

    def sizes(self, batch: int, texts: Sequence[str] = (), *, name: str = "the engine") -> Sizes:
        """Return the sizes of a request; the usual ones where nothing else gives them.

        Args:
            batch: samples in a request: the first axis of inputs that ``texts`` does not name.
            texts: of ``--shapes``.
            name: of the engine, for errors.

        Raises:
            UsageError: the engine was built for other sizes.
        """
        rows = self.input_rows
        request = Request(
            texts=texts,
            batch=(batch,) * 3,
            file=name,
            single=True,
            built={r.name: r.spans for r in rows},
        )
        return choose_sizes([r.as_input for r in rows], request)

    @property
    def tables(self) -> dict[str, int]:
        """Rows of the table that an input indexes, by input."""
        return {r.name: r.table for r in self.input_rows if r.table is not None}

    @property
    def input_slots(self) -> list[InputSlot]:
        """Names, dtypes and shapes of the inputs."""
        return [
            InputSlot(t.name, t.numpy_dtype, tuple(d if d >= 0 else None for d in t.shape))
            for t in self.tensors
            if t.mode == "input"
        ]

    @property
    def has_codes(self) -> bool:
        """Whether it was built with scales: pairs in the file, or a calibration cache beside it."""
        return bool(self.quantized_tensors or self.spec.get("calibration"))

    @property
    def device(self) -> str:
        """Name of the device it was built for."""
        return self.target.device

    @property
    def built_with(self) -> str:
        """Backend and version of the builder."""
        return f"{self.builder.backend} {self.builder.version}"

    @property
    def summary(self) -> str:
        """One line for a person."""
        codes = (
            f"{self.codes} Q/DQ ({self.quantized_tensors} pairs) + "
            if self.quantized_tensors
            else ""
        )
        kind = (
            f"{codes or ('INT8 by a calibration cache + ' if self.spec.get('calibration') else '')}"
            f"{self.precision}"
        )
        where = (
            self.device
            if self.target.capability in self.device
            else f"{self.device} (compute capability {self.target.capability})"
        )
        return (
            f"{size_words(self.engine_bytes)} for {where}, {kind}, {self.built_with}"
            f"{self._covered}, {self.seconds:.1f} "
            f"s{f'; {len(self.attempts)} attempts before' if self.attempts else ''}"
            f"{f'; fell back: {self.fallback}' if self.fallback else ''}"
            f"{f'; {self.agreement.summary}' if self.agreement else ''}"
        )

    @property
    def _covered(self) -> str:
        """How many layers compute in INT8, where that can be known."""
        if not self.quantized_tensors:
            return ""
        if self.coverage is not None and not self.coverage.asked and self.audit is not None:
            return "".join(f", {n} weights in {k.upper()}" for k, n in self.audit.weights.items())
        if self.coverage is not None:
            return f", {self.coverage.summary}"
        return ", INT8 coverage unknown for this builder"


def _sized(shape: Sequence[int], batch: int) -> list[int]:
    return [d if d >= 0 else batch for d in shape]


def manifest_path(engine: Path) -> Path:
    """Return where the manifest of ``engine`` is."""
    return engine.with_name(engine.name + ".json")


def read_manifest(engine: Path, plan: bytes | None = None) -> EngineManifest:
    """Return the manifest of ``engine`` after checking that it belongs to this very file.

    Args:
        engine: the file.
        plan: its content, where it was read already; the digest is then that of what was read.

    Raises:
        EngineError: no engine, no manifest, a damaged one, or one of another engine.
    """
    if not engine.is_file():
        why = "it is not a file" if engine.exists() else "there is no such file"
        raise EngineError(f"Cannot read the engine {engine}", why)
    path = manifest_path(engine)
    rebuild = "Build it again: trtq build MODEL.onnx --target ... --out " + str(engine)
    try:
        manifest = decode_json(path.read_bytes(), EngineManifest)
    except FileNotFoundError as exc:
        raise EngineError(
            f"The engine {engine} has no manifest", f"expected {path.name} beside it", rebuild
        ) from exc
    except (OSError, msgspec.MsgspecError) as exc:
        raise EngineError(f"Cannot read the manifest {path}", reason(exc), rebuild) from exc
    require_schema(manifest.schema, path, "manifest")
    actual = sha256_file(engine) if plan is None else sha256_bytes(plan)
    if actual != manifest.engine_sha256:
        raise EngineError(
            f"The manifest {path.name} belongs to another engine",
            f"it describes {manifest.engine_bytes} bytes with SHA-256 "
            f"{manifest.engine_sha256[:12]}, {engine.name} has "
            f"{engine.stat().st_size} bytes with {actual[:12]}",
            rebuild,
        )
    return manifest


def read_engine(engine: Path) -> tuple[EngineManifest, bytes]:
    """Return the manifest of ``engine`` and the engine itself.

    The engine is read once: what is checked is what is used.

    Raises:
        EngineError: no engine, no manifest, a damaged one, or one of another engine.
    """
    plan = read_plan(engine)
    return read_manifest(engine, plan), plan


def read_plan(engine: Path) -> bytes:
    """Return the bytes of an engine.

    Raises:
        EngineError: it cannot be read.
    """
    try:
        return engine.read_bytes()
    except FileNotFoundError as exc:
        raise EngineError(f"Cannot read the engine {engine}", "there is no such file") from exc
    except OSError as exc:
        raise EngineError(f"Cannot read the engine {engine}", reason(exc)) from exc
