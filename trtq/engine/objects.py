"""``trtq.build`` on objects: a model in memory becomes an :class:`Engine`, with no file in between.

Models are known by what they can do, so that this room needs neither torch nor the flow: a
quantized model exports itself, an exported one holds the ONNX model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import msgspec
import onnx

from trtq.artifact import (
    ensure_writable_dir,
    ensure_writable_file,
    write_bytes,
    write_json,
)
from trtq.engine import build as builds
from trtq.engine.manifest import EngineManifest, manifest_path, read_engine
from trtq.engine.open_engine import open_plan
from trtq.engine.runner import EngineRunner
from trtq.errors import UsageError
from trtq.export.onnx_file import save_onnx
from trtq.progress import Progress
from trtq.scratch import scratch
from trtq.specs import BuildSpec, require_alone

IN_MEMORY = "MODEL.onnx"  # what a manifest calls a model that was never a file


@runtime_checkable
class HoldsOnnx(Protocol):
    """An exported model, such as :class:`trtq.flow.quantized.OnnxFile`."""

    @property
    def model(self) -> onnx.ModelProto:
        """The ONNX model."""


@runtime_checkable
class Exports(Protocol):
    """A quantized model, such as :class:`trtq.flow.quantized.Quantized`."""

    def export(self, target: str | None = None) -> HoldsOnnx:
        """Return the model as ONNX for a target."""


Buildable = Exports | HoldsOnnx | onnx.ModelProto | str | Path


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A TensorRT engine in memory.

    Attributes:
        plan: the engine's bytes.
        manifest: what it was built from, by what, and for what.
    """

    plan: bytes
    manifest: EngineManifest

    @property
    def summary(self) -> str:
        """One line for a person."""
        return self.manifest.summary

    def save(self, path: str | Path) -> Path:
        """Write the engine, and its manifest beside it as PATH.json; return the engine's path.

        Args:
            path: replaced where it exists; its folder is created.

        Raises:
            ArtifactError: it cannot be written.
        """
        file = Path(path)
        ensure_writable_dir(ensure_writable_file(file).parent)
        manifest_path(file).unlink(missing_ok=True)  # it describes another engine
        write_bytes(file, self.plan)
        write_json(manifest_path(file), _moved(self.manifest, out=str(file)))
        return file

    def open(self, *, device: str = "cuda") -> EngineRunner:
        """Return the engine ready to run.

        Args:
            device: a GPU of this machine.

        Raises:
            EngineError: this TensorRT or this GPU is not the one it was built for.
            UsageError: there is no GPU, or no TensorRT.
        """
        return open_plan(self.plan, self.manifest, Path("in memory"), device=device)


def _moved(manifest: EngineManifest, **paths: str) -> EngineManifest:
    """Return a manifest whose spec names other paths."""
    return msgspec.structs.replace(manifest, spec={**manifest.spec, **paths})


@overload
def build(model: BuildSpec, progress: Progress | None = None, /) -> EngineManifest: ...
@overload
def build(
    model: Buildable,
    progress: Progress | None = None,
    /,
    *,
    target: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Engine: ...


def build(
    model: BuildSpec | Buildable,
    progress: Progress | None = None,
    /,
    *,
    target: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Engine | EngineManifest:
    """Build a TensorRT engine.

    Args:
        model: a quantized model, an exported one, an ``onnx.ModelProto`` or the path of an ONNX
            file. A :class:`BuildSpec` runs the command ``trtq build`` and returns the manifest.
        progress: receives progress.
        target: a device and a TensorRT release, such as ``orin@10.3``; default: the one that the
            model was exported for.
        out: where the engine is written as well, with its manifest; default: nowhere.
        options: fields of :class:`BuildSpec`: ``precision``, ``shapes``, ``batch`` ...

    Raises:
        UsageError: no target, or options that contradict each other.
        EngineError: the builder refuses, or what was built is not what was asked for.
        MissingExtraError: the builder is not installed.
    """
    if isinstance(model, BuildSpec):
        require_alone(model, target is not None or out is not None or options)
        return builds.build(model, progress)
    with scratch("engine") as folder:
        source = as_file(model, folder, target)
        file = folder / "e.engine"
        given = {"target": target, **_texts(options), "onnx": str(source), "out": str(file)}
        manifest = builds.build(BuildSpec.make(given, where="trtq.build"), progress)
        plan = read_engine(file)[1]
    named = str(source) if isinstance(model, (str, Path)) else IN_MEMORY
    engine = Engine(plan=plan, manifest=_moved(manifest, onnx=named, out=""))
    if out is not None:
        engine = replace(engine, manifest=_moved(engine.manifest, out=str(engine.save(out))))
    return engine


def _texts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with paths as texts, and one shape as a list of one."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    if isinstance(plain.get("shapes"), str):
        plain["shapes"] = [plain["shapes"]]
    return plain


def as_file(model: Buildable, folder: Path, target: str | None = None) -> Path:
    """Return the ONNX file of a model; one in memory is written into a folder.

    Args:
        model: in memory, or a path.
        folder: for the file.
        target: that a quantized model is exported for.

    Raises:
        UsageError: it is no model that can become an ONNX file.
    """
    if isinstance(model, (str, Path)):
        return Path(model)
    if isinstance(model, Exports):
        model = model.export(target)
    onnx_model = model if isinstance(model, onnx.ModelProto) else getattr(model, "model", None)
    if not isinstance(onnx_model, onnx.ModelProto):
        raise UsageError(
            f"Cannot use a {type(model).__name__} as an ONNX model",
            "expected a quantized or an exported model, an onnx.ModelProto or a path",
            "Quantize a module first: trtq.quantize(module, data)",
        )
    return save_onnx(onnx_model, folder / "model.onnx")
