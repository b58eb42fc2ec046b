"""The file of a sweep: which runs it stands for, and what is refused before any of them starts."""

from __future__ import annotations

import shutil
import sys
from datetime import date

import pytest
import torch

from trtq.errors import TrtqError, UsageError
from trtq.jobs.toml_text import toml_text
from trtq.progress import Silent
from trtq.recipe import load_recipe
from trtq.sweep.key import address_of, moved
from trtq.sweep.variants import read_sweep, run_named

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BASE = """
[quantize]
model = "trtq.testing.models:tiny_cnn"
data = "{images}"
input_size = "3x16x16"
calib_images = 8
[evaluate]
"""


@pytest.fixture()
def write(tmp_path, images):
    def file(text: str, name: str = "sweep.toml"):
        path = tmp_path / name
        path.write_text(BASE.format(images=images) + text)
        return path

    return file


def settings(path):
    return [v.settings for v in read_sweep(path).variants()]


def test_the_product_of_the_lists_are_the_runs(write):
    path = write('[vary]\n"quantize.bits" = ["w8a8", "w4a8"]\n"quantize.seed" = [0, 1]')
    assert read_sweep(path).count == 4
    assert settings(path) == [
        {"quantize.bits": b, "quantize.seed": s} for b in ("w8a8", "w4a8") for s in (0, 1)
    ]
    same = write("[vary]\nquantize.bits = ['w8a8', 'w4a8']\nquantize.seed = [0, 1]", "dotted.toml")
    assert settings(same) == settings(path)


def test_a_list_of_tables_is_a_group_of_settings(write):
    path = write(
        """
[vary]
"quantize.seed" = [0, 1]
[[vary.models]]
"quantize.model" = "trtq.testing.models:tiny_vit"
quantize.bits = "w8a8"
[[vary.models]]
quantize = {model = "trtq.testing.models:tiny_cnn", model_arg = {width = 8}}
"""
    )
    first, *_, last = read_sweep(path).variants()
    assert first.settings == {
        "quantize.seed": 0,
        "quantize.model": "trtq.testing.models:tiny_vit",
        "quantize.bits": "w8a8",
    }
    assert last.recipe.quantize.model_arg == {"width": 8}
    assert read_sweep(path).count == 4


def test_a_run_is_an_ordinary_recipe(write, tmp_path):
    path = write(
        """
[bench]
duration = 0.5
[vary]
"build.target" = ["t4", "rtx4090"]
"finetune.epochs" = [2]
"""
    )
    one = next(iter(read_sweep(path).variants()))
    (tmp_path / "run.toml").write_text(one.text("results"))
    recipe = load_recipe(tmp_path / "run.toml")
    assert recipe.out == "results"
    assert recipe.title == "sweep: target=t4 epochs=2"
    assert [b.target for b in recipe.build] == ["t4"]
    assert (recipe.finetune.epochs, recipe.finetune.out) == (2, "results/finetune")
    assert recipe.bench.duration == 0.5
    assert moved(recipe, "x").finetune.encodings == "x/encodings.safetensors"


def test_texts_of_all_kinds_come_back_from_toml():
    tables = {
        "out": 'a "quoted" \\ path\n\x7f\u202e',
        "quantize": {"a": [1, 2.5, True, "x"], "b c": {"k.l": -1e-9}, "empty": [], "big": 10**12},
        "build": [{"target": "t4"}, {"target": "t4", "dla": 0}],
    }
    assert tomllib.loads(toml_text(tables)) == tables
    assert "none" not in toml_text({"none": None})
    with pytest.raises(UsageError, match="a date is no setting of a recipe. Write a text"):
        toml_text({"quantize": {"seed": date(2026, 1, 1)}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Nothing varies in .*: it has no .vary. table. Write .vary. with lines such as"),
        ("[vary]", "Nothing varies in .*: .vary. has no list"),
        ('[vary]\n"quantize.bitz" = [1]', "Unknown setting 'quantize.bitz' in .* quantize.bits"),
        ('[vary]\n"quantise.bits" = [1]', "Unknown setting 'quantise.bits' in .* quantize.bits"),
        ('[vary]\n"quantize.bits" = []', "Cannot vary quantize.bits in .* at least one item"),
        ('[vary]\n"quantize.bits" = "w8a8"', "found 'w8a8', expected a list"),
        ("[vary]\nbits = ['w8a8']", r"it is no dotted setting, and 'w8a8' .* \[\[vary.bits\]\]"),
        ('[vary]\n"quantize.out" = ["a"]', "Cannot vary quantize.out .* a folder of its own"),
        ('[vary]\ntitle = ["a"]', "it is no dotted setting"),
        (
            '[vary]\n"quantize.seed" = [1]\n[[vary.a]]\nquantize.seed = 2',
            "Two lists of .vary. in .* set quantize.seed",
        ),
        (
            '[[build]]\ntarget="t4"\n[[build]]\ntarget="orin"\n[vary]\n"build.target" = ["t4"]',
            "Cannot vary build.target in .* the recipe has 2 ..build.. tables",
        ),
        (
            '[vary]\n"quantize.bits" = ["w8a8", "w9a8"]',
            r"Cannot sweep: run 00002 \(bits=w9a8\): .*w9a8",
        ),
        ('[vary]\n"build.target" = ["t4", "t5"]', r"run 00002 \(target=t5\): Unknown target 't5'"),
        ('[vary]\n"quantize.calib_images" = [8, 64]', r"run 00002 .* leaves no image to evaluate"),
        ('[sweep]\nlimits = 3\n[vary]\n"quantize.seed" = [1]', "Unknown setting 'limits' in .*lim"),
        (
            '[sweep]\nslots = {gpu = 1}\n[vary]\n"quantize.seed" = [1]',
            r"Unknown setting 'gpu' in \[sweep.slots\] .* gpus",
        ),
        ('sweep = 3\n[vary]\n"quantize.seed" = [1]', "sweep in .* must be a table"),
        ('[qantize]\n[vary]\n"quantize.seed" = [1]', "Unknown table or setting 'qantize'"),
    ],
)
def test_what_cannot_be_swept_is_refused(text, message, write, tmp_path):
    path = write(text)
    if text.startswith("sweep"):
        path.write_text(text.replace("[vary]", BASE + "[vary]"))
    with pytest.raises(UsageError, match=message):
        for variant in read_sweep(path).variants():
            with run_named(variant.number, variant.settings):
                address_of(variant.recipe, Silent())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_million_runs_are_refused_with_the_count(write):
    lists = "\n".join(
        f'"quantize.{n}" = {list(range(1, 101))}' for n in ("seed", "batch_size", "calib_images")
    )
    with pytest.raises(UsageError) as caught:
        read_sweep(write(f"[vary]\n{lists}"))
    assert "describes 1,000,000 runs: 100 quantize.seed x 100 quantize.batch_size x" in str(
        caught.value
    )
    assert "the limit is 500. Shorten a list, or set limit = 1000000 under [sweep]" in str(
        caught.value
    )
    assert read_sweep(write(f"[sweep]\nlimit = 1000000\n[vary]\n{lists}")).count == 10**6


def test_a_sweep_without_a_model_is_refused(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('[vary]\n"quantize.bits" = ["w8a8"]')
    with pytest.raises(UsageError, match="has no .quantize. table. It is a recipe, too"):
        read_sweep(path)
    with pytest.raises(UsageError, match="Cannot read the recipe .*: there is no such file"):
        read_sweep(tmp_path / "nowhere.toml")


MODEL = """
import torch
from pathlib import Path
def model():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten(), torch.nn.Linear(4, 4))
    net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
    net.num_classes = 4
    return net
"""


def save_weights(folder, seed: int) -> None:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 4),
    )
    torch.save(net.state_dict(), folder / "weights.pt")


def test_a_key_is_of_content_and_not_of_places(tmp_path, images):
    def key(folder, **changes) -> str:
        given = {"model": f"{folder}/net.py:model", "data": str(folder / "images"), **changes}
        tables = {
            "out": str(folder / "out"),
            "title": str(folder),
            "quantize": {"input_size": "3x16x16", "calib_images": 8, **given},
            "evaluate": {},
        }
        (folder / "r.toml").write_text(toml_text(tables))
        return address_of(load_recipe(folder / "r.toml"), Silent()).key

    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    (one / "net.py").write_text(MODEL)
    save_weights(one, 0)
    shutil.copytree(images, one / "images")
    shutil.copytree(one, two)
    assert key(one) == key(two) == key(one, batch_size=4)
    assert key(one) != key(one, bits="w4a8")
    save_weights(two, 1)  # what the factory reads
    assert key(one) != key(two)
    save_weights(two, 0)
    assert key(one) == key(two)
    next((two / "images").rglob("*.*")).unlink()
    assert key(one) != key(two)


def test_a_recipe_that_cannot_be_planned_has_no_key(write):
    path = write("[vary]\n'quantize.model' = ['trtq.testing.models:tiny_cn']")
    with pytest.raises(TrtqError, match="tiny_cn"):
        address_of(next(iter(read_sweep(path).variants())).recipe, Silent())
