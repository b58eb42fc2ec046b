"""Training branches that become one convolution each: MobileOne, RepVGG, FastViT, RepConv."""

from __future__ import annotations

import torch
from torch import nn

from trtq.errors import ModelError, first_line

# Names of the method of modules that join their own branches: timm, RepVGG's authors, ultralytics.
NAMES = ("reparameterize", "switch_to_deploy", "fuse_convs")
# Classes whose ``fuse`` does that; elsewhere it folds a BatchNorm, which capture does itself.
FUSE = ("RepVggDw", "RepVGGDW")


def reparameterize_(module: nn.Module) -> list[str]:
    """Join the training branches of every part that can, in place; return what was done.

    Such parts train as several convolutions side by side and compute the same as one, which is what
    is deployed.

    Args:
        module: in eval mode.

    Raises:
        ModelError: a part cannot join its branches.
    """
    before = _convolutions(module)
    parts = [where for where, part in list(module.named_modules()) if _join_(module, where, part)]
    if not parts:
        return []
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()  # some detach what they made
    after = _convolutions(module)
    return [
        f"training branches of {len(parts)} parts were joined: {before} convolutions became {after}"
    ]


def _join_(module: nn.Module, where: str, part: nn.Module) -> bool:
    """Join the branches of a part where it can; say whether it did.

    Raises:
        ModelError: it fails.
    """
    named = NAMES if type(part).__name__ not in FUSE else ("fuse",)
    join = next((f for n in named if callable(f := getattr(part, n, None))), None)
    if join is None or not any(True for _ in part.children()):
        return False
    before = structure_of(part)
    try:
        with torch.no_grad():
            joined_part = join()
    except Exception as exc:  # a part of somebody else's code
        raise ModelError(
            f"Cannot join the training branches at {where or 'the model'}",
            f"{type(exc).__name__}: {first_line(str(exc))}",
            "Join them before the model is given (reparameterize, switch_to_deploy)",
        ) from exc
    if isinstance(joined_part, nn.Module) and where:  # some give the joined part instead
        parent, _, child = where.rpartition(".")
        setattr(module.get_submodule(parent), child, joined_part)
        return True
    if structure_of(part) == before:
        return False
    joined = getattr(part, "forward_fuse", None)
    if callable(joined) and "forward" not in vars(part):  # ultralytics leaves that to its model
        vars(part)["forward"] = joined
    return True


def structure_of(part: nn.Module) -> list[str]:
    """Return the names of a part's modules.

    Args:
        part: of a model.

    Returns:
        Relative to the part, itself ("") first.
    """
    return [name for name, _ in part.named_modules()]


def _convolutions(module: nn.Module) -> int:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return sum(isinstance(m, kinds) for m in module.modules())
