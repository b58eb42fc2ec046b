"""Every exception trtq raises on purpose.

TrtqError
├── UsageError            the request itself is wrong (exit code 2)
│   └── MissingExtraError  an optional package is not installed
├── ModelError            the model cannot be found, made or given its weights
├── DataError             images or labels cannot be found or read
├── CaptureError          the model cannot be turned into one graph
├── CalibrationError      activations cannot be turned into ranges
├── EncodingsError        an encodings file is damaged or belongs elsewhere
├── ExportError           the ONNX file cannot be written or is not valid
│   └── ParityError        what torch simulates is not what ONNX Runtime computes
├── EngineError           an engine cannot be built, read or trusted
│   ├── BuilderMemoryError  the builder ran out of memory, or was killed for it
│   ├── MissingKernelError  the builder has no implementation for one node
│   └── AgreementError      what was built does not compute what the ONNX file says
├── BenchError            nothing valid could be measured
│   └── MeterError         a sensor is not there, or does not answer
├── DeviceError           a board cannot be used
│   ├── SshError           it cannot be reached as things are
│   │   ├── LinkError       it cannot be reached now, and may be later
│   │   └── HostKeyError    its host key is unknown or has changed
│   └── BoardError         it refuses, or lacks what is needed
└── ArtifactError         a file trtq wrote is missing, damaged or in use
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrtqError(Exception):
    """Base of all errors a user can mend.

    Args:
        what: what failed, and on which object.
        why: the reason, with expected and actual value.
        mend: a command or a setting that mends it.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", mend: str = "") -> None:
        self.what, self.why, self.mend = what, why, mend
        text = what.rstrip(".")
        if why:
            text += f": {why.rstrip('.')}"
        text += "."
        if mend:
            text += f" {mend}" if mend.endswith(("?", ".")) else f" {mend}."
        super().__init__(text)


class UsageError(TrtqError):
    """The request itself is wrong."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional package is not installed."""


class ModelError(TrtqError):
    """The model cannot be found, made or given its weights."""


class DataError(TrtqError):
    """Images or labels cannot be found or read."""


class CaptureError(TrtqError):
    """The model cannot be turned into one graph."""


class CalibrationError(TrtqError):
    """Activations cannot be turned into ranges."""


class EncodingsError(TrtqError):
    """An encodings file is damaged or belongs to another graph."""


class ExportError(TrtqError):
    """The ONNX file cannot be written or is not valid."""


class ParityError(ExportError):
    """What torch simulates is not what ONNX Runtime computes."""


class EngineError(TrtqError):
    """An engine cannot be built, read or trusted."""


class BuilderMemoryError(EngineError):
    """The builder ran out of memory, or was killed for it."""


class MissingKernelError(EngineError):
    """The builder has no implementation for one node.

    Args:
        node: as the builder names it: one node, or several that it wanted to fuse.
    """

    def __init__(self, what: str, why: str = "", mend: str = "", *, node: str = "") -> None:
        super().__init__(what, why, mend)
        self.node = node


class AgreementError(EngineError):
    """What was built does not compute what the ONNX file says."""


class BenchError(TrtqError):
    """Nothing valid could be measured."""


class MeterError(BenchError):
    """A sensor is not there, or does not answer."""


class DeviceError(TrtqError):
    """A board cannot be used."""


class SshError(DeviceError):
    """It cannot be reached as things are."""


class LinkError(SshError):
    """It cannot be reached now, and may be later."""


class HostKeyError(SshError):
    """Its host key is unknown or has changed."""


class BoardError(DeviceError):
    """It refuses, or lacks what is needed."""


class ArtifactError(TrtqError):
    """A file trtq wrote is missing, damaged or in use."""


def suggest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return a mend that names the nearest known names, or lists a few of them.

    >>> suggest("percentle", ["max", "percentile"])
    'Did you mean percentile?'
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Known: {', '.join(sorted(known)[:12])}" if known else ""


def reason(exc: BaseException) -> str:
    """Return why reading or starting something failed, in words for a person.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.json"))
    'no such file or directory'
    >>> reason(UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid start byte"))
    'it is not text'
    """
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror[0].lower() + exc.strerror[1:]
    return "it is not text" if isinstance(exc, UnicodeDecodeError) else next(iter(str(exc).splitlines()), type(exc).__name__)
