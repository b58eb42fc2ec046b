"""Extensions from outside the tree, loaded by the name that a user gives.

A name is ``package.module:attribute``, ``path/to/file.py:attribute``, or that of an entry point of
an installed package. An extension is imported when it is named or when a list of all is asked for,
so a broken one never affects other commands.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq.artifact import sha256_file
from trtq.errors import ModelError, UsageError, said_by, suggest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KINDS = {
    "methods": "method",
    "calibrators": "calibrator",
    "data": "data adapter",
    "tasks": "task",
    "executors": "executor of sweeps",
}  # the groups of entry points, without "trtq.", and what one of each is called


def installed(kind: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a kind by name; nothing is imported.

    Args:
        kind: one of ``KINDS``.
    """
    points: dict[str, list[EntryPoint]] = {}
    for point in _entry_points(f"trtq.{kind}", tuple(sys.path)):
        same = points.setdefault(point.name, [])
        if point.value not in [p.value for p in same]:
            same.append(point)
    return points


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> list[EntryPoint]:
    """Return the entry points of a group in order; reading those of all packages takes 25 ms."""
    del path  # what is installed there is read once a process
    from importlib.metadata import entry_points  # 40 ms, and few commands name an extension

    return sorted(entry_points(group=group), key=lambda p: (p.name, p.value))


def is_known(kind: str, name: str) -> bool:
    """Whether ``name`` is a place in a module, or an entry point; nothing is imported."""
    return ":" in name or name in installed(kind)


def load(kind: str, name: str, *, built_in: tuple[str, ...] = ()) -> Any:
    """Return the extension that ``name`` stands for.

    Args:
        kind: one of ``KINDS``.
        name: as the user wrote it.
        built_in: names to suggest for a wrong one, beside those of entry points.

    Raises:
        UsageError: nothing has that name, two packages offer it, or it cannot be imported.
    """
    what = KINDS[kind]
    if ":" in name:
        from trtq.user_code import attribute_of

        try:
            return attribute_of(name, what)
        except ModelError as exc:
            raise UsageError(exc.message, exc.reason, exc.hint).with_code_of(exc) from exc
    points = installed(kind)
    if name not in points:
        raise UsageError(f"Unknown {what} {name!r}", hint=suggest(name, (*built_in, *points)))
    if len(points[name]) > 1:
        places = " and ".join(_place(p) for p in points[name])
        raise UsageError(
            f"Cannot load the {what} {name!r}",
            f"two packages offer it: {places}",
            f"Name one: {points[name][0].value}",
        )
    return _import(points[name][0], what)


def identity(kind: str, name: str) -> str:
    """Return a text that changes with the code of an extension, for keys of caches.

    Args:
        kind: one of ``KINDS``.
        name: as the user wrote it.

    Returns:
        The name with a digest of its source: of the file and the files it imports for
            ``file.py:NAME``
        and ``module:NAME``, else of the module of the entry point with the version of its package.

    Raises:
        UsageError: as for :func:`load`.
    """
    from trtq.user_code import source_digest

    target = load(kind, name)
    if ":" in name and callable(target):
        return f"{name} ({source_digest(name, KINDS[kind])[:12]})"
    made_of = getattr(target, "run", getattr(target, "choose", target))  # its code, not its type
    code = sys.modules[made_of.__module__]
    digest = sha256_file(Path(str(code.__file__)))[:12]
    point = None if ":" in name else installed(kind)[name][0]
    return f"{name} ({digest})" if point is None else f"{name} ({_place(point)}, {digest})"


def _import(point: EntryPoint, what: str) -> Any:
    try:
        return point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # sys.exit() in an extension must not end this program
        raise UsageError(
            f"Cannot load the {what} {point.name!r}",
            f"importing {_place(point)} raised {said_by(exc)}",
            "Repair or uninstall that package; everything else of trtq works without it",
        ) from exc


def _place(point: EntryPoint) -> str:
    package = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"{point.value}{package}"
