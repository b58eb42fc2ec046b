"""What the documents show must be what the program takes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import run_cli
from trtq.cli import cli
from trtq.recipe import load_recipe
from trtq.verbs import VERBS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "engines/README.md",
    ROOT / "docs/methods.md",
    ROOT / "docs/mixed-precision.md",
    ROOT / "docs/jetson.md",
    ROOT / "docs/qat.md",
    ROOT / "docs/recipes.md",
    ROOT / "docs/sweeps.md",
    ROOT / "docs/benchmarking.md",
    ROOT / "docs/targets.md",
    ROOT / "docs/report.md",
    ROOT / "docs/troubleshooting.md",
    ROOT / "docs/migrating.md",
    ROOT / "docs/package.md",
]


def commands():
    for path in DOCUMENTS:
        text = re.sub(r"\\\n\s+", "", path.read_text())  # a line that goes on is one command
        found = re.findall(r"^    (trtq [^\n]+)$", text, re.M) + re.findall(
            r"`(trtq (?:build|quantize|run|evaluate|bench) [^`]+)`", text
        )
        yield from (pytest.param(c, id=c[:60]) for c in found if "DIR" not in c)


def jobs():
    rows = re.findall(r"^\|[^|]+\| `(trtq [^`]+)`", (ROOT / "docs/index.md").read_text(), re.M)
    assert len(rows) == 12
    return [pytest.param(r, id=r[:60]) for r in rows]


@pytest.mark.parametrize("line", [*commands(), *jobs()])
def test_commands_parse(line):
    words = shlex.split(line.split("  #")[0], comments=True)[1:]
    assert words[0] in VERBS
    command = cli.get_command(None, words[0])
    command.make_context(words[0], words[1:])


@pytest.mark.parametrize(
    ("page", "targets"),
    [("docs/recipes.md", ["rtx4090", "rtx3080"])],
)
def test_recipe_parses(page, targets, tmp_path):
    block = re.search(r"```toml\n(.*?)```", (ROOT / page).read_text(), re.S).group(1)
    (tmp_path / "r.toml").write_text(block)
    assert [b.target for b in load_recipe(tmp_path / "r.toml").build] == targets


def test_the_python_block_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 4))
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32)), batch_size=4)
    given = {"model": model.eval(), "loader": loader, "val_loader": loader}
    exec(compile(block, "README.md", "exec"), given)
    assert (tmp_path / "out/model.qdq.onnx").is_file()


def test_files_the_readme_names_exist():
    for name in re.findall(
        r"`((?:trtq|docs|engines|calib_cache|benchmarks)/[\w/.]*)`",
        (ROOT / "README.md").read_text(),
    ):
        assert (ROOT / name).exists(), name


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """Return title and text of the fenced blocks of a language."""
    found = re.findall(
        rf"^```{language}(?: title=\"([^\"]+)\")?\n(.*?)^```",
        (ROOT / "docs" / page).read_text(),
        re.S | re.M,
    )
    return [(title, text) for title, text in found]


def run_console(text: str, folder: Path) -> None:
    """Run the lines with a $ and look for the lines below each in its output.

    Counts must be equal, measured figures within 5 %.
    """
    for part in re.split(r"(?m)^\$ ", text)[1:]:
        line, _, shown = part.partition("\n")
        words = shlex.split(line)
        if words[0] == "trtq":
            done = run_cli(*words[1:], cwd=folder, env={"COLUMNS": "200"})
        else:
            environ = {
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            }
            done = subprocess.run(
                words, cwd=folder, capture_output=True, text=True, env=environ, check=False
            )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        for expected in shown.splitlines():
            figure = r"(\\d+\\.\\d+)"
            found = re.search(
                re.sub(r"\d+\\\.\d+", figure, re.escape(expected.strip())), done.stdout
            )
            assert found is not None, f"{line}\nexpected {expected}\ngot {done.stdout}"
            shown_figures = [float(v) for v in re.findall(r"\d+\.\d+", expected)]
            assert [float(v) for v in found.groups()] == pytest.approx(shown_figures, rel=0.05), (
                f"{line}\ngot {done.stdout}"
            )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("tutorial.md", ["compare.html", "out/report.html"]),
        ("tutorial-onnx.md", ["out/pictures/index.html", "out/report.html", "app/package.json"]),
        ("tutorial-text.md", ["out/report.html", "app/python/run.py"]),
    ],
)
def test_a_tutorial_does_what_it_says(page, made, tmp_path, drawn):
    """Every block of it, in order, in an empty folder."""
    text = (ROOT / "docs" / page).read_text()
    for title, body in blocks(page, "python"):
        (tmp_path / title).write_text(body)
    for _, body in blocks(page, "console"):
        run_console(body, tmp_path)
    for name in made:
        assert (tmp_path / name).stat().st_size > 500, name
    assert len(re.findall(r"^```\w", text, re.M)) == len(blocks(page, "python")) + len(
        blocks(page, "console")
    )


@pytest.mark.parametrize("page", ["index.md", "api.md", "inputs.md", "tasks.md"])
def test_short_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _, body in blocks(page, "python"):
        exec(compile(body, page, "exec"), {})
    for _, body in blocks(page, "console"):
        run_console(body, tmp_path)


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference():
    import trtq

    pages = set(re.findall(r": ([\w-]+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert pages == {p.name for p in (ROOT / "docs").glob("*.md")}
    named = set(re.findall(r"^::: trtq[\w.]*\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M))
    assert set(trtq.__all__) - named == {
        "TrtqError",
        "__version__",
    }  # the errors are there as a room
