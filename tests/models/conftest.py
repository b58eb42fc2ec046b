"""Weights that checkpoints hold."""

from __future__ import annotations

import pytest

from tests.support.checkpoints import Small, filled


@pytest.fixture(scope="module")
def state():
    return filled(Small()).state_dict()
