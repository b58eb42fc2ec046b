"""Torch files read without running code: what is no tensor becomes an inert placeholder.

``torch.load(weights_only=True)`` refuses a file at the first class that it does not know: an
``argparse.Namespace`` among hyper-parameters, a metric, a whole module. Here such a name is bound
to an empty class before torch reads the file. The unpickler is still torch's restricted one: it can
only call what it knows itself and these empty classes.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from trtq.errors import ModelError
from trtq.models.file_kind import SAVE, unreadable

# Modules that honest checkpoints never name. The placeholders would be harmless; the file is not
# one to use.
_HOSTILE = re.compile(
    r"((builtins|__builtin__)\.(eval|exec|compile|open|__import__|input|breakpoint)|"
    r"(os|posix|nt|sys|subprocess|commands|popen2|shutil|socket|runpy|pty|ctypes|importlib|"
    r"code|webbrowser)\..*)$"
)
_NAME = re.compile(r"[\w.<>]+")
_UNKNOWN = re.compile(r"Unsupported global: GLOBAL (\S+) was not")
_CONTAINER = re.compile(
    r"Can only (SETITEM|append|extend).*but got <class '(?:[^']*\.)?inert:([^']+)'>", re.DOTALL
)
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module")
_TRIES = 256  # one more name each


class Inert:
    """Placeholder of an object of a class that is not loaded.

    Attributes:
        origin: the class or function that the file names, such as ``argparse.Namespace``.
        args: what it was called with.
        state: its attributes, as they were stored.
    """

    origin = ""

    def __init__(self, *args: object) -> None:
        self.args, self.state = args, None

    def __new__(cls, *args: object) -> Inert:  # noqa: ARG004
        """Return an object with no arguments and no state."""
        instance = super().__new__(cls)
        instance.args, instance.state = (), None
        return instance

    def __setstate__(self, state: object) -> None:
        self.state = state

    args: tuple[object, ...]
    state: object


@dataclass
class TorchFile:
    """Contents of a torch file.

    Attributes:
        content: nested dicts, lists, tensors and :class:`Inert` objects.
        skipped: classes and functions that the file names and that were not loaded, sorted.
    """

    content: object
    skipped: list[str] = field(default_factory=list)


def read_torch(path: Path, *, script: bool) -> TorchFile:
    """Return the content of a file of ``torch.save`` or ``torch.jit.save``; no code is run.

    Args:
        path: the file.
        script: it is a TorchScript archive: its tensors are read, its code is not.

    Raises:
        ModelError: damaged, of a form torch does not read safely, or made to run code; names the
            class in the way.
    """
    data = _tensors_of_script(path) if script else path.open("rb")
    with data:
        classes: dict[str, type] = {}
        for name in _unknown_names(data):
            _add(classes, name, path)
        for _ in range(_TRIES):
            data.seek(0)
            try:
                with (
                    torch.serialization.safe_globals(_named(classes)),
                    warnings.catch_warnings(),
                ):
                    warnings.simplefilter("ignore")  # of pickle protocols
                    content: object = torch.load(data, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as exc:
                _learn(classes, str(exc), path, exc)
            except Exception as exc:  # damage meets the restricted unpickler in every way
                raise _damaged(path, exc, classes) from exc
            else:
                skipped = sorted(n for n in classes if not n.startswith("__torch__."))
                return TorchFile(content, skipped)
    raise unreadable(path, f"it names more than {_TRIES} classes", SAVE)


def _named(classes: dict[str, type]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    return [(kind, name) for name, kind in classes.items()]


def _unknown_names(data: IO[bytes]) -> list[str]:
    """Return what a file names and torch does not load; [] where only reading tells."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(data)
    except Exception:  # the form before 1.6, and damaged files: reading says what is wrong
        return []


def _add(classes: dict[str, type], name: str, path: Path, container: type | None = None) -> None:
    if not _NAME.fullmatch(name):
        raise unreadable(path, "it is not a whole torch file", "Download or save it again")
    if _HOSTILE.match(name):
        raise unreadable(
            path,
            f"the file asks to call {name}: reading it as intended would run code",
            f"Do not use the file. {SAVE}",
        )
    classes[name] = (
        type(f"inert:{name}", (Inert,), {"origin": name})
        if container is None
        else _container(name, container)
    )


def _container(name: str, kind: type) -> type:
    """Return a placeholder whose objects are plain dicts or lists: torch fills nothing else."""
    return type(f"inert:{name}", (), {"__new__": lambda _cls, *_args: kind(), "origin": name})


def _learn(classes: dict[str, type], text: str, path: Path, exc: pickle.UnpicklingError) -> None:
    """Add the placeholder that the file needs next.

    Raises:
        ModelError: no placeholder helps.
    """
    unknown, filled, blocked = _UNKNOWN.search(text), _CONTAINER.search(text), _BLOCKED.search(text)
    if unknown is not None:
        name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
        if name not in classes:
            return _add(classes, name, path)
    elif filled is not None:
        return _add(classes, filled[2], path, OrderedDict if filled[1] == "SETITEM" else list)
    elif blocked is not None:
        why = f"the file asks to call {blocked[1]}: reading it as intended would run code"
        raise unreadable(path, why, f"Do not use the file. {SAVE}") from exc
    raise _damaged(path, exc, classes) from exc


def _damaged(path: Path, exc: Exception, classes: dict[str, type]) -> ModelError:
    text = str(exc)
    if "Unsupported operand" in text:
        why = "it was written with a pickle protocol that torch does not read without running code"
        return unreadable(path, why, "Save it again with torch.save and its default protocol")
    if "DTensor" in text or "torch.distributed" in text:
        return unreadable(
            path, "it holds tensors that are spread over several processes (DTensor)", SAVE
        )
    if classes:
        return unreadable(
            path,
            f"reading more than its tensors would run code: {', '.join(sorted(classes)[:4])}",
            SAVE,
        )
    return unreadable(
        path, f"it is not a whole torch file ({type(exc).__name__})", "Download or save it again"
    )


def _tensors_of_script(path: Path) -> io.BytesIO:
    """Return a TorchScript archive as a file of ``torch.save``: without its code."""
    result = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(result, "w") as new:
            for name in old.namelist():
                inside = name.split("/", 1)[-1]
                if inside in ("data.pkl", "version", "byteorder") or inside.startswith("data/"):
                    new.writestr(f"archive/{inside}", old.read(name))
    except Exception as exc:  # zipfile meets damage with errors of every kind
        raise _damaged(path, exc, {}) from exc
    result.seek(0)
    return result


def module_tensors(module: Inert) -> dict[str, object] | None:
    """Return the tensors and modules in a pickled ``nn.Module`` or TorchScript module by name.

    Args:
        module: a pickled object.

    Returns:
        Parameters, buffers that a state dict has, and child modules, by name; None for an object
        that is no module.
    """
    state = module.state
    if not isinstance(state, dict):
        return None
    if "_parameters" not in state:  # TorchScript keeps everything in one table
        script = module.origin.startswith("__torch__.")
        return (
            {k: v for k, v in state.items() if isinstance(v, (torch.Tensor, Inert))}
            if script
            else None
        )
    transient = state.get("_non_persistent_buffers_set") or ()
    buffers = {k: v for k, v in _table(state, "_buffers") if k not in transient}
    return {**dict(_table(state, "_parameters")), **buffers, **dict(_table(state, "_modules"))}


def _table(state: dict[str, object], key: str) -> list[tuple[str, object]]:
    table = state.get(key)
    return (
        [(str(k), v) for k, v in table.items() if v is not None] if isinstance(table, dict) else []
    )


def array_of(value: Inert) -> torch.Tensor | None:
    """Return the tensor of a NumPy array or number that was read as a placeholder, else None.

    Only plain numbers are read: their bytes are looked at, NumPy's own unpickling is not used.

    Args:
        value: a pickled object.

    Returns:
        An array of the same shape and type, in native byte order; None for text, objects and types
        of dates.
    """
    if value.origin.endswith("multiarray.scalar") and len(value.args) == 2:
        return _numbers(value.args[0], value.args[1], ())
    if (
        value.origin.endswith("multiarray._reconstruct")
        and isinstance(value.state, tuple)
        and len(value.state) == 5
    ):
        _, shape, dtype, fortran, data = value.state
        result = _numbers(dtype, data, tuple(shape)[::-1] if fortran else tuple(shape))
        return (
            result.permute(*reversed(range(result.ndim))).contiguous()
            if fortran and result is not None
            else result
        )
    return None


def _numbers(dtype: object, data: object, shape: tuple[int, ...]) -> torch.Tensor | None:
    if (
        not isinstance(dtype, Inert)
        or not dtype.args
        or not re.fullmatch(r"[fiu][1248]|b1", str(dtype.args[0]))
    ):
        return None
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes):
        return None
    big = isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">"
    kind = np.dtype(str(dtype.args[0])).newbyteorder(">" if big else "<")
    try:
        values = np.frombuffer(raw, dtype=kind).reshape(shape)
        return torch.from_numpy(values.astype(kind.newbyteorder("=")))
    except (ValueError, TypeError):
        return None
