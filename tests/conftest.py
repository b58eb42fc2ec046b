from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trtq.testing.images import write_classes


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of eight images."""
    return write_classes(tmp_path_factory.mktemp("images"), 4, 8)


@pytest.fixture(scope="session")
def cnn_out(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized tiny CNN: the four files of ``trtq quantize``.

    Tests read it; a test that changes it makes a copy.
    """
    from trtq import quantize

    out = tmp_path_factory.mktemp("cnn")
    quantize(spec(images, out))
    return out


def spec(images: Path, out: Path, **changes):
    from trtq import QuantizeSpec

    values = {
        "model": "trtq.testing.models:tiny_cnn",
        "data": str(images),
        "out": str(out),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "calib_images": 24,
        "batch_size": 8,
        "parity_images": 16,
        "calib_cache": str(out / "cache"),
        "preset_quant": "none",
    }
    return QuantizeSpec.make({**values, **changes})


@pytest.fixture()
def trtq_data() -> Path:
    folder = os.environ.get("TRTQ_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TRTQ_DATA does not name a folder")
    return Path(folder)


def run_cli(
    *args: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trtq", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=False,
    )


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 24 kB."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        yield small
    finally:
        subprocess.run(["umount", str(small)], check=True)
