"""Make a subpackage that has the name of a verb callable as that verb.

``trtq.cost(spec)`` works whether or not the subpackage was imported before.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # By name: the verb is in a higher room, which this one must not import.
        verb = self.__name__.rpartition(".")[2]
        place = importlib.import_module("trtq.verbs").public_names()[verb]
        return getattr(importlib.import_module(place), verb)(*args, **kwargs)


def share_name_with_verb_(name: str) -> None:
    """Make the module ``name`` callable as the verb of the same name.

    Args:
        name: of a subpackage that is imported, such as ``trtq.search``.
    """
    sys.modules[name].__class__ = _Room
