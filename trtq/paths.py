"""Paths as people write them: ``~`` is the home, in options, recipes, variables and files alike."""

from __future__ import annotations

import os
from pathlib import Path

from trtq.errors import SystemRefusalError, UsageError


def expand_home(text: str, what: str = "the path") -> str:
    """Return a path whose leading ``~`` or ``~user`` is the home of that user; also behind ``cifar10:``.

    Args:
        text: as it was written; it may carry more, such as ``~/model.py:factory``.
        what: is set with it, for messages.

    Raises:
        UsageError: nobody knows that home.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme.isalnum() and rest.startswith("~"):
        return f"{scheme}:{expand_home(rest, what)}"
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111 - pathlib raises, and drops a trailing slash
    if expanded.startswith("~"):
        user = text[1:].partition("/")[0]
        why = f"this machine has no user {user}" if user else "HOME is not set, and this user has no entry in /etc/passwd"
        raise UsageError(f"Cannot use {what} {text}", why, f"Write the whole path, or ./{text} for a file of that name")
    return expanded


def user_folder(variable: str, default: str) -> Path:
    """Return a folder of this user: ``$variable`` where it is set, else ``default`` in the home.

    Raises:
        SystemRefusalError: there is no home.
    """
    given = os.environ.get(variable)
    if given:
        return Path(expand_home(given, variable))
    home = os.path.expanduser("~")  # noqa: PTH111 - pathlib raises a RuntimeError
    if not home.startswith("/"):
        why = f"HOME is not set, and user {os.getuid()} has no entry in /etc/passwd"
        raise SystemRefusalError("There is no home folder", why, f"Set HOME, or {variable}")
    return Path(home) / default


def path_variable(name: str) -> str | None:
    """Return the path in an environment variable, None where it is not set or empty.

    Raises:
        UsageError: its home is not known.
    """
    given = os.environ.get(name)
    return expand_home(given, name) if given else None
