"""What the documents show must be what the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trtq.cli import COMMANDS, cli
from trtq.recipe import load_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "engines/README.md",
    ROOT / "docs/methods.md",
    ROOT / "docs/mixed-precision.md",
    ROOT / "docs/jetson.md",
    ROOT / "docs/qat.md",
    ROOT / "docs/targets.md",
]


def commands():
    for path in DOCUMENTS:
        text = re.sub(r"\\\n\s+", "", path.read_text())  # a line that goes on is one command
        found = re.findall(r"^    (trtq [^\n]+)$", text, re.M) + re.findall(r"`(trtq (?:build|quantize|run|evaluate|bench) [^`]+)`", text)
        yield from (pytest.param(c, id=c[:60]) for c in found if "DIR" not in c)


@pytest.mark.parametrize("line", list(commands()))
def test_commands_parse(line):
    words = shlex.split(line.split("  #")[0], comments=True)[1:]
    assert words[0] in COMMANDS
    command = cli.get_command(None, words[0])
    command.make_context(words[0], words[1:])


def test_recipe_parses(tmp_path):
    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    (tmp_path / "r.toml").write_text(block)
    assert [b.target for b in load_recipe(tmp_path / "r.toml").build] == ["rtx3080", "t4"]


def test_python_block_uses_public_names():
    import trtq

    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    names = re.search(r"from trtq import ([^\n]+)", block).group(1)
    assert {n.strip() for n in names.split(",")} <= set(trtq.__all__)
    compile(block, "README.md", "exec")


def test_files_the_readme_names_exist():
    for name in re.findall(r"`((?:trtq|docs|engines|calib_cache|benchmarks)/[\w/.]*)`", (ROOT / "README.md").read_text()):
        assert (ROOT / name).exists(), name


def test_the_example_method_runs(images, tmp_path, monkeypatch):
    from tests.conftest import spec
    from trtq import quantize
    from trtq.methods import registry

    block = re.search(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.S).group(1)
    (tmp_path / "widen_example.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, "widen": "widen_example"})
    plain = quantize(spec(images, tmp_path / "a"))
    wide = quantize(spec(images, tmp_path / "b", method=["widen"], method_arg={"widen.factor": 1.5}))
    before, after = ({q.name: q.amax for q in r.quantizers if q.role == "input"} for r in (plain, wide))
    assert all(after[name] == pytest.approx(1.5 * before[name], rel=2e-3) for name in before)  # scales go to the next FP16 number
    assert wide.methods[0].did == {"factor": 1.5}
