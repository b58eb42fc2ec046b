"""Which processor and which packages the numbers of the golden files come from."""

from __future__ import annotations

import contextlib
import hashlib
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "numpy", "onnxruntime", "onnx", "onnxscript", "timm", "pillow")


def describe() -> dict[str, str]:
    """Return what decides the last digits of sums: processor, its instructions, packages."""
    found = {"processor": "", "instructions": ""}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key in ("model name", "Model"):
                found["processor"] = value
            if key in ("flags", "Features"):
                words = " ".join(sorted(value.split()))
                found["instructions"] = hashlib.sha256(words.encode()).hexdigest()[:12]
    return {**found, **{name: metadata.version(name) for name in PACKAGES}}
