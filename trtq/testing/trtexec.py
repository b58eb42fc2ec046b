"""A stand-in for trtexec where there is none: it reads the flags of the release it plays and writes a plan that is no engine.

``write_fake_trtexec(folder, "v8502", sm="8.7")`` puts an executable called ``trtexec`` there. It accepts the build flags that
release accepts, prints its first and last line and its device section, and fails on a flag of another release as trtexec does.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

# Independent of trtq.engine.trtexec on purpose: from facts, the flags a build may use, by the digits of the version.
ALWAYS = "onnx saveEngine minShapes optShapes maxShapes"
ACCEPTED = {
    version: f"{ALWAYS} {more}"
    for version, more in {
        "v8001": "buildOnly fp16 int8 calib workspace",
        "v8201": "buildOnly fp16 int8 calib workspace profilingVerbosity",
        "v8502": "buildOnly fp16 int8 calib workspace profilingVerbosity memPoolSize",
        "v8601": "buildOnly skipInference fp16 int8 calib workspace profilingVerbosity memPoolSize",
        "v100300": "skipInference fp16 int8 calib stronglyTyped profilingVerbosity memPoolSize",
        "v101600": "skipInference fp16 int8 calib stronglyTyped profilingVerbosity memPoolSize",
        "v110100": "skipInference stronglyTyped profilingVerbosity memPoolSize",
    }.items()
}


def write_fake_trtexec(folder: Path, version: str, *, sm: str = "8.7") -> Path:
    """Write the executable and return its path.

    Args:
        folder: where.
        version: a key of ``ACCEPTED``.
        sm: the compute capability of the device it claims to run on.
    """
    path = folder / "trtexec"
    path.write_text(f"#!{sys.executable}\nfrom trtq.testing.trtexec import main\nraise SystemExit(main({version!r}, {sm!r}))\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def main(version: str, sm: str) -> int:
    """Play trtexec with the arguments of this process."""
    tail = f"TensorRT.trtexec [TensorRT {version}] # {' '.join(sys.argv)}"
    print(f"&&&& RUNNING {tail}")
    if sys.argv[1:] == ["--help"]:
        print("=== Model Options ===")
        return 0
    given = dict(a.removeprefix("--").partition("=")[::2] for a in sys.argv[1:])
    unknown = [f"--{k} {v}" for k, v in given.items() if k not in ACCEPTED[version].split()]
    if unknown:
        print("=== Model Options ===\n" + "\n".join(f"Unknown option: {u}" for u in unknown) + f"\n&&&& FAILED {tail}")
        return 1
    print("[11/21/2026-10:00:00] [I] === Device Information ===")
    print(f"[11/21/2026-10:00:00] [I] Compute Capability: {sm}")
    print("[11/21/2026-10:00:00] [W] [TRT] a warning of the library", file=sys.stderr)
    if b"refuse-me" in Path(given["onnx"]).read_bytes():
        print("[11/21/2026-10:00:01] [E] [TRT] ModelImporter.cpp:726: While parsing node number 0 [Conv -> 'x']: no", file=sys.stderr)
        print(f"&&&& FAILED {tail}")
        return 1
    Path(given["saveEngine"]).write_bytes(b"not an engine: " + " ".join(sorted(given)).encode())
    print(f"&&&& PASSED {tail}")
    return 0
