"""``sdnet completion`` and ``sdnet man``"""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..errors import StorageError
from .kit import Cli, pass_cli

__all__ = ["completion", "man"]

_VARIABLE = "_SDNET_COMPLETE"


@click.command(
    epilog="\b\nExamples:\n"
    '  eval "$(sdnet completion bash)"     for this shell only\n'
    "  sdnet completion bash --install     for all that start later\n"
    "  sdnet completion fish --install"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--install", is_flag=True, help="Write it where the shell looks for it.")
@pass_cli
def completion(cli: Cli, shell: str, install: bool) -> None:
    """Print the script with which SHELL completes commands, options and names of devices."""
    from click.shell_completion import get_completion_class

    from .main import sdnet

    class_ = get_completion_class(shell)
    assert class_ is not None
    script = class_(sdnet, {}, "sdnet", _VARIABLE).source()
    if not install:
        cli.print(script.rstrip("\n"))
        return
    target = _place(shell)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(script, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.") from error
    cli.print(f"Written to {target}.")
    if shell == "zsh":
        cli.note(f"zsh finds it with this in ~/.zshrc, before compinit: fpath=({target.parent} $fpath)")
    elif shell == "bash":
        cli.note("bash finds it by the package bash-completion, in shells that start from now on.")


@click.command(epilog="\b\nExamples:\n  sdnet man | man -l -\n  sdnet man > ~/.local/share/man/man1/sdnet.1")
@click.pass_context
def man(ctx: click.Context) -> None:
    """Print the manual page of sdnet and of all commands, those of the plugins included."""
    from .main import sdnet
    from .manual import manual_page

    click.echo(manual_page(sdnet, ctx.find_root()), nl=False)


def _place(shell: str) -> Path:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return {
        "bash": data / "bash-completion" / "completions" / "sdnet",
        "zsh": data / "zsh" / "site-functions" / "_sdnet",
        "fish": config / "fish" / "completions" / "sdnet.fish",
    }[shell]
