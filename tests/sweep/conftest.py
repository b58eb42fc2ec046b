"""Sweeps of a tiny model on a few small images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trtq.jobs.store import Done, Store
from trtq.testing.images import write_classes

RECIPE = """
out = "{folder}/out"
[quantize]
model = "trtq.testing.models:tiny_cnn"
data = "{images}"
input_size = "3x16x16"
preset = "imagenet"
calib_images = 4
parity_images = 4
calib_cache = "{folder}/cache"
preset_quant = "none"
{more}
[vary]
"""

# An executor whose runs all fail at once, with the exit code CODE.
REFUSER = """
from trtq.jobs.work import Ended

class Refuser:
    name, workers, shared = "refuser", 1, True
    def __init__(self):
        self.jobs = []
    def room(self):
        return 1 - len(self.jobs)
    def submit(self, jobs):
        self.jobs += jobs
    def wait(self, seconds):
        jobs, self.jobs = self.jobs, []
        return [Ended(name=j.name, code=CODE, reason="it is Sunday") for j in jobs]
    def close(self):
        pass

def open_executor(settings, progress):
    return Refuser()
"""


def fetched(store: Store, done: Done, folder: Path) -> Path:
    """Copy the files of a finished run out of a store and return their folder."""
    for name in done.upload.files:
        store.files.get(f"{store.folder(done)}/{name}", folder / name)
    return folder


@pytest.fixture(scope="session")
def few_images(once) -> Path:
    """Eight images of 16 x 16 pixels in four classes."""
    return once("few", lambda folder: write_classes(folder, 4, 2, size=16))


@pytest.fixture()
def write_sweep(tmp_path: Path, few_images: Path) -> Callable[..., Path]:
    """Return a function that writes the file of a sweep."""

    def write(vary: str, *, folder: Path = tmp_path, more: str = "") -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / "sweep.toml"
        text = RECIPE.format(folder=folder, images=few_images, more=more)
        path.write_text(text + vary)
        return path

    return write
