"""Files that are whole or not there: atomic writes, digests, locks, JSON records."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from trtq.errors import ArtifactError, reason

SCHEMA = 1


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
    """Return a number of bytes as a person reads it, in decimal units: 11.70 MB."""
    from rich.filesize import decimal

    return decimal(round(count), precision=2)


def digest_of(value: Any) -> str:
    """Return a stable SHA-256 of any JSON-like value (keys sorted)."""
    return sha256_bytes(msgspec.json.encode(value, order="sorted"))


def explain_os_error(exc: OSError, path: Path, *, option: str = "--out") -> ArtifactError:
    """Return the ArtifactError that says what the operating system refused and the mend."""
    mends = {
        errno.ENOSPC: f"Free some space on the disk that holds {path.parent}, then run the same command again: finished stages are kept",
        errno.EDQUOT: "Your disk quota is used up: free some space and run the same command again",
        errno.EACCES: f"Choose another {option}, or make {path.parent} writable",
        errno.EPERM: f"Choose another {option}, or make {path.parent} writable",
        errno.EROFS: f"That file system is read-only: choose another {option}",
    }
    mend = mends.get(exc.errno or 0, f"Choose another {option}")
    return ArtifactError(f"Cannot write {path}", exc.strerror or str(exc), mend)


def ensure_writable_dir(path: Path, *, option: str = "--out") -> Path:
    """Create ``path`` and prove it can be written, before any long work.

    Args:
        path: the folder.
        option: what the user can choose another one with.

    Raises:
        ArtifactError: it is a file, or the operating system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".trtq-probe-"):
            pass
    except OSError as exc:
        if isinstance(exc, (FileExistsError, NotADirectoryError)):
            raise ArtifactError(f"Cannot write to {path}", "it is a file, not a folder", f"Choose another {option}") from exc
        raise explain_os_error(exc, path / "x", option=option) from exc
    return path


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, rename it onto ``path``.

    A reader sees the old file or the new one, never half of one; a failed write leaves nothing behind.

    Raises:
        ArtifactError: the operating system refused (disk full, no permission), with the mend.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as exc:
        raise explain_os_error(exc, path) from exc
    tmp = Path(name)
    try:
        write(tmp)
        with tmp.open("rb") as done:
            os.fsync(done.fileno())
        tmp.chmod(0o666 & ~_umask())
        tmp.replace(path)
    except OSError as exc:
        raise explain_os_error(exc, path) from exc
    finally:
        tmp.unlink(missing_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, data: bytes) -> Path:
    """Write ``data`` to ``path`` atomically."""
    return write_atomic(path, lambda tmp: _dump(tmp, data))


def _dump(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON-like value or a record to ``path`` atomically, indented."""
    return write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path, *, kind: str = "record") -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises:
        ArtifactError: it is missing, is not JSON, or is not an object.
    """
    try:
        value = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError as exc:
        raise ArtifactError(f"Cannot read the {kind} {path}", "there is no such file") from exc
    except OSError as exc:
        raise ArtifactError(f"Cannot read the {kind} {path}", reason(exc)) from exc
    except msgspec.DecodeError as exc:
        raise ArtifactError(f"Cannot read the {kind} {path}", f"it is not whole JSON ({exc})", "Make it again") from exc
    if not isinstance(value, dict):
        raise ArtifactError(f"Cannot read the {kind} {path}", "it holds no JSON object", "Make it again")
    return value


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (a file made beside the artefact).

    A second process waits until the first has ended; the system frees the lock of a killed process.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(path))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting:
                waiting(f"Another trtq is at work here ({path.name}); waiting for it to end")
            lock.acquire()
        yield
    finally:
        lock.release()


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Return what a record needs to say about the software and the machine it was made on."""
    names = ("trtq", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "numpy", "tensorrt-rtx-cu13", "tensorrt")
    return {
        "python": platform.python_version(),
        "packages": {n: v for n in names if (v := package_version(n))},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def cpu_name() -> str:
    """Return the processor's own name where Linux tells it, else the architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
