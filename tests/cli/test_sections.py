"""Help in sections."""

from __future__ import annotations

import re

import click
import pytest

from trtq.cli import cli
from trtq.cli.sections import Documented


def help_of(name: str) -> str:
    return cli.get_command(None, name).get_help(click.Context(cli, info_name=name))


@pytest.mark.parametrize("name", ["quantize", "search", "finetune", "evaluate"])
def test_options_are_grouped_by_what_they_are_about(name):
    text = help_of(name)
    titles = re.findall(r"^([A-Z]\w+):$", text, re.M)
    first, fourth = (["Model"], ["Quantization"]) if name != "evaluate" else ([], [])
    training = ["Training"] if name == "finetune" else []
    own = [*first, "Data", "Images", *fourth, *training]
    assert titles == ["Arguments", *own, "Settings", "Output"]
    parts = dict(zip(titles, re.split(r"^[A-Z]\w+:$", text, flags=re.M)[1:], strict=True))
    assert "--data" in parts["Data"] and "--mean" in parts["Images"]
    assert "--out " in parts["Output"] and "--help" in parts["Output"]
    assert "--task" in parts["Settings"]
    assert ("--bits" in text) == ("--bits" in parts.get("Quantization", ""))
    for option in ("--epochs", "--lr ", "--distill", "--worst"):
        assert (option in text) == (option in parts.get("Training", "")), option
    assert ("--val " in text) == ("--val " in parts["Data"])


def test_every_option_is_in_the_help_once():
    command = cli.get_command(None, "quantize")
    names = [o for p in command.params if isinstance(p, click.Option) for o in p.opts]
    text = help_of("quantize")
    for name in names:
        assert len(re.findall(rf"^  (?:-h, )?{name}(?:[ /\n])", text, re.M)) == 1, name


def test_a_command_of_images_without_data_has_sections():
    assert re.findall(r"^([A-Z]\w+):$", help_of("package"), re.M) == [
        "Arguments",
        "Images",
        "Settings",
        "Output",
    ]


def test_a_command_without_data_keeps_one_list():
    assert re.findall(r"^([A-Z]\w+):$", help_of("gate"), re.M) == ["Arguments", "Options"]


def walk(group, path="trtq"):
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from walk(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_argument_of_a_spec_has_a_text():
    found = []
    for path, command in walk(cli):
        shown = [p for p in command.params if isinstance(p, Documented)]
        help_ = command.get_help(click.Context(command, info_name=path))
        for argument in shown:
            assert argument.about, f"{path} {argument.name}"
            assert "\nArguments:\n" in help_, path
            assert argument.about.split()[0] in help_.partition("\nArguments:\n")[2], path
        found += shown
    assert len(found) > 20
