"""The sweeps that executors and stores are tried with."""

from __future__ import annotations

from tests.sweep.conftest import few_images, write_sweep

__all__ = ["few_images", "write_sweep"]
