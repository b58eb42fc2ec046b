"""``trtq package``: a folder for each consumer of an engine or an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, overload

from trtq.artifact import environment, header
from trtq.engine.objects import Engine
from trtq.errors import UsageError
from trtq.files import PACKAGE_JSON, README
from trtq.package.consumer import Choices, Consumer, Files, Parts
from trtq.package.consumers import find_consumers
from trtq.package.meaning import Request
from trtq.package.read import read_contents
from trtq.package.readme import readme_text
from trtq.package.writing import publish, require_free, stage
from trtq.progress import Progress, or_silent
from trtq.python_words import python_words
from trtq.records.package import PackagedFor, PackageRecord
from trtq.scratch import scratch
from trtq.specs import PackageSpec, option_name, require_alone
from trtq.workspace import Workspace

IMAGE_CONSUMERS = {"triton", "deepstream"}
OPTIONS = {"embed": "onnxruntime", "parser": "deepstream", "parser_library": "deepstream"}


@overload
def package(model: PackageSpec, progress: Progress | None = None, /) -> PackageRecord: ...
@overload
def package(
    model: Engine | str | Path, progress: Progress | None = None, /, **options: Any
) -> PackageRecord: ...


@python_words
def package(
    model: PackageSpec | Engine | str | Path,
    progress: Progress | None = None,
    /,
    **options: Any,
) -> PackageRecord:
    """Write a folder that each consumer of a model starts from.

    Args:
        model: an engine in memory, or the path of an engine or an ONNX file. A
            :class:`PackageSpec` says everything itself.
        progress: receives progress.
        options: fields of :class:`PackageSpec`: ``for_``, ``out``, ``name`` ...; the name of a
            preset of images is ``preprocess``, as for :func:`trtq.load`.

    Raises:
        EngineError: the engine has no manifest, or one of another engine.
        UsageError: a consumer cannot take the model; the error says why, and what to do.
        ArtifactError: the folder has other files, or cannot be written.
    """
    if isinstance(model, PackageSpec):
        require_alone(model, options)
        return _package(model, or_silent(progress))
    if "preprocess" in options and "preset" in options:
        raise UsageError("Cannot package with preprocess and preset", "both name one preset")
    given: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    if "preprocess" in given:
        given["preset"] = given.pop("preprocess")
    if isinstance(given.get("for_"), str):
        given["for_"] = [given["for_"]]
    with scratch("package") as folder:
        file = model.save(folder / "model.engine") if isinstance(model, Engine) else model
        spec = PackageSpec.make({**given, "file": str(file)}, where="trtq.package")
        return _package(spec, or_silent(progress))


def _package(spec: PackageSpec, progress: Progress) -> PackageRecord:
    consumers = find_consumers(spec.for_)
    _require_used(spec)
    request = Request(task=spec.task, labels=spec.labels, picture=spec.picture)
    contents = read_contents(Path(spec.file), request)
    choices = Choices(
        name=contents.stem if spec.name is None else spec.name,
        embed=spec.embed,
        parser=spec.parser or "",
        parser_library=spec.parser_library or "",
    )
    parts = {c: c.write(contents, choices) for c in consumers}  # before anything is written
    require_free(Path(spec.out))
    work = Workspace(Path(spec.out), PACKAGE_JSON, progress)
    with work.locked():
        old = require_free(work.folder)
        files: Files = {f"{c.name}/{n}": d for c, p in parts.items() for n, d in p.files.items()}
        files[README] = readme_text(choices.name, contents, parts)
        work.note(*contents.notes)
        record = PackageRecord(
            **header("package", spec),
            model=choices.name,
            source=contents.path.name,
            source_sha256=contents.digest,
            format=contents.format,
            task=contents.task_label,
            preprocess=contents.preprocess.words if contents.preprocess is not None else "",
            consumers=[_packaged(c, p, work) for c, p in parts.items()],
            files=stage(work, files),
            manifest=contents.manifest,
            notes=contents.notes,
            environment=environment(),
        )
        publish(work, record, old)
    return record


def _require_used(spec: PackageSpec) -> None:
    """Refuse an option of a consumer that is not asked for.

    Raises:
        UsageError: names both.
    """
    for field, consumer in OPTIONS.items():
        if getattr(spec, field) and consumer not in spec.for_:
            raise UsageError(
                f"{option_name(field)} has no effect",
                f"it is for {consumer}, which is not asked for",
                f"Add --for {consumer}, or leave {option_name(field)} out",
            )
    images = [option_name(n) for n, v in spec.picture.items() if v is not None]
    if images and not IMAGE_CONSUMERS & set(spec.for_):
        raise UsageError(
            f"{' and '.join(images)} have no effect",
            "only packages for triton and deepstream prepare images by options",
            "Add --for triton, or leave the options about images out; programs prepare images as "
            "the manifest of the engine says",
        )


def _packaged(consumer: Consumer, parts: Parts, work: Workspace) -> PackagedFor:
    """Return what is recorded of a consumer; its notes are told."""
    work.note(*(f"{consumer.name}: {line}" for line in parts.notes))
    names = [f"{consumer.name}/{n}" for n in parts.files]
    return PackagedFor(name=consumer.name, files=names, notes=parts.notes)
