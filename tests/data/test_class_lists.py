from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.conftest import read, spec
from trtq import EvaluateSpec, evaluate, quantize
from trtq.commands.analyze import analyze
from trtq.commands.finetune import finetune
from trtq.commands.search import search
from trtq.data.classes import mirrored_pair, require_one_class_list
from trtq.data.source import Source, open_source
from trtq.errors import DataError, UsageError
from trtq.pipeline import run
from trtq.recipe import load_recipe
from trtq.specs import AnalyzeSpec, FinetuneSpec, SearchSpec
from trtq.testing.images import write_images

NET = "trtq.testing.models:tiny_cnn"


def classes(root: Path, *names: str, count: int = 2) -> str:
    for i, name in enumerate(names):
        write_images(root / name, count, seed=100 * i + len(names) + sum(root.name.encode()))
    return str(root)


def opened(data: Path | str, index: str | None = None) -> tuple[Source, str]:
    lines: list[str] = []
    source = open_source(str(data), Path(index) if index else None, lines.append)
    return source, " | ".join(lines)


# ---- names in one set --------------------------------------------------------------------------


def test_an_empty_class_folder_keeps_its_number(tmp_path: Path) -> None:
    data = classes(tmp_path / "set", "c0", "c2")
    (tmp_path / "set/c1").mkdir()
    (tmp_path / "set/c3").mkdir()
    (tmp_path / "set/c3/a.gif").write_bytes(b"GIF89a")
    source, lines = opened(data)
    assert source.classes == ["c0", "c1", "c2", "c3"]
    assert source.labels == [0, 0, 2, 2]
    assert "2 class folders of" in lines
    assert "keep their class numbers, such as c1" in lines
    shutil.make_archive(str(tmp_path / "z"), "zip", data)
    assert opened(tmp_path / "z.zip")[0].labels == [0, 0, 2, 2]


def test_a_flat_folder_with_an_empty_folder_has_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "set", 2)
    (tmp_path / "set/out").mkdir()
    assert opened(tmp_path / "set")[0].labels is None


def test_links_are_followed_and_never_in_circles(tmp_path: Path) -> None:
    data = classes(tmp_path / "set", "c0", "c2")
    classes(tmp_path / "elsewhere", "real")
    (tmp_path / "set/c1").symlink_to(tmp_path / "elsewhere/real")
    (tmp_path / "set/c0/up").symlink_to(tmp_path / "set")
    (tmp_path / "set/c2/9.png").symlink_to(tmp_path / "set/c0/000.png")
    source, lines = opened(data)
    assert source.classes == ["c0", "c1", "c2"]
    assert source.ids == [
        "c0/000.png",
        "c0/001.png",
        "c1/000.png",
        "c1/001.png",
        "c2/000.png",
        "c2/001.png",
        "c2/9.png",
    ]
    assert "c0/up in" in lines
    assert "a link to a folder above it and is left out" in lines


@pytest.mark.parametrize("name", ["c0/9.png", "c1"])
def test_links_that_lead_nowhere_are_named(name: str, tmp_path: Path) -> None:
    data = classes(tmp_path / "set", "c0", "c2")
    (tmp_path / "set" / name).symlink_to("gone")
    with pytest.raises(
        DataError, match=rf"{name} in .* is a link that leads nowhere: its target is gone"
    ):
        open_source(data)
    (tmp_path / "set" / name).unlink()
    (tmp_path / "set" / name).symlink_to(Path(name).name)  # itself
    with pytest.raises(DataError, match=rf"{name} in .* is a link that leads nowhere"):
        open_source(data)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch) -> None:
    data = classes(tmp_path / "set", "c0", "c1")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "c1":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("trtq.data.listing.os.scandir", scandir)
    with pytest.raises(DataError, match="Cannot read the folder .*c1 of .*: permission denied"):
        open_source(data)


def test_hidden_nested_foreign_and_upper_case_names(tmp_path: Path) -> None:
    data = classes(tmp_path / "set", "c0", "c1", ".c2")
    for name in ("Thumbs.db", ".DS_Store", "c0/Thumbs.db", "c0/._000.png"):
        (tmp_path / "set" / name).write_bytes(b"x")
    write_images(tmp_path / "set/c1/deeper", 1, suffix=".PNG")
    os.mkfifo(tmp_path / "set/c0/pipe.png")
    source, lines = opened(data)
    assert source.classes == ["c0", "c1"]
    assert source.ids[-1] == "c1/deeper/000.PNG"
    assert len(source) == 5
    assert "1 hidden names in" in lines
    assert "such as .c2" in lines
    assert "2 files in" in lines
    assert "belong to the class of their first level, such as c1/deeper" in lines


def test_names_that_differ_in_case_or_composition(tmp_path: Path) -> None:
    write_images(tmp_path / "files/c0", 1)
    write_images(tmp_path / "files/c0", 1, suffix=".PNG")
    assert "differ only in case, such as c0/000.PNG and c0/000.png" in opened(tmp_path / "files")[1]
    with pytest.raises(
        DataError, match="two folders for one class name: 'Cat' and 'cat' differ only in case"
    ):
        open_source(classes(tmp_path / "case", "Cat", "cat"))
    (tmp_path / "i.json").write_text('["Cat", "cat"]')
    assert opened(tmp_path / "case", f"{tmp_path}/i.json")[0].labels == [0, 0, 1, 1]
    with pytest.raises(DataError, match="differ only in case or in Unicode composition"):
        open_source(classes(tmp_path / "nfd", "caf\u00e9", "cafe\u0301"))
    one, two = (
        open_source(classes(tmp_path / n, name))
        for n, name in (("a", "caf\u00e9"), ("b", "cafe\u0301"))
    )
    assert one.classes == two.classes


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_images(tmp_path / "set", 1)
    (tmp_path / "set/000.png").rename(os.fsdecode(os.fsencode(f"{tmp_path}/set/") + b"\xff.png"))
    source, _ = opened(tmp_path / "set")
    assert source.ids == ["\\xff.png"]
    assert source.image(0).size == (40, 40)
    assert len(source.identity()) == 64


# ---- zips --------------------------------------------------------------------------------------


def pack(path: Path, *names: str, link: str | None = None) -> str:
    image = write_images(path.parent / "one", 1) / "000.png"
    with zipfile.ZipFile(path, "w") as z:
        for name in names:
            entry = zipfile.ZipInfo(name)
            if name == link:
                entry.external_attr = 0o120777 << 16
            z.writestr(entry, b"target" if name == link else image.read_bytes())
    return str(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_of_a_zip(tmp_path: Path) -> None:
    for name in ("../c0/1.png", "/c0/1.png", "c0/../../1.png", "C:\\c0\\1.png", "..\\1.png"):
        with pytest.raises(
            DataError, match="holds the name .*: it is absolute or leads out of the zip"
        ):
            open_source(pack(tmp_path / "z.zip", name))
    for names in (("c0/1.png", "c0/1.png"), ("c0/1.png", "c0\\1.png"), ("c0/1.png", "./c0//1.png")):
        with pytest.raises(DataError, match="holds c0/1.png twice"):
            open_source(pack(tmp_path / "z.zip", *names))
    with pytest.raises(DataError, match="c1 in .* is a link: a zip keeps only its text"):
        open_source(pack(tmp_path / "z.zip", "c0/1.png", "c1", link="c1"))
    source, lines = opened(
        pack(tmp_path / "z.zip", "set\\c0\\1.png", "set\\c1\\1.png", "set\\.c2\\1.png") + "/set"
    )
    assert source.labels == [0, 1]
    assert source.image(1).size == (40, 40)
    assert "backslashes" in lines
    assert "hidden names" in lines


# ---- what is no class --------------------------------------------------------------------------


def test_folders_that_are_no_classes_need_a_statement(tmp_path: Path) -> None:
    data = classes(tmp_path / "set", "images", "masks")
    with pytest.raises(
        DataError, match="not one set of images but several.*Choose one: .*/images or .*/masks"
    ):
        open_source(data)
    assert opened(data, "text")[0].labels == [0, 0, 1, 1]
    with pytest.raises(
        DataError, match="holds one folder, which is no class: it holds only images"
    ):
        open_source(classes(tmp_path / "one", "images"))


def test_left_and_right_are_not_mirrored(tmp_path: Path, cnn_out: Path) -> None:
    assert mirrored_pair(["Left", "right", "up"]) == ("Left", "right")
    assert mirrored_pair(["leftover", "up"]) is None
    data = classes(tmp_path / "set", "left", "right")
    with pytest.raises(
        UsageError,
        match="Cannot mirror the images .* a mirrored image of left shows right. Add --augment "
        "none",
    ):
        finetune(training(cnn_out, tmp_path, data))


# ---- numbers -----------------------------------------------------------------------------------


def test_folders_named_by_numbers(tmp_path: Path, cnn_out: Path) -> None:
    data = classes(tmp_path / "set", "0", "1", "10", "2")
    source, _ = opened(data)  # calibration uses no labels
    with pytest.raises(
        DataError,
        match=r"ambiguous: .* as text their order is 0, 1, 10, 2, as numbers 0, 1, 2, 10.*numeric",
    ):
        require_one_class_list(source)
    with pytest.raises(DataError, match="ambiguous"):
        evaluate(EvaluateSpec(onnx=f"{cnn_out}/model.qdq.onnx", data=data))
    with pytest.raises(DataError, match="ambiguous"):
        finetune(training(cnn_out, tmp_path, data))
    with pytest.raises(DataError, match="ambiguous"):
        analyze(AnalyzeSpec(model=NET, data=data, out=f"{tmp_path}/a.json", metric="hessian"))
    assert opened(data, "numeric")[0].labels == [0, 0, 1, 1, 3, 3, 2, 2]
    assert opened(data, "text")[0].labels == [0, 0, 1, 1, 2, 2, 3, 3]
    record = evaluate(
        EvaluateSpec(onnx=f"{cnn_out}/model.qdq.onnx", data=data, class_index="numeric")
    )
    assert record.data["class_names"] == ["0", "1", "2", "10"]
    require_one_class_list(open_source(classes(tmp_path / "padded", "00", "01", "10")))
    with pytest.raises(DataError, match="the folder 'a' is not a number"):
        open_source(classes(tmp_path / "words", "a"), Path("numeric"))


def test_class_index_files(tmp_path: Path, monkeypatch) -> None:
    data, index = classes(tmp_path / "set", "a", "b"), tmp_path / "i.json"
    monkeypatch.setenv("HOME", str(tmp_path))
    for text, why in (
        ('["a", "b", "a"]', "names 'a' twice"),
        ('["a", 1]', "expected a JSON list of folder names"),
        ("[", "expected a JSON list"),
        ('{"a": 0}', "expected a JSON list"),
        ('["a"]', "does not name the folder 'b'"),
    ):
        index.write_text(text)
        with pytest.raises(DataError, match=why):
            open_source(data, index)
    with pytest.raises(DataError, match="no such file"):
        open_source(data, tmp_path / "gone.json")
    index.write_bytes(b"\xef\xbb\xbf" + b'["b", "a"]')
    assert opened(data, "~/i.json")[0].classes == ["b", "a"]


# ---- several sets ------------------------------------------------------------------------------


def training(cnn_out: Path, tmp_path: Path, data: str, **changes) -> FinetuneSpec:
    values = {
        "model": NET,
        "data": data,
        "encodings": f"{cnn_out}/encodings.safetensors",
        "out": f"{tmp_path}/ft",
        "input_size": "3x32x32",
        "preset": "imagenet",
        "epochs": 1,
        "batch_size": 4,
        "parity_images": 2,
    }
    return FinetuneSpec.make({**values, **changes})


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("sets")
    return classes(root / "train", "c0", "c2"), classes(root / "val", "c0", "c1", "c2")


DIFFER = (
    r"do not have the same classes: c1 only in .*val; c1 is class 1 in .*val and no class in "
    r".*train\. Give --class-index FILE"
)


def test_one_class_list_for_training_and_validation(sets, cnn_out: Path, tmp_path: Path) -> None:
    train, val = sets
    with pytest.raises(DataError, match=DIFFER):
        finetune(training(cnn_out, tmp_path, train, val=val))
    with pytest.raises(
        DataError, match="c1 only in .*val; c2 is class 1 in .*train and 2 in .*val"
    ):  # fewer folders move numbers, too
        require_one_class_list(open_source(val), open_source(train))
    require_one_class_list(open_source(val), open_source(classes(tmp_path / "first", "c0", "c1")))
    with pytest.raises(DataError, match="do not have the same classes"):
        search(
            SearchSpec(
                model=NET,
                data=train,
                val=val,
                out=f"{tmp_path}/s",
                input_size=(3, 32, 32),
                budget=("size=0.5",),
            )
        )
    index = tmp_path / "i.json"
    index.write_text(json.dumps(["c0", "c1", "c2"]))
    record = finetune(training(cnn_out, tmp_path, train, val=val, class_index=str(index)))
    assert record.data["class_names"] == ["c0", "c1", "c2"]

    # What was trained knows its classes wherever it is copied to.
    moved = shutil.copy(tmp_path / "ft/model.qdq.onnx", tmp_path / "moved.onnx")
    with pytest.raises(
        DataError,
        match="and the training images do not have the same classes: c1 only in the training "
        "images",
    ):
        evaluate(EvaluateSpec(onnx=str(moved), data=train))
    assert evaluate(EvaluateSpec(onnx=str(moved), data=val)).images == 6
    assert evaluate(EvaluateSpec(onnx=str(moved), data=train, class_index=str(index))).images == 4


def test_recipes_compare_class_lists_before_they_start(sets, tmp_path: Path) -> None:
    train, val = sets
    recipe = tmp_path / "r.toml"
    base = (
        f'out = "{tmp_path}/o"\n[quantize]\nmodel = "{NET}"\ndata = "{train}"\ninput_size = '
        '"3x32x32"\ncalib_images = 1\n'
    )
    for more in (
        f'[finetune]\nepochs = 1\nval = "{val}"\n',
        f'[finetune]\nepochs = 1\n[evaluate]\ndata = "{val}"\n',
        f'[finetune]\nepochs = 1\ndata = "{val}"\n[evaluate]\n',
    ):
        recipe.write_text(base + more)
        with pytest.raises(DataError, match="do not have the same classes"):
            run(load_recipe(recipe))
    recipe.write_text(base.replace(train, val) + f'[evaluate]\ndata = "{train}"\n')
    with pytest.raises(DataError, match="do not have the same classes: c1 only in"):
        run(load_recipe(recipe))
    assert not (tmp_path / "o").exists()


def test_evaluation_knows_the_classes_of_calibration(sets, tmp_path: Path) -> None:
    few, full = sets
    quantize(spec(Path(full), tmp_path / "q", calib_images=4, parity_images=2))
    model = f"{tmp_path}/q/model.qdq.onnx"
    assert read(tmp_path / "q/quantize.json")["data"]["class_names"] == ["c0", "c1", "c2"]
    with pytest.raises(DataError, match="and the calibration images do not have the same classes"):
        evaluate(EvaluateSpec(onnx=model, data=few))
    assert evaluate(EvaluateSpec(onnx=model, data=full)).images == 6
    more = classes(
        tmp_path / "more", "c0", "c0b", "c1", "c2"
    )  # calibration may show fewer classes than there are
    assert evaluate(EvaluateSpec(onnx=model, data=more)).images == 8
