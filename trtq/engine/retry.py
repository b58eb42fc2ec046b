"""Build with less until it succeeds.

There is less scratch memory when the builder runs out of it, and one node less in INT8 when the
builder has no kernel for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import onnx

from trtq.artifact import explain_os_error, stamp_of
from trtq.engine.job import Job
from trtq.engine.settings import Builder, Built, Settings
from trtq.errors import BuilderMemoryError, EngineError, MissingKernelError
from trtq.export.lint_view import COMPUTE, View
from trtq.export.sound import require_one_file
from trtq.progress import Progress
from trtq.scratch import scratch

WORKSPACES = (4096, 2048, 1024, 512, 256, 128, 64)
MAX_EXCLUDED = 8


class AttemptRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the builder that gave no engine.

    Attributes:
        workspace: MiB, None for what the device has.
        without: nodes that had lost their pairs.
        error: why it ended.
    """

    workspace: int | None
    without: list[str]
    error: str


@dataclass(kw_only=True)
class Climb:
    """An engine, and what it took.

    Attributes:
        built: by the last attempt.
        source: the model it was built from.
        attempts: before it.
        without: nodes that lost their pairs.
        workspace: of the last attempt, MiB.
    """

    built: Built
    source: onnx.ModelProto
    attempts: list[AttemptRow] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    workspace: int | None = None


def climb(builder: Builder, job: Job, settings: Settings, progress: Progress) -> Climb:
    """Build, and again with less where the builder's error says what would help.

    Out of memory, the workspace becomes the next smaller of :data:`WORKSPACES`; without a kernel
    for a node, and with ``--fallback``, at most :data:`MAX_EXCLUDED` nodes lose their Q/DQ pairs.

    Args:
        builder: to use.
        job: what was asked for.
        settings: of the first attempt.
        progress: receives a note before each further one.

    Raises:
        EngineError: nothing helped; the attempts are in the text.
    """
    settings = replace(settings, workspace=settings.workspace or builder.workspace)
    attempts: list[AttemptRow] = []
    without: list[str] = []
    while True:
        source = job.source(settings, builder.version, without)
        try:
            built = _build(builder, job, source, settings)
        except (BuilderMemoryError, MissingKernelError) as exc:
            row = AttemptRow(workspace=settings.workspace, without=list(without), error=exc.reason)
            attempts.append(row)
            if isinstance(exc, MissingKernelError):
                without += _unbuilt(exc, job, source, without, progress)
            else:
                settings = replace(settings, workspace=_smaller(exc, attempts, progress))
            continue
        return Climb(
            built=built,
            source=source,
            attempts=attempts,
            without=without,
            workspace=settings.workspace,
        )


def _build(builder: Builder, job: Job, source: onnx.ModelProto, settings: Settings) -> Built:
    """Build from the file itself where it is the model unchanged."""
    if source is job.model and job.stamp is not None:
        return _build_file(builder, job, settings)
    return build_model(builder, source, settings)


def _smaller(exc: BuilderMemoryError, attempts: list[AttemptRow], progress: Progress) -> int:
    """Return the next smaller workspace after a builder ran out of memory.

    Raises:
        BuilderMemoryError: there is none; it names those that were tried.
    """
    last = attempts[-1].workspace
    smaller = next((w for w in WORKSPACES if last is None or w < last), None)
    if smaller is None:
        sizes = ["all there is" if a.workspace is None else f"{a.workspace} MiB" for a in attempts]
        raise BuilderMemoryError(
            exc.message, f"{exc.reason}; tried workspaces of {', '.join(sizes)}", exc.hint
        ) from exc
    progress.note(f"the builder ran out of memory: again with a workspace of {smaller} MiB")
    return smaller


def _unbuilt(
    exc: MissingKernelError,
    job: Job,
    source: onnx.ModelProto,
    without: list[str],
    progress: Progress,
) -> list[str]:
    """Return the nodes to build without their pairs, for which the builder has no kernel.

    Raises:
        MissingKernelError: it is the builder's, where no fallback is wanted or it cannot help.
    """
    nodes = [n for n in nodes_in(exc.node, source) if n not in without]
    if not job.spec.fallback or not nodes or len(without) >= MAX_EXCLUDED:
        raise exc
    progress.note(f"no kernel for {exc.node}: again without the Q/DQ pairs of {', '.join(nodes)}")
    return nodes


def _build_file(builder: Builder, job: Job, settings: Settings) -> Built:
    """Build from the file where it is; it must be the one that was read."""
    path = Path(job.spec.onnx)
    try:
        built = builder.build(path, settings)
    except EngineError as exc:
        _require_same(path, job, exc)
        raise
    _require_same(path, job)
    return built


def _require_same(path: Path, job: Job, cause: EngineError | None = None) -> None:
    try:
        now = stamp_of(path)
        same = (
            job.stamp is not None and now[:-1] == job.stamp[:-1]
        )  # a new link or mode changes ctime, and no content
    except OSError:  # it is gone
        same = False
    if not same:
        raise EngineError(
            f"{path} changed while the engine was built from it",
            "what was checked may not be what was built",
            "Build it again",
        ) from cause


def nodes_in(text: str, model: onnx.ModelProto) -> list[str]:
    """Return the quantized convolutions and products in a builder's name for a node.

    The node can be a fused one: ``conv1 + relu1`` names ``conv1``. Names match as a whole.

    Args:
        text: of the builder.
        model: that it builds.
    """
    view = View(model)
    quantized = [
        n.name
        for n in model.graph.node
        if n.op_type in COMPUTE and any(view.pair(i) is not None for i in n.input)
    ]
    return [n for n in quantized if re.search(rf"(?<![\w./-]){re.escape(n)}(?![\w./-])", text)]


def build_model(builder: Builder, model: onnx.ModelProto, settings: Settings) -> Built:
    """Write a model to a file of its own and build it.

    Raises:
        ExportError: it is larger than an ONNX file can be.
        EngineError: the builder refuses it.
        ArtifactError: the file cannot be written.
    """
    require_one_file(model, "the model to build from")
    with scratch("onnx") as folder:
        path = folder / "model.onnx"
        try:
            path.write_bytes(model.SerializeToString())
        except OSError as exc:
            raise explain_os_error(exc, path) from exc
        return builder.build(path, settings)
