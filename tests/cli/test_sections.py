"""Help in sections."""

from __future__ import annotations

import re

import click
import pytest

from trtq.cli import cli


def help_of(name: str) -> str:
    return cli.get_command(None, name).get_help(click.Context(cli, info_name=name))


@pytest.mark.parametrize("name", ["quantize", "search", "finetune", "evaluate"])
def test_options_are_grouped_by_what_they_are_about(name):
    text = help_of(name)
    titles = re.findall(r"^([A-Z]\w+):$", text, re.M)
    first = ["Model"] if name != "evaluate" else []
    assert titles == [*first, "Data", "Images", "Settings", "Output"]
    parts = dict(zip(titles, re.split(r"^[A-Z]\w+:$", text, flags=re.M)[1:], strict=True))
    assert "--data" in parts["Data"] and "--mean" in parts["Images"]
    assert "--out " in parts["Output"] and "--help" in parts["Output"]
    assert "--bits" not in parts["Data"]


def test_every_option_is_in_the_help_once():
    command = cli.get_command(None, "quantize")
    names = [o for p in command.params if isinstance(p, click.Option) for o in p.opts]
    text = help_of("quantize")
    for name in names:
        assert len(re.findall(rf"^  (?:-h, )?{name}(?:[ /\n])", text, re.M)) == 1, name


def test_a_command_of_images_without_data_has_sections():
    assert re.findall(r"^([A-Z]\w+):$", help_of("package"), re.M) == [
        "Images",
        "Settings",
        "Output",
    ]


def test_a_command_without_data_keeps_one_list():
    assert re.findall(r"^([A-Z]\w+):$", help_of("gate"), re.M) == ["Options"]
