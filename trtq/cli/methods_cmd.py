"""``trtq methods``."""

from __future__ import annotations

import click
from msgspec.structs import asdict

from trtq.cli.display import print_json
from trtq.errors import UsageError
from trtq.terminal import say


@click.command("methods")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(as_json: bool) -> None:
    """List the quantization methods of trtq quantize --method.

    The list shows where each runs, its arguments and its source.

    \b
    Labels:
      engine     TensorRT has the kernel
      folded     costs nothing at run time
      ops        runs as extra float operations
      simulated  has no kernel anywhere

    \b
    Examples:
      trtq methods
      trtq methods --json
    """
    from trtq.methods.registry import get_method, known_methods

    methods, broken = [], []
    for name in known_methods():
        try:
            methods.append(get_method(name))
        except UsageError as exc:  # an installed extension
            broken.append((name, str(exc)))
    if as_json:
        rows = [
            {
                "name": m.name,
                "label": m.label,
                "summary": m.summary,
                "source": m.source,
                "arguments": asdict(m.arguments),
            }
            for m in methods
        ]
        print_json(rows)
    else:
        for m in methods:
            say(f"{m.name}  [{m.label}]  {m.summary}")
            say(f"    {m.source}")
            arguments = asdict(m.arguments)
            if arguments:
                say("    " + "  ".join(f"{m.name}.{k}={v}" for k, v in arguments.items()))
    for name, why in broken:
        say(f"{name}  [broken]  {why}", err=True)
