"""From the text a user types to a module in eval mode, with what its authors say about its input."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from trtq.errors import ModelError, suggest
from trtq.models.checkpoint import check_finite, load_checkpoint_
from trtq.models.onnx_instead import onnx_instead

BUILTIN = ("fcn_resnet18",)
HINT_KEYS = ("input_size", "mean", "std", "crop_pct", "interpolation")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A module in eval mode and where it came from.

    Attributes:
        module: float32, on the CPU, in eval mode.
        name: the text it was asked for by.
        input_hints: what the model's authors say of its input (``input_size``, ``mean``, ``std``, ``crop_pct``,
            ``interpolation``), empty when they say nothing.
        weights: where the weights come from, in words.
    """

    module: nn.Module
    name: str
    weights: str
    input_hints: Mapping[str, Any] = field(default_factory=dict)


def parse_value(text: str) -> int | float | bool | str:
    """Return ``text`` as an int, a float or a bool where it reads as one.

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
    match: Literal["name", "order"] = "name",
    seed: int = 0,
) -> LoadedModel:
    """Return the model ``name`` in eval mode with its weights.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``trtq:fcn_resnet18``, ``package.module:factory`` or
            ``path/to/file.py:factory``.
        args: keyword arguments of the factory; texts that read as numbers or booleans become such.
        checkpoint: weights to load; without one the weights are the factory's own (random for timm and torchvision).
        match: how tensors of the checkpoint find theirs in the model.
        seed: makes random weights repeatable.

    Raises:
        ModelError: unknown model (with suggestions), a factory that fails, a checkpoint that does not fit, NaN weights.
    """
    kind, _, rest = name.partition(":")
    if not rest and name.endswith(".onnx"):
        raise ModelError(f"Cannot load the model {name!r}", *onnx_instead(Path(name)))
    if not rest:
        raise ModelError(
            f"Cannot load the model {name!r}",
            "it has no source before a colon",
            f"Write timm:{name}, torchvision:{name}, package.module:factory or path/to/file.py:factory",
        )
    kwargs = {k: parse_value(v) if isinstance(v, str) else v for k, v in (args or {}).items()}
    torch.manual_seed(seed)
    if kind == "timm":
        factory = _timm(rest)
    elif kind == "torchvision":
        factory = _torchvision(rest)
    elif kind == "trtq":
        if rest not in BUILTIN:
            raise ModelError(f"Unknown model {name!r}", mend=suggest(rest, BUILTIN))
        from trtq.models.fcn import fcn_resnet18

        factory = fcn_resnet18
    else:
        factory = _own_factory(name)
    try:
        module = factory(**kwargs)
    except Exception as exc:
        raise ModelError(f"Cannot make the model {name!r}", f"its factory raised {type(exc).__name__}: {exc}", "Check --model-arg") from exc
    if not isinstance(module, nn.Module):
        raise ModelError(f"Cannot use {name!r}", f"its factory returned {type(module).__name__}, not a torch.nn.Module")
    authors: Any = getattr(module, "pretrained_cfg", None) or {}
    hints = {k: authors[k] for k in HINT_KEYS if authors.get(k) is not None} if kind == "timm" else {}
    if checkpoint is not None:
        load_checkpoint_(module, checkpoint, match)
    check_finite(module)
    own = kind not in ("timm", "torchvision", "trtq")
    weights = str(checkpoint) if checkpoint else ("the factory's own" if own else f"random (seed {seed})")
    return LoadedModel(module=module.float().cpu().eval(), name=name, weights=weights, input_hints=hints)


def _timm(name: str) -> Callable[..., nn.Module]:
    import timm

    base = name.split(".", 1)[0]
    if not timm.is_model(base):
        raise ModelError(f"Unknown timm model {name!r}", mend=suggest(base, timm.list_models()))
    return lambda **kw: timm.create_model(name, pretrained=False, **kw)


def _torchvision(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise ModelError(f"Unknown torchvision model {name!r}", mend=suggest(name, known))
    segmentation = name in models.list_models(module=models.segmentation)
    extra = {"weights_backbone": None} if segmentation else {}
    return lambda **kw: models.get_model(name, weights=None, **{**extra, **kw})


def import_named(name: str, what: str) -> Any:
    """Return the attribute ``package.module:attribute`` or ``path/to/file.py:attribute``.

    Args:
        name: as the user wrote it.
        what: it is for, as errors call it.

    Raises:
        ModelError: the module cannot be imported, or has no callable of that name.
    """
    where, _, attr = name.rpartition(":")
    forms = "timm:NAME, torchvision:NAME, trtq:fcn_resnet18, " if what == "model" else ""
    try:
        if where.endswith(".py"):
            path = Path(where).resolve()
            if not path.is_file():
                raise ModelError(f"Cannot load the {what} {name!r}", f"there is no file {where}")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise ModelError(f"Cannot load the {what} {name!r}", f"{where} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            if str(path.parent) not in sys.path:  # a file imports its neighbours
                sys.path.insert(0, str(path.parent))
            spec.loader.exec_module(module)
        else:
            # A console script does not see the current folder; a user's own package usually lies there.
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(where)
    except ModelError:
        raise
    except Exception as exc:
        raise ModelError(
            f"Cannot load the {what} {name!r}",
            f"importing {where} raised {type(exc).__name__}: {exc}",
            f"Known forms: {forms}package.module:NAME, path/to/file.py:NAME",
        ) from exc
    found = getattr(module, attr, None)
    if not callable(found):
        names = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
        raise ModelError(f"Cannot load the {what} {name!r}", f"{where} has no callable {attr!r}", suggest(attr, names))
    return found


def _own_factory(name: str) -> Callable[..., nn.Module]:
    factory = import_named(name, "model")
    if isinstance(factory, nn.Module):  # a model, ready-made
        ready: nn.Module = factory
        return lambda: ready
    result: Callable[..., nn.Module] = factory
    return result
