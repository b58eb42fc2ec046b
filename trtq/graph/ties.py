"""Which line of a model's source ties its batch to one size."""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from torch import nn

SYMBOLS = "torch.fx.experimental.symbolic_shapes"  # logs each symbol that becomes a number
NUMBER = re.compile(r"set_replacement \w+ = \d+ ")


def place_of(frames: Sequence[FrameType], model: nn.Module) -> str:
    """Return the innermost line of a user's module among frames, and the module; "" for none.

    Args:
        frames: the innermost first.
        model: whose modules are named.
    """
    names = {id(m): n for n, m in reversed(list(model.named_modules()))}
    by_type = {type(m): n for n, m in model.named_modules()}
    for frame in frames:
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        written_by_user = code.co_name != "__call__" and "/torch/" not in code.co_filename
        if isinstance(owner, nn.Module) and written_by_user:
            label = getattr(owner, "label", "")  # of a node that was read from a file
            if label:
                return f"node {label}"
            name = names.get(id(owner), by_type.get(type(owner), "")) or "(top)"
            line = f"{code.co_filename}:{frame.f_lineno}"
            return f"module {name} ({type(owner).__name__}), {line}"
    return ""


def place_of_failure(exc: BaseException, model: nn.Module) -> str:
    """Return the innermost line of a user's module on the way to a failure.

    Args:
        exc: what was raised.
        model: whose modules are named.

    Returns:
        Such as ``module layer1.0 (Block), net.py:12``; "" where no module is on the way.
    """
    frames = [f for f, _ in traceback.walk_tb(exc.__traceback__)]
    return place_of(frames[::-1], model)


def tie(model: nn.Module, trace: Callable[[], object]) -> str:
    """Return where a model gives an open axis one size, in words; "" where that is not known.

    Args:
        model: what is traced.
        trace: traces it again, and fails.
    """
    watch = _Watch(model)
    logger = logging.getLogger(SYMBOLS)
    level, passes_on = logger.level, logger.propagate
    others = list(logger.handlers)
    logger.handlers[:] = [watch]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        with contextlib.suppress(Exception):
            trace()
    finally:
        logger.handlers[:] = others
        logger.propagate = passes_on
        logger.setLevel(level)
    return watch.words


class _Watch(logging.Handler):
    """Notes where the first symbol becomes a number."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(logging.INFO)
        self.model, self.words = model, ""

    def emit(self, record: logging.LogRecord) -> None:
        """Look at the frames that a message comes from."""
        if self.words or not NUMBER.match(record.getMessage()):
            return
        place = place_of([f for f, _ in traceback.walk_stack(None)], self.model)
        if place:
            self.words = f"{place} depends on the size of an open axis"
