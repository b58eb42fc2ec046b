"""File handling: atomic writes, digests, locks and JSON records."""

from __future__ import annotations

import codecs
import contextlib
import errno
import glob
import hashlib
import os
import platform
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import msgspec

from trtq.errors import ArtifactError, reason
from trtq.later_fields import ADDED
from trtq.machine import cpu_name, package_version
from trtq.typed import convert, json_as

SCHEMA = 1
T = TypeVar("T")


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, reading 1 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def size_words(count: float) -> str:
    """Format a number of bytes in decimal units, such as 11.70 MB."""
    from rich.filesize import decimal

    return decimal(round(count), precision=2)


def digest_of(value: Any) -> str:
    """Return a stable SHA-256 of any JSON-like value (keys sorted).

    Args:
        value: anything that msgspec encodes; NaN counts as None.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    return sha256_bytes(msgspec.json.encode(value, order="sorted"))


def explain_os_error(exc: OSError, path: Path, *, option: str = "--out") -> ArtifactError:
    """Return an ArtifactError with what the operating system refused and how to fix it."""
    mends = {
        errno.ENOSPC: f"Free some space on the disk that holds {path.parent}, then run the same "
        "command "
        "again: finished stages are kept",
        errno.EDQUOT: "Your disk quota is used up: free some space and run the same command again",
        errno.EACCES: f"Choose another {option}, or make {path.parent} writable",
        errno.EPERM: f"Choose another {option}, or make {path.parent} writable",
        errno.EROFS: f"That file system is read-only: choose another {option}",
    }
    mend = mends.get(exc.errno or 0, f"Choose another {option}")
    return ArtifactError(f"Cannot write {path}", exc.strerror or str(exc), mend)


def ensure_writable_dir(path: Path, *, option: str = "--out") -> Path:
    """Create the folder ``path`` and check that it is writable, before any long work.

    Args:
        path: the folder.
        option: the command line option that sets it, for messages.

    Raises:
        ArtifactError: it is a file, or the operating system refuses.
    """
    return _probed(path, path, option)


def require_writable_dir(path: Path, *, option: str = "--out") -> Path:
    """Check that the folder ``path`` is writable or can be created, before inputs are opened.

    It is not created: inputs that cannot be read leave no empty folder.

    Args:
        path: the folder.
        option: the command line option that sets it, for messages.

    Raises:
        ArtifactError: it is a file, or the operating system refuses.
    """
    above = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
    return _probed(path, above, option)


def _probed(path: Path, place: Path, option: str) -> Path:
    """Return the folder ``path``, once a file can be written in ``place``, which is created."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".trtq-probe-"):
            pass
    except OSError as exc:
        if isinstance(exc, (FileExistsError, NotADirectoryError)):
            raise ArtifactError(
                f"Cannot write to {path}", "it is a file, not a folder", f"Choose another {option}"
            ) from exc
        raise explain_os_error(exc, path / "x", option=option) from exc
    return path


def ensure_writable_file(path: Path, *, option: str = "--out", inputs: Iterable[Path] = ()) -> Path:
    """Check that the file ``path`` can and may be written, before any long work.

    The file is not created.

    Args:
        path: of the file to be written.
        option: the command line option that sets it, for messages.
        inputs: files that must not be overwritten.

    Raises:
        ArtifactError: it is a folder, a device or an input, or the operating system refuses.
    """
    try:
        _refuse_place(path, option, inputs)
        above = next(p for p in path.absolute().parents if p.exists())
        if not above.is_dir():
            raise ArtifactError(
                f"Cannot write {path}",
                f"{above} is a file, not a folder",
                f"Choose another {option}",
            )
        with tempfile.NamedTemporaryFile(dir=above, prefix=f".{path.name}.", suffix=".json.tmp"):
            pass
    except OSError as exc:
        raise explain_os_error(exc, path, option=option) from exc
    return path


def _refuse_place(path: Path, option: str, inputs: Iterable[Path]) -> None:
    if path.is_dir():
        example = shlex.quote(str(path / "NAME"))
        raise ArtifactError(
            f"Cannot write {path}", "it is a folder", f"Name a file in it: {option} {example}"
        )
    if not path.exists():
        return
    if not path.is_file():
        raise ArtifactError(
            f"Cannot write {path}",
            "it is a device or a pipe, not a file",
            f"Choose another {option}",
        )
    same = next((given for given in inputs if given.exists() and given.samefile(path)), None)
    if same is not None:
        raise ArtifactError(
            f"Cannot write {path}", f"it is the input {same}", f"Choose another {option}"
        )


def leftovers(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the temporary files that a killed :func:`write_atomic` left in ``folder``.

    Only those of files called one of ``names`` are returned.
    """
    return [
        p
        for name in names
        for p in folder.glob(f".{glob.escape(name)}.????????.tmp")
        if p.is_file()
    ]


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Write ``path`` atomically.

    ``write`` fills a temporary file beside ``path``, which is flushed to disk and then renamed to
    ``path``.

    A reader sees the old file or the new one, never a partial one. A failed write leaves nothing
    behind.

    The file has the rights of any new file; a file or a link of that name is replaced.

    Args:
        path: in a folder that exists.
        write: fills the temporary file, and may replace it.

    Raises:
        ArtifactError: the operating system refused (disk full, no permission); the error
            names the fix.
    """
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:  # with the rights of any new file: to read the umask, a thread would have to change it
        os.close(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except OSError as exc:
        raise explain_os_error(exc, path) from exc
    try:
        write(tmp)
        with tmp.open("rb") as done:
            os.fsync(done.fileno())
        tmp.replace(path)
    except OSError as exc:
        raise explain_os_error(exc, path) from exc
    finally:
        tmp.unlink(missing_ok=True)
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    """Write ``data`` to ``path``, as :func:`write_atomic`."""
    return write_atomic(path, lambda tmp: _dump(tmp, data))


def _dump(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_json(path: Path, value: Any) -> Path:
    """Write plain values or a msgspec struct to ``path``, indented, as :func:`write_atomic`."""
    return write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path, *, kind: str = "record") -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Args:
        path: of the file; a byte order mark is skipped.
        kind: what it is, for messages.

    Raises:
        ArtifactError: it is missing, is not JSON, or is not an object.
        ArtifactError: a newer trtq wrote it.
    """
    try:
        value = decode_json(path.read_bytes(), Any)
    except FileNotFoundError as exc:
        raise ArtifactError(f"Cannot read the {kind} {path}", "there is no such file") from exc
    except IsADirectoryError as exc:
        raise ArtifactError(
            f"Cannot read the {kind} {path}", "it is a folder", "Name the JSON file in it"
        ) from exc
    except OSError as exc:
        raise ArtifactError(f"Cannot read the {kind} {path}", reason(exc)) from exc
    except msgspec.DecodeError as exc:
        raise ArtifactError(
            f"Cannot read the {kind} {path}",
            f"it is not whole JSON ({reason(exc)})",
            "Make it again",
        ) from exc
    if not isinstance(value, dict):
        raise ArtifactError(
            f"Cannot read the {kind} {path}", "it holds no JSON object", "Make it again"
        )
    require_schema(value.get("schema", SCHEMA), path, kind)
    return value


def read_record(path: Path, record: type[T], *, kind: str = "record") -> T:
    """Return the record in ``path`` as its type.

    Args:
        path: of the JSON file.
        record: the struct, or any type that msgspec knows.
        kind: for messages.

    Raises:
        ArtifactError: it is missing, damaged, of a newer trtq, or another record.
    """
    return check_record(read_json(path, kind=kind), path, record, kind=kind)


def check_record(value: object, path: Path, record: type[T], *, kind: str = "record") -> T:
    """Return a JSON value of ``path`` as its type.

    Raises:
        ArtifactError: a field is missing, or has another type.
    """
    try:
        return convert(value, record)
    except (msgspec.ValidationError, RecursionError) as exc:
        why = f"it is damaged or of another version ({reason(exc)})"
        raise ArtifactError(
            f"Cannot read the {kind} {path}", why, "Make it again with this trtq"
        ) from exc


def decode_json(data: bytes | str, kind: type[T]) -> T:
    """Return JSON bytes as a type; a byte order mark, as Windows editors write it, is skipped.

    Raises:
        msgspec.MsgspecError: it is not JSON, not UTF-8, nested too deeply, or another type.
    """
    try:
        raw = data.encode(errors="replace") if isinstance(data, str) else data
        return json_as(raw.removeprefix(codecs.BOM_UTF8), kind)
    except (UnicodeDecodeError, RecursionError) as exc:
        raise msgspec.DecodeError(reason(exc)) from exc


def require_schema(schema: object, path: Path, kind: str = "record") -> None:
    """Refuse a file that a newer trtq wrote.

    Raises:
        ArtifactError: its schema number is larger than this trtq's, or no number.
    """
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ArtifactError(
            f"Cannot read the {kind} {path}",
            f"its schema is {schema!r}, not a number from 1 on",
            "Make it again",
        )
    if schema > SCHEMA:
        why = f"a newer trtq wrote it: its schema is {schema}, this trtq reads up to {SCHEMA}"
        raise ArtifactError(
            f"Cannot read the {kind} {path}", why, "Upgrade trtq, or make the file again"
        )


class Stamp(NamedTuple):
    """Metadata that changes with every write: no program can reset ``ctime_ns``.

    Attributes:
        device, inode: which file it is.
        size: bytes.
        mtime_ns, ctime_ns: of the last change of content, and of content or metadata; nanoseconds.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(path: Path) -> Stamp:
    """Return the stamp of a file.

    Raises:
        OSError: it cannot be read.
    """
    file_status = path.stat()
    return Stamp(
        file_status.st_dev,
        file_status.st_ino,
        file_status.st_size,
        file_status.st_mtime_ns,
        file_status.st_ctime_ns,
    )


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (a file made beside the artefact).

    A second process waits until the first has ended; the system frees the lock of a killed process.
    A file system without locks, as some NFS servers, is no error: the caller is told.

    Args:
        path: of the lock file; it remains.
        waiting: receives a line about a wait, or about a file system without locks.

    Raises:
        ArtifactError: the lock file cannot be made.
    """
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as exc:
        raise explain_os_error(exc, path) from exc
    try:
        _take(number, path, waiting or _ignore)
        yield
    finally:
        os.close(number)  # which frees the lock


def _take(number: int, path: Path, note: Callable[[str], None]) -> None:
    import fcntl

    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"Another trtq is at work here ({path.name}); waiting for it to end")
            fcntl.flock(number, fcntl.LOCK_EX)
    except OSError as exc:
        note(
            f"{path.parent} is on a file system without locks ({reason(exc)}): start no second "
            "trtq there"
        )


def _ignore(_text: str) -> None:
    """Discard a message."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The software and the machine that a record was made with.

    Attributes:
        python: its version.
        packages: versions, by distribution.
        system: name, release and architecture.
        cpu: name of the processor.
        cores: how many; None where that is unknown.
        time: ISO 8601, with the offset from UTC.
    """

    python: str
    packages: dict[str, str]
    system: str
    cpu: str
    cores: int | None
    time: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that every record begins with.

    Attributes:
        schema: version of the form of records.
        verb: the command that made it.
        spec: what the command was asked for.
    """

    schema: int
    verb: str
    spec: dict[str, Any]


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One written file.

    Attributes:
        sha256: 64 hex digits.
        bytes: its size.
    """

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Return the record of the file ``path``."""
        return cls(sha256=sha256_file(path), bytes=path.stat().st_size)


class Header(TypedDict):
    """The first fields of a record, as keyword arguments."""

    schema: int
    verb: str
    spec: dict[str, Any]


def header(verb: str, spec: msgspec.Struct) -> Header:
    """Return the first fields of a record of ``verb`` about what ``spec`` asks for."""
    return {"schema": SCHEMA, "verb": verb, "spec": spec_values(spec)}


def spec_values(spec: msgspec.Struct) -> dict[str, Any]:
    """Return what a spec asks for as plain values, for records.

    Fields that records of this schema did not always have are there only where they are given.
    """
    values: dict[str, Any] = msgspec.to_builtins(spec)
    name = type(spec).__name__
    return {k: v for k, v in values.items() if v or not ADDED & {k, f"{name}.{k}"}}


def environment() -> Environment:
    """Return the software versions and the machine, for records."""
    names = (
        "trtq",
        "torch",
        "torchvision",
        "timm",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "numpy",
        "tensorrt-rtx-cu13",
        "tensorrt",
    )
    return Environment(
        python=platform.python_version(),
        packages={n: v for n in names if (v := package_version(n))},
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=os.cpu_count(),
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
