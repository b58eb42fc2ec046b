"""A model at 4 bits, from which training starts."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ptq(w4a4_out: Path) -> Path:
    """A tiny model at 4 bits: what training starts from."""
    return w4a4_out
