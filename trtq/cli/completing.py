"""Shell completion of the values of options and arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a file or a folder."""
    return [CompletionItem(incomplete, type="file")]


def _targets() -> Iterable[str]:
    from trtq.platform.catalogue import catalogue

    return catalogue().targets


def _codes() -> Iterable[str]:
    from trtq.error_codes import entries, groups

    return [*(g.prefix for g in groups().values()), *(e.code for e in entries())]


def _boards() -> Iterable[str]:
    from trtq.deploy.devices import known_devices

    return known_devices()


NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "target": _targets,
    "code": _codes,
    "board": _boards,
}
Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def offer(kind: str) -> Completion:
    """Return the completion of one kind of names; of files where there is no such kind.

    Args:
        kind: a key of ``NAMES``.
    """
    known = NAMES.get(kind)
    if known is None:
        return files

    def complete(_ctx: click.Context, _param: click.Parameter, text: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in known() if name.startswith(text)]

    return complete
