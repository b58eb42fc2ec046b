"""A model at 4 bits, from which training starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import spec
from trtq import quantize


@pytest.fixture(scope="module")
def ptq(images: Path, tmp_path_factory) -> Path:
    """A tiny model at 4 bits: what training starts from."""
    out = tmp_path_factory.mktemp("ptq")
    quantize(spec(images, out, bits="w4a4"))
    return out
