"""The command ``sdnet echo``."""

from __future__ import annotations

import click
from sdnet_core.cli.kit import Cli, json_option, pass_cli

__all__ = ["echo"]


@click.command("echo", epilog="\b\nExamples:\n  sdnet echo laptop hello")
@click.argument("device")
@click.argument("text")
@json_option
@pass_cli
def echo(cli: Cli, device: str, text: str, as_json: bool) -> None:
    """Send TEXT to DEVICE and print its answer.

    DEVICE is a paired device's name, its id, or the beginning of either.
    """
    answer = cli.client.post("/echo/requests", {"device": device, "text": text})
    if as_json:
        cli.print_json(answer)
    else:
        cli.print(answer["text"])
