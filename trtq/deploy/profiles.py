"""What differs between boards and cannot be read from them: ``jetson/profiles.toml``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from trtq.recipe import read_toml


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One board; the file explains the fields."""

    name: str
    max_mode: str
    default_mode: str
    workspace: list[tuple[float, int]]
    total: list[str]
    dla: int
    throttles_c: float
    jetpacks: tuple[str, str]
    notes: list[str]

    def workspace_for(self, memory_bytes: int) -> int | None:
        """Return the scratch memory to build with, MiB; None for what there is."""
        return next((mib for gib, mib in self.workspace if memory_bytes < gib * 2**30), None)


@cache
def profiles() -> dict[str, Profile]:
    """Return the profiles by the board's name as a target."""
    return msgspec.convert(read_toml(Path(__file__).with_name("profiles.toml")), dict[str, Profile])
