"""``trtq run``: the chain of stages that a recipe describes.

A stage is skipped when its inputs have not changed and its files are intact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from trtq.artifact import (
    SCHEMA,
    digest_of,
    ensure_writable_dir,
    locked,
    read_record,
    sha256_file,
    write_json,
)
from trtq.commands.deploy import deploy
from trtq.deploy.devices import slug
from trtq.deploy.record import DeployRecord
from trtq.errors import ArtifactError
from trtq.files import (
    RUN_LOCK,
    STAGES,
)
from trtq.progress import Progress, or_silent
from trtq.recipe import Recipe
from trtq.specs import (
    DeploySpec,
)
from trtq.stages import Outcome, Stage, plan, quantized_file
from trtq.version import __version__


@dataclass(frozen=True, slots=True)
class StageResult:
    """The result of a stage.

    Attributes:
        name: of the stage.
        ran: False when it was up to date.
        why: why it ran, or why not.
        summary: one line about its result; empty in a dry run.
        valid: False where its record says that its figures may not be used.
    """

    name: str
    ran: bool
    why: str
    summary: str
    valid: bool = True


def run(
    recipe: Recipe, progress: Progress | None = None, *, dry_run: bool = False
) -> list[StageResult]:
    """Run the chain of ``recipe`` and return what happened to each stage.

    A stage runs when its inputs changed, or when one of its files is missing or altered. An
    interrupted run resumes at the stage it was in. Two runs in one folder take turns.

    Args:
        recipe: what to do.
        progress: receives what happens.
        dry_run: only say which stages would run, and why.

    Raises:
        TrtqError: a stage failed; the results of the stages before it are kept.
    """
    progress = or_silent(progress)
    out = Path(recipe.out)
    stages = plan(recipe, out, progress)  # refuses what cannot end well before anything is written
    if dry_run:
        return _walk(stages, out, progress, dry_run=True)
    ensure_writable_dir(out)
    with locked(out / RUN_LOCK, waiting=progress.note):
        return _walk(stages, out, progress, dry_run=False)


def ready(recipe: Recipe, progress: Progress | None = None) -> Path:
    """Run the chain of ``recipe`` up to the Q/DQ file and return the path of that file.

    Engines are built and measured elsewhere.

    Args:
        recipe: its ``[[build]]`` and ``[bench]`` tables are left out.
        progress: receives what happens.

    Raises:
        TrtqError: a stage failed; the results of the stages before it are kept.
    """
    run(_up_to_the_file(recipe), progress)
    return quantized_file(recipe, Path(recipe.out))


def _up_to_the_file(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, build=(), bench=None)


def deploy_recipe(
    recipe: Recipe, spec: DeploySpec, progress: Progress | None = None
) -> DeployRecord:
    """Run ``recipe`` up to the Q/DQ file and deploy that file.

    The run's report then includes the board.

    Args:
        recipe: of the model.
        spec: of the deployment; its model is not read.
        progress: receives what happens.

    Raises:
        TrtqError: a stage failed, or the board did.
    """
    out, listener = Path(recipe.out), or_silent(progress)
    report = plan(recipe, out, listener)[
        -1:
    ]  # of all stages: errors in any of them are reported before the work
    file = ready(recipe, progress)
    record = deploy(
        msgspec.structs.replace(
            spec, model=str(file), out=spec.out or str(out / "deploy" / slug(spec.device))
        ),
        progress,
    )
    # The report once more, with the board in it.
    with locked(out / RUN_LOCK, waiting=listener.note):
        _walk(report, out, listener, dry_run=False)
    return record


def _walk(
    stages: list[Stage], out: Path, progress: Progress, *, dry_run: bool
) -> list[StageResult]:
    results: list[StageResult] = []
    for stage in stages:
        inputs = stage.inputs()
        key = digest_of({"inputs": inputs, "trtq": __version__, "schema": SCHEMA})
        before = [r.name for r in results if r.ran]
        feeds = [s for s in before if s in ("quantize", "finetune") or stage.name == "report"]
        why = f"{feeds[0]} runs before it" if feeds and dry_run else None
        why = why or _why_stale(stage, inputs, key, out)
        if why is None:
            done = Outcome("") if dry_run else _last_outcome(stage, out)
            why, ran = "nothing it depends on has changed", False
        elif dry_run:
            done, ran = Outcome(""), True
        else:
            progress.note(f"{stage.name}: {why}")
            done, ran = _work(stage, inputs, key, out), True
        results.append(StageResult(stage.name, ran, why, done.summary, done.valid))
    return results


def _work(stage: Stage, inputs: Mapping[str, object], key: str, out: Path) -> Outcome:
    """Run a stage and write down what its result depends on."""
    record = out / STAGES / f"{stage.slug}.json"
    record.unlink(missing_ok=True)
    done = stage.work()
    files = {str(p.relative_to(out)): sha256_file(p) for p in stage.outputs}
    parts = {k: digest_of(v) for k, v in inputs.items()}
    ensure_writable_dir(out / STAGES)
    write_json(record, {"key": key, "parts": parts, "files": files, **asdict(done)})
    return done


class _State(msgspec.Struct):
    """Record of a stage that has ended.

    Attributes:
        key: digest of all inputs; ``parts``: of each.
        files: digests of the outputs, by path below the chain's folder.
    """

    key: str = ""
    parts: dict[str, str] = {}
    files: dict[str, str] = {}
    summary: str = ""
    valid: bool = True


def _state(stage: Stage, out: Path) -> _State:
    return read_record(out / STAGES / f"{stage.slug}.json", _State, kind="stage record")


def _last_outcome(stage: Stage, out: Path) -> Outcome:
    state = _state(stage, out)
    return Outcome(state.summary, state.valid)


def _why_stale(stage: Stage, inputs: Mapping[str, object], key: str, out: Path) -> str | None:
    """Return why the stage must run, or None when it is up to date."""
    try:
        state = _state(stage, out)
    except ArtifactError:
        exists = (out / STAGES / f"{stage.slug}.json").exists()
        return "its record is damaged" if exists else "it has not finished before"
    if state.key != key:
        return _changes(inputs, state.parts) or "another version of trtq made it"
    for name, digest in state.files.items():
        if not (out / name).is_file():
            return f"{name} is missing"
        if sha256_file(out / name) != digest:
            return f"{name} was altered"
    return None


def _changes(inputs: Mapping[str, object], before: Mapping[str, str]) -> str:
    """Return which inputs are others than before, "" for none."""
    changed = [k for k, v in inputs.items() if before.get(k) != digest_of(v)]
    gone = [k for k in before if k not in inputs]
    parts = ((changed, "changed"), (gone, "no longer there"))
    return ", ".join(f"{' and '.join(names)} {what}" for names, what in parts if names)
