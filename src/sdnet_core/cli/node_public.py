"""``sdnet node``: a public meeting point."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from .kit import ApiClient, Cli, format_count, format_duration, format_size, json_option, pass_cli

if TYPE_CHECKING:
    from ..config import Config

__all__ = ["node"]


@click.group(
    epilog="\b\nExamples:\n"
    "  sdnet node run                             listens on port 4001\n"
    "  sdnet node run --announce /dns4/meet.example.org/tcp/4001\n"
    "  sdnet node unit | sudo tee /etc/systemd/system/sdnet-node.service\n"
    "\b\nOn each device:\n"
    "  sdnet config bootstrap add /dns4/meet.example.org/tcp/4001/p2p/12D3KooW…"
)
def node() -> None:
    """Run a public meeting point.

    A node on a server that everybody can reach. Devices on different networks find each other through it, and it
    relays what they cannot say to each other directly. It learns no codes, names or contents. It needs no pairing and
    has no plugins; its limits are in [public_node] of the settings.
    """


_ANNOUNCE = click.option(
    "--announce", metavar="ADDRESS", multiple=True, help="Where devices reach it, if it does not know that itself."
)
_PORT = click.option("--port", type=click.IntRange(1, 65535), help="Listen on this TCP port. [default: 4001]")


@node.command(
    epilog="\b\nExamples:\n  sdnet node run\n  sdnet node run --port 443 --announce /dns4/example.org/tcp/443"
)
@_PORT
@click.option("--listen", metavar="ADDRESS", multiple=True, help="Listen on this multiaddr instead.")
@_ANNOUNCE
@json_option
@pass_cli
def run(cli: Cli, port: int | None, listen: tuple[str, ...], announce: tuple[str, ...], as_json: bool) -> None:
    """Run it in the foreground, until Ctrl-C or a signal ends it.

    Prints the addresses to give to devices.
    """
    from ..daemon.public import run_public_node

    config = _config(cli, port=port, listen=listen, announce=announce)
    run_public_node(config, on_ready=lambda found: _announce(cli, found, as_json))


@node.command(epilog="\b\nExamples:\n  sdnet node status\n  sdnet node status --json")
@json_option
@pass_cli
def status(cli: Cli, as_json: bool) -> None:
    """Show the node that runs: its addresses, and how much it is used."""
    found = ApiClient(_config(cli)).get("/public-node")
    if as_json:
        cli.print_json(found)
        return
    dht, relay = found["dht"], found["relay"]
    limits, counts = relay["limits"], relay["counts"]
    rows = [
        ("Addresses", "\n".join(found["addresses"]) or "none"),
        ("Running for", f"{format_duration(found['uptime_s'])} (sdnet {found['version']})"),
        ("Records", f"{dht['records']}, {format_count(dht['nodes'], 'other node')} known"),
        ("Relay", "on" if relay["on"] else "off"),
        ("Places", f"{relay['reservations']} of {limits['max_reservations']} taken"),
        ("Circuits", f"{relay['circuits']} of {limits['max_circuits']} now, {counts.get('connected', 0)} so far"),
        ("Relayed", format_size(counts.get("bytes", 0))),
    ]
    for title, text in rows:
        for number, line in enumerate(text.splitlines()):
            cli.print(("" if number else title).ljust(13) + line)


@node.command(epilog="\b\nExamples:\n  sdnet node unit | sudo tee /etc/systemd/system/sdnet-node.service")
@_PORT
@_ANNOUNCE
@pass_cli
def unit(cli: Cli, port: int | None, announce: tuple[str, ...]) -> None:
    """Print a systemd unit that runs it as a service with no rights but to listen."""
    words = [sys.executable, "-m", "sdnet_core.cli", "--instance", cli.config.instance, "node", "run"]
    if port is not None:
        words += ["--port", str(port)]
    for address in announce:
        words += ["--announce", address]
    capability = "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" if port is not None and port < 1024 else ""
    cli.print(_UNIT.format(command=shlex.join(words), capability=capability).rstrip("\n"))


_UNIT = """\
[Unit]
Description=sdnet meeting point
Documentation=man:sdnet(1)
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={command}
Environment=SDNET_HOME=/var/lib/sdnet-node
DynamicUser=yes
StateDirectory=sdnet-node
RuntimeDirectory=sdnet-node
Environment=XDG_RUNTIME_DIR=/run/sdnet-node
Restart=always
RestartSec=2
{capability}NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
MemoryMax=512M
LimitNOFILE=16384

[Install]
WantedBy=multi-user.target
"""


def _config(
    cli: Cli, *, port: int | None = None, listen: tuple[str, ...] = (), announce: tuple[str, ...] = ()
) -> Config:
    import dataclasses

    import msgspec

    from ..public_node import config_of_public_node

    config = config_of_public_node(cli.config)
    changes: dict[str, Any] = {}
    if listen:
        changes["listen"] = listen
    elif port is not None:
        changes["listen"] = (f"/ip4/0.0.0.0/tcp/{port}", f"/ip6/::/tcp/{port}")
    if announce:
        changes["announce"] = announce
    return dataclasses.replace(config, public_node=msgspec.structs.replace(config.public_node, **changes))


def _announce(cli: Cli, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        cli.print_json(found, compact=True)
        return
    cli.note("The meeting point runs. On each device, one of:")
    for address in found["addresses"]:
        cli.print(f"sdnet config bootstrap add {address}")
