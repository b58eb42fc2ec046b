"""Data of every form through the table of adapters: arrays, factories, random numbers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import trtq
from tests.conftest import read, run_cli
from trtq.data.adapters import ADAPTERS, find_adapter
from trtq.errors import DataError, UsageError

MODEL = "trtq.testing.models:tiny_cnn"
SHAPE = (3, 32, 32)
OWN = """
import numpy as np

VALUES = np.random.default_rng(0).standard_normal((12, 3, 32, 32)).astype("float32")


def pairs():
    return [(x, i % 4) for i, x in enumerate(VALUES)]


def signed(signature):
    shape = [int(v) for v in signature.inputs[0].shape[1:]]
    for i in range(12):
        yield VALUES[i].reshape(shape)


def endless():
    while True:
        yield from VALUES


def broken():
    raise RuntimeError("no licence")


class Set:
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return VALUES[index], index % 4


ROWS = list(VALUES)
"""


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((12, *SHAPE)).astype(np.float32)


@pytest.fixture
def forms(tmp_path: Path, values, monkeypatch) -> Path:
    """The same twelve samples in every form."""
    labels = np.arange(12) % 4
    for name in ("npz", "npy"):
        (tmp_path / name).mkdir()
    for i, (x, y) in enumerate(zip(values, labels, strict=True)):
        np.savez(tmp_path / f"npz/{i:02d}.npz", input=x, target=y)
        np.save(tmp_path / f"npy/{i:02d}.npy", x)
    np.save(tmp_path / "x.npy", values)
    np.savez(tmp_path / "x.npz", input=values, target=labels)
    np.savez_compressed(tmp_path / "small.npz", input=values, target=labels)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))
    return tmp_path


FORMS = (
    "npz",
    "npy",
    "x.npy",
    "x.npz",
    "small.npz",
    "own.py:pairs",
    "own.py:Set",
    "own.py:ROWS",
    "own.py:endless",
)


def test_every_form_has_the_same_samples(forms, values):
    digests = set()
    for form in FORMS:
        samples = trtq.samples(form, limit=12)
        assert len(samples) == 12, form
        assert samples.has_targets == (
            form not in ("npy", "x.npy", "own.py:ROWS", "own.py:endless")
        )
        batches = list(samples.batches(5))
        assert [len(b) for b in batches] == [5, 5, 2]
        np.testing.assert_array_equal(torch.cat([b.input for b in batches]).numpy(), values)
        digests.add(samples.digest())
        assert len(samples.take(4, seed=1)) == 4
    assert len(digests) == 1
    assert list(trtq.samples("npz").ids)[:2] == ["000000", "000001"] or list(
        trtq.samples("npz").ids
    )[:2] == ["00.npz", "01.npz"]


@pytest.mark.parametrize("form", ["npz", "small.npz", "own.py:pairs"])
def test_the_command_line_quantizes_and_scores_them(forms, form):
    done = run_cli("quantize", MODEL, "--data", form, "--out", "out", "--preset-quant", "none")
    assert done.returncode == 0, done.stderr
    record = read(forms / "out/quantize.json")
    assert record["data"]["source"] == form and record["preprocess"] is None
    assert record["calibration"]["images"] == 12
    scored = run_cli(
        "evaluate",
        "out/model.qdq.onnx",
        "--data",
        form,
        "--task",
        "classification",
        "--out",
        "scores",
    )
    assert scored.returncode == 0, scored.stderr
    assert "top-1" in scored.stdout
    assert "12 of these images were used for calibration" in scored.stderr
    written = read(forms / "scores/evaluate.json")
    assert written["task"] == "classification"
    assert [f["name"] for f in written["figures"]] == ["top-1", "top-5"]
    left = run_cli(
        "evaluate", "out/model.qdq.onnx", "--data", form, "--exclude", "out/quantize.json"
    )
    assert "all of them were used for calibration" in left.stderr


def test_analyze_export_and_the_cache_take_them(forms):
    common = ("--calib-images", "8", "--data")
    done = run_cli("quantize", MODEL, *common, "x.npz", "--out", "a", "--preset-quant", "none")
    again = run_cli("quantize", MODEL, *common, "npz", "--out", "b", "--preset-quant", "none")
    assert done.returncode == again.returncode == 0
    assert "calibration cache used" in again.stderr  # the same content in other files
    for metric in ("l2", "gradient"):
        out = f"{metric}.json"
        seen = run_cli(
            "analyze", MODEL, *common, "x.npz", "--images", "8", "--metric", metric, "--out", out
        )
        assert seen.returncode == 0, seen.stderr
    lacking = run_cli("analyze", MODEL, *common, "x.npy", "--metric", "gradient", "--out", "no")
    assert "The metric gradient needs labels, x.npy has none" in lacking.stderr


def test_a_factory_gets_the_signature(forms):
    done = run_cli(
        "quantize",
        MODEL,
        "--data",
        "own.py:signed",
        "--input-size",
        "3x32x32",
        "--out",
        "out",
        "--preset-quant",
        "none",
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(DataError, match="takes the signature of the model"):
        trtq.samples("own.py:signed")
    with pytest.raises(DataError, match="calling it raised RuntimeError: no licence"):
        trtq.samples("own.py:broken")


def test_random_inputs_are_never_called_calibrated(forms):
    done = run_cli(
        "quantize",
        MODEL,
        "--data",
        "random:8",
        "--input-size",
        "3x32x32",
        "--out",
        "out",
        "--preset-quant",
        "none",
    )
    assert done.returncode == 0, done.stderr
    assert "on 8 random inputs (NOT CALIBRATED)" in done.stdout
    record = read(forms / "out/quantize.json")
    assert record["data"]["random"] is True
    assert any("the model is not calibrated" in line for line in record["notes"])
    scored = run_cli("evaluate", "out/model.qdq.onnx", "--data", "random:4")
    assert "4 random inputs" in scored.stdout
    for text in ("random:0", "random:few"):
        with pytest.raises(UsageError, match="is no number of samples.*random:64"):
            trtq.samples(text)
    with pytest.raises(DataError, match="Cannot draw random inputs without a model"):
        trtq.samples("random")


def test_an_own_task_on_the_command_line(forms):
    (forms / "task.py").write_text(
        "from trtq.tasks import Figure, Task\n"
        "class Count:\n"
        "    n = 0\n"
        "    def add(self, answer, targets):\n"
        "        self.n += len(targets)\n"
        "    @property\n"
        "    def figures(self):\n"
        "        return [Figure(name='counted', value=float(self.n), unit='rows')]\n"
        "class Counting(Task):\n"
        "    name = 'counting'\n"
        "    def score(self, *, ignore):\n"
        "        return Count()\n"
        "COUNTING = Counting()\n"
    )
    run_cli("quantize", MODEL, "--data", "npz", "--out", "out", "--preset-quant", "none")
    scored = run_cli(
        "evaluate", "out/model.qdq.onnx", "--data", "npz", "--task", "task.py:COUNTING"
    )
    assert scored.returncode == 0, scored.stderr
    assert "counted 12.00 rows" in scored.stdout
    wrong = run_cli("evaluate", "out/model.qdq.onnx", "--data", "npz", "--task", "classifcation")
    assert wrong.returncode == 2 and "Did you mean classification" in wrong.stderr


def test_settings_of_other_data_are_refused(forms):
    for option, value in (("--mean", "0.5,0.5,0.5"), ("--preset", "imagenet")):
        done = run_cli("quantize", MODEL, "--data", "npz", "--out", "o", option, value)
        assert done.returncode == 2 and f"{option} are for images" in done.stderr
    with pytest.raises(UsageError, match="masks are for images: npz is opened as arrays"):
        trtq.samples("npz", masks="m")
    with pytest.raises(UsageError, match="tokenizer is for texts: npz is opened as arrays"):
        trtq.samples("npz", tokenizer="t.json")


def damage(folder: Path, kind: str) -> str:
    """Write data of some damage and return their text."""
    x = np.zeros((4, 3, 8, 8), dtype=np.float32)
    path = folder / "bad.npz"
    if kind == "objects":
        np.savez(path, input=np.array([{}, {}], dtype=object))
    elif kind == "object array":
        np.save(folder / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
        path = folder / "bad.npy"
    elif kind == "torn":
        np.savez(path, input=x)
        path.write_bytes(path.read_bytes()[:-60])
    elif kind == "torn array":
        np.save(folder / "bad.npy", x)
        path = folder / "bad.npy"
        path.write_bytes(path.read_bytes()[:-60])
    elif kind == "lengths":
        np.savez(path, input=x, target=np.zeros(3))
    elif kind == "number":
        np.savez(path, input=np.float32(1.0))
    elif kind == "no array":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
    elif kind == "empty":
        with zipfile.ZipFile(path, "w"):
            pass
    elif kind == "order":
        path = folder / "bad.npy"
        np.save(path, np.asfortranarray(x))
    elif kind == "no samples":
        path = folder / "bad.npy"
        np.save(path, x[:0])
    return str(path)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("objects", "'input' of .*bad.npz: it holds Python objects, which only pickle can read"),
        ("object array", "bad.npy: it holds Python objects.*Save arrays of numbers"),
        ("torn", "Cannot read .*bad.npz: it is damaged"),
        ("torn array", "bad.npy: it is damaged: 3012 of 3072 bytes are there"),
        ("lengths", "different numbers of samples: 4 of 'input', 3 of 'target'"),
        ("number", "'input' of .*: it is one number.*samples first"),
        ("no array", "'a.txt' in it is no array"),
        ("empty", "it holds no arrays"),
        ("order", "its axes are in Fortran's order"),
        ("no samples", "it has no samples"),
        ("missing", "bad.npz: there is no such file"),
    ],
)
def test_damaged_files_are_named(tmp_path, kind, text):
    with pytest.raises(DataError, match=text):
        trtq.samples(damage(tmp_path, kind))


def test_a_damaged_sample_is_named_when_it_is_read(forms):
    for name, write in (
        ("03.npz", lambda p: np.savez(p, input=np.array([None], dtype=object))),
        ("04.npz", lambda p: p.write_bytes(b"PK\x03\x04 torn")),
    ):
        good = (forms / "npz" / name).read_bytes()
        write(forms / "npz" / name)
        with pytest.raises(DataError, match=f"{name} in npz"):
            trtq.samples("npz").contents()
        (forms / "npz" / name).write_bytes(good)
    (forms / "npz/notes.md").write_text("x")
    lines: list[str] = []
    trtq.samples("npz", note=lines.append)
    assert lines == ["1 files in npz are no arrays and were ignored, such as notes.md"]
    (forms / "npz/a.png").write_bytes(b"")
    with pytest.raises(DataError, match="images beside arrays.*give images:npz"):
        trtq.samples("npz")


def test_the_table_names_each_adapter_once(forms):
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    for adapter in ADAPTERS:
        for form in adapter.forms.split(", "):
            assert form in page, form
    assert find_adapter("npz").name == find_adapter("x.npz").name == "arrays"
    assert find_adapter("coco:x").name == "coco" and find_adapter("a.txt").name == "text"
    assert find_adapter("own.py:pairs").name == "factory"
    assert find_adapter("nowhere").name == find_adapter("cifar10:x").name == "images"
