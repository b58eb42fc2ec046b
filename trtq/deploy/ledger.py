"""Ledger of this workstation about the engines on boards.

It keeps a digest of each manifest, which has the digest of its engine.

A board keeps engine and manifest side by side, so a person who changes one there can change the
other. An engine that is used again is therefore compared with the digest of its build.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

import msgspec
from msgspec import Meta

from trtq.artifact import decode_json, digest_of, locked, write_json
from trtq.deploy.devices import Device, config_folder, writable_config
from trtq.engine.manifest import EngineManifest
from trtq.errors import BoardError, DeviceError, reason
from trtq.typed import convert


class _Tensor(TypedDict):
    name: str
    mode: str
    shape: Annotated[list[Annotated[int, Meta(ge=-1, le=1 << 31)]], Meta(max_length=16)]


class _Used(msgspec.Struct):
    """Parts of a manifest from a board that the manifest itself leaves open."""

    engine_sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    engine_bytes: Annotated[int, Meta(ge=1, le=1 << 40)]
    batch: tuple[Annotated[int, Meta(ge=1, le=1 << 20)], int, int]
    tensors: Annotated[list[_Tensor], Meta(max_length=4096)]


def board_manifest(answer: Any, name: str) -> EngineManifest:
    """Return the manifest that a board sent.

    Args:
        answer: JSON value.
        name: of the device, for messages.

    Raises:
        BoardError: it is none, or lacks what is used of it: digest, size, batch and shapes.
    """
    try:
        convert(answer, _Used)
        return convert(answer, EngineManifest)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise BoardError(
            f"Cannot read a manifest of {name}", reason(exc), "Deploy its model again"
        ) from exc


def remember_engine(device: Device, name: str, manifest: EngineManifest) -> None:
    """Keep the digest of an engine's manifest, in place of an earlier one.

    Args:
        device: where it is; its address, jump hosts and work folder tell engines apart.
        name: of the engine in the work folder.
        manifest: of the engine.

    Raises:
        DeviceError: the file of digests is damaged.
        ArtifactError: it cannot be written.
    """
    folder = writable_config()
    with locked(folder / ".engines.lock"):
        write_json(
            folder / "engines.json",
            {**_known(), _place(device, name): digest_of(msgspec.to_builtins(manifest))},
        )


def is_known_engine(device: Device, name: str, manifest: EngineManifest) -> bool | None:
    """Return whether an engine's manifest is the one that was kept here; None where none was.

    Args:
        device: where it is.
        name: of the engine in the work folder.
        manifest: that the board sent.

    Raises:
        DeviceError: the file of digests is damaged.
    """
    kept = _known().get(_place(device, name))
    return None if kept is None else kept == digest_of(msgspec.to_builtins(manifest))


def _place(device: Device, name: str) -> str:
    return " ".join([device.place, device.jump, device.workdir, name])


def _known() -> dict[str, str]:
    path = config_folder() / "engines.json"
    try:
        return decode_json(path.read_bytes(), dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as exc:
        hint = "Move the file away: engines on boards then count as those of another workstation"
        raise DeviceError(
            f"Cannot read the digests of engines in {path}", reason(exc), hint
        ) from exc
