"""A consumer takes contents, and returns the files that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from trtq.package.contents import Contents

Files = dict[str, bytes]  # by path below the consumer's folder


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Options of consumers; each takes what concerns it.

    Attributes:
        name: of the model.
        embed: put the engine into the ONNX file that wraps it.
        parser: function that reads a detector's outputs, "" for the known one.
        parser_library: file of that function, "" for the known one.
    """

    name: str
    embed: bool = False
    parser: str = ""
    parser_library: str = ""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Files of a consumer.

    Attributes:
        files: their bytes by path below the consumer's folder.
        start: how to start it: lines of Markdown for the README.
        notes: what a user should know: what was left out, assumed or differs.
    """

    files: Files
    start: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


class Consumer(Protocol):
    """Something that runs a model from a folder of files.

    Attributes:
        name: as it is asked for, and the name of its folder.
        title: what it is called.
        takes: what it can take, for errors.
    """

    name: str
    title: str
    takes: str

    def write(self, contents: Contents, choices: Choices) -> Parts:
        """Return the files.

        Raises:
            UsageError: it cannot take the contents; the error says why, and what to do.
        """
