"""The preprocessing of a file: what a user gives, else what the file carries, else a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from trtq.data.image_size import image_hints
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.errors import UsageError, reason
from trtq.specs.inputs import Picture

PLACE = ("resize", "crop")
VALUES = ("mean", "std")
# Settings of the file that no longer hold where a user gives the first: they follow from it.
BRINGS: Mapping[str, tuple[str, ...]] = {
    "preset": (*VALUES, *PLACE, "fit", "interpolation"),
    "input_size": PLACE,
    "fit": PLACE,
    "input_dtype": VALUES,
}


def file_preprocess(
    given: Picture,
    stored: Mapping[str, Any] | None,
    shape: Sequence[Any],
    maker_metadata: Mapping[str, str],
) -> tuple[Preprocess, list[str]]:
    """Return the preprocessing, and what the user should know about it.

    Args:
        given: values of the user; None where there is none. Such values remain as in the file,
            but for what follows from the rest: a preset, a size, a type and a fit bring their own.
        stored: what the file carries; None where it carries nothing.
        shape: of the image input, the batch included.
        maker_metadata: what the maker of the file wrote into its metadata.

    Raises:
        UsageError: numbers of channels differ, a standard deviation is not greater than 0, or the
            preprocessing of the file cannot be read.
    """
    typed = {k: v for k, v in given.items() if v is not None}
    if stored is None:
        return resolve_preprocess(**given, hints=image_hints(shape, maker_metadata))
    known = _known(stored)
    if not typed:
        return known, []
    kept = _kept(known, typed)
    chosen: Any = {**dict.fromkeys(given), **kept, **typed}
    preprocess, notes = resolve_preprocess(**chosen, hints=image_hints(shape, maker_metadata))
    # None is a choice of the file here, and not a lack of one.
    same = {n: kept[n] for n in PLACE if n in kept and n not in typed}
    return msgspec.structs.replace(preprocess, **same), notes


def _known(stored: Mapping[str, Any]) -> Preprocess:
    try:
        return msgspec.convert(stored, Preprocess)
    except msgspec.ValidationError as exc:
        raise UsageError(
            "Cannot read the preprocessing in the file",
            reason(exc),
            "Write the file again with trtq quantize or trtq export",
        ) from exc


def _kept(known: Preprocess, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what remains as the file has it, under the names of options."""
    own = {**msgspec.structs.asdict(known), "input_dtype": known.dtype}
    gone = {*typed, *(name for key in typed for name in BRINGS.get(key, ()))}
    if known.dtype == "uint8":  # its mean and standard deviation have no effect
        gone |= set(VALUES)
    kept = {n: own[n] for n in Picture.__annotations__ if n in own and n not in gone}
    if typed.get("channel_order", known.channel_order) != known.channel_order:
        kept |= {n: tuple(reversed(kept[n])) for n in VALUES if n in kept}
    return kept
