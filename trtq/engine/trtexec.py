"""trtexec as a builder: one command line, made for the version that will read it.

An unknown flag makes trtexec print its help and fail, so flags are chosen by version from one table, never by trial.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtq.engine.targets import Target
from trtq.engine.versions import FLAGS, Version, offers, shown, within
from trtq.errors import EngineError, MissingExtraError

WORKSPACE_MIB = 1024
USUAL_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")


def find_trtexec() -> str:
    """Return the path of trtexec: ``$TRTQ_TRTEXEC``, on the PATH, or where NVIDIA's packages put it.

    Raises:
        MissingExtraError: there is none.
    """
    for place in (os.environ.get("TRTQ_TRTEXEC"), shutil.which("trtexec"), *USUAL_PLACES):
        if place and Path(place).is_file():
            return place
    raise MissingExtraError(
        "There is no trtexec here",
        f"looked at TRTQ_TRTEXEC, the PATH and {', '.join(USUAL_PLACES)}",
        "It comes with TensorRT's tar or Debian package, not with its wheels; or use --backend tensorrt",
    )


def parse_number(text: str) -> int:
    """Return the number in trtexec's first line: ``[TensorRT v8502]``, ``[TensorRT v100300] [b26]``; caches name it in their header.

    Four digits are major * 1000 + minor * 100 + patch, five or six major * 10000 + minor * 100 + patch.

    Raises:
        EngineError: there is no such line.
    """
    match = re.search(r"\[TensorRT v(\d{4,6})\]", text)
    if match is None:
        raise EngineError("Cannot tell which version of trtexec this is", f"its first line is {text.strip().splitlines()[:1]}")
    return int(match.group(1))


def command(
    version: Version,
    *,
    executable: str,
    onnx: Path,
    engine: Path,
    shapes: Mapping[str, Sequence[Sequence[int]]],
    quantized: bool,
    half: bool,
    calibration: Path | None = None,
) -> list[str]:
    """Return the command line that builds ``onnx`` with this version of trtexec.

    Args:
        version: of the trtexec that will run it.
        executable: its path.
        onnx: the model; for a strongly typed version already in the types it shall have.
        engine: where the plan goes.
        shapes: min, opt and max shape of every dynamic input, empty for a static model.
        quantized: the model has Q/DQ pairs.
        half: let what is not quantized run in FP16 (a flag before TensorRT 10, types in the graph from then on).
        calibration: a calibration cache for a model without Q/DQ pairs; its ranges make it INT8.

    Raises:
        EngineError: a flag that this version does not have would be needed.
    """
    given: list[tuple[str, str | None]] = [("onnx", str(onnx)), ("saveEngine", str(engine))]
    for name, i in (("minShapes", 0), ("optShapes", 1), ("maxShapes", 2)):
        if shapes:
            given.append((name, ",".join(f"{k}:{'x'.join(map(str, v[i]))}" for k, v in shapes.items())))
    if not offers("typed", version) or calibration is not None:  # ranges from a cache exist in weakly typed networks only
        given += [("int8", None)] * (quantized or calibration is not None) + [("fp16", None)] * half
    elif version < (11, 0):  # a deprecated no-op from 11 on
        given.append(("stronglyTyped", None))
    if calibration is not None:
        given.append(("calib", str(calibration)))
    if version < (8, 4):  # its default of 16 MiB leaves most convolutions without a kernel; later ones take what the device has
        given.append(("workspace", str(WORKSPACE_MIB)))
    if version >= FLAGS["profilingVerbosity"][0]:
        given.append(("profilingVerbosity", "detailed"))
    given.append(("skipInference" if version >= FLAGS["skipInference"][0] else "buildOnly", None))
    for name, _ in given:
        if not within(FLAGS[name], version):
            first, last = FLAGS[name]
            raise EngineError(
                f"trtexec {shown(version)} has no --{name}", f"it exists from {shown(first)} to {shown(last) if last else 'today'}"
            )
    return [executable, *(f"--{name}" if value is None else f"--{name}={value}" for name, value in given)]


def build_with_trtexec(
    onnx: Path,
    engine: Path,
    *,
    executable: str,
    version: Version,
    target: Target,
    shapes: Mapping[str, Any],
    quantized: bool,
    half: bool,
    calibration: Path | None = None,
) -> tuple[bytes, list[str], list[str]]:
    """Run trtexec and return the plan, the warnings, and the command line.

    Raises:
        EngineError: trtexec fails (its error lines), or this machine's GPU is not the target's.
    """
    line = command(
        version, executable=executable, onnx=onnx, engine=engine, shapes=shapes, quantized=quantized, half=half, calibration=calibration
    )
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    log = done.stdout.splitlines() + done.stderr.splitlines()
    errors = [ln for ln in log if re.search(r"\] \[[EF]\] ", ln) or ln.startswith(("Unknown option", "&&&& FAILED"))]
    if done.returncode or not engine.is_file():
        raise EngineError(f"trtexec cannot build the engine for {target.device}", "; ".join(errors[:5]) or f"exit status {done.returncode}")
    found = next((m.group(1) for ln in log if (m := re.search(r"Compute Capability: (\d+\.\d+)", ln))), None)
    if found is not None and found != target.capability:
        raise EngineError(
            f"This machine's GPU is not {target.device}",
            f"trtexec builds for the GPU it runs on, compute capability {found}; the target has {target.capability}",
            f"Build on that device, or say what this is: --target sm{found.replace('.', '')}",
        )
    return engine.read_bytes(), [ln for ln in log if "] [W] " in ln], line


def probe_number(executable: str) -> int:
    """Return the number of ``executable``, down to the patch, from the first line it prints.

    Raises:
        EngineError: it cannot be started, or prints no version.
    """
    try:
        done = subprocess.run([executable, "--help"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EngineError(f"Cannot run {executable}", str(exc)) from exc
    return parse_number(done.stdout + done.stderr)
