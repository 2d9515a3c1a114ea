"""``sdnet plugins``"""

from __future__ import annotations

from typing import Any

import click

from ..errors import NotRunningError
from .kit import Cli, json_option, pass_cli

__all__ = ["plugins"]


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet plugins\n"
    "  sdnet plugins --no-load             without importing any of them\n"
    "  SDNET_DISABLE_PLUGINS=name sdnet restart"
)
@click.option("--no-load", is_flag=True, help="List what is installed without importing it.")
@json_option
@pass_cli
def plugins(cli: Cli, no_load: bool, as_json: bool) -> None:
    """List the installed plugins and their state.

    Those that failed or are disabled are listed too, with the reason. Shows what the running node has loaded;
    without one, what it would load.
    """
    found = _installed(cli) if no_load else _running(cli)
    if as_json:
        cli.print_json(found)
        return
    columns = [
        ("name", "NAME"),
        ("distribution", "DISTRIBUTION"),
        ("version", "VERSION"),
        ("state", "STATE"),
        ("protocols", "PROTOCOLS"),
        ("capabilities", "CAPABILITIES"),
        ("reason", "REASON"),
    ]
    cli.table(found, columns, empty="No plugins are installed.")


def _running(cli: Cli) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = cli.client.get("/plugins")
    except NotRunningError:
        return _previewed(cli)
    return found


def _installed(cli: Cli) -> list[dict[str, Any]]:
    return [record.to_dict() for record in cli.find_plugins(load=False).records]


def _previewed(cli: Cli) -> list[dict[str, Any]]:
    import anyio

    from ..preview import preview_plugins

    return [record.to_dict() for record in anyio.run(preview_plugins, cli.config)]
