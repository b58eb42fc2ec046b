from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.conftest import read
from trtq import EvaluateSpec, evaluate
from trtq.artifact import stamp_of
from trtq.commands.finetune import finetune
from trtq.data import digests
from trtq.data.adapters import fingerprint
from trtq.data.digests import DigestCache
from trtq.data.source import open_source, place_of, shared_images
from trtq.errors import DataError, UsageError
from trtq.pipeline import run
from trtq.progress import Silent
from trtq.recipe import load_recipe
from trtq.specs import FinetuneSpec
from trtq.testing.images import write_classes

NET = "trtq.testing.models:tiny_cnn"


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "set", 2, 3)


@pytest.fixture()
def cached(tmp_path: Path, monkeypatch) -> Path:
    """A cache of digests that even small and fresh sets use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "WORTH_BYTES", 0)
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    return tmp_path / "cache/trtq/digests"


def spellings(data: Path, monkeypatch) -> list[str]:
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("HOME", str(data.parent))
    (data.parent / "link").symlink_to(data)
    return [str(data), f"{data}/", "set", "./set", "link/", "~/set", f"{data}/../set", "set/."]


# ---- one identity for a set --------------------------------------------------------------------


def test_every_spelling_is_the_same_set(data: Path, monkeypatch) -> None:
    names = spellings(data, monkeypatch)
    assert len({place_of(n) for n in names}) == 1
    assert len({fingerprint(n) for n in names}) == 1


def test_a_zip_a_folder_in_it_and_a_copy_are_the_same_set(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "copy")
    shutil.make_archive(str(tmp_path / "flat"), "zip", data)
    shutil.make_archive(str(tmp_path / "deep"), "zip", tmp_path, "set")
    wanted = fingerprint(str(data))
    for other in ("copy", "flat.zip", "deep.zip/set", "deep.zip/./set/"):
        assert fingerprint(f"{tmp_path}/{other}") == wanted, other


def test_what_changes_an_identity(data: Path, tmp_path: Path) -> None:
    seen = {fingerprint(str(data))}
    image = data / "class0/000.png"
    before = image.stat()
    raw = bytearray(image.read_bytes())
    raw[-20] ^= 1
    image.write_bytes(raw)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time
    assert image.stat().st_mtime_ns == before.st_mtime_ns
    seen.add(fingerprint(str(data)))
    image.rename(data / "class1/moved.png")
    seen.add(fingerprint(str(data)))
    (data / "class05").mkdir()
    seen.add(fingerprint(str(data)))
    (tmp_path / "i.json").write_text('["class1", "class05", "class0"]')
    seen.add(fingerprint(str(data), f"{tmp_path}/i.json"))
    assert len(seen) == 5
    (data / "notes.txt").write_text("no image")
    assert fingerprint(str(data)) in seen
    assert fingerprint(str(tmp_path / "gone")) is None


def test_the_last_image_of_many_counts(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "set", 1, 70)  # 64 used to be sampled
    seen = set()
    for name in ("001.png", "068.png"):
        (data / "class0" / name).write_bytes(b"x" * 40)
        seen.add(open_source(str(data)).identity())
    assert len(seen) == 2


# ---- digests that are kept ---------------------------------------------------------------------


def test_digests_of_unchanged_files_are_kept(data: Path, cached: Path, monkeypatch) -> None:
    lines: list[str] = []
    first = fingerprint(str(data), None, lines.append)
    assert not lines
    assert len(list(cached.iterdir())) == 1
    assert fingerprint(f"{data}/", None, lines.append) == first
    assert lines == [
        f"6 of 6 image digests of {data}/ come from the cache: inode, size and times of the "
        "files are unchanged"
    ]
    image = data / "class1/002.png"
    before, raw = image.stat(), bytearray(image.read_bytes())
    raw[-20] ^= 1
    image.write_bytes(raw)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fingerprint(str(data), None, lines.append) != first
    assert lines[-1].startswith("5 of 6 ")
    shutil.make_archive(str(data), "zip", data)
    wanted = fingerprint(f"{data}.zip")
    assert wanted == fingerprint(str(data))
    opened = open_source(f"{data}.zip")
    assert opened.identity() == wanted
    assert opened.cached_digests == 6


def test_fresh_files_and_small_sets_are_read_every_time(
    data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fingerprint(str(data))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(digests, "WORTH_BYTES", 0)
    fingerprint(str(data))  # written within the last two seconds
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", b"{}"])
def test_a_damaged_cache_is_written_again(damage: bytes, data: Path, cached: Path) -> None:
    wanted = fingerprint(str(data))
    file = next(iter(cached.iterdir()))
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert fingerprint(str(data)) == wanted
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(
    data: Path, cached: Path, monkeypatch
) -> None:
    cached.parent.parent.mkdir()
    cached.parent.write_text("a file in the way")
    assert fingerprint(str(data)) == fingerprint(str(data))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert digests.cache_folder() is None
    assert len(open_source(str(data)).identity()) == 64


def test_two_writers(data: Path, cached: Path) -> None:
    stamp = stamp_of(data / "class0/000.png")

    def write(number: int) -> None:
        for i in range(20):
            cache = DigestCache("place", 1)
            cache.put(f"{number}.{i}", stamp, f"{number}")
            cache.save()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    kept = DigestCache("place", 1)
    assert kept.known
    assert all(name.split(".")[0] == digest for name, (_, digest) in kept.known.items())


# ---- held out images ---------------------------------------------------------------------------


def recipe_of(tmp_path: Path, more: str, **values: object) -> Path:
    path = tmp_path / "r.toml"
    lines = [
        f'{k} = "{v}"'
        for k, v in {"model": NET, "input_size": "3x32x32", "preset": "imagenet", **values}.items()
    ]
    text = "\n".join(lines)
    path.write_text(
        f'out = "{tmp_path}/o"\n[quantize]\n{text}\ncalib_images = 2\nparity_images = 2\n'
        f'calib_cache = "{tmp_path}/c"\n{more}'
    )
    return path


def test_training_images_never_pass_as_held_out(data: Path, tmp_path: Path, monkeypatch) -> None:
    others = write_classes(tmp_path / "others", 2, 3, size=36)
    names = spellings(data, monkeypatch)
    shutil.copytree(data, tmp_path / "copy")
    renamed = tmp_path / "renamed"
    for folder in ("class0", "class1"):
        (renamed / folder).mkdir(parents=True)
        shutil.copy(others / folder / "000.png", renamed / folder / "a.png")
    shutil.copy(
        data / "class1/002.png", renamed / "class1/b.png"
    )  # one image of training under another name
    for name in (*names, "copy", "renamed"):
        held = f'[finetune]\nepochs = 1\ndata = "{data}"\n[evaluate]\ndata = "{name}"\n'
        with pytest.raises(
            UsageError,
            match=r"images that training saw: .* holds (6 of the 6|1 of the 3) images of",
        ):
            run(load_recipe(recipe_of(tmp_path, held, data=others)))
    held = f'[finetune]\nepochs = 1\nval = "{renamed}"\n[evaluate]\n'
    with pytest.raises(UsageError, match=r"1 of the 3 images of .*renamed, such as class1/b.png"):
        run(load_recipe(recipe_of(tmp_path, held, data=f"{data}/")))
    assert not (tmp_path / "o").exists()


def test_a_copy_of_the_calibration_images_leaves_none(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "copy")
    recipe = recipe_of(tmp_path, f'[evaluate]\ndata = "{tmp_path}/copy"\n', data=data)
    recipe.write_text(recipe.read_text().replace("calib_images = 2", "calib_images = 6"))
    with pytest.raises(
        UsageError, match="leaves no image to evaluate: .*copy has 6 images and calibration takes 6"
    ):
        run(load_recipe(recipe))


def test_a_recipe_runs_again_for_other_content_and_not_for_another_spelling(
    data: Path, tmp_path: Path, monkeypatch
) -> None:
    more = "[evaluate]\nheld_out = false\n"
    names = spellings(data, monkeypatch)
    ran = [
        [r.name for r in run(load_recipe(recipe_of(tmp_path, more, data=n))) if r.ran]
        for n in (names[0], names[1], names[5])
    ]
    assert ran == [["quantize", "evaluate", "report"], [], []]
    image = data / "class0/001.png"
    before, raw = image.stat(), bytearray(image.read_bytes())
    shutil.copy(data / "class1/001.png", image)
    image.write_bytes(image.read_bytes()[: len(raw)].ljust(len(raw), b"\0"))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = [r for r in run(load_recipe(recipe_of(tmp_path, more, data=names[0]))) if r.ran]
    assert again[0].name == "quantize"
    assert again[0].why == "images changed"


def test_a_run_says_that_digests_are_kept(data: Path, cached: Path, tmp_path: Path) -> None:
    class Told(Silent):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def note(self, text: str) -> None:
            self.lines.append(text)

    told, recipe = (
        Told(),
        load_recipe(recipe_of(tmp_path, "[evaluate]\nheld_out = false\n", data=data)),
    )
    run(recipe, told)
    told.lines.clear()
    assert not any(r.ran for r in run(recipe, told))
    assert [line[:27] for line in told.lines] == ["6 of 6 image digests of " + str(data)[:3]]


def test_exclusion_goes_by_content(cnn_out: Path, images: Path, tmp_path: Path) -> None:
    used = set(read(cnn_out / "quantize.json")["data"]["calibration_sha256"])
    source = open_source(str(images))
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, name in enumerate(source.ids):
        shutil.copy(images / name, flat / f"{number:02d}.png")
    record = evaluate(
        EvaluateSpec(
            onnx=f"{cnn_out}/model.qdq.onnx",
            reference=f"{cnn_out}/model.fp32.onnx",
            data=str(flat),
            exclude=f"{cnn_out}/quantize.json",
        )
    )
    assert record.images == 8
    assert {c for c in source.short_contents(range(32)) if c not in used} == set(
        open_source(str(flat)).short_contents(
            [i for i, c in enumerate(source.short_contents(range(32))) if c not in used]
        )
    )
    assert len(shared_images(open_source(str(flat)), source)) == 32


def test_validation_images_that_are_training_images_are_reported(
    data: Path, cnn_out: Path, tmp_path: Path
) -> None:
    spec = FinetuneSpec(
        model=NET,
        data=str(data),
        val=f"{data}/",
        encodings=f"{cnn_out}/encodings.safetensors",
        out=f"{tmp_path}/ft",
        input_size=(3, 32, 32),
        preset="imagenet",
        epochs=1,
        batch_size=4,
        parity_images=2,
    )
    record = finetune(spec)
    assert any(
        line.startswith(f"6 of 6 images of {data}/ are also in {data}") for line in record.notes
    )


def test_home_in_every_data_path(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
    assert len(open_source("cifar10:~")) == 1
    assert place_of("cifar10:~/.") == f"cifar10:{tmp_path}"
    shutil.make_archive(str(tmp_path / "z"), "zip", data)
    assert len(open_source("~/z.zip/class0")) == 3
    with pytest.raises(DataError, match="the home folder is unknown"):
        open_source("~nobody-of-this-name/x")
    (tmp_path / "data_batch_1.bin").write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(DataError, match="a label is 10, CIFAR-10 has 10 classes"):
        open_source("cifar10:~")
