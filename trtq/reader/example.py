"""An example of a file's inputs: fixed sizes as they are, open ones by what the model can run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import nn

from trtq.errors import TrtqError, UsageError
from trtq.graph.inputs import BATCH_OF_TWO, ModelInputs, random_input
from trtq.layouts import IMAGE_AXES, channels_first, in_layout, layout_of
from trtq.reader.port import Port

USUAL_SIZE = (3, 224, 224)  # where nobody gave one, and the file's inputs are no images
MOST_GUESSED = 4  # axes
LARGEST_TRIAL = 1 << 22  # values of an input whose sizes are guessed
LENGTHS = (16, 64, 128, 256, 512, 576, 1600, 16000)  # of open axes that nobody gave a size


def inputs_of(
    model: nn.Module,
    ports: Sequence[Port],
    size: tuple[int, int, int] | None,
    rows: Mapping[str, int],
) -> ModelInputs:
    """Return an example of every input and the open axes that the file declares.

    An open axis of no known size gets the first of ``LENGTHS``, or 2, with which the model runs;
    without any the first one. A model that does not run with the first of them has a smallest
    length: it gets twice that where it runs with it, since axes inside it may be 1 at the smallest.

    Args:
        model: takes the inputs in order; sizes are tried on it.
        ports: the inputs.
        size: (C, H, W) of images; used where the file leaves them open.
        rows: of the table that an input indexes, by its name.

    Raises:
        UsageError: the size contradicts the file.
    """
    if size is not None and size != USUAL_SIZE:
        _require_size(ports, size)
    axes = axes_of(ports)
    open_names = {a for named in axes.values() for a in named if isinstance(a, str)}
    known = _image_sizes(ports, axes, size)
    rest = sorted(open_names - set(known))
    guesses = [known | sizes for sizes in _guesses(rest)]
    small = [g for g in guesses if _values(ports, axes, g) <= LARGEST_TRIAL]

    def runs(sizes: dict[str, int]) -> bool:
        return _runs(model, _example(ports, axes, sizes, rows))

    fits = next(filter(runs, small), guesses[0]) if len(guesses) > 1 else guesses[0]
    if fits != guesses[0]:
        twice = next((g for g in small if _is_twice(g, fits, rest)), fits)
        fits = twice if twice != fits and runs(twice) else fits
    declared = axes if open_names else {p.name: tuple(p.shape) for p in ports}
    return ModelInputs(_example(ports, axes, fits, rows), declared)


def axes_of(ports: Sequence[Port]) -> dict[str, tuple[int | str, ...]]:
    """Return the sizes of inputs by name, open axes as texts.

    The text is the axis's name in the file as an identifier, or ``INPUT_axisI``.
    """
    return {port.name: _names(port) for port in ports}


def _guesses(names: Sequence[str]) -> list[dict[str, int]]:
    """Return sizes for open axes that nobody gave one: each is a length, or counts samples."""
    if not names:
        return [{}]
    if len(names) > MOST_GUESSED:
        return [dict.fromkeys(names, length) for length in LENGTHS]
    return [
        dict(zip(names, sizes, strict=True))
        for length in LENGTHS
        for sizes in product((length, BATCH_OF_TWO), repeat=len(names))
    ]


def _is_twice(sizes: Mapping[str, int], smallest: Mapping[str, int], names: Sequence[str]) -> bool:
    """Whether each length is twice another one or more; two samples are two samples."""
    return all(
        sizes[n] == BATCH_OF_TWO
        if smallest[n] == BATCH_OF_TWO
        else sizes[n] >= 2 * smallest[n] and sizes[n] != BATCH_OF_TWO
        for n in names
    )


def _names(port: Port) -> tuple[int | str, ...]:
    """Return the sizes of an input; each open one has a name that is an identifier."""
    return tuple(
        d if isinstance(d, int) else _identifier(d) or f"{_identifier(port.name)}_axis{i}"
        for i, d in enumerate(port.shape)
    )


def _identifier(text: str) -> str:
    clean = re.sub(r"\W+", "_", text).strip("_")
    return f"_{clean}" if clean[:1].isdigit() else clean


def _image_sizes(
    ports: Sequence[Port],
    axes: dict[str, tuple[int | str, ...]],
    size: tuple[int, int, int] | None,
) -> dict[str, int]:
    """Return the sizes of open axes that are known: two samples, and the image's own.

    Raises:
        UsageError: a fixed size is another than that of the image.
    """
    known: dict[str, int] = {}
    for port in ports:
        named = axes[port.name]
        if named and isinstance(named[0], str):
            known.setdefault(named[0], BATCH_OF_TWO)
        if len(named) != IMAGE_AXES or not port.dtype.is_floating_point or size is None:
            continue
        layout = layout_of(port.shape) or "NCHW"
        for axis, axis_size in zip(named[1:], in_layout(size, layout), strict=True):
            if isinstance(axis, str):
                known.setdefault(axis, axis_size)
    return known


def _require_size(ports: Sequence[Port], size: tuple[int, int, int]) -> None:
    """Refuse a size of images that a file does not take.

    Raises:
        UsageError: names both sizes.
    """
    images = [p for p in ports if len(p.shape) == IMAGE_AXES]
    for port in images if len(ports) == 1 else []:
        sizes = channels_first(port.shape[1:], layout_of(port.shape) or "NCHW")
        fixed = zip(sizes, size, strict=True)
        if any(isinstance(d, int) and d != axis_size for d, axis_size in fixed):
            own = "x".join(str(d) if isinstance(d, int) else "any" for d in sizes)
            raise UsageError(
                f"Cannot give {'x'.join(map(str, size))} images to the ONNX model",
                f"its input {port.name} is fixed to {own}",
                f"Leave --input-size out, or give --input-size {own}",
            )


def _example(
    ports: Sequence[Port],
    axes: dict[str, tuple[int | str, ...]],
    known: dict[str, int],
    rows: Mapping[str, int],
) -> dict[str, torch.Tensor]:
    example = {}
    for i, port in enumerate(ports):
        sizes = [d if isinstance(d, int) else known[d] for d in axes[port.name]]
        dtype = str(port.dtype).removeprefix("torch.")
        example[port.name] = random_input(sizes, dtype, seed=i, rows=rows.get(port.name))
    return example


def _values(
    ports: Sequence[Port], axes: dict[str, tuple[int | str, ...]], known: dict[str, int]
) -> int:
    """Return how many values the largest input has."""
    sizes = ([d if isinstance(d, int) else known[d] for d in axes[p.name]] for p in ports)
    return max(map(math.prod, sizes), default=0)


def _runs(model: nn.Module, example: dict[str, torch.Tensor]) -> bool:
    """Whether a model takes inputs of these sizes."""
    try:
        with torch.no_grad():
            model(*example.values())
    except (RuntimeError, ValueError, IndexError, TypeError, TrtqError):
        return False
    return True
