"""Tests of clusters, object stores and trackers, whose packages are not in the lock.

``make test-cluster`` installs them beside the environment (``requirements-cluster.txt``) and runs
these tests; elsewhere they skip by name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

F = TypeVar("F", bound=Callable[..., Any])


def marks(*packages: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a test that needs packages."""
    missing = [n for n in packages if importlib.util.find_spec(n) is None]
    reason = f"{' and '.join(missing)} not installed: make test-cluster"
    return [pytest.mark.cluster, pytest.mark.skipif(bool(missing), reason=reason)]


def needs(*packages: str) -> Callable[[F], F]:
    """Return the decorator of a test that needs packages."""

    def marked(function: F) -> F:
        for mark in marks(*packages):
            function = mark(function)
        return function

    return marked
