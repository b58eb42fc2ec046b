"""Checkpoints: read without running code, matched by name or in order, every shape checked."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from trtq.errors import ModelError, suggest

StateDict = dict[str, torch.Tensor]
WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_state_dict(path: Path) -> StateDict:
    """Return the tensors of a ``.safetensors``, ``.pt`` or ``.pth`` file by name.

    A ``.pt`` file is read with ``weights_only=True``: nothing in it is executed. It may be a bare state dict or hold one
    under ``state_dict``, ``model`` or ``model_state_dict``; a ``module.`` prefix (DataParallel) is stripped.

    Raises:
        ModelError: missing, damaged, or not a state dict.
    """
    if not path.is_file():
        raise ModelError(f"Cannot read the checkpoint {path}", "there is no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: object = load_file(path)
        except (SafetensorError, OSError) as exc:
            raise ModelError(f"Cannot read the checkpoint {path}", f"it is not a whole safetensors file ({exc})") from exc
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as exc:
            if "nsupported" not in str(exc):
                raise ModelError(f"Cannot read the checkpoint {path}", "it is not a whole torch file") from exc
            raise ModelError(
                f"Cannot read the checkpoint {path}",
                "it holds more than tensors, and reading that would run code from the file",
                "Save only the weights: torch.save(model.state_dict(), 'weights.pt')",
            ) from exc
        except Exception as exc:  # the unpickler raises whatever a torn file leads it into
            raise ModelError(f"Cannot read the checkpoint {path}", f"it is not a whole torch file ({exc})") from exc
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ModelError(
            f"Cannot use the checkpoint {path}",
            f"expected a state dict, found {type(state).__name__}",
            "Save only the weights: torch.save(model.state_dict(), 'weights.pt')",
        )
    tensors = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ModelError(f"Cannot use the checkpoint {path}", f"no tensors in it; its keys are {list(state)[:6]}")
    return tensors


def _check_names(own: StateDict, given: StateDict, path: Path) -> None:
    missing, extra = [k for k in own if k not in given], [k for k in given if k not in own]
    # Counters that BatchNorm keeps for training are not weights: files without them are whole.
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    extra = [k for k in extra if not k.endswith("num_batches_tracked")]
    if not missing and not extra:
        return
    why = f"{len(missing)} names of the model are missing and {len(extra)} names are not the model's"
    if missing:
        why += f"; missing {missing[0]!r}" + (f" ({suggest(missing[0], extra).rstrip('?')} in the file)" if extra else "")
    if extra:
        why += f"; unexpected {extra[0]!r}" + (f" ({suggest(extra[0], list(own)).rstrip('?')} in the model)")
    mend = "Check the model name and --model-arg (num_classes?)"
    if len(own) == len(given):
        mend = "Both have the same number of tensors: if only the names differ, add --checkpoint-match order"
    raise ModelError(f"The checkpoint {path} does not fit the model", why, mend)


def load_checkpoint_(model: nn.Module, path: Path, match: Literal["name", "order"] = "name") -> None:
    """Load ``path`` into ``model`` in place.

    Args:
        model: the module that receives the weights.
        path: a ``.safetensors``, ``.pt`` or ``.pth`` file.
        match: ``name`` needs equal names; ``order`` pairs tensors in order and checks every shape.

    Raises:
        ModelError: names or shapes differ (the nearest names are suggested), or a weight is NaN or infinite.
    """
    own, given = dict(model.state_dict()), read_state_dict(path)
    if match == "order":
        if len(own) != len(given):  # counters that BatchNorm keeps for training are no weights
            own = {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}
            given = {k: v for k, v in given.items() if not k.endswith("num_batches_tracked")}
        if len(own) != len(given):
            raise ModelError(f"The checkpoint {path} does not fit the model in order", f"expected {len(own)} tensors, found {len(given)}")
        sources = dict(zip(own, given, strict=True))
    else:
        _check_names(own, given, path)
        sources = {k: k for k in own if k in given}
    for name, source in sources.items():
        if own[name].shape != given[source].shape:
            raise ModelError(
                f"The checkpoint {path} does not fit the model",
                f"{name!r} has shape {list(own[name].shape)}, the file's {source!r} has {list(given[source].shape)}",
                "Check the model name and --model-arg (num_classes?)",
            )
    model.load_state_dict({n: given[s] for n, s in sources.items()}, strict=False)


def check_finite(model: nn.Module) -> None:
    """Refuse a model with a NaN or infinite weight.

    Raises:
        ModelError: names the first such tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"The weights of {name!r} cannot be quantized",
                f"{bad} of {tensor.numel()} values are NaN or infinite",
                "Train again or take an earlier checkpoint",
            )
