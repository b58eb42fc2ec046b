"""How many classes a model distinguishes, where something says so.

The columns do not: an embedding has as many as a classifier.
"""

from __future__ import annotations

from torch import nn


def known_classes(module: nn.Module, name: str, columns: int) -> int | None:
    """Return how many classes a model's scores are of.

    Returns None where nothing says that its outputs are scores.

    Args:
        module: the model; timm's, and many others, carry ``num_classes``.
        name: the text it was asked for by; torchvision's classifiers and segmentation models are
            known by it.
        columns: the size of axis 1 of its output.
    """
    own = getattr(module, "num_classes", None)
    if isinstance(own, int) and not isinstance(own, bool):
        return own
    kind, _, rest = name.partition(":")
    if kind == "trtq":
        return columns
    if kind == "torchvision":
        from torchvision import models

        known = [
            *models.list_models(module=models),
            *models.list_models(module=models.segmentation),
        ]
        return columns if rest in known else None
    return None
