"""``trtq completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from trtq.terminal import say

VARIABLE = "_TRTQ_COMPLETE"  # as click derives it from the name of the program


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes commands, options and their values with the Tab key.

    \b
    Add it to the start-up file of the shell:
      bash  echo 'eval "$(trtq completion bash)"' >> ~/.bashrc
      zsh   echo 'eval "$(trtq completion zsh)"' >> ~/.zshrc
      fish  trtq completion fish > ~/.config/fish/completions/trtq.fish
    """
    from trtq.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    # click's own source() starts bash to look at its version, which a script does not need
    script = kind(cli, {}, "trtq", VARIABLE)
    say(script.source_template % script.source_vars(), lines=True)
