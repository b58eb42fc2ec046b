"""A Python program that runs the engine with TensorRT, NumPy and Pillow alone."""

from __future__ import annotations

from pathlib import Path

from trtq.engine.manifest import EngineManifest, manifest_path
from trtq.errors import UsageError
from trtq.package.consumer import Choices, Files, Parts
from trtq.package.contents import Contents
from trtq.package.files import as_json, labels_text
from trtq.package.template import template
from trtq.platform.releases import has_api, parse_version, shown

PROGRAM, ENGINE, LABELS = "run.py", "model.engine", "labels.txt"
BUILD_FIRST = "Build an engine from it: trtq build"
TENSORS_BY_NAME = "num_io_tensors"


class PythonProgram:
    """A program of one file."""

    name = "python"
    title = "Python program"
    takes = "an engine of TensorRT from 8.5 on or of TensorRT for RTX"

    def write(self, contents: Contents, choices: Choices) -> Parts:
        """Return the program, the engine and its manifest.

        Raises:
            UsageError: it is an ONNX file, or TensorRT is older than tensors with names.
        """
        del choices
        manifest = contents.require_engine("a program", BUILD_FIRST)
        require_names(contents, manifest)
        files: Files = {PROGRAM: template(PROGRAM), **engine_files(contents, manifest)}
        if contents.classes:
            files[LABELS] = labels_text(contents.classes)
        notes = contents.profile_notes
        if contents.image is None:
            notes.append("the program takes .npz files: no image fits the inputs as they are known")
        return Parts(files=files, start=_start(contents, manifest), notes=notes)


def engine_files(contents: Contents, manifest: EngineManifest) -> Files:
    """Return an engine and its manifest beside it."""
    beside = manifest_path(Path(ENGINE)).name
    return {ENGINE: contents.data, beside: as_json(manifest)}


def require_names(contents: Contents, manifest: EngineManifest) -> None:
    """Refuse an engine of a TensorRT that has no tensors with names.

    Args:
        contents: of the engine, for errors.
        manifest: of the engine.

    Raises:
        UsageError: it is older than 8.5.
    """
    version = parse_version(manifest.builder.version)
    if not contents.is_rtx and not has_api(TENSORS_BY_NAME, version):
        raise UsageError(
            f"Cannot package {contents.path.name} for a program",
            f"it is of TensorRT {shown(version)}; tensors have names from 8.5 on",
            "Run it with trtq.open_engine, or deploy it: trtq deploy",
        )


def _start(contents: Contents, manifest: EngineManifest) -> tuple[str, ...]:
    given = "image.jpg" if contents.image is not None else "inputs.npz --out answers.npz"
    module = manifest.builder.module or "tensorrt"
    return (
        f"With the module `{module}` {manifest.builder.version}, NumPy, Pillow and Python 3.8 or "
        "later:",
        "",
        f"    python python/{PROGRAM} {given}",
        "",
        "Arrays are in an .npz file by the names of the inputs.",
    )
