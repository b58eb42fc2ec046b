"""``trtq doctor``: what is installed, what the machine has, what is missing, how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

import msgspec

from trtq.errors import EngineError, MissingExtraError
from trtq.machine import cpu_name, package_version
from trtq.platform.releases import newer_note, parse_version
from trtq.platform.target import rtx_capabilities
from trtq.version import __version__


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the doctor's list.

    Attributes:
        name: what was looked for.
        found: what there is; None when it is missing.
        needed_for: what one cannot do without it.
        mend: how to get it; empty when it is there.
        note: what to know about the version.
    """

    name: str
    found: str | None
    needed_for: str
    mend: str = ""
    note: str = ""


PACKAGES: tuple[tuple[str, str, str], ...] = (
    ("torch", "quantize", "pip install torch"),
    ("torchvision", "models torchvision:NAME", "pip install torchvision"),
    ("timm", "models timm:NAME", "pip install timm"),
    ("onnx", "everything", "pip install onnx"),
    ("onnxscript", "quantize (export)", "pip install onnxscript"),
    ("onnxruntime", "evaluate, bench, the parity gate", "pip install onnxruntime"),
    (
        "tensorrt-rtx-cu13",
        "build without a GPU for {rtx}",
        "pip install 'trtq[rtx]'",
    ),
    ("tensorrt", "build on and for this machine's GPU", "pip install 'trtq[tensorrt]'"),
    ("nvidia-ml-py", "GPU power, clocks and memory", "pip install nvidia-ml-py"),
    ("tokenizers", "texts as data (--tokenizer)", "pip install 'trtq[text]'"),
    ("scikit-learn", "the data set 'digits'", "pip install scikit-learn"),
    ("ray", "sweep --on ray", "pip install 'trtq[ray]'"),
    ("s3fs", "stores of sweeps at s3://", "pip install 'trtq[s3]'"),
    ("mlflow-skinny", "--mlflow", "pip install 'trtq[mlflow]'"),
)


def doctor() -> list[Check]:
    """Return every check; nothing is imported that could fail, nothing is changed."""
    checks = [
        Check(name="trtq", found=__version__, needed_for="all of this"),
        Check(name="Python", found=platform.python_version(), needed_for="all of this"),
        Check(
            name="CPU",
            found=f"{cpu_name()}, {os.cpu_count()} cores, {_memory()}",
            needed_for="calibration and evaluation",
        ),
    ]
    rtx = rtx_capabilities()
    for name, purpose, mend in PACKAGES:
        version = package_version(name)
        checks.append(
            Check(
                name=name,
                found=version,
                needed_for=purpose.format(rtx=rtx),
                mend="" if version else mend,
                note=_newer(version) if name == "tensorrt" and version else "",
            )
        )
    checks.append(_gpu())
    checks.append(_trtexec())
    checks.append(_power())
    return checks


def _newer(version: str) -> str:
    """Return what to know of a TensorRT that is newer than the catalogue, "" for others."""
    try:
        return newer_note(parse_version(version))
    except ValueError:
        return ""


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "memory unknown"
    return f"{total / 2**30:.0f} GiB memory"


def _gpu() -> Check:
    mend = (
        "install NVIDIA's driver; without a GPU trtq still quantizes, evaluates and builds "
        "ahead of time"
    )
    tool = shutil.which("nvidia-smi")
    gpus = None
    if tool:
        query = [tool, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
        try:
            result = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
            gpus = "; ".join(result.stdout.strip().splitlines()) if result.returncode == 0 else None
            mend = (
                mend
                if gpus
                else f"nvidia-smi fails: {(result.stderr or result.stdout).strip()[:120]}"
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            mend = f"nvidia-smi fails: {exc}"
    return Check(
        name="NVIDIA GPU", found=gpus, needed_for="running engines", mend="" if gpus else mend
    )


def _trtexec() -> Check:
    from trtq.engine.trtexec import find_trtexec, probe_number
    from trtq.export.calibration_cache import version_of

    executable, mend, note = None, "", ""
    try:
        executable = find_trtexec()
        note = newer_note(version_of(probe_number(executable)))
    except MissingExtraError as exc:
        mend = exc.hint
    except EngineError as exc:
        note = f"{exc.message}: {exc.reason}"
    purpose = "builds and a second opinion on engines"
    return Check(name="trtexec", found=executable, needed_for=purpose, mend=mend, note=note)


def _power() -> Check:
    """Where power could be read: the rails of a Jetson, RAPL on an x86 host, NVML."""
    from trtq.agent import sysfs_power

    total, rails = sysfs_power()
    rapl = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
    sensor = None
    if total is not None:
        sensor = rails
    elif rapl.exists() and os.access(rapl, os.R_OK):
        sensor = "RAPL (CPU package)"
    elif importlib.util.find_spec("pynvml") and shutil.which("nvidia-smi"):
        sensor = "NVML"
    mend = "" if sensor else "this machine has no sensor trtq can read"
    if not sensor and rapl.exists():
        mend = f"make it readable: sudo chmod a+r {rapl}"
    return Check(name="power sensor", found=sensor, needed_for="energy figures", mend=mend)
