"""Files that every release of TensorRT reads, and stand-ins for TensorRT."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trtq.engine import select_builder as choose
from trtq.testing.tensorrt import write_fake_tensorrt


@pytest.fixture(scope="session")
def files(cnn13: Path) -> Path:
    """The tiny CNN in opset 13, which every release reads."""
    return cnn13


@pytest.fixture
def tensorrt(tmp_path, monkeypatch):
    """Return a function that puts a TensorRT of some release and a GPU of the target here."""
    import torch

    def make(version: str, capability: tuple[int, int] = (8, 6)) -> None:
        folder = write_fake_tensorrt(tmp_path / f"fake-{version}", version)
        monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        monkeypatch.syspath_prepend(str(folder))
        sys.modules.pop("tensorrt", None)
        monkeypatch.setattr(choose, "is_installed", lambda module: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    yield make
    sys.modules.pop("tensorrt", None)
