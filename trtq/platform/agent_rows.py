"""The rows of the catalogue that the agent on a board needs, as a block of its source.

The agent is one file without imports, so what it must know of boards is written into it:
``python -m trtq.platform.agent_rows --write`` does that, and a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from trtq.platform.catalogue import boards, catalogue, dotted
from trtq.terminal import say

BEGIN = "# Rows of the catalogue: python -m trtq.platform.agent_rows --write\n"
END = "# End of the rows.\n"
AGENT = Path(__file__).parents[1] / "agent.py"


def agent_rows() -> str:
    """Return the block, markers included."""
    return "".join([BEGIN, *_models(), *_socs(), *_rails(), *_jetpacks(), END])


def _models() -> Iterable[str]:
    """Texts in a model, and the board; texts that are in another come behind it."""
    rows = [
        (place, -len(text), text, name)
        for name, row in boards().items()
        for place, text in enumerate(row.models)
    ]
    yield "MODELS = (  # in this order: a text may be a part of another\n"
    yield from (f'    ("{text}", "{name}"),\n' for _, _, text, name in sorted(rows))
    yield ")\n"


def _socs() -> Iterable[str]:
    """Compute capability of a SoC, and its boards by their memory from the largest down."""
    known = catalogue().devices
    boards_by_soc: dict[str, list[tuple[int, str]]] = {}
    for name, row in boards().items():
        for soc in row.soc:
            boards_by_soc.setdefault(soc, []).append((row.memory_gib, name))
    yield "SOCS = {  # capability, boards by the least MemTotal in GiB\n"
    for soc, rows in boards_by_soc.items():
        capability = dotted(known[rows[0][1]].sm)
        yield f'    "{soc}": ("{capability}", {_tuple(sorted(rows, reverse=True))}),\n'
    yield "}  # type: Dict[str, Tuple[str, Tuple[Tuple[int, str], ...]]]\n"


def _rails() -> Iterable[str]:
    """Rails that are the total together; those that are it alone come first."""
    groups = dict.fromkeys(rails for row in boards().values() for rails in row.rails)
    yield "RAILS = (  # what the total is the sum of\n"
    yield from (f"    {_tuple(rails)},\n" for rails in sorted(groups, key=len))
    yield ")\n"


def _jetpacks() -> Iterable[str]:
    yield "JETPACKS = {  # by L4T\n"
    yield from (f'    "{l4t}": "{jetpack}",\n' for l4t, jetpack in catalogue().jetpack.items())
    yield "}\n"


def _tuple(values: Iterable[object]) -> str:
    """Return the source of a tuple, with double quotes."""
    return repr(tuple(values)).replace("'", '"')


def with_rows(source: str) -> str:
    """Return an agent's source with the block of today."""
    before, _, rest = source.partition(BEGIN)
    return before + agent_rows() + rest.partition(END)[2]


def main(arguments: list[str]) -> int:
    """Print the block, or write it into the agent.

    Args:
        arguments: ``["--write"]`` writes; anything else prints.

    Returns:
        0, the exit code.
    """
    if arguments == ["--write"]:
        path = AGENT.resolve()
        path.write_text(with_rows(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        say(agent_rows().rstrip(), lines=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
