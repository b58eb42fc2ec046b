"""Every exception trtq raises on purpose.

TrtqError
├── UsageError            the request itself is wrong (exit code 2)
│   └── MissingExtraError  an optional package is not installed
├── ModelError            the model or its weights cannot be found or loaded
├── DataError             images or labels cannot be found or read
├── CaptureError          the model cannot be captured as one graph
├── CalibrationError      no ranges can be computed from the activations
├── EncodingsError        an encodings file is damaged or belongs to another graph
├── ExportError           the ONNX file cannot be written or is not valid
│   └── ParityError        torch and ONNX Runtime compute different values
├── EngineError           an engine cannot be built, read or trusted
│   ├── BuilderMemoryError  the builder ran out of memory, or the system killed it for its memory
│   ├── MissingKernelError  the builder has no implementation for one node
│   └── AgreementError      the engine and the ONNX file compute different values
├── BenchError            no valid measurement was possible
│   └── MeterError         a sensor is missing or does not answer
├── DeviceError           a board cannot be used
│   ├── SshError           the board cannot be reached with these settings
│   │   ├── LinkError       the board cannot be reached now; a later attempt may succeed
│   │   └── HostKeyError    the host key of the board is unknown or has changed
│   └── BoardError         the board refuses a request or lacks what is needed
├── SystemRefusalError    the operating system refuses a request, or memory is exhausted
└── ArtifactError         a file trtq wrote is missing, damaged or in use
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable, Sequence

LONGEST = 300  # characters of a line that another program or library says
NO_HOME = "HOME is not set, and this user has no entry in /etc/passwd"


class TrtqError(Exception):
    """Base of all errors that a user can fix.

    Args:
        message: what failed, and on which object.
        reason: why, with expected and actual value.
        hint: a command or a setting that fixes it.
    """

    exit_code = 1

    def __init__(self, message: str, reason: str = "", hint: str = "") -> None:
        self.message = message
        self.reason = reason
        self.hint = hint
        self._like: type[TrtqError] = type(self)
        self._original = (message, reason, hint)
        super().__init__(self._text())

    def _text(self) -> str:
        text = self.message.rstrip(".")
        if self.reason:
            text += f": {self.reason.rstrip('.')}"
        text += "."
        if self.hint:
            text += f" {self.hint}" if self.hint.endswith(("?", ".")) else f" {self.hint}."
        return text

    @property
    def code(self) -> str:
        """Its stable code, such as ``DATA-017``: ``trtq explain DATA-017``."""
        from trtq.error_codes import code_of

        kinds = (kind.__name__ for kind in self._like.__mro__)
        return code_of(kinds, *self._original)

    @property
    def coded(self) -> str:
        """The text with its code at the end; without it where the table cannot be read."""
        return self.marked(str(self))

    def marked(self, text: str) -> str:
        """Return a text about this error with its code at the end, as :attr:`coded`."""
        try:
            return f"{text} [{self.code}]"
        except (OSError, MemoryError, ImportError):  # no memory or no file handle is left
            return text

    def with_code_of(self, other: TrtqError) -> TrtqError:
        """Take the code of an error that this one repeats in another form, and return this one."""
        self._like, self._original = other._like, other._original
        return self

    def reword(self, change: Callable[[str], str]) -> None:
        """Say the same in other words; the code remains.

        Args:
            change: is given message, reason and hint, one by one.
        """
        self.message, self.reason = change(self.message), change(self.reason)
        self.hint = change(self.hint)
        self.args = (self._text(),)


class UsageError(TrtqError):
    """The request itself is wrong."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional package is not installed."""


class ModelError(TrtqError):
    """The model or its weights cannot be found or loaded."""


class DataError(TrtqError):
    """Images or labels cannot be found or read."""


class CaptureError(TrtqError):
    """The model cannot be captured as one graph."""


class CalibrationError(TrtqError):
    """No ranges can be computed from the activations."""


class EncodingsError(TrtqError):
    """An encodings file is damaged or belongs to another graph."""


class ExportError(TrtqError):
    """The ONNX file cannot be written or is not valid."""


class ParityError(ExportError):
    """Torch and ONNX Runtime compute different values."""


class EngineError(TrtqError):
    """An engine cannot be built, read or trusted."""


class BuilderMemoryError(EngineError):
    """The builder ran out of memory, or the system killed it for its memory."""


class MissingKernelError(EngineError):
    """The builder has no implementation for one node.

    Args:
        node: as the builder names it: one node, or several that it wanted to fuse.
    """

    def __init__(self, message: str, reason: str = "", hint: str = "", *, node: str = "") -> None:
        super().__init__(message, reason, hint)
        self.node = node


class AgreementError(EngineError):
    """The engine and the ONNX file compute different values."""


class BenchError(TrtqError):
    """No valid measurement was possible."""


class MeterError(BenchError):
    """A sensor is missing or does not answer."""


class DeviceError(TrtqError):
    """A board cannot be used."""


class SshError(DeviceError):
    """The board cannot be reached with these settings."""


class LinkError(SshError):
    """The board cannot be reached now; a later attempt may succeed."""


class HostKeyError(SshError):
    """The host key of the board is unknown or has changed."""


class BoardError(DeviceError):
    """The board refuses a request or lacks what is needed."""


class ArtifactError(TrtqError):
    """A file trtq wrote is missing, damaged or in use."""


def suggest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return a hint with the known names nearest to ``name``, or with a few of them.

    Args:
        name: as it was typed.
        known: all that there is.
        count: most names in the hint.

    Returns:
        "" where nothing is known.

    >>> suggest("percentle", ["max", "percentile"])
    'Did you mean percentile?'
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Known: {', '.join(sorted(known)[:12])}" if known else ""


def listed(names: Sequence[str], most: int) -> str:
    """Join the first names and append the number of the others.

    Args:
        names: in order.
        most: how many are named.

    >>> listed(["a", "b", "c"], 2), listed(["a"], 2)
    ('a, b and 1 more', 'a')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException | str) -> str:
    r"""Return the first non-empty line, cut to a limited length.

    For an exception without text, return the name of its type.

    >>> first_line("\n  gone\nand more"), first_line(KeyError())
    ('gone', 'KeyError')
    """
    nothing = type(error).__name__ if isinstance(error, BaseException) else ""
    return next(
        (line.strip()[:LONGEST] for line in str(error).splitlines() if line.strip()), nothing
    )


def last_line(text: str) -> str:
    r"""Return the last non-empty line, cut to a limited length.

    >>> last_line("a\nfailed: no memory.\n")
    'failed: no memory'
    """
    return next(
        (
            line.strip().rstrip(".")[:LONGEST]
            for line in reversed(text.splitlines())
            if line.strip()
        ),
        "",
    )


def said_by(exc: BaseException) -> str:
    """Return the type of an exception and its text as one line of limited length.

    >>> said_by(ValueError("in two  parts"))
    'ValueError: in two parts'
    >>> said_by(SystemExit(2))
    'SystemExit: 2 (the code ended the program)'
    """
    text = " ".join(str(exc).split())
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    end = " (the code ended the program)" if isinstance(exc, SystemExit) else ""
    return f"{type(exc).__name__}{f': {text}' if text else ''}{end}"


def reason(exc: BaseException) -> str:
    """Return why reading or starting something failed, in plain words.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.json"))
    'no such file or directory'
    >>> reason(UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid start byte"))
    'it is not text'
    """
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror[0].lower() + exc.strerror[1:]
    if isinstance(exc, UnicodeDecodeError):
        return "it is not text"
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"
    return first_line(exc)


class SystemRefusalError(TrtqError):
    """The operating system refuses a request, or memory is exhausted."""


_REFUSALS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: (
        "no space is left on the device",
        "Free some space there, or set TMPDIR to a folder on another disk",
    ),
    errno.EDQUOT: (
        "the disk quota is used up",
        "Free some space, or set TMPDIR to a folder on another disk",
    ),
    errno.EROFS: ("the file system is read-only", "Choose a folder on another file system"),
    errno.EMFILE: ("too many files are open in this process", "Raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("too many files are open on this machine", "Close other programs"),
    errno.ENOMEM: ("there is not enough memory", "Close other programs, or lower --batch-size"),
    errno.EAGAIN: (
        "no further process or thread may be started",
        "Raise the limit: ulimit -u, or close other programs",
    ),
    errno.EFBIG: (
        "a file would exceed the largest allowed size",
        "Raise the limit: ulimit -f unlimited",
    ),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one"),
    errno.ELOOP: ("the symbolic links form a circle", "Remove one of them"),
}
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "std::bad_alloc", "bad allocation")
_MEMORY_HINT = "Close other programs, lower --batch-size, or raise the limit (ulimit -v)"


def explain_system(exc: BaseException) -> TrtqError | None:
    """Return an error for what the operating system refused.

    Return None for an exception with another cause.

    Args:
        exc: as Python or a library raised it.
    """
    if isinstance(exc, OSError):
        return _explain_os(exc)
    for explain in (_explain_memory, _explain_import, _explain_input, _explain_runtime):
        error = explain(exc)
        if error is not None:
            return error
    return None


def _explain_memory(exc: BaseException) -> TrtqError | None:
    text = str(exc)
    refused = isinstance(exc, RuntimeError) and any(t in text for t in _OUT_OF_MEMORY)
    if not refused and not isinstance(exc, MemoryError):
        return None
    device = "GPU" if "CUDA" in text or "GPU" in text else "machine"
    return SystemRefusalError(f"The {device} has not enough memory", first_line(text), _MEMORY_HINT)


def _explain_import(exc: BaseException) -> TrtqError | None:
    if not isinstance(exc, ImportError) or (exc.name or "").startswith("trtq"):
        return None
    return SystemRefusalError(
        "Cannot load a package that trtq needs",
        first_line(str(exc)),
        "Install it again, or raise the memory limit (ulimit -v)",
    )


def _explain_input(exc: BaseException) -> TrtqError | None:
    if isinstance(exc, RecursionError):
        return SystemRefusalError(
            "Cannot read the input",
            "it is nested too deeply for Python's stack",
            "Check the file: generated nesting, or a model that contains itself",
        )
    if not isinstance(exc, UnicodeEncodeError):
        return None
    name = str(exc.object)
    if not any("\ud800" <= c <= "\udfff" for c in name[exc.start : exc.end]):
        return None
    return SystemRefusalError(
        "Cannot use a name", f"{name[:200]!r} is not valid UTF-8", "Rename the file or the folder"
    )


def _explain_runtime(exc: BaseException) -> TrtqError | None:
    if not isinstance(exc, RuntimeError):
        return None
    if "Could not determine home directory" in str(exc):
        return SystemRefusalError("There is no home folder", NO_HOME, "Set HOME")
    if "CUDA error" in str(exc):  # it fell off the bus, or a driver was restarted
        return SystemRefusalError(
            "The GPU failed",
            first_line(str(exc)),
            "Finished work is kept: give the same command again, with --device cpu if the GPU "
            "is gone",
        )
    if "can't start new thread" in str(exc):
        return SystemRefusalError("Cannot start a thread", *_REFUSALS[errno.EAGAIN])
    return None


def _explain_os(exc: OSError) -> TrtqError:
    if isinstance(exc, FileNotFoundError) and "No usable temporary directory" in str(exc):
        why = "no folder for temporary files can be written to"
        return SystemRefusalError(
            "Cannot make a temporary file", why, "Set TMPDIR to a folder that can be written to"
        )
    name = next((str(n) for n in (exc.filename, exc.filename2) if n is not None), "")
    why, hint = _REFUSALS.get(exc.errno or 0, (reason(exc), ""))
    return SystemRefusalError(
        f"Cannot use {name}" if name else "The operating system refuses a request", why, hint
    )
