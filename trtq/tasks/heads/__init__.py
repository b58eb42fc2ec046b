"""Heads of detectors: how the outputs of a model are read as boxes; one small file a family."""

from __future__ import annotations

from trtq.tasks.heads.base import Head
from trtq.tasks.heads.table import HEADS, find_head

__all__ = ["HEADS", "Head", "find_head"]
