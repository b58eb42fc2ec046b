"""Open an engine file to run it.

Its manifest is first compared with the file, this TensorRT and this GPU.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from trtq.engine.build import build
from trtq.engine.manifest import EngineManifest, manifest_path, read_manifest, read_plan
from trtq.engine.python_api import MODULES
from trtq.engine.runner import EngineRunner, require_runtime
from trtq.engine.settings import AMPERE
from trtq.errors import EngineError
from trtq.export.onnx_file import digest_onnx
from trtq.progress import Progress
from trtq.specs import BuildSpec, option_words


def is_engine(path: Path) -> bool:
    """Whether a file is an engine by its name."""
    return path.suffix in (".engine", ".plan")


def open_engine(path: Path | str, *, trust: bool = False, device: str = "cuda") -> EngineRunner:
    """Return an engine ready to run, after its manifest was checked.

    The manifest must match the file, this TensorRT and this GPU. Loading an engine can run code
    that is in it: without a manifest that names this very file, ``trust`` is needed.

    Args:
        path: of the engine; its manifest is PATH.json.
        trust: load an engine that has no manifest; one that has is still checked.
        device: a GPU of this machine, for torch.

    Raises:
        EngineError: another file, version or GPU than the manifest says (with the command that
            builds it here), or no manifest.
        UsageError: there is no GPU, or no TensorRT.
    """
    path = Path(path)
    plan = read_plan(path)  # once: what is checked is what is loaded
    manifest = None if trust and not manifest_path(path).is_file() else read_manifest(path, plan)
    return open_plan(plan, manifest, path, device=device)


def open_plan(
    plan: bytes, manifest: EngineManifest | None, path: Path, *, device: str = "cuda"
) -> EngineRunner:
    """Return an engine in memory ready to run.

    Args:
        plan: its bytes.
        manifest: of this very engine; None for one that is trusted without.
        path: its file, for errors.
        device: a GPU of this machine.

    Raises:
        EngineError: another version or GPU than the manifest says.
        UsageError: there is no GPU, or no TensorRT.
    """
    module = (
        MODULES.get(manifest.builder.backend, "tensorrt") if manifest is not None else "tensorrt"
    )
    where = f"Cannot run the engine {path.name} here"
    trt = require_runtime(where, module, device)
    if manifest is not None:
        require_same(path, manifest, str(trt.__version__), _capability(device))
    batch = (manifest.batch[0], manifest.batch[2]) if manifest is not None else None
    return EngineRunner(plan, module, device=device, label=f"engine {path.name}", batch=batch)


def rebuild_engine(path: Path, progress: Progress, *, device: str = "cuda") -> Path:
    """Build the engine of ``path`` again for the TensorRT and the GPU here.

    Args:
        path: of the engine; it remains as it is.
        progress: receives progress.
        device: the GPU to build for.

    Returns:
        The path of the new engine, ``NAME.TARGET.rebuilt.engine`` beside the original.

    Raises:
        EngineError: the ONNX file it was built from is gone, or another one by now.
    """
    manifest = read_manifest(path)
    source, capability = manifest.source, _capability(device)
    if not source.is_file() or digest_onnx(source) != manifest.onnx_sha256:
        state = "another file by now" if source.is_file() else "not there"
        raise EngineError(
            f"Cannot build {path.name} again",
            f"{source}, which it was built from, is {state}",
            "Build from the file you have: trtq build",
        )
    target = (
        manifest.target.name
        if capability in (None, manifest.target.capability)
        else f"sm{capability.replace('.', '')}"
    )
    out = path.with_name(f"{path.stem}.{target.partition('@')[0]}.rebuilt{path.suffix}")
    given = {k: v for k, v in manifest.spec.items() if k in BuildSpec.__struct_fields__}
    build(BuildSpec.make({**given, "target": target.partition("@")[0], "out": str(out)}), progress)
    return out


def require_same(
    path: Path, manifest: EngineManifest, version: str, capability: str | None
) -> None:
    """Refuse an engine of another TensorRT or another GPU before TensorRT sees it.

    Versions are compared as far as both are known, so that ``10.3`` matches ``10.3.0``. A
    version-compatible engine also runs on a later release of its major version, an ``ampere+`` one
    on any compute capability from 8.0 on.

    Args:
        path: of the engine, for errors.
        manifest: of it.
        version: of TensorRT here.
        capability: of the GPU here, such as ``8.9``; None where it is not known.

    Raises:
        EngineError: what it was built with, what is here, and the command that builds it here.
    """
    built, mine = manifest.builder.version, manifest.target.capability
    spec = manifest.spec
    here, engine_release = _numbers(version), _numbers(built)
    loose = (
        bool(spec.get("version_compatible"))
        and here[:1] == engine_release[:1]
        and here >= engine_release
    )
    short = min(built.count("."), version.count(".")) + 1
    if not loose and built.split(".")[:short] != version.split(".")[:short]:
        raise EngineError(
            f"The engine {path.name} is not for the TensorRT here",
            f"it was built with {built}, here is {version}, plans do not travel",
            f"Build it again: {_again(path, spec, manifest.target.name)}, or add --rebuild",
        )
    wide = (
        spec.get("hardware_compatible") == "ampere+"
        and capability is not None
        and int(capability.replace(".", "")) >= AMPERE
    )
    if capability is not None and capability != mine and not wide:
        raise EngineError(
            f"The engine {path.name} is not for the GPU here",
            f"it was built for {manifest.target.device} (compute capability {mine}), here is "
            f"{capability}",
            f"Build it again: {_again(path, spec, 'sm' + capability.replace('.', ''))}, or add "
            "--rebuild",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(v) for v in version.split(".") if v.isdigit())


def _again(path: Path, spec: Mapping[str, Any], target: str) -> str:
    """Return the command that builds an engine like this one for a target."""
    unset = {f.name: f.default for f in msgspec.structs.fields(BuildSpec)}
    line = ["trtq", "build", str(spec["onnx"]), "--target", target, "--out", str(path)]
    for name, value in spec.items():
        if (
            name not in ("onnx", "target", "out", "data")
            and name in unset
            and value != unset[name]
            and value is not None
        ):
            line += option_words(name, value)
    return shlex.join(line)


def _capability(device: str) -> str | None:
    import torch

    if not device.startswith("cuda"):
        return None
    major, minor = torch.cuda.get_device_capability(torch.device(device))
    return f"{major}.{minor}"
