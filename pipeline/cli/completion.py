"""`classify completion`: the script that makes a shell complete commands, flags and values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete `classify`.

    \b
    To have it in every new shell, add the line to the file:
      bash  ~/.bashrc   eval "$(classify completion bash)"
      zsh   ~/.zshrc    eval "$(classify completion zsh)"    (after compinit)
      fish  run once:   classify completion fish > ~/.config/fish/completions/classify.fish

    Commands, flags, files, the words that a setting takes, and after the input the columns for
    --text are completed then.
    """
    from pipeline.cli import main

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "classify", "_CLASSIFY_COMPLETE").source())
