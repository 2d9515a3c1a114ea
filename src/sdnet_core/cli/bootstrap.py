"""``sdnet config bootstrap``: the meeting points of this device."""

from __future__ import annotations

import click

from ..errors import NotFoundError
from .kit import Cli, json_option, pass_cli

__all__ = ["bootstrap"]

KEY = "discovery.bootstrap"


@click.group(
    epilog="\b\nExamples:\n"
    "  sdnet config bootstrap add /dns4/meet.example.org/tcp/4001/p2p/12D3KooW…\n"
    "  sdnet config bootstrap list\n"
    "  sdnet config bootstrap remove /dns4/meet.example.org/tcp/4001/p2p/12D3KooW…"
)
def bootstrap() -> None:
    """The meeting points of this device.

    Public nodes (sdnet node run) through which devices on different networks find each other. Two devices that are to
    meet need one in common.
    """


@bootstrap.command("add", epilog="\b\nExamples:\n  sdnet config bootstrap add /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…")
@click.argument("address")
@pass_cli
def add(cli: Cli, address: str) -> None:
    """Use the public node at ADDRESS, a multiaddr that ends in /p2p/ and its peer id."""
    from ..discovery.points import parse_point
    from .config import settings_file, tell_restart

    (full,) = parse_point(address).full_addresses
    if settings_file(cli).add(KEY, full):
        cli.print(f"{full} is a meeting point now.")
        tell_restart(cli)
    else:
        cli.note(f"{full} is one already.")


@bootstrap.command("list", epilog="\b\nExamples:\n  sdnet config bootstrap list --json")
@json_option
@pass_cli
def list_(cli: Cli, as_json: bool) -> None:
    """List the meeting points that are set."""
    from .config import settings_file

    addresses = list(settings_file(cli).get(KEY).value)
    if as_json:
        cli.print_json(addresses)
    elif addresses:
        for address in addresses:
            cli.print(address)
    else:
        cli.note("No meeting point is set: devices find each other on the local network only.")


@bootstrap.command(
    "remove", epilog="\b\nExamples:\n  sdnet config bootstrap remove /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…"
)
@click.argument("address")
@pass_cli
def remove(cli: Cli, address: str) -> None:
    """Do not use the public node at ADDRESS any more."""
    from .config import settings_file, tell_restart

    if not settings_file(cli).remove(KEY, address.strip()):
        raise NotFoundError(f"{address.strip()} is not among the meeting points.")
    cli.print(f"{address.strip()} is no meeting point any more.")
    tell_restart(cli)
