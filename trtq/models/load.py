"""From the text a user types to a module in eval mode, with its authors' input settings."""

from __future__ import annotations

import copy
import inspect
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trtq.errors import ModelError, suggest
from trtq.models.checkpoint import Loaded, Match, check_finite, load_checkpoint_, zero_weights
from trtq.models.deployed import deployed_
from trtq.models.file_kind import kind_of
from trtq.models.unwrap import out_of_inference_mode_, unwrap
from trtq.user_code import call_factory, import_named

BUILTIN = ("fcn_resnet18",)
HINT_KEYS = ("input_size", "mean", "std", "crop_pct", "interpolation")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A module in eval mode and where it came from.

    Attributes:
        module: float32, on the CPU, in eval mode.
        name: the text it was asked for by.
        input_hints: what the model's authors say of its input (``input_size``, ``mean``, ``std``,
            ``crop_pct``, ``interpolation``), empty when they say nothing.
        weights: where the weights come from, in words, and what was done to fit them.
        notes: what a user must know about how the model and its weights were read.
    """

    module: nn.Module
    name: str
    weights: str
    notes: tuple[str, ...] = ()
    input_hints: Mapping[str, Any] = field(default_factory=dict)


def parse_value(text: str) -> int | float | bool | str:
    """Return ``text`` as an int, a float or a bool where it reads as one.

    Args:
        text: of an option; other texts are returned as they are.

    >>> parse_value("10"), parse_value("0.5"), parse_value("true"), parse_value("relu")
    (10, 0.5, True, 'relu')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def load_model(
    name: str,
    *,
    args: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    match: Match = "name",
    key: str | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Return the model ``name`` in eval mode with its weights.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``trtq:fcn_resnet18``, ``package.module:factory``
            or ``path/to/file.py:factory``.
        args: keyword arguments of the factory; texts that read as numbers or booleans become such.
        checkpoint: weights to load; without one the weights are the factory's own (random for timm
            and torchvision).
        match: whether tensors of the checkpoint match those of the model by name or by order.
        key: where in the checkpoint the weights are.
        seed: makes random weights repeatable.

    Raises:
        ModelError: unknown model (with suggestions), a factory that fails, a checkpoint that does
            not fit, NaN weights.
    """
    kind = _kind(name)
    torch.manual_seed(seed)
    kwargs = {k: parse_value(v) if isinstance(v, str) else v for k, v in (args or {}).items()}
    model = _make(name, kwargs)
    hints = _input_hints(model) if kind == "timm" else {}
    module, notes = unwrap(model, name)
    notes += _float_note(module)
    module = module.float().cpu()
    out_of_inference_mode_(module)
    own = "the factory's own" if kind not in (*_FETCH, "trtq") else f"random (seed {seed})"
    loaded = Loaded(text=own, notes=())
    if checkpoint is not None:
        loaded = load_checkpoint_(module, checkpoint, match, key)
    zero = zero_weights(module)
    return LoadedModel(
        module=module,
        name=name,
        weights="; ".join([loaded.text, *zero]),
        input_hints=hints,
        notes=(*notes, *loaded.notes, *check_finite(module), *zero, *deployed_(module)),
    )


def _kind(name: str) -> str:
    """Return the part before the colon of a model's name.

    Raises:
        ModelError: nothing does.
    """
    kind, _, rest = name.partition(":")
    if rest:
        return kind
    if Path(name).is_file():
        raise _no_model(Path(name))
    raise ModelError(
        f"Cannot load the model {name!r}",
        "it has no source before a colon",
        f"Write timm:{name}, torchvision:{name}, package.module:factory, path/to/file.py:factory, "
        "FILE.onnx or FILE.pt2",
    )


def _no_model(path: Path) -> ModelError:
    """Return why a file is no model: it holds tensors, or code that is not run."""
    message = f"Cannot load the model {str(path)!r}"
    if kind_of(path) == "torchscript":
        return ModelError(
            message,
            "it is a TorchScript archive, and its code is not run",
            "Export the module that it was made from: torch.export.save(torch.export.export("
            'module, example), "model.pt2"), or torch.onnx.export',
        )
    return ModelError(
        message,
        "it holds weights without a model",
        f"Name the model and give the file as its weights: timm:NAME --checkpoint {path}",
    )


def _input_hints(model: nn.Module) -> Mapping[str, Any]:
    """Return what timm's authors say of the input of a model."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return {k: config[k] for k in HINT_KEYS if config.get(k) is not None}


def _make(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return what the factory of a model makes.

    Raises:
        ModelError: unknown, it fails, or it makes something else.
    """
    kind, _, rest = name.partition(":")
    if kind in _FETCH:
        factory = _timm(rest) if kind == "timm" else _torchvision(rest)
        kwargs = _without_fetching(kind, rest, kwargs)
    elif kind == "trtq":
        if rest not in BUILTIN:
            raise ModelError(f"Unknown model {name!r}", hint=suggest(rest, BUILTIN))
        from trtq.models.fcn import fcn_resnet18

        factory = fcn_resnet18
    else:
        factory = _own_factory(name)
    model = call_factory(factory, name, kwargs)
    if not isinstance(model, nn.Module):
        what = f"its factory returned {type(model).__name__}, not a torch.nn.Module"
        raise ModelError(f"Cannot use {name!r}", what)
    return model


def _float_note(module: nn.Module) -> list[str]:
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters()}
    other = sorted(kinds - {"float32"})
    return (
        [f"parameters of the model were {', '.join(other)}: converted to float32"] if other else []
    )


def _timm(name: str) -> Callable[..., nn.Module]:
    import timm

    base = name.split(".", 1)[0]
    if not timm.is_model(base):
        raise ModelError(f"Unknown timm model {name!r}", hint=suggest(base, timm.list_models()))
    return lambda **kw: timm.create_model(name, pretrained=False, **kw)


def _torchvision(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise ModelError(f"Unknown torchvision model {name!r}", hint=suggest(name, known))
    takes = inspect.signature(models.get_model_builder(name)).parameters
    # Detection and segmentation models fetch the weights of their backbone unless they are told not
    # to.
    none = {k: None for k in ("weights", "weights_backbone") if k in takes}
    return lambda **kw: models.get_model(name, **none, **kw)


# Arguments with which factories of these packages fetch or read weights of their own, and how to
# get those into a file.
_FETCHING = ("pretrained", "pretrained_backbone", "weights", "weights_backbone", "checkpoint_path")
_FETCH = {
    "timm": "timm.create_model({0!r}, pretrained=True)",
    "torchvision": "torchvision.models.get_model({0!r}, weights='DEFAULT')",
}


def _without_fetching(kind: str, rest: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without those that ask for no weights.

    Raises:
        ModelError: one asks for weights from the network or from a file.
    """
    for key in _FETCHING:
        if kwargs.get(key) in (None, False, 0, "", "None", "none"):
            continue
        what = f"Cannot make the model '{kind}:{rest}' with {key}={kwargs[key]}"
        if key == "checkpoint_path":
            raise ModelError(
                what,
                "weights come from --checkpoint",
                f"Give --checkpoint {shlex.quote(str(kwargs[key]))}",
            )
        state = f"{_FETCH[kind].format(rest)}.state_dict()"
        code = f"import torch, {kind}; torch.save({state}, 'weights.pt')"
        raise ModelError(
            what,
            "trtq downloads nothing; weights come from a file",
            f'Save them where there is a network: python -c "{code}"; then --checkpoint weights.pt',
        )
    return {k: v for k, v in kwargs.items() if k not in _FETCHING}


def _own_factory(name: str) -> Callable[..., nn.Module]:
    factory = import_named(name, "model")
    if isinstance(factory, nn.Module):  # a model, ready-made: the user's own object is not changed
        ready: nn.Module = factory
        return lambda: copy.deepcopy(ready)
    result: Callable[..., nn.Module] = factory
    return result
