"""A model as it is deployed: training branches joined, heads in the mode of their own exporter."""

from __future__ import annotations

from torch import nn

from trtq.models.reparameterize import reparameterize_

# A head of ultralytics remembers the size of its last input unless it is to be exported, and then
# gives its predictions beside the maps that they were made from.
HEAD = ("export", "format", "dynamic", "shape")


def deployed_(module: nn.Module) -> list[str]:
    """Turn a model into its deployed form in place; return what was done.

    Args:
        module: in eval mode, with its weights.

    Raises:
        ModelError: a part cannot join its training branches.
    """
    return [*reparameterize_(module), *_export_heads_(module)]


def _export_heads_(module: nn.Module) -> list[str]:
    heads = [m for m in module.modules() if all(hasattr(m, name) for name in HEAD)]
    for head in heads:
        for name, value in (("export", True), ("format", "onnx"), ("dynamic", True)):
            setattr(head, name, value)
    names = ", ".join(dict.fromkeys(type(m).__name__ for m in heads))
    return [f"the head {names} gives its predictions alone, as ultralytics exports it"] * bool(
        heads
    )
