"""The help of every command: one sentence first, two examples that parse, defaults in brackets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from trtq.cli import cli


def walk(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command below a group, by the words that name it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*above, name)), command
        if isinstance(command, click.Group):
            yield from walk(command, *above, name)


COMMANDS = dict(walk(cli))


def examples(command: click.Command) -> list[list[str]]:
    """Return the words of the command lines in the help, up to the shell's own signs."""
    text = re.sub(r"\\\n\s+", "", command.help or "")
    lines = re.findall(r"^\s*trtq (.+?)(?: [|>].*)?$", text, re.M)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_has_two_examples_that_parse(name):
    lines = examples(COMMANDS[name])
    assert len(lines) >= 2
    for words in lines:
        assert " ".join(words).startswith(name)
        group, parent, rest = cli, click.Context(cli), words
        while isinstance(group, click.Group):
            command = group.get_command(parent, rest[0])
            assert command is not None, words
            parent = command.make_context(rest[0], rest[1:], parent=parent)
            group, rest = command, rest[1:]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_starts_with_one_sentence(name):
    first = " ".join((COMMANDS[name].help or "").split("\n\n")[0].split())
    assert re.fullmatch(r"[A-Z][^.]*(\.\w[^.]*)*\.", first), first


@pytest.mark.parametrize("name", COMMANDS)
def test_a_constant_default_is_in_brackets(name):
    """A default that follows from something else is a clause of the sentence."""
    prose = r"(?i)(?<!\[)default:? \S+?([.;] |[.;]?$)|\boff by default"
    for param in COMMANDS[name].params:
        text = getattr(param, "help", None) or ""
        assert not re.search(prose, re.sub(r"\[default: .*\]$", "", text)), text
