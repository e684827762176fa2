"""`classify completion`: a shell completion script for commands, flags and values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print a shell completion script for `classify`.

    \b
    To load it in every new shell:
      eval "$(classify completion bash)"   # a line for ~/.bashrc
      eval "$(classify completion zsh)"    # a line for ~/.zshrc, after compinit
      classify completion fish > ~/.config/fish/completions/classify.fish   # once

    Completes commands, flags, files, values of settings and, after the input, columns for --text.
    """
    from pipeline.cli import main

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "classify", "_CLASSIFY_COMPLETE").source())
