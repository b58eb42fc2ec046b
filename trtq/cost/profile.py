"""Compare measured layer times of an engine with the roofline.

The times come from ``trtexec --exportProfile``. The result is the factor between measured and
predicted times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from pathlib import Path

import msgspec

from trtq.artifact import decode_json
from trtq.cost.roofline import KernelTime
from trtq.errors import ArtifactError, UsageError

SEPARATORS = re.compile(r"\s*(?:\+|\|\||,)\s*|\[ONNX Layer: |\]")


class Matched(msgspec.Struct, frozen=True, kw_only=True):
    """The measured and the predicted time of one layer.

    Attributes:
        kernels: names of the kernels that it contains.
        layer: as TensorRT calls it.
        predicted: ms, the sum over the kernels.
        measured: ms, the mean over the iterations.
    """

    kernels: list[str]
    layer: str
    predicted: float
    measured: float


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """How far a prediction is from a measured profile.

    Attributes:
        source: the profile.
        iterations: it averages over.
        measured_ms: sum over its layers.
        predicted_ms: sum over the kernels.
        factor: measured over predicted: what predictions for this device and kind of model are
            multiplied with.
        matched: layers and kernels whose names meet.
        unmatched: kernels without a layer.
    """

    source: str
    iterations: int
    measured_ms: float
    predicted_ms: float
    factor: float
    matched: list[Matched]
    unmatched: int


def correct(path: Path, times: Sequence[KernelTime]) -> Correction:
    """Return the correction that a profile gives.

    Args:
        path: what ``trtexec --exportProfile`` wrote.
        times: predicted, of every kernel of the same model.

    Raises:
        ArtifactError: the file is missing, or no profile of trtexec.
        UsageError: the model has no kernels.
    """
    count, layers = _layer_times(path)
    if not times:
        raise UsageError(
            f"Cannot compare the model with the profile {path}",
            f"the profile has {len(layers)} layers, the model has no kernels",
            "Give the model that the profile was measured with",
        )
    by_name, matched, used = {t.name: t for t in times}, list[Matched](), set[str]()
    for layer, ms in layers:
        kernels = [
            n for n in dict.fromkeys(layer_names(layer, by_name)) if n in by_name and n not in used
        ]
        if kernels:
            used.update(kernels)
            predicted = sum(by_name[n].ms for n in kernels)
            matched.append(Matched(kernels=kernels, layer=layer, predicted=predicted, measured=ms))
    measured_ms, predicted_ms = sum(ms for _, ms in layers), sum(t.ms for t in times)
    return Correction(
        source=str(path),
        iterations=count,
        measured_ms=measured_ms,
        predicted_ms=predicted_ms,
        factor=measured_ms / predicted_ms,
        matched=matched,
        unmatched=len(times) - len(used),
    )


def _layer_times(path: Path) -> tuple[int, list[tuple[str, float]]]:
    """Return how many iterations a profile averages over, and the time of each layer in ms.

    Raises:
        ArtifactError: the file is missing, or no profile of trtexec.
    """
    try:
        rows = _rows(path.read_text(encoding="utf-8", errors="replace"))
        count = next(int(r["count"]) for r in rows if "count" in r)
        layers = [
            (str(r["name"]), float(r.get("averageMs", math.nan))) for r in rows if "name" in r
        ]
        if not layers or any(not math.isfinite(ms) or ms < 0 for _, ms in layers):
            raise ValueError("its layers have no averageMs")
    except FileNotFoundError as exc:
        raise ArtifactError(f"Cannot read the profile {path}", "there is no such file") from exc
    except (OSError, msgspec.MsgspecError, StopIteration, ValueError) as exc:
        raise ArtifactError(
            f"{path} is no layer profile",
            f"expected what trtexec --exportProfile writes ({exc or 'no count'})",
            "Make it with that option",
        ) from exc
    return count, layers


def _rows(text: str) -> list[dict[str, str | float | int]]:
    """Return the entries of a profile.

    trtexec does not escape names, so a name with a quote or a backslash is read up to the next key.
    """
    try:
        return decode_json(text, list[dict[str, str | float | int]])
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        count = re.search(r'"count"\s*:\s*(\d+)', text)
        if count is None or not text.rstrip().endswith("]"):  # no profile, or one that was cut off
            raise
        rows: list[dict[str, str | float | int]] = [{"count": int(count[1])}]
        for name, rest in re.findall(
            r'"name"\s*:\s*"(.*?)"\s*,\s*("timeMs".*?)\}', text, re.DOTALL
        ):
            rows.append(
                {
                    "name": name,
                    **{k: float(v) for k, v in re.findall(r'"(\w+)"\s*:\s*([-+.\deE]+)', rest)},
                }
            )
        return rows


def layer_names(layer: str, known: Container[str] = ()) -> list[str]:
    """Return the names of the nodes that TensorRT fused into a layer.

    Args:
        layer: as TensorRT calls it.
        known: names that remain whole; others lose the op at their end.
    """
    parts = (part for part in SEPARATORS.split(layer) if part)
    return [part if part in known else part.rpartition("/")[0] or part for part in parts]


def read_factors(texts: Sequence[str]) -> dict[str, float]:
    """Return factors on predicted latencies by device, in lower case.

    Args:
        texts: ``DEVICE=FACTOR`` each, such as ``xavier=1.4``.

    Raises:
        UsageError: not DEVICE=FACTOR, or a factor that is not greater than 0.
    """
    factors = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            factor = float(value)
        except ValueError:
            factor = 0.0
        if not (math.isfinite(factor) and factor > 0):
            raise UsageError(
                f"Cannot read --correct {text!r}",
                "expected DEVICE=FACTOR, greater than 0",
                "Write it like xavier=1.4",
            )
        factors[name.strip().lower()] = factor
    return factors
