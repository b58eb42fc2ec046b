"""The calibration cache: what calibration found, keyed by everything it depends on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from trtq.artifact import decode_json, digest_of, locked, sha256_bytes, write_bytes
from trtq.errors import reason
from trtq.quant.calibrate import ActivationStats

CACHE_VERSION = 7  # raise it when what calibration computes from the same images changes
FIELDS = ("amax", "low", "high", "bulk_rms", "lowest")


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Inputs of a calibration, part by part, so that a miss can say which part changed.

    Attributes:
        parts: digests and settings by what they stand for, such as ``weights`` or ``images``.
    """

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Return the SHA-256 over all parts."""
        return digest_of(dict(self.parts))


class CalibrationCache:
    """A folder of safetensors files, one per key.

    A file has ``numbers``, float64 [tensors, 5] in the order of ``FIELDS`` with NaN for None, and
    ``I.mean`` and ``I.variance``, float64 [C], of tensors with moments; its metadata has the names,
    the parts of the key and a SHA-256 of the content.

    Args:
        folder: created when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: CacheKey) -> Path:
        """Return the file of ``key``."""
        return self.folder / f"{key.digest[:32]}.safetensors"

    def lock(
        self, key: CacheKey, *, waiting: Callable[[str], None] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Return a lock to hold while calibrating.

        A second process then finds the finished entry instead of repeating the work.

        Args:
            key: of the entry.
            waiting: receives a line when another process has the lock.
        """
        return locked(self.path(key).with_suffix(".lock"), waiting=waiting)

    def load(self, key: CacheKey) -> tuple[dict[str, ActivationStats] | None, str]:
        """Return the entry of ``key`` and why it was used, or None and why not.

        A file that is damaged or was altered counts as missing; nothing is raised.

        Args:
            key: of the entry.

        Returns:
            The statistics by ``Quantizer.stats_key`` or None, and a line for the record that begins
            with ``used:`` or ``not used:``.
        """
        path = self.path(key)
        if not path.exists():
            return None, self._why_missing(key)
        try:
            with safe_open(path, framework="pt") as handle:
                meta = handle.metadata() or {}
                tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
            names: list[str] = decode_json(meta["names"], list[str])
            if meta["digest"] != _content_digest(names, tensors) or meta["key"] != key.digest:
                return (
                    None,
                    f"not used: {path.name} was altered since it was written; calibrating again",
                )
            numbers = tensors["numbers"]
            if numbers.shape != (len(names), len(FIELDS)):
                return (
                    None,
                    f"not used: {path.name} is damaged (its numbers are {list(numbers.shape)}); "
                    "calibrating again",
                )
            stats = {
                n: _row(numbers[i], tensors.get(f"{i}.mean"), tensors.get(f"{i}.variance"))
                for i, n in enumerate(names)
            }
        except (SafetensorError, OSError, KeyError, msgspec.MsgspecError, ValueError) as exc:
            return None, f"not used: {path.name} is damaged ({reason(exc)}); calibrating again"
        return stats, f"used: {path.name} (same weights, images, preprocessing and calibrator)"

    def save(self, key: CacheKey, stats: Mapping[str, ActivationStats]) -> Path:
        """Write the entry of ``key`` atomically, and return its file.

        Args:
            key: of the entry.
            stats: by ``Quantizer.stats_key``.
        """
        names = list(stats)
        rows = [
            [torch.nan if (v := getattr(s, f)) is None else v for f in FIELDS]
            for s in stats.values()
        ]
        tensors = {
            "numbers": torch.tensor(rows, dtype=torch.float64).reshape(len(names), len(FIELDS))
        }
        for i, s in enumerate(stats.values()):
            if s.mean is not None and s.variance is not None:
                tensors[f"{i}.mean"], tensors[f"{i}.variance"] = (
                    s.mean.contiguous(),
                    s.variance.contiguous(),
                )
        meta = {
            "trtq": "calibration",
            "names": msgspec.json.encode(names).decode(),
            "parts": msgspec.json.encode(dict(key.parts)).decode(),
            "key": key.digest,
            "digest": _content_digest(names, tensors),
        }
        return write_bytes(self.path(key), save(tensors, metadata=meta))

    def _why_missing(self, key: CacheKey) -> str:
        """Return what differs from the entry that has most parts in common with ``key``.

        Files that cannot be read are passed over.
        """
        best: tuple[int, list[str]] | None = None
        for path in sorted(self.folder.glob("*.safetensors")):
            with contextlib.suppress(SafetensorError, OSError, KeyError, msgspec.MsgspecError):
                with safe_open(path, framework="pt") as handle:
                    parts: dict[str, str] = decode_json(
                        (handle.metadata() or {})["parts"], dict[str, str]
                    )
                changed = [k for k in key.parts if parts.get(k) != key.parts[k]]
                if best is None or len(changed) < best[0]:
                    best = (len(changed), changed)
        if best is None:
            return "not used: there is no entry yet"
        if len(best[1]) == len(key.parts):
            return "not used: no entry for this model and these images"
        if not best[1]:
            return "not used: the nearest entry has another name"
        return f"not used: {' and '.join(best[1])} changed since the nearest entry"


def _row(
    numbers: torch.Tensor, mean: torch.Tensor | None, variance: torch.Tensor | None
) -> ActivationStats:
    values = [None if math.isnan(v) else v for v in numbers.tolist()]
    amax, low, high, rms, lowest = values
    if amax is None or low is None or high is None:
        raise ValueError("a range is missing")
    return ActivationStats(
        amax=amax,
        low=low,
        high=high,
        bulk_rms=rms,
        mean=mean,
        variance=variance,
        lowest=None if lowest is None else int(lowest),
    )


def _content_digest(names: list[str], tensors: Mapping[str, torch.Tensor]) -> str:
    parts = [msgspec.json.encode(names)]
    for name in sorted(tensors):
        parts += [name.encode(), tensors[name].contiguous().numpy().tobytes()]
    return sha256_bytes(b"\0".join(parts))
