"""Paths as people write them: ``~`` is the home, in options, recipes, variables and files alike."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from trtq.errors import NO_HOME, UsageError


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
        why = f"this machine has no user {user}" if user else NO_HOME
        raise UsageError(
            f"Cannot use {what} {text}",
            why,
            f"Write the whole path, or ./{text} for a file of that name",
        )
    return expanded


def home_folder() -> Path | None:
    """Return this user's home, from ``$HOME`` or the passwd entry; None where there is neither."""
    given = os.environ.get("HOME")
    return Path(given).absolute() if given else login_folder()


def login_folder() -> Path | None:
    """Return the home in this user's passwd entry, where ssh looks whatever ``$HOME`` says; None without an entry."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def user_folder(variable: str, default: str) -> Path | None:
    """Return a folder of this user, None where there is no home.

    Args:
        variable: of the XDG base directories, such as ``XDG_DATA_HOME``; a relative path in it is
            ignored, as that standard says.
        default: below the home, where the variable says nothing.

    Raises:
        UsageError: the variable names a home that nobody knows.
    """
    given = path_variable(variable)
    if given is not None and Path(given).is_absolute():
        return Path(given)
    home = home_folder()
    return None if home is None else home / default


def path_variable(name: str) -> str | None:
    """Return the path in an environment variable, None where it is not set or empty.

    Raises:
        UsageError: its home is not known.
    """
    given = os.environ.get(name)
    return expand_home(given, name) if given else None
