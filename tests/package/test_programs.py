"""The programs of packages give the engine's answers, in processes without trtq."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import trtq
from tests.conftest import read
from tests.support.modules import forget
from trtq.artifact import sha256_file
from trtq.data.preprocess import Preprocess
from trtq.errors import UsageError
from trtq.export.ort import open_session, run_batch

INCLUDE = Path(__file__).with_name("include")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
# The driver of a GPU whose memory is that of the host.
DRIVER = """
import ctypes

REAL, HELD = ctypes.CDLL, {}


class Driver:
    def __getattr__(self, name):
        return lambda *args: 0

    def cuMemAlloc_v2(self, address, size):
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        HELD[address._obj.value] = memory
        return 0

    def cuMemFree_v2(self, address):
        return 0 if HELD.pop(address.value, None) is not None else 1

    def cuMemcpyHtoD_v2(self, goal, source, size):
        ctypes.memmove(goal.value, source.value, size.value)
        return 0

    def cuMemcpyDtoH_v2(self, goal, source, size):
        ctypes.memmove(goal.value, source.value, size.value)
        return 0


ctypes.CDLL = lambda name, *a, **k: Driver() if "cuda" in str(name) else REAL(name, *a, **k)
"""

# Once the stand-in has loaded, with what it computes with, nothing else can be imported but NumPy,
# Pillow and Python itself.
ALONE = """
import sys

import onnxruntime
import tensorrt

ALLOWED = {*sys.stdlib_module_names, "tensorrt", "numpy", "PIL", "onnxruntime"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ImportError(f"the program imports {name}")


for name in list(sys.modules):
    if name.partition(".")[0] in ("trtq", "torch", "onnx", "msgspec"):
        del sys.modules[name]
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture
def run(tensorrt, tmp_path):
    """Return a function that runs a program with the stand-ins for TensorRT and a GPU."""
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver/sitecustomize.py").write_text(DRIVER + ALONE)
    root = Path(trtq.__file__).parents[1]  # of the stand-in alone
    path = os.pathsep.join(map(str, (tmp_path / "driver", tensorrt, root)))

    def start(folder: Path, *words) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, str(folder / "run.py"), *map(str, words)]
        env = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(
            line, capture_output=True, text=True, env=env, cwd=tmp_path, check=False
        )

    return start


def pictures(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        pixels = rng.integers(0, 256, (40 + i, 50, 3)).astype(np.uint8)
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def wanted(engine: Path, file: Path, images: list[Path]) -> np.ndarray:
    picture = msgspec.convert(read(Path(f"{engine}.json"))["preprocess"], Preprocess)
    batch = np.stack([picture.apply(Image.open(p)).numpy() for p in images])
    session = open_session(file)
    return np.concatenate([run_batch(session, batch[i : i + 1])[0] for i in range(len(batch))])


@pytest.mark.parametrize("name", ["classifier", "segmenter", "yolo"])
def test_images(name, run, packaged, engines, files, tmp_path):
    """More images than the engine's batch run in parts, and a fixed batch of 1 one by one."""
    engine = getattr(engines, name)
    folder = packaged(engine, "python")
    if name == "classifier":  # labels are a file that anybody edits
        text = (folder / "labels.txt").read_text()
        (folder / "labels.txt").write_text(text.replace("ant", "\x1b[2Jant"))
    images = pictures(tmp_path, 5)
    done = run(folder, *images, "--out", "answers.npz", "--top", "2")
    assert done.returncode == 0, done.stderr
    (got,) = np.load(tmp_path / "answers.npz").values()
    np.testing.assert_allclose(
        got, wanted(engine, getattr(files, name), images), rtol=1e-5, atol=1e-5
    )
    lines = done.stdout.splitlines()
    assert lines[0].endswith(f"float32 {list(got.shape)}")
    if name == "classifier":
        best = ["\\x1b[2Jant", "bee", "cat", "dog"][int(got[0].argmax())]
        assert lines[1].startswith(f"  0.png: {best} ")
        assert len(lines) == 6
        assert "\x1b" not in done.stdout


def test_the_program_can_import_nothing_of_trtq(run, tmp_path):
    """What the runs above rest on."""
    for name in ("trtq", "torch", "onnx", "msgspec", "timm"):
        (tmp_path / "run.py").write_text(f"import {name}\n")
        done = run(tmp_path)
        assert f"ImportError: the program imports {name}" in done.stderr


def test_arrays_by_name(run, packaged, engines, files, tmp_path):
    folder = packaged(engines.text, "python")
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.engine",
        "model.engine.json",
        "run.py",
    ]
    ids, mask = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.ones((2, 4), np.int64)
    np.savez(tmp_path / "in.npz", ids=ids.astype(np.int32), mask=mask)
    done = run(folder, tmp_path / "in.npz", "--out", "answers.npz")
    assert done.returncode == 0, done.stderr
    (expected,) = run_batch(open_session(files.text), {"ids": ids, "mask": mask})
    np.testing.assert_allclose(np.load(tmp_path / "answers.npz")["embedding"], expected, rtol=1e-5)


def loaded(folder: Path):
    spec = importlib.util.spec_from_file_location("packaged_run", folder / "run.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def test_the_program_names_what_the_machine_lacks(packaged, engines, tensorrt, monkeypatch):
    def no_driver(name):
        raise OSError(f"{name}: cannot open shared object file")

    folder = packaged(engines.text, "python")
    program = loaded(folder)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(SystemExit, match=r"^tensorrt 10\.3\.0 is needed: "):
        program.Engine(folder / "model.engine")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(tensorrt))
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(SystemExit, match="^The driver of an NVIDIA GPU is needed: .*cannot open"):
        program.Engine(folder / "model.engine")


def test_what_the_program_refuses(packaged, engines, tensorrt, tmp_path, monkeypatch):
    folder = packaged(engines.text, "python")
    monkeypatch.setattr(ctypes, "CDLL", ctypes.CDLL)
    exec(compile(DRIVER, "sitecustomize.py", "exec"), {})
    monkeypatch.syspath_prepend(str(tensorrt))
    forget(monkeypatch, "tensorrt")
    program = loaded(folder)
    ids, npz = np.ones((2, 4), np.int64), tmp_path / "in.npz"

    def refused(text: str, *words: Path, **arrays: np.ndarray) -> None:
        if arrays:
            np.savez(npz, **arrays)
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words or [npz])])
        with pytest.raises(SystemExit) as caught:
            program.main()
        assert text in str(caught.value.code)

    refused("mask is missing; the inputs are ids, mask", ids=ids)
    refused("ids is float64, not int64", ids=ids.astype(float), mask=ids)
    refused(
        "the engine was not built for ids [9, 4]; it takes [1, 4] to [4, 16]",
        ids=np.ones((9, 4), np.int64),
        mask=ids,
    )
    (image,) = pictures(tmp_path, 1)
    refused("the manifest does not say how images become the input: give an .npz file", image)
    refused("give one file of arrays, or images", npz, npz)
    manifest = read(folder / "model.engine.json")
    (folder / "model.engine.json").write_text(json.dumps({**manifest, "engine_sha256": "0"}))
    refused("model.engine is not the engine of its manifest", npz)
    other = folder / "model.engine"
    other.write_bytes(b"another engine")
    manifest["engine_sha256"] = sha256_file(other)
    (folder / "model.engine.json").write_text(json.dumps(manifest))
    refused("TensorRT 10.3.0 cannot load model.engine, which tensorrt 10.3.0 built for", npz)


def test_programs_need_an_engine_with_named_tensors(packaged, files, engines, tmp_path):
    for consumer in ("python", "cpp"):
        with pytest.raises(
            UsageError,
            match="Cannot package yolo.onnx for a program: it is an ONNX file, and an engine is "
            "needed. Build an engine from it: trtq build",
        ):
            packaged(files.yolo, consumer)
    manifest = read(engines.text.with_name("text.engine.json"))
    manifest["builder"]["version"] = "8.2.1"
    shutil.copy(engines.text, tmp_path / "old.engine")
    (tmp_path / "old.engine.json").write_text(json.dumps(manifest))
    with pytest.raises(
        UsageError,
        match="Cannot package old.engine for a program: it is of TensorRT 8.2; tensors have names "
        "from 8.5 on",
    ):
        packaged(tmp_path / "old.engine", "cpp")


def test_tensors_that_a_cpp_program_cannot_have(packaged, changed, engines):
    engine = changed(engines.text, lambda m: m["tensors"][2].update(dtype="INT4"))
    with pytest.raises(
        UsageError,
        match="Cannot package the tensor embedding int4 .* for a program: values of int4 have no "
        "whole bytes of a known size",
    ):
        packaged(engine, "cpp")
    engine = changed(engines.text, lambda m: m["tensors"][2].update(name="a\x07"))
    with pytest.raises(
        UsageError, match=r"Cannot write 'a\\x07' into a C\+\+ program: it has a cha"
    ):
        packaged(engine, "cpp")


def test_the_module_of_an_rtx_engine(packaged, rtx, tmp_path):
    folder = packaged(rtx.classifier, "cpp")
    assert "find_library(TENSORRT_LIBRARY tensorrt_rtx " in (folder / "CMakeLists.txt").read_text()
    header = (folder / "model.h").read_text()
    assert '{"input", "float32", 4, {2, 3, 32, 32}},' in header
    assert '{"output", "float32", 4, {}},' in header
    assert f"kEngineBytes = {rtx.classifier.stat().st_size};" in header
    trtq.package(rtx.classifier, for_=["python"], out=tmp_path / "o")
    assert "module `tensorrt_rtx` 1." in (tmp_path / "o/README.md").read_text()


@pytest.fixture(scope="module")
def program(engines, tmp_path_factory) -> Path:
    """The C++ program of the text encoder, compiled with the stand-in headers."""
    out = tmp_path_factory.mktemp("cpp") / "out"
    trtq.package(engines.text, for_="cpp", out=out)
    line = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}", "-o", "run"]
    subprocess.run([*line, "main.cpp"], cwd=out / "cpp", check=True)
    return out / "cpp"


@needs_compiler
@pytest.mark.parametrize("name", ["classifier", "segmenter", "yolo"])
def test_programs_of_other_models_compile(name, packaged, engines):
    folder = packaged(getattr(engines, name), "cpp")
    line = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{INCLUDE}"]
    subprocess.run([*line, "main.cpp"], cwd=folder, check=True)


@needs_compiler
def test_the_cpp_program_runs(program, tmp_path):
    ids, mask = np.arange(8, dtype=np.int64).reshape(2, 4), np.ones((2, 4), np.int64)
    mask[1, 2] = 0
    (tmp_path / "plan").write_text("plan 4")
    ids.tofile(tmp_path / "ids.bin")
    mask.tofile(tmp_path / "mask.bin")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        line = [program / "run", "--engine", "plan", "--out", ".", *words]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run("ids=ids.bin:2x4", "mask=mask.bin:2x4")
    assert (done.returncode, done.stdout) == (0, "embedding float32 2x1\n"), done.stderr
    got = np.fromfile(tmp_path / "embedding.bin", np.float32)
    np.testing.assert_array_equal(got, (ids * mask).sum(1))
    # Without sizes the usual shape is taken, [2, 8] here.
    for words, text in (
        (("ids=ids.bin",), "ids.bin has 64 bytes, and ids takes 128"),
        (("ids=ids.bin:2x4",), "the input mask is missing: mask=FILE"),
        (("ids=ids.bin:9x4",), "the engine was not built for ids 9x4"),
        (("ids=ids.bin:2xx",), "cannot read the shape 2xx"),
        (("ids=gone.bin:2x4",), "cannot read gone.bin"),
        (("ids",), "expected NAME=FILE[:SHAPE], found ids"),
    ):
        done = run(*words)
        assert (done.returncode, done.stderr.strip()) == (1, text)


@needs_compiler
def test_the_cpp_program_says_why_an_engine_does_not_load(program):
    line = [program / "run", "ids=a", "mask=b"]
    done = subprocess.run(line, cwd=program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "TensorRT: this is no plan"
    assert "TensorRT cannot load the engine; it is for tensorrt 10.3.0, " in done.stderr
    shutil.copytree(program, program.parent / "other")
    with (program.parent / "other/model.engine").open("ab") as handle:
        handle.write(b"more")
    done = subprocess.run(
        line, cwd=program.parent / "other", capture_output=True, text=True, check=False
    )
    assert done.stderr == "model.engine is not the engine that was packaged\n"
