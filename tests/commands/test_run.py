"""Recipes: stages that are skipped, done again, and killed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.conftest import read, run_cli
from tests.support.recipes import pytest_rtx, write_recipe


@pytest_rtx
def test_run_skips_what_has_not_changed_and_redoes_what_has(images, tmp_path):
    recipe, out = write_recipe(tmp_path, images), tmp_path / "out"
    dry = run_cli("run", str(recipe), "--dry-run")
    assert "quantize: would run (it has not finished before)" in dry.stdout
    assert not out.exists()
    first = run_cli("run", str(recipe))
    assert first.returncode in (0, 3), first.stderr  # 3: the machine was busy while it measured
    assert "Report: " in first.stdout
    page = (out / "report.html").read_text()
    for tag in ("<script src", "<link", '<img src="http', "@import", "url(http"):
        assert tag not in page  # nothing is fetched
    assert 'src="data:image/jpeg' in page, "pictures of where the two models differ"
    for text in ("CPU latency", "says nothing about a GPU", "4 of 4 convolutions", "Repeat it"):
        assert text in page
    second = run_cli("run", str(recipe))
    assert second.stdout.count("skipped (nothing it depends on has changed)") == 7
    dry = run_cli("run", str(recipe), "--dry-run").stdout
    assert "would run" not in dry
    (out / "evaluate.json").write_text("{}")
    (out / "rtx3080-int8.engine").unlink()
    third = run_cli("run", str(recipe)).stdout
    assert "evaluate: ran (evaluate.json was altered)" in third
    assert "build rtx3080-int8: ran (rtx3080-int8.engine is missing)" in third
    assert "quantize: skipped" in third
    write_recipe(tmp_path, images, calib_images=17)
    assert (
        "quantize: would run (settings changed)" in run_cli("run", str(recipe), "--dry-run").stdout
    )


@pytest_rtx
@pytest.mark.slow
def test_a_run_killed_in_each_stage_goes_on(images, tmp_path):
    recipe = write_recipe(tmp_path, images)
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-m", "trtq", "run", str(recipe)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(6)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
    done = run_cli("run", str(recipe))
    assert done.returncode in (0, 3), done.stderr
    assert read(tmp_path / "out/evaluate.json")["images"] == 16


@pytest_rtx
@pytest.mark.slow
def test_the_same_recipe_twice_at_once(images, tmp_path):
    recipe = write_recipe(tmp_path, images)
    args = [sys.executable, "-m", "trtq", "run", str(recipe)]
    both = [
        subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [p.communicate() for p in both]
    assert {p.returncode for p in both} <= {0, 3}, texts
    assert sum(out.count(": ran (") for out, _ in texts) == 7


def test_a_recipe_that_cannot_end_well_is_refused_before_it_starts(images, tmp_path):
    recipe = write_recipe(tmp_path, images, calib_images=32)
    assert "leaves no image to evaluate" in run_cli("run", str(recipe)).stderr
    recipe.write_text(
        recipe.read_text()
        .replace("calib_images = 32", "calib_images = 8")
        .replace('source = "fp32"', "")
    )
    assert "asks for 'build rtx3080-int8' twice" in run_cli("run", str(recipe)).stderr
    recipe.write_text(recipe.read_text().replace("rtx3080", "rtx3008"))
    assert "Unknown target 'rtx3008'" in run_cli("run", str(recipe)).stderr
    assert not (tmp_path / "out").exists()
