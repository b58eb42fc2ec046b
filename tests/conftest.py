from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.slow import COLLECTED, mark_slow
from trtq.cli import run_command
from trtq.engine.worker_process import end_early
from trtq.testing.images import write_classes

# Models here are so small that a second thread only waits for the first, and the workers of
# pytest-xdist take the cores from each other. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A deadline for each example would fail on a machine that is busy or slow.
hypothesis.settings.register_profile("trtq", deadline=None)
hypothesis.settings.load_profile("trtq")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mark_slow(items)
    config.stash[COLLECTED] = {i.nodeid for i in items}


@pytest.fixture(scope="session", autouse=True)
def _one_thread_in_sessions() -> Iterator[None]:
    import onnxruntime

    class OneThread(onnxruntime.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", OneThread)
        yield


@pytest.fixture(scope="session", autouse=True)
def _tables_of_torch_once() -> Iterator[None]:
    """For every export torch reads the source of 500 functions and lists its operators again.

    Here it does so once a process: tests define no operators of their own.
    """
    from torch._export import utils
    from torch.onnx._internal.exporter import _registration, _schemas

    api = _registration.onnxscript_apis
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (api, "get_torchlib_ops"),
            (_schemas, "op_signature_from_function"),
            (utils, "_materialize_cpp_cia_ops"),
        ):
            patch.setattr(owner, name, functools.cache(getattr(owner, name)))
        # A collection of garbage walks over a million objects of torch and of the tests: 0.1 to
        # 0.3 s, for each block of measurements. These will never be garbage.
        gc.collect()
        gc.freeze()
        # Whole collections of what tests leave are a tenth of all time at Python's own thresholds.
        thresholds = gc.get_threshold()
        gc.set_threshold(10_000, 10, 50)
        yield
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _captures_once() -> Iterator[None]:
    from tests.support.captures import remembered
    from trtq.graph import tracing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "trace", remembered(tracing.trace))
        yield


@pytest.fixture(scope="session", autouse=True)
def _figures_are_outlines() -> Iterator[None]:
    """Laying out a figure takes 0.15 s, and a search has 16; tests of reports ask for ``drawn``."""
    from matplotlib.figure import Figure

    from tests.support.figures import save_outline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_outline)
        yield


@pytest.fixture()
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are really drawn."""
    from matplotlib.figure import Figure

    from tests.support.figures import DRAW

    monkeypatch.setattr(Figure, "savefig", DRAW)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a folder once a run; all workers then read the same one."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / f"{name}.done").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                (shared / f"{name}.done").touch()
        return folder

    return get


# What is shared is only read; a test that changes it makes a copy.


@pytest.fixture(scope="session")
def images(once) -> Path:
    """Four classes of eight images."""
    return once("images", lambda folder: write_classes(folder, 4, 8))


@pytest.fixture(scope="session")
def quantized(once, images: Path) -> Callable[..., Path]:
    """Return a function that quantizes with changes to the usual spec, once a run."""
    from trtq import quantize

    def get(name: str, **changes) -> Path:
        return once(name, lambda folder: quantize(spec(images, folder, **changes)))

    return get


@pytest.fixture(scope="session")
def cnn_out(quantized) -> Path:
    """A quantized tiny CNN: the four files of ``trtq quantize``."""
    return quantized("cnn")


@pytest.fixture(scope="session")
def vit_out(quantized) -> Path:
    """A quantized tiny ViT."""
    return quantized("vit", model="trtq.testing.models:tiny_vit")


@pytest.fixture(scope="session")
def cnn13(quantized) -> Path:
    """The tiny CNN in opset 13, which every release of TensorRT reads."""
    return quantized("opset13", opset=13)


@pytest.fixture(scope="session")
def w4a4_out(quantized) -> Path:
    """The tiny CNN at 4 bits, from which training starts."""
    return quantized("w4a4", bits="w4a4")


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
    """Run a command line in this process, which saves the import of torch."""
    output = io.StringIO()
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        patch.setattr(sys, "argv", ["trtq", *args])
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                code = run_command(list(args))
            except SystemExit as exc:
                code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
            end_early()  # as the end of a process does
    return subprocess.CompletedProcess(["trtq", *args], code, output.getvalue(), errors.getvalue())


def run_process(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "trtq", *args],
        capture_output=True,
        text=True,
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, one for all pages of a file."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("no Chromium here: make system installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()
