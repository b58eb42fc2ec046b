"""The table of verbs, and all that must agree with it."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import click
import pytest

import trtq
from trtq import files, specs
from trtq.cli import cli
from trtq.verbs import OBJECTS, SECTIONS, VERBS, public_names

ROOT = Path(trtq.__file__).parent


def resolve(place: str):
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
def test_a_verb_names_what_there_is(verb):
    command = cli.get_command(None, verb.name)
    assert isinstance(command, click.Command)
    assert command.name == verb.name
    if verb.function:
        assert callable(resolve(verb.function))
    if verb.spec:
        assert issubclass(getattr(specs, verb.spec), specs.Spec)
    if verb.record:
        assert resolve(verb.record).__doc__


def test_help_shows_every_verb_in_its_section():
    text = cli.get_help(click.Context(cli, info_name="trtq", terminal_width=200))
    parts = re.split(r"^(\w+):$", text, flags=re.M)
    shown = dict(zip(parts[1::2], parts[2::2], strict=True))
    for title, verbs in SECTIONS.items():
        lines = [line.strip() for line in shown[title].splitlines() if line.strip()]
        assert [re.split(r"\s{2,}", line) for line in lines] == [[v.name, v.summary] for v in verbs]


def test_type_checkers_see_the_names_of_the_table():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    imports = [
        (name.asname, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.asname
    ]
    assert dict(imports) == public_names()


def test_the_reference_has_the_verbs_in_the_order_of_the_table():
    page = (ROOT.parent / "docs/api.md").read_text()
    part = page[page.index("## Verbs") : page.index("### Objects")]
    functions = [v.function.replace(":", ".") for v in VERBS.values() if v.function]
    assert re.findall(r"^::: (\S+)", part, re.M) == functions
    named = set(re.findall(r"^::: (\S+)", page, re.M))
    missing = {f"{m}.{n}" for n, m in public_names().items()} - named
    assert missing == {"trtq.errors.TrtqError", "trtq.version.__version__"}
    assert len(OBJECTS) == len(set(OBJECTS))


def test_names_of_files_are_spelled_once():
    names = [
        v for k, v in vars(files).items() if k.isupper() and isinstance(v, str) and "." in v[1:]
    ]
    for path in ROOT.rglob("*.py"):
        if path.name == "files.py" or "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path}:{node.lineno}: {node.value}"
