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
    For bash and zsh, add it to the start-up file of the shell:
      echo 'eval "$(trtq completion bash)"' >> ~/.bashrc
      echo 'eval "$(trtq completion zsh)"' >> ~/.zshrc

    \b
    Examples of a file of its own:
      trtq completion fish > ~/.config/fish/completions/trtq.fish
      trtq completion bash > ~/.local/share/bash-completion/completions/trtq
    """
    from trtq.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    # click's own source() starts bash to look at its version, which a script does not need
    script = kind(cli, {}, "trtq", VARIABLE)
    say(script.source_template % script.source_vars(), lines=True)
