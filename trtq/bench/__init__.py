"""Measuring: latency that says what it is and how it was taken."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that can be called as the verb of the same name.

    ``trtq.bench(spec)`` works whether or not the subpackage was imported before.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from trtq.bench.objects import bench

        return bench(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
