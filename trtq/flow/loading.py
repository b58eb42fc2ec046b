"""From the text of a model to a module, for every kind of file or factory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trtq.errors import UsageError
from trtq.models.checkpoint import Match
from trtq.models.load import LoadedModel, load_model
from trtq.models.pt2 import load_pt2
from trtq.reader.load import load_onnx_model

# Files that hold a model with its weights, by suffix; the second value of a call are inputs that
# become constants.
WHOLE: Mapping[str, Callable[[Path, Mapping[str, Any]], LoadedModel]] = {
    ".onnx": lambda path, fixed: load_onnx_model(path, fixed=fixed),
    ".pt2": lambda path, _: load_pt2(path),
}


def load_text(
    name: str,
    *,
    args: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    match: Match = "name",
    key: str | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Return the model that a text names: a file with its weights, or a factory.

    Args:
        name: ``FILE.onnx``, ``FILE.pt2`` or what :func:`trtq.models.load.load_model` takes.
        args: keyword arguments of the factory; of an ONNX file inputs that become constants.
        checkpoint: weights to load into what the factory makes.
        match: whether tensors of the checkpoint match those of the model by name or by order.
        key: where in the checkpoint the weights are.
        seed: makes random weights repeatable.

    Raises:
        ModelError: unknown, or its weights do not fit.
        ExportError: an ONNX file that is missing or damaged.
        UsageError: a checkpoint for a file that has its weights, arguments that it does not take,
            or how to read a checkpoint and none.
    """
    suffix = Path(name).suffix.lower()
    load = WHOLE.get(suffix)
    if load is None:
        if checkpoint is None:
            require_no_reading(match, key)
        return load_model(name, args=args, checkpoint=checkpoint, match=match, key=key, seed=seed)
    unused = {
        "--checkpoint": checkpoint,
        "--model-arg": args if suffix != ".onnx" else None,
        "--checkpoint-key": key,
        "--checkpoint-match": match != "name",
    }
    given = [option for option, value in unused.items() if value]
    if given:
        raise UsageError(
            f"Cannot use {' and '.join(given)} with {name}",
            "the file has its weights and takes no arguments",
            "Leave it out",
        )
    return load(Path(name), args or {})


def require_no_reading(match: Match, key: str | None) -> None:
    """Refuse options about a checkpoint where there is none.

    Args:
        match: how names are matched.
        key: where the weights are.

    Raises:
        UsageError: names the option.
    """
    for option, given in (("--checkpoint-key", key), ("--checkpoint-match", match != "name")):
        if given:
            raise UsageError(f"{option} needs --checkpoint", "it says how that file is read")
