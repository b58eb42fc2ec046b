"""Paths as people write them: ``~`` is the home in options, recipes, variables and files."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from trtq.errors import NO_HOME, UsageError


def expand_home(text: str, what: str = "the path") -> str:
    """Expand a leading ``~`` or ``~user`` to that user's home.

    The expansion also applies after the prefix ``cifar10:``.

    Args:
        text: as it was written; it may contain more, such as ``~/model.py:factory``.
        what: what the text sets, for messages.

    Raises:
        UsageError: that home is unknown.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme.isalnum() and rest.startswith("~"):
        return f"{scheme}:{expand_home(rest, what)}"
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111 - pathlib raises, and drops a trailing slash
    if expanded.startswith("~"):
        user = text[1:].partition("/")[0]
        why = f"this machine has no user {user}" if user else NO_HOME
        raise UsageError(
            f"Cannot use {what} {text}",
            why,
            f"Write the whole path, or ./{text} for a file of that name",
        )
    return expanded


def home_folder() -> Path | None:
    """Return this user's home from ``$HOME`` or the passwd entry, None without either."""
    given = os.environ.get("HOME")
    return Path(given).absolute() if given else login_folder()


def login_folder() -> Path | None:
    """Return the home in this user's passwd entry, None without an entry.

    ssh uses this folder regardless of ``$HOME``.
    """
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def user_folder(variable: str, default: str) -> Path | None:
    """Return a folder of this user, None without a home.

    Args:
        variable: of the XDG base directories, such as ``XDG_DATA_HOME``; a relative path in it is
            ignored, as that standard requires.
        default: path below the home when the variable is not set.

    Raises:
        UsageError: the variable names an unknown home.
    """
    given = path_variable(variable)
    if given is not None and Path(given).is_absolute():
        return Path(given)
    home = home_folder()
    return None if home is None else home / default


def path_variable(name: str) -> str | None:
    """Return the path in an environment variable, None when it is unset or empty.

    Raises:
        UsageError: its home is unknown.
    """
    given = os.environ.get(name)
    return expand_home(given, name) if given else None
