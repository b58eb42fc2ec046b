"""Why torch.export refused a model, in a user's words."""

from __future__ import annotations

from torch import nn

from trtq.errors import CaptureError, first_line
from trtq.graph.ties import place_of_failure

TYPES_DIFFER = ("same dtype", "scalar type", "should be the same", "Double")


def explain(exc: BaseException, model: nn.Module) -> CaptureError:
    """Return the error of a failure of torch.export; it names the module and the source line.

    Args:
        exc: what torch raised.
        model: whose modules are named.
    """
    where = place_of_failure(exc, model)
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


def hint_of_failure(text: str) -> str:
    """Return what to do where the types, or else the sizes, of tensors do not fit each other.

    Args:
        text: of the exception.
    """
    if any(word in text for word in TYPES_DIFFER):
        return (
            "All weights and inputs are float32 here: remove .double(), .half(), .to(dtype) and "
            "float64 constants from forward()"
        )
    return (
        "Give the size it expects with --input-size CxHxW, or an example of each input with "
        "--input NAME=SIZES; data hold one sample an item, without a batch axis"
    )
