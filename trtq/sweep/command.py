"""``trtq sweep``: every combination of the lists in a recipe, each run once.

This verb is above the pipeline, because it plans recipes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtq.artifact import ensure_writable_dir, environment, header, write_bytes
from trtq.files import SWEEP_HTML, SWEEP_JSON
from trtq.jobs.executors import Executor, Settings, maker_of, open_executor
from trtq.jobs.leases import this_driver
from trtq.jobs.store import Store
from trtq.progress import Clock, Progress, or_silent
from trtq.recall import recalling
from trtq.records.sweep import SweepRecord, SweepRow
from trtq.report.sweep import write_sweep_page
from trtq.specs import SweepSpec
from trtq.sweep.drive import Drive, Planned
from trtq.sweep.key import address_of
from trtq.sweep.tracking import log_sweep, open_tracker
from trtq.sweep.variants import SweepFile, Variant, read_sweep, run_named
from trtq.workspace import Workspace

RECIPES = "recipes"
FOLDER_DIGITS = 16  # of a key, in the name of a run's folder


@dataclass(frozen=True, slots=True)
class _Request:
    """A sweep with what its file leaves to defaults."""

    spec: SweepSpec
    file: SweepFile
    out: Path
    url: str


def sweep(
    spec: SweepSpec, progress: Progress | None = None, *, dry_run: bool = False
) -> SweepRecord:
    """Run every combination of the lists in a recipe, each once.

    Runs that are in the store are reused, also those of another sweep; runs that another sweep does
    at the same time are left to it. A run that fails leaves the others alone. Writes
    ``sweep.json``, ``sweep.html`` and the recipe of every run.

    Args:
        spec: what to do.
        progress: receives a line for each run that ends.
        dry_run: only say which runs there are and which are in the store; write nothing.

    Raises:
        UsageError: an unknown setting, too many runs, or a run that cannot end well.
        TrtqError: the store or the executor cannot be used.
    """
    listener, file = or_silent(progress), read_sweep(Path(spec.recipe))
    maker_of(spec.on)  # a sweep whose runs are all in the store opens no executor
    out = Path(spec.out or file.out)
    url = spec.store or file.table.store or str(out / "store")
    request = _Request(spec, file, out, url)
    if dry_run:
        return _preview(request, listener)
    clock = Clock()
    planned = _plan(request, listener)
    work = Workspace(out, SWEEP_JSON, listener, clock)
    with work.locked():
        store = _open_store(request)
        tracker = open_tracker(spec.mlflow, file.path) if spec.mlflow else None
        _write_recipes(planned, out / RECIPES)
        record = _carry_out(request, planned, store, work)
    if tracker is not None:
        count = log_sweep(tracker, record)
        listener.note(
            f"{count} runs were logged to MLflow, {len(record.rows) - count} were not: "
            "they were there already or have no figures"
        )
    return record


def _plan(request: _Request, progress: Progress) -> list[Planned]:
    """Return all runs, once each is known to be right."""
    progress.begin("Checking the recipes", request.file.count)
    planned = list[Planned]()
    with recalling():
        for variant in request.file.variants():
            planned.append(_planned(variant, request.out, progress))
            progress.advance(1)
    return planned


def _planned(variant: Variant, out: Path, progress: Progress) -> Planned:
    with run_named(variant.number, variant.settings):
        address = address_of(variant.recipe, progress)
    folder = str(out / "runs" / address.key[:FOLDER_DIGITS])
    return Planned(
        name=variant.name,
        settings=variant.settings,
        recipe=variant.text(folder),
        folder=folder,
        key=address.key,
        parts=address.parts,
    )


def _write_recipes(planned: Sequence[Planned], folder: Path) -> None:
    """Write the recipe of every run, and remove those of an earlier sweep."""
    ensure_writable_dir(folder)
    wanted = {folder / f"{run.name}.toml": run.recipe.encode() for run in planned}
    for old in folder.glob("*.toml"):
        if old not in wanted:
            old.unlink()
    for path, text in wanted.items():
        if not path.is_file() or path.read_bytes() != text:
            write_bytes(path, text)


def _open_executor(request: _Request, work: Workspace) -> Executor:
    table, spec = request.file.table, request.spec
    settings = Settings(
        folder=request.out,
        slots=table.slots,
        workers=spec.workers,
        retries=table.retries,
        address=spec.address,
        sbatch=table.sbatch,
    )
    executor = open_executor(spec.on, settings, _Noting(work))
    if "bench" in request.file.base and executor.workers > 1 and executor.name == "local":
        work.note(
            f"[bench] measures beside other runs: {executor.workers} run at a time on this machine "
            "(--workers 1 measures alone)"
        )
    return executor


class _Noting:
    """Passes what happens on, and keeps notes for the record.

    Args:
        work: of the sweep.
    """

    def __init__(self, work: Workspace) -> None:
        self.begin, self.advance = work.progress.begin, work.progress.advance
        self.status, self.note = work.progress.status, work.note


def _open_store(request: _Request, *, create: bool = True) -> Store:
    table = request.file.table
    driver = this_driver(table.lease)
    return Store.open(request.url, driver, project=table.project, create=create)


def _carry_out(
    request: _Request,
    planned: Sequence[Planned],
    store: Store,
    work: Workspace,
) -> SweepRecord:
    """Do the runs that the store lacks, and write the record however that ends."""
    if not store.files.creates_once:
        work.note(
            f"the store {request.url} does not refuse to create a file twice: of two sweeps that "
            "use it at the same time, both may do one run"
        )
    left_out = request.file.table.leave_out
    if left_out:
        work.note(f"the store does not get {', '.join(left_out)} of new runs ([sweep] leave_out)")
    drive = Drive(planned, store, work.progress, work.note, left_out)
    with store.leases.held(work.note), contextlib.ExitStack() as stack:
        if request.spec.resume:
            drive.reuse()
        else:
            drive.forget()
        executor = None
        if drive.left:  # no cluster is started for nothing
            executor = stack.enter_context(contextlib.closing(_open_executor(request, work)))
        try:
            if executor is not None:
                drive.finish(executor, Path.cwd())
        finally:
            rows = [drive.rows.get(p.name) or _left(p) for p in planned]
            record = _record(request, rows, executor, work)
            work.save(record)
            write_sweep_page(record, work.folder / SWEEP_HTML)
    return record


def _left(run: Planned) -> SweepRow:
    return run.row(reason="the sweep was interrupted")


def _record(
    request: _Request, rows: list[SweepRow], executor: Executor | None, work: Workspace | None
) -> SweepRecord:
    return SweepRecord(
        **header("sweep", request.spec),
        rows=rows,
        out=str(request.out),
        store=request.url,
        project=request.file.table.project,
        executor=executor.name if executor is not None else request.spec.on,
        workers=executor.workers if executor is not None else 0,
        recipes=RECIPES,
        notes=work.note.lines if work is not None else [],
        seconds=work.clock.total if work is not None else 0.0,
        environment=environment(),
    )


def _preview(request: _Request, progress: Progress) -> SweepRecord:
    """Return the record of a sweep that does nothing."""
    planned = _plan(request, progress)
    store = _open_store(request, create=False)
    known = store.known()
    rows = [_seen(p, store, known) for p in planned]
    return _record(request, rows, None, None)


def _seen(run: Planned, store: Store, known: set[str]) -> SweepRow:
    done = store.done(run.key) if run.key in known else None
    if done is None or store.damage(done):
        return run.row(reason="would run")
    return run.row(
        state="reused",
        seconds=done.seconds,
        measured=done.measured,
        files=store.folder(done),
    )
