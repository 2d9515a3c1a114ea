"""``sdnet plugins``"""

from __future__ import annotations

import os
from typing import Any

import click

from ..errors import NotFoundError, NotRunningError
from .config import settings_file
from .kit import Cli, json_option, pass_cli, quote_segment

__all__ = ["plugins"]


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n"
    "  sdnet plugins\n"
    "  sdnet plugins --no-load             without importing any of them\n"
    "  sdnet plugins disable NAME          also while the node runs\n"
    "  SDNET_DISABLE_PLUGINS=name sdnet restart",
)
@click.option("--no-load", is_flag=True, help="List what is installed without importing it.")
@json_option
@click.pass_context
def plugins(ctx: click.Context, no_load: bool, as_json: bool) -> None:
    """List the installed plugins and their state; switch them on and off.

    Those that failed, are disabled or in quarantine are listed too, with the reason. Shows what the running node has
    loaded; without one, what it would load.
    """
    if ctx.invoked_subcommand is not None:
        return
    cli = ctx.find_object(Cli) or Cli()
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


@plugins.command(epilog="\b\nExamples:\n  sdnet plugins disable weather\n  sdnet plugins disable weather --json")
@click.argument("name")
@json_option
@pass_cli
def disable(cli: Cli, name: str, as_json: bool) -> None:
    """Switch the plugin NAME off, now and after restarts.

    What runs for it ends, and its protocols are served no more. Its data stay.
    """
    _check_installed(cli, name)
    settings_file(cli).add("plugins.disable", name)
    try:
        record = cli.client.post(f"/plugins/{quote_segment(name)}/disable")
    except NotRunningError:
        record = {"name": name, "state": "disabled", "reason": ""}
    _show(cli, record, as_json)


@plugins.command(epilog="\b\nExamples:\n  sdnet plugins enable weather")
@click.argument("name")
@json_option
@pass_cli
def enable(cli: Cli, name: str, as_json: bool) -> None:
    """Switch the plugin NAME on again, be it disabled, failed or in quarantine.

    Code that changed since the node started needs: sdnet restart
    """
    _check_installed(cli, name)
    settings_file(cli).remove("plugins.disable", name)
    if name in os.environ.get("SDNET_DISABLE_PLUGINS", ""):
        cli.note("The variable SDNET_DISABLE_PLUGINS still names it; the next start leaves it out.")
    try:
        record = cli.client.post(f"/plugins/{quote_segment(name)}/enable")
    except NotRunningError:
        record = {"name": name, "state": "enabled", "reason": "loads at the next start"}
    _show(cli, record, as_json)


def _check_installed(cli: Cli, name: str) -> None:
    known = [record["name"] for record in _installed(cli)]
    if name not in known:
        raise NotFoundError(f"No plugin {name!r} is installed; there are: {', '.join(known) or 'none'}.")


def _show(cli: Cli, record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        cli.print_json(record)
    else:
        reason = f": {record['reason']}" if record["reason"] else ""
        cli.print(f"{record['name']} is {record['state']}{reason}.")


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
