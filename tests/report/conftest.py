"""Reports are really drawn."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _drawn(drawn: None) -> None:
    """See ``drawn``."""
