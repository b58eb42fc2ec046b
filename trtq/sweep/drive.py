"""The loop of a sweep: claim what nobody does, submit it, keep what ends well."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trtq.errors import TrtqError, UsageError
from trtq.jobs.executors import Executor
from trtq.jobs.store import Done, Store, Upload
from trtq.jobs.together import require_same_versions, versions_for
from trtq.jobs.work import NOT_VALID, Ended, Job
from trtq.progress import Progress
from trtq.records.sweep import State, SweepRow
from trtq.sweep.measured import changed_input, measure

THREADS = 16  # that ask the store at once
POLL_S = 1.0
BUSY_S = 5.0  # until another driver's run is looked at again


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that is known to be right.

    Attributes:
        name: its number.
        settings: those that differ between runs, by dotted name.
        recipe: as TOML text.
        folder: where the recipe writes, relative to the current folder.
        key: its content address, 64 hex digits.
        parts: digest of each thing that a stage reads, by stage and name.
    """

    name: str
    settings: dict[str, object]
    recipe: str
    folder: str
    key: str
    parts: dict[str, dict[str, str]]

    def row(self, **changes: object) -> SweepRow:
        """Return its row, waiting until ``changes`` say otherwise."""
        row = SweepRow(name=self.name, key=self.key, settings=self.settings, state="waiting")
        return msgspec.structs.replace(row, **changes)


class Drive:
    """Runs that are being done.

    Args:
        planned: all runs.
        store: that keeps them.
        progress: receives a line for each run that ends.
        note: receives what the record keeps.
        leave_out: patterns of files that the store does not get.

    Attributes:
        rows: those that ended, by name of the run.
    """

    def __init__(
        self,
        planned: Sequence[Planned],
        store: Store,
        progress: Progress,
        note: Callable[[str], None],
        leave_out: tuple[str, ...] = (),
    ) -> None:
        self.store, self.told, self.note = store, progress, note
        self.rows, self.leave_out = dict[str, SweepRow](), leave_out
        self._same: dict[str, list[Planned]] = {}
        for run in planned:
            self._same.setdefault(run.key, []).append(run)
        self._pending = deque(self._same)
        self._running: dict[str, Planned] = {}
        self._look_at: dict[str, float] = {}
        self._taken = set[str]()

    def reuse(self) -> None:
        """Take the runs that are finished in the store.

        A run that lacks files in the store is made unfinished there and runs again, with a note.

        Raises:
            ArtifactError: the store cannot be reached.
        """
        known = self.store.known()
        keys = [k for k in self._pending if k in known]
        with ThreadPoolExecutor(THREADS) as pool:
            finished = list(pool.map(self._finished, keys))
        for done in finished:
            if done is not None:
                self._take(done, "reused", quiet=True)
        if self.rows:
            self.told.note(f"{len(self.rows)} runs are in the store already and are reused")
        self._pending = deque(k for k in self._pending if k not in self._taken)

    @property
    def left(self) -> int:
        """How many runs are not done."""
        return sum(len(self._same[k]) for k in self._pending)

    def forget(self) -> None:
        """Make the runs of the store unfinished."""
        for key in self.store.known() & set(self._pending):
            self.store.forget(key)

    def _finished(self, key: str) -> Done | None:
        """Return a run of the store; one that lacks files is reported and run again."""
        done = self.store.done(key)
        damage = "" if done is None else self.store.damage(done)
        if damage:
            self.note(f"run {self._same[key][0].name} is run again: in the store, {damage}")
            self.store.forget(key)
            return None
        return done

    def finish(self, executor: Executor, cwd: Path) -> None:
        """Do all runs that are left, or wait for the drivers that do them.

        Args:
            executor: of the jobs.
            cwd: where relative paths of the recipes start.

        Raises:
            UsageError: the workers have other versions than this machine.
            ArtifactError: the store cannot be reached.
        """
        if self.left:
            self.told.begin("Runs", self.left)
        just = list[Ended]()
        with ThreadPoolExecutor(THREADS) as pool, self._released(executor):
            while self._pending or self._running:
                jobs = [self._job(r, executor, cwd) for r in self._claimed(executor.room(), pool)]
                if jobs:
                    executor.submit(jobs)
                self._end(just, executor, cwd, pool)  # kept while the next ones run
                just = executor.wait(POLL_S) if self._running or self._pending else []

    @contextlib.contextmanager
    def _released(self, executor: Executor) -> Iterator[None]:
        """End what still runs and give its claims up, however the loop ends."""
        try:
            yield
        finally:
            executor.close()
            for run in self._running.values():
                with contextlib.suppress(TrtqError):  # it expires
                    self.store.release(run.key)

    def _claimed(self, room: int, pool: ThreadPoolExecutor) -> list[Planned]:
        """Return up to ``room`` runs that are this driver's now."""
        now = time.monotonic()
        due = [k for k in self._pending if now >= self._look_at.get(k, 0.0)][: max(room, 0)]
        if not due:
            return []
        runs = list[Planned]()
        for key, (ours, done) in zip(due, pool.map(self._look, due), strict=True):
            if done is not None:
                self._take(done, "reused")
            elif ours:
                runs.append(self._same[key][0])
            else:
                self._look_at[key] = now + BUSY_S
        self._running |= {run.name: run for run in runs}
        gone = self._taken.union(run.key for run in runs)
        self._pending = deque(k for k in self._pending if k not in gone)
        return runs

    def _look(self, key: str) -> tuple[bool, Done | None]:
        """Claim a run, and return whether it is ours, or what another driver has finished."""
        ours = self.store.claim(key)
        done = self._finished(key) if ours or key in self._look_at else None
        if done is not None and ours:
            self.store.release(key)
        return ours, done

    def _job(self, run: Planned, executor: Executor, cwd: Path) -> Job:
        url = self.store.files.url
        return Job(
            name=run.name,
            key=run.key,
            recipe=run.recipe,
            folder=run.folder if executor.shared else "",
            cwd=str(cwd),
            url=url if "://" in url else str(Path(url).absolute()),
            project=self.store.project,
            leave_out=self.leave_out,
            threads=1,
            versions=versions_for(executor),
        )

    def _end(
        self, just: Sequence[Ended], executor: Executor, cwd: Path, pool: ThreadPoolExecutor
    ) -> None:
        """Keep the runs that ended well; the reasons of the others."""
        require_same_versions(just)

        def end(ended: Ended) -> Done | str:
            return self._end_one(self._running[ended.name], ended, executor.shared, cwd)

        for ended, done in zip(just, pool.map(end, just), strict=True):
            run = self._running.pop(ended.name)
            if isinstance(done, Done):
                self._take(done, "done")
                continue
            self._say(run.row(state="failed", seconds=ended.seconds, reason=done))
            for other in self._same[run.key][1:]:
                self._say(other.row(state="failed", reason=f"the same run as {run.name}"))

    def _end_one(self, run: Planned, ended: Ended, shared: bool, cwd: Path) -> Done | str:
        """Return what the store keeps of a run, or why it keeps nothing."""
        folder = cwd / run.folder
        try:
            if ended.upload is None:
                return ended.reason
            done = self._keep(run, ended, ended.upload, folder if shared else None)
        except TrtqError as exc:
            return exc.coded
        finally:
            self.store.release(run.key)
        if shared:
            shutil.rmtree(folder, ignore_errors=True)
        return done

    def _keep(self, run: Planned, ended: Ended, upload: Upload, folder: Path | None) -> Done:
        """Commit a run to the store."""
        with tempfile.TemporaryDirectory(prefix="trtq-sweep-") as scratch:
            records = folder or self._fetch_records(run, upload, Path(scratch))
            wrong = changed_input(records, run.parts)
            if wrong:
                raise UsageError(wrong, hint="Give the same command again")
            measured = measure(records, upload.files, valid=ended.code != NOT_VALID)
        return self.store.commit(
            Done(
                key=run.key,
                upload=upload,
                seconds=ended.seconds,
                measured=measured,
                host=ended.host,
                time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            )
        )

    def _fetch_records(self, run: Planned, upload: Upload, folder: Path) -> Path:
        for name in upload.files:
            if name.endswith(".json"):
                self.store.files.get(f"runs/{run.key}/{upload.token}/{name}", folder / name)
        return folder

    def _take(self, done: Done, state: State, *, quiet: bool = False) -> None:
        self._taken.add(done.key)
        first, *others = self._same[done.key]
        row = first.row(
            state=state,
            seconds=done.seconds,
            measured=done.measured,
            files=self.store.folder(done),
        )
        same = {"state": "reused", "reason": f"the same run as {first.name}"}
        copies = (
            msgspec.structs.replace(row, name=r.name, settings=r.settings, **same) for r in others
        )
        for one in (row, *copies):
            self._say(one, quiet=quiet)

    def _say(self, row: SweepRow, *, quiet: bool = False) -> None:
        self.rows[row.name] = row
        if quiet:
            return
        self.told.note(row.line)
        self.told.advance(1)
