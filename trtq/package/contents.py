"""Contents of a package: an engine with its manifest, or an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx

from trtq.engine.manifest import EngineManifest, InputRow
from trtq.engine.settings import RTX
from trtq.errors import UsageError
from trtq.package.preprocessing import Preprocessing
from trtq.tasks import Task
from trtq.tasks.detection import Detection

Span = tuple[int, int, int]  # smallest, usual, largest
IMAGE_RANK = 4


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output.

    Attributes:
        name: as the runtime takes it.
        dtype: of NumPy, or ``bfloat16`` and narrower types, which NumPy has not.
        axes: sizes; an open one is a text: its name, or "".
        spans: smallest, usual and largest size of each axis of an engine's input; () where the
            file does not say.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...]
    spans: tuple[Span, ...] = ()

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes; -1 for an open axis."""
        return tuple(a if isinstance(a, int) else -1 for a in self.axes)

    @property
    def usual(self) -> tuple[int, ...] | None:
        """The usual shape; None where it is not known."""
        if self.spans:
            return tuple(s[1] for s in self.spans)
        return None if -1 in self.dims else self.dims

    @property
    def words(self) -> str:
        """The tensor as a person reads it: ``input float32 [batch, 3, 224, 224]``."""
        return f"{self.name} {self.dtype} [{', '.join(str(a) or '?' for a in self.axes)}]"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything that a consumer's files follow from.

    Attributes:
        path: the file.
        format: what it is.
        data: its bytes, read once: what was checked is what is packaged.
        digest: SHA-256 of the bytes, or of the ONNX file with the tensors beside it.
        inputs, outputs: in the order of the file.
        batch: smallest, usual and largest batch where the first axis of every tensor is open.
        preprocess: how images become the input; None where the file does not say.
        task: what the outputs mean, bound to them; None where that is not known.
        classes: their names in index order; empty where they are not known.
        manifest: of an engine.
        model: of an ONNX file.
        pairs: Q/DQ pairs that the engine was built from, or that the file has.
        notes: what was left out or assumed.
    """

    path: Path
    format: Literal["engine", "onnx"]
    data: bytes
    digest: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: Span | None
    preprocess: Preprocessing | None
    task: Task | None
    classes: tuple[str, ...] = ()
    manifest: EngineManifest | None = None
    model: onnx.ModelProto | None = None
    pairs: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return self.path.name.partition(".")[0]

    @property
    def image(self) -> Tensor | None:
        """The one input, where it is an image [N, C, H, W] with preprocessing; else None."""
        only = self.inputs[0] if len(self.inputs) == 1 else None
        if only is None or self.preprocess is None or len(only.axes) != IMAGE_RANK:
            return None
        return only

    @property
    def profiles(self) -> list[list[InputRow]]:
        """The sizes of an engine's inputs in profiles behind the first."""
        return (self.manifest.profiles or []) if self.manifest is not None else []

    @property
    def profile_notes(self) -> list[str]:
        """A note for consumers that run the first profile of an engine with several."""
        if not self.profiles:
            return []
        return [f"the first of the engine's {1 + len(self.profiles)} profiles is used"]

    @property
    def is_rtx(self) -> bool:
        """Whether TensorRT for RTX built it."""
        return self.manifest is not None and self.manifest.builder.backend == RTX

    @property
    def task_label(self) -> str:
        """The task as a person reads it, "" for none."""
        return self.task.label if self.task is not None else ""

    @property
    def detection(self) -> Detection | None:
        """The task, where it finds boxes by a head."""
        return self.task if isinstance(self.task, Detection) else None

    @property
    def others(self) -> str:
        """Other consumers that can take it, as a hint."""
        return "Package it for triton" + (", python or cpp" if self.manifest is not None else "")

    def require_engine(self, consumer: str, hint: str) -> EngineManifest:
        """Return the manifest of an engine.

        Args:
            consumer: for whom, in the error.
            hint: what else to do.

        Raises:
            UsageError: it is an ONNX file.
        """
        if self.manifest is None:
            raise UsageError(
                f"Cannot package {self.path.name} for {consumer}",
                "it is an ONNX file, and an engine is needed",
                hint,
            )
        return self.manifest

    def require_tensorrt(self, consumer: str) -> None:
        """Refuse an engine of TensorRT for RTX, which only that runtime loads.

        Args:
            consumer: for whom, in the error.

        Raises:
            UsageError: it is one.
        """
        if self.manifest is not None and self.is_rtx:
            raise UsageError(
                f"Cannot package {self.path.name} for {consumer}",
                f"TensorRT for RTX built it, and {consumer} loads engines of TensorRT",
                "Package the ONNX file, or build with --backend tensorrt for "
                f"{self.manifest.target.name} on that device",
            )
