"""Modules that a test puts in the place of others."""

from __future__ import annotations

import sys

import pytest


def forget(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Take a module away for a test; what the test imports in its place goes with the test."""
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]
