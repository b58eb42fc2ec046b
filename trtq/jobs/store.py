"""Finished runs by their content address, shared by all who can write to one folder.

store.json              whose store it is
runs/KEY/TOKEN/...      the files of a run, under a name that nobody else writes
runs/KEY/done.json      written last: the run is finished, and these are its files
runs/KEY/claim.N.json   a driver works on it; the largest N counts
drivers/ID.json         a driver's lease
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from trtq.artifact import FileRecord
from trtq.errors import ArtifactError, UsageError
from trtq.files import DONE_JSON, LOCK, RUN_LOCK, STAGING, STORE_JSON
from trtq.jobs.files import Files, open_files
from trtq.jobs.leases import Claim, Driver, Leases
from trtq.records.sweep import Measured

SCHEMA = 1
KIND = "trtq sweep store"
LEFT_OUT = (LOCK, RUN_LOCK, STAGING)


class _Owner(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``store.json``.

    Attributes:
        schema: of the files of a store.
        kind: ``trtq sweep store``; anything else is no store.
        project: as ``[sweep] project`` names it; "" without one.
    """

    schema: int
    kind: str
    project: str


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a run in a store, not yet finished.

    Attributes:
        token: name of their folder.
        files: by path in it.

    Raises:
        ValueError: a path leaves the folder.
    """

    token: str
    files: dict[str, FileRecord]

    def __post_init__(self) -> None:
        for name in (self.token, *self.files):
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"{name!r} leaves the folder of its run")


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run, as ``done.json``.

    Attributes:
        schema: of the store.
        key: of the run.
        upload: its files.
        seconds: that the run took.
        measured: its figures.
        host: name of the machine that ran it.
        time: when it ended, ISO 8601.
    """

    schema: int = SCHEMA
    key: str
    upload: Upload
    seconds: float
    measured: Measured
    host: str
    time: str


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of finished runs.

    Attributes:
        files: behind its URL.
        leases: of the drivers that work on it.
        project: whose it is.
    """

    files: Files
    leases: Leases
    project: str

    @classmethod
    def open(cls, url: str, driver: Driver, *, project: str = "", create: bool = True) -> Store:
        """Return the store behind a URL.

        Args:
            url: a folder, or what fsspec knows.
            driver: this process.
            project: whose store it is.
            create: make it where there is none; else it is only read.

        Raises:
            ArtifactError: it cannot be reached or written to.
            UsageError: it is another project's, of another schema, or no store at all.
        """
        files = open_files(url)
        owner = files.read_as(STORE_JSON, _Owner)
        if owner is None:
            names = [n for n in files.names() if not n.startswith(".")]
            # Another driver may have made it in between.
            owner = files.read_as(STORE_JSON, _Owner) if names else None
            if owner is None:
                _require_empty(files, names)
        if owner is None:
            owner = _Owner(schema=SCHEMA, kind=KIND, project=project)
            if create:
                files.create(STORE_JSON, owner)
                owner = files.read_as(STORE_JSON, _Owner) or owner  # another driver's, perhaps
        _require_own(owner, files, project)
        return cls(files, Leases(files, driver), project)

    def known(self) -> set[str]:
        """Return the keys that the store knows, finished or not.

        Raises:
            ArtifactError: the store cannot be reached.
        """
        return set(self.files.names("runs"))

    def done(self, key: str) -> Done | None:
        """Return a finished run, None where it is not finished.

        Args:
            key: content address of the run, 64 hex digits.

        Raises:
            ArtifactError: the store cannot be reached.
        """
        return self.files.read_as(f"runs/{key}/{DONE_JSON}", Done)

    def damage(self, done: Done) -> str:
        """Return what is missing from a finished run, "" for nothing.

        Names and sizes are compared; :meth:`fetch` compares contents.

        Args:
            done: what the store keeps of the run.

        Raises:
            ArtifactError: the store cannot be reached.
        """
        sizes = self.files.sizes(self.folder(done))
        for name, record in done.upload.files.items():
            if name not in sizes:
                return f"{name} is missing"
            if sizes[name] != record.bytes:
                return f"{name} has {sizes[name]} bytes, expected {record.bytes}"
        return ""

    def folder(self, done: Done) -> str:
        """Return the folder of a finished run's files, from the store on.

        Returns:
            ``runs/KEY/TOKEN``.
        """
        return f"runs/{done.key}/{done.upload.token}"

    def claim(self, key: str) -> bool:
        """Claim a run for this driver and return whether it is this driver's.

        A claim of a dead driver is taken over: of two that try, one succeeds.

        Args:
            key: content address of the run, 64 hex digits.

        Raises:
            ArtifactError: the store refuses, is full, or cannot be reached.
        """
        own = Claim(driver=self.leases.own.id)
        number = self._last_claim(key)
        if number >= 0:
            last = self.files.read_as(_claim(key, number), Claim)
            if last == own:
                return True
            if self._is_held(_claim(key, number), last):
                return False
        return self.files.create(_claim(key, number + 1), own)

    def _is_held(self, name: str, claim: Claim | None) -> bool:
        if claim is None:  # cut off, or being written
            return self.leases.is_new(name)
        return self.leases.is_alive(claim.driver)

    def release(self, key: str) -> None:
        """Give a claim of this driver up.

        Claims of drivers that are dead are removed, too; another living driver's claim is kept.

        Args:
            key: content address of the run.

        Raises:
            ArtifactError: the store refuses, or cannot be reached.
        """
        for name in self.files.names(f"runs/{key}"):
            claim = self.files.read_as(f"runs/{key}/{name}", Claim) if _is_claim(name) else None
            if claim is not None and not self._counts_for_other(claim):
                self.files.remove(f"runs/{key}/{name}")

    def _counts_for_other(self, claim: Claim) -> bool:
        return claim.driver != self.leases.own.id and self.leases.is_alive(claim.driver)

    def _last_claim(self, key: str) -> int:
        names = [n for n in self.files.names(f"runs/{key}") if _is_claim(n)]
        return max((int(n.split(".")[1]) for n in names), default=-1)

    def upload(self, key: str, folder: Path, leave_out: Sequence[str] = ()) -> Upload:
        """Copy the files of a run into the store; they count once :meth:`commit` is called.

        Args:
            key: of the run.
            folder: with its files.
            leave_out: patterns of names that are not copied; records always are.

        Raises:
            ArtifactError: the store refuses, or is full; what was copied is removed.
        """
        token, files = secrets.token_hex(8), dict[str, FileRecord]()
        with self._removed_on_failure(f"runs/{key}/{token}"):
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                name = path.relative_to(folder)
                if _is_kept(name, leave_out):
                    self.files.put(path, f"runs/{key}/{token}/{name.as_posix()}")
                    files[name.as_posix()] = FileRecord.of(path)
        return Upload(token=token, files=files)

    @contextlib.contextmanager
    def _removed_on_failure(self, folder: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(ArtifactError):
                self.files.remove(folder)
            raise

    def commit(self, done: Done) -> Done:
        """Declare a run finished, and return the one that counts.

        Another driver that took the run over may have finished first: its files remain then.

        Args:
            done: the run, with its files uploaded.

        Raises:
            ArtifactError: the upload is not whole.
        """
        first = self.done(done.key)
        if first is not None and not self.damage(first):
            self.files.remove(self.folder(done))
            return first
        wrong = self.damage(done)
        if wrong:
            raise ArtifactError(
                f"Cannot keep the run {done.key[:12]} in the store {self.files.url}",
                f"the upload is not whole: {wrong}",
                "Give the same command again: the run is uploaded again",
            )
        self.files.write(f"runs/{done.key}/{DONE_JSON}", done)
        self.remove_leftovers(done)
        return done

    def remove_leftovers(self, done: Done) -> None:
        """Remove what drivers that died uploaded of a run that is finished now.

        Args:
            done: the run; its own files, ``done.json`` and claims are kept.

        Raises:
            ArtifactError: the store refuses, or cannot be reached.
        """
        for name in self.files.names(f"runs/{done.key}"):
            if name not in (DONE_JSON, done.upload.token) and not _is_claim(name):
                self.files.remove(f"runs/{done.key}/{name}")

    def forget(self, key: str) -> None:
        """Make a finished run unfinished; its files are kept until it is finished again.

        Args:
            key: content address of the run.

        Raises:
            ArtifactError: the store refuses, or cannot be reached.
        """
        self.files.remove(f"runs/{key}/{DONE_JSON}")


def _is_kept(name: Path, leave_out: Sequence[str]) -> bool:
    if set(name.parts) & set(LEFT_OUT):
        return False
    return name.suffix == ".json" or not any(fnmatchcase(name.name, p) for p in leave_out)


def _claim(key: str, number: int) -> str:
    return f"runs/{key}/claim.{number}.json"


def _is_claim(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 3 and parts[0] == "claim" and parts[1].isdigit()


def _require_empty(files: Files, names: Sequence[str]) -> None:
    if STORE_JSON in names:
        raise UsageError(
            f"Cannot use the store {files.url}",
            f"its {STORE_JSON} is damaged",
            "Name another folder",
        )
    if names:
        raise UsageError(
            f"Cannot use the store {files.url}",
            f"it has no {STORE_JSON}, and other files are there, such as {names[0]}",
            "Name an empty folder",
        )


def _require_own(owner: _Owner, files: Files, project: str) -> None:
    where = f"Cannot use the store {files.url}"
    if owner.kind != KIND:
        raise UsageError(where, f"its {STORE_JSON} is of {owner.kind!r}", "Name another folder")
    if owner.schema != SCHEMA:
        why = f"its schema is {owner.schema}, this trtq reads {SCHEMA}"
        raise UsageError(where, why, "Use the trtq that made it, or name another folder")
    if owner.project != project:
        raise UsageError(
            where,
            f"it is of the project {owner.project!r}, [sweep] names {project!r}",
            f'Set project = "{owner.project}" under [sweep], or name another folder',
        )
