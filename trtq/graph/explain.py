"""Why torch.export refused a model, in a user's words."""

from __future__ import annotations

import traceback

from torch import nn

from trtq.errors import CaptureError, first_line

TYPES_DIFFER = ("same dtype", "scalar type", "should be the same", "Double")


def explain(exc: BaseException, model: nn.Module) -> CaptureError:
    """Name the module and the source line a torch.export failure comes from."""
    where = _last_module(exc, model)
    text = first_line(exc)
    hint = (
        "Change that line to plain tensor operations, or quantize a part of the model that has none"
    )
    if "data-dependent" in str(exc) or "GuardOnDataDependentSymNode" in type(exc).__name__:
        text = (
            "forward() decides by the values of a tensor (if, while, .item()), which a graph "
            "cannot do"
        )
        hint = "Replace the decision by torch.where or torch.cond, or move it out of forward()"
    if text.startswith(("Constraints violated", "Cannot create Dim")):
        names = text.partition("violated (")[2].partition(")")[0] or "its open axes"
        text = f"it does not take every size of {names}"
        hint = (
            "Give a wider range, in multiples where the model halves and joins maps: --dynamic "
            "NAME=batch,3,height:64..1280:32,width:64..1280:32. Or leave these axes fixed"
        )
        where = ""
    place = f" at {where}" if where else ""
    return CaptureError(f"Cannot capture the model as a graph{place}", text, hint)


def _last_module(exc: BaseException, model: nn.Module) -> str:
    """Return the innermost module of the user's on the way to a failure, with its line."""
    names = {id(m): n for n, m in reversed(list(model.named_modules()))}
    by_type = {type(m): n for n, m in model.named_modules()}
    frames = [f for f, _ in traceback.walk_tb(exc.__traceback__)]
    for frame in reversed(frames):
        owner, code = frame.f_locals.get("self"), frame.f_code
        written_by_user = code.co_name != "__call__" and "/torch/" not in code.co_filename
        if isinstance(owner, nn.Module) and written_by_user:
            name = names.get(id(owner), by_type.get(type(owner), "")) or "(top)"
            line = f"{code.co_filename}:{frame.f_lineno}"
            return f"module {name} ({type(owner).__name__}), {line}"
    return ""


def hint_of_failure(text: str) -> str:
    """Return what to do where the types, or else the sizes, of tensors do not fit each other."""
    if any(word in text for word in TYPES_DIFFER):
        return (
            "All weights and inputs are float32 here: remove .double(), .half(), .to(dtype) and "
            "float64 constants from forward()"
        )
    return (
        "Give the size it expects with --input-size CxHxW, or an example of each input with "
        "--input NAME=SIZES; data hold one sample an item, without a batch axis"
    )
