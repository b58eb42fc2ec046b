"""What the documents show must be what the program takes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import run_cli
from trtq.cli import cli
from trtq.extensions import KINDS
from trtq.platform import catalogue
from trtq.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "engines/README.md", *PAGES]
TUTORIALS = {
    "tutorial.md": ["compare.html", "out/report.html"],
    "tutorial-onnx.md": ["out/pictures/index.html", "out/report.html", "app/package.json"],
    "tutorial-text.md": ["out/report.html", "app/python/run.py"],
}  # and the files that each ends with
SHORT = ("index.md", "api.md", "inputs.md", "tasks.md")
AFTER_COMMANDS = ("detection.md", "sweeps.md")  # test_commands.py runs their Python, too
JOBS = 12  # that a reader looks for


def commands() -> list[str]:
    """Return every command of the documents: lines, blocks of a console and code in a sentence."""
    found = []
    for path in DOCUMENTS:
        text = re.sub(r"\\\n\s+", "", path.read_text())  # a line that goes on is one command
        found += re.findall(r"^(?:    |\$ )(trtq [^\n]+)$", text, re.M)
        found += re.findall(r"`(trtq [a-z-]+ [^`\n]+)`", text)
    return [line for line in dict.fromkeys(found) if not re.search(r"\.\.\.|\bDIR\b| N$", line)]


def rows(page: str) -> list[list[str]]:
    """Return the cells of the table rows that have a command in the second cell."""
    lines = re.findall(r"^\| (.+) \|$", (ROOT / page).read_text(), re.M)
    cells = [re.split(r" \| ", line) for line in lines]
    return [row for row in cells if len(row) > 2 and row[1].startswith("`trtq ")]


def parse(line: str) -> None:
    """Let the program's own parser take a command; a verb and its option alone are a mention."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index("|")] if "|" in words else words
    mention = len(words) > 1 and words[-1].startswith("--") and words[-1]
    group, context = cli, click.Context(cli)
    while isinstance(group, click.Group):
        command = group.get_command(context, words[0])
        assert command is not None, line
        if mention and len(words) == 2:
            assert any(mention in p.opts for p in command.get_params(context)), line
            return
        context = command.make_context(words[0], words[1:], parent=context)
        group, words = command, words[1:]


@pytest.mark.parametrize("line", [pytest.param(c, id=c[:60]) for c in commands()])
def test_commands_parse(line):
    parse(line)


def jobs(page: str) -> list[list[str]]:
    text = (ROOT / page).read_text()
    below = text[text.index("## Find your job") :]
    names = re.findall(r"^\| ([^|]+) \|", below, re.M)[1:][:JOBS]
    return [[c.replace("](docs/", "](") for c in row] for row in rows(page) if row[0] in names]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_every_job_has_a_full_command(page):
    assert len(jobs(page)) == JOBS
    for _, cell, link in jobs(page):
        lines = re.findall(r"`([^`]+)`", cell)
        assert cell == "<br>".join(f"`{line}`" for line in lines)
        for line in lines:
            parse(line)
            assert not re.search(r"\b[A-Z]{3,}\b", line), f"{line} has a placeholder"
        assert link.startswith("[")
    assert jobs("README.md") == jobs("docs/index.md")


def test_every_feature_of_ours_has_a_full_command():
    features = rows("docs/compare.md")
    assert len(features) > 20
    for row in features:
        assert len(row) == 8
        for line in re.findall(r"`(trtq [^`]+)`", row[1]):
            assert len(line.split()) > 2, f"{line} is no full command"
            parse(line)


def test_the_features_of_the_readme_are_those_of_the_page():
    full = {row[0]: row for row in rows("docs/compare.md")}
    short = [row for row in rows("README.md") if len(row) == 8]
    assert 8 <= len(short) < len(full)
    for name, command, *marks in short:
        assert marks == full[name][2:]
        assert full[name][1].startswith(f"{command.rstrip('`')} ")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and mkdocs write them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", t).lower() for t in titles)
    return {re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", t)) for t in plain}


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "benchmarks/README.md"])
def test_links_lead_to_a_file_and_a_heading(name):
    """Those of the pages are checked when mkdocs builds them."""
    page = ROOT / name
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", page.read_text()))
    assert links or name != "README.md"
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_fence_is_of_a_language_that_a_test_runs_or_reads():
    fences = re.compile(r"^```(\w+)", re.M)
    used = {path.name: fences.findall(path.read_text()) for path in DOCUMENTS}
    assert {f for found in used.values() for f in found} <= {
        *("python", "console", "toml"),
        *("text", "mermaid", "cpp", "json"),  # nothing to run
    }
    runs = {
        "python": {
            *("README.md", *SHORT, *TUTORIALS, *AFTER_COMMANDS),
            *("engine.md", "extending.md"),  # tests/engine/test_runners.py; the tests of each room
        },
        "console": {*SHORT, *TUTORIALS, "tutorial-jetson.md"},
        "toml": {"recipes.md", "sweeps.md", "extending.md"},
    }
    for language, pages in runs.items():
        assert {name for name, found in used.items() if language in found} <= pages, language


def test_the_toml_of_extensions_names_groups_and_devices_that_there_are():
    packaged, device = (text for _, text in blocks("extending.md", "toml"))
    groups = msgspec.toml.decode(packaged)["project"]["entry-points"]
    assert groups and {g.removeprefix("trtq.") for g in groups} <= set(KINDS)
    whole = catalogue.FILE.read_text() + device
    rows = msgspec.toml.decode(whole, type=catalogue.Catalogue).devices
    assert rows["rtx4060ti"].sm == 89


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
@pytest.mark.parametrize(("page", "made"), TUTORIALS.items())
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


@pytest.mark.parametrize("page", SHORT)
def test_short_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for _, body in blocks(page, "python"):
        exec(compile(body, page, "exec"), names)
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
