"""``sdnet start``, ``stop``, ``restart``, ``status`` and ``version``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..config import log_overrides
from ..errors import NotRunningError
from .kit import Cli, format_count, format_duration, format_size, format_time, json_option, pass_cli
from .passphrase import explain_protection

if TYPE_CHECKING:
    from ..storage import Unlock

__all__ = ["restart", "start", "status", "stop", "version"]

_TCP = click.option("--tcp", is_flag=True, hidden=True, help="Serve the local API on loopback TCP.")
_PASSPHRASE = click.option(
    "--passphrase-fd", type=click.IntRange(0), metavar="N", help="Read the passphrase of the data from descriptor N."
)


def _override_levels(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> None:
    cli = ctx.find_object(Cli)
    if cli is not None and values:
        # Behind those of the file, of which they override the ones of the same component.
        cli.override("log", **log_overrides([cli.config.log.level, *cli.config.log.levels, *values]))


_LOG_LEVEL = click.option(
    "--log-level",
    multiple=True,
    expose_value=False,
    callback=_override_levels,
    metavar="[COMPONENT=]LEVEL",
    help="Log at least this: debug, info, warning, error. Repeatable, as in --log-level swarm=debug.",
)


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet start\n"
    "  sdnet start --log-level swarm=debug --log-level session=debug\n"
    "  sdnet start --foreground            for service managers; Ctrl-C stops it\n"
    "  sdnet start --passphrase-fd 3 3< /run/secrets/sdnet\n"
    "  sdnet --instance test start"
)
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@_PASSPHRASE
@_LOG_LEVEL
@_TCP
@json_option
@pass_cli
def start(cli: Cli, foreground: bool, passphrase_fd: int | None, tcp: bool, as_json: bool) -> None:
    """Start this device's node.

    Waits until it listens. Settings come from its configuration file and from SDNET_* variables. If its data has a
    passphrase, that comes from --passphrase-fd, the systemd credential sdnet.passphrase, the keyring or a terminal.
    """
    from ..daemon.process import check_not_running
    from .unlock import unlocked

    check_not_running(cli.config)  # before anybody is asked for anything
    unlocked(cli, passphrase_fd, lambda unlock: _start(cli, unlock, foreground=foreground, tcp=tcp, as_json=as_json))


@click.command(epilog="\b\nExamples:\n  sdnet stop\n  sdnet --instance test stop")
@pass_cli
def stop(cli: Cli) -> None:
    """Stop the node, and wait until it has ended."""
    from ..daemon.process import stop_node

    stop_node(cli.config)
    cli.note(f"The node of instance {cli.config.instance} has stopped.")


@click.command(epilog="\b\nExamples:\n  sdnet restart                       after a change of settings")
@_PASSPHRASE
@_LOG_LEVEL
@_TCP
@json_option
@pass_cli
def restart(cli: Cli, passphrase_fd: int | None, tcp: bool, as_json: bool) -> None:
    """Stop the node if it runs, and start it. With a wrong passphrase it runs on."""
    from ..daemon.process import stop_node
    from ..storage import KeyFile, Vault
    from .unlock import unlocked

    def stop_and_start(unlock: Unlock) -> None:
        if not isinstance(unlock, KeyFile) and Vault.exists(cli.config.paths.data):
            Vault.check(cli.config.paths.data, unlock)
        try:
            stop_node(cli.config)
        except NotRunningError:
            cli.note("It was not running.")
        _start(cli, unlock, foreground=False, tcp=tcp, as_json=as_json)

    unlocked(cli, passphrase_fd, stop_and_start)


@click.command(epilog="\b\nExamples:\n  sdnet status\n  sdnet status --json | jq -r .peer_id")
@json_option
@pass_cli
def status(cli: Cli, as_json: bool) -> None:
    """Show at a glance how the node is.

    Who it is, where it listens, which devices are connected and why others are not, what waits to be sent, what went
    wrong lately, and what to do about it.
    """
    found = cli.client.get("/status")
    if as_json:
        cli.print_json(found)
        return
    _print_fields(
        cli,
        [
            *_identity_fields(found),
            ("Addresses", "\n".join(found["addresses"]) or "none"),
            ("", _families(found)),
            ("Meeting points", _meeting(found["meeting"])),
            ("Storage", explain_protection(found["storage"])),
            ("Data", found["data"]),
            ("Log", found["log_file"]),
            ("Running for", f"{format_duration(found['uptime_s'])} (process {found['pid']}, sdnet {found['version']})"),
            ("Devices", _devices(found["devices"])),
            ("Outbox", _outbox(found["outbox"])),
            ("Plugins", _plugins(found["plugins"])),
            ("Errors", "\n".join(map(_error, found["errors"])) or "none lately"),
            ("Warnings", "\n".join(f"{w['what']}  -> {w['do']}" for w in found["warnings"]) or "none"),
        ],
    )


def _families(found: dict[str, Any]) -> str:
    names = {"ip4": "IPv4", "ip6": "IPv6"}
    missing = [name for family, name in names.items() if not found["families"][family]]
    return f"not over {' and '.join(missing)}" if missing and found["addresses"] else ""


def _devices(devices: dict[str, Any]) -> str:
    lines = [f"{devices['connected']} connected of {devices['paired']} paired"]
    for device in devices["away"]:
        seen = f", last seen {format_time(device['last_seen'])}" if device["last_seen"] else ""
        reason = f": {device['reason']}" if device["reason"] else ""
        lines.append(f"{device['name']}: {device['state']}{seen}{reason}")
    return "\n".join(lines)


def _outbox(outbox: dict[str, Any]) -> str:
    if not outbox["messages"]:
        return "empty"
    messages = format_count(outbox["messages"], "message waits", "messages wait")
    devices = format_count(outbox["devices"], "device")
    return f"{messages} for {devices} ({format_size(outbox['bytes'])}); see: sdnet msg outbox"


def _error(error: dict[str, Any]) -> str:
    times = f" ({error['count']} times)" if error["count"] > 1 else ""
    return f"{format_time(error['at'])}  {error['text']}{times}"


def _plugins(plugins: dict[str, Any]) -> str:
    bad = [f"{state}: {', '.join(plugins[state])}" for state in ("failed", "quarantined") if plugins[state]]
    return f"{'; '.join(bad)}; see: sdnet plugins" if bad else f"all {len(plugins['loaded'])} well"


@click.command(epilog="\b\nExamples:\n  sdnet version\n  sdnet version --json")
@json_option
@pass_cli
def version(cli: Cli, as_json: bool) -> None:
    """Show the versions of sdnet, Python and the node."""
    import platform
    from importlib import metadata

    found: dict[str, Any] = {"version": metadata.version("sdnet-core"), "python": platform.python_version()}
    try:
        found["node"] = cli.client.get("/version")
    except NotRunningError:
        found["node"] = None
    if as_json:
        cli.print_json(found)
        return
    cli.print(f"sdnet {found['version']}, Python {found['python']}")
    if found["node"] is not None and found["node"]["version"] != found["version"]:
        cli.print(f"The running node is sdnet {found['node']['version']}; update it with: sdnet restart")


def _start(cli: Cli, unlock: Unlock, *, foreground: bool, tcp: bool, as_json: bool) -> None:
    from ..storage import Passphrase

    if not foreground:
        from ..daemon.process import start_background

        passphrase = unlock.encoded() if isinstance(unlock, Passphrase) else None
        _announce(cli, start_background(cli.config, passphrase=passphrase, tcp=tcp), as_json)
        return
    from ..daemon.run import run_node

    run_node(cli.config, on_ready=lambda found: _announce(cli, found, as_json), unlock=unlock, foreground=True, tcp=tcp)


def _announce(cli: Cli, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        cli.print_json(found, compact=True)
    else:
        _print_fields(cli, _identity_fields(found))


def _identity_fields(found: dict[str, Any]) -> list[tuple[str, str]]:
    fingerprint = found["fingerprint"]
    return [
        ("Instance", found["instance"]),
        ("Name", found["name"]),
        ("Device id", found["device_id"]),
        ("Peer id", found["peer_id"]),
        ("Fingerprint", f"{fingerprint['words']}\n{fingerprint['hex']}"),
    ]


def _meeting(found: dict[str, Any]) -> str:
    if not found["points"]:
        return "none: devices find each other on the local network only"
    text = f"{len(found['reached'])} of {len(found['points'])} answer"
    if found["trouble"]:
        text += f" ({found['trouble']})"
    if found["seen_as"]:
        text += f"; they see this device at {', '.join(found['seen_as'])}"
    if found["port"]:
        text += f"; the router leads {found['port']} here"
    return text + ("" if found["relays"] or not found["reached"] else "; no relay has a place")


def _print_fields(cli: Cli, fields: list[tuple[str, str]]) -> None:
    width = max(len(title) for title, _ in fields) + 2
    for title, value in fields:
        for number, line in enumerate(value.splitlines()):
            cli.print(("" if number else title).ljust(width) + line)
