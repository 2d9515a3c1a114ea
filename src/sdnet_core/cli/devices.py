"""``sdnet devices`` and what can be done to one; ``ping``."""

from __future__ import annotations

import time
from typing import Any

import click

from ..errors import ConnectionFailedError, NetworkingError, NetworkTimeoutError
from .kit import (
    Cli,
    complete_devices,
    format_count,
    format_duration,
    format_size,
    format_time,
    json_option,
    pass_cli,
    quote_segment,
)

__all__ = ["devices", "ping"]

_SECONDS = click.FloatRange(0, 1e9, min_open=True)
_WORTH_ANOTHER_TRY = (ConnectionFailedError.code, NetworkTimeoutError.code)


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n"
    "  sdnet devices\n"
    "  sdnet devices info laptop\n"
    "  sdnet devices revoke phone\n"
    "  sdnet devices --json | jq -r '.[] | select(.connected) | .name'",
)
@json_option
@click.pass_context
def devices(ctx: click.Context, as_json: bool) -> None:
    """List the paired devices and their state, or change one of them.

    DEVICE is a name, an id, or the beginning of either.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_devices, as_json=as_json)


def _where(device: dict[str, Any]) -> str:
    """Where a device is reached, or why it is not."""
    address: str = device["address"] or device["reason"]
    return f"relayed by {address}" if device.get("path") == "relayed" else address


@devices.command(
    name="list", epilog="\b\nExamples:\n  sdnet devices list\n  sdnet devices list --json | jq -r .[].name"
)
@json_option
@pass_cli
def list_devices(cli: Cli, as_json: bool) -> None:
    """List the paired devices and their state."""
    found = cli.client.get("/devices")
    if as_json:
        cli.print_json(found)
        return
    rows = [
        {
            **device,
            "device_id": device["device_id"][:8],
            "last_seen": "now" if device["connected"] else format_time(device["last_seen"]),
            "where": _where(device),
        }
        for device in found
    ]
    columns = [
        ("name", "NAME"),
        ("device_id", "ID"),
        ("state", "STATE"),
        ("trust", "TRUST"),
        ("os", "SYSTEM"),
        ("last_seen", "LAST SEEN"),
        ("where", "ADDRESS OR REASON"),
    ]
    cli.table(rows, columns, empty="No device is paired yet.")


@devices.command(epilog="\b\nExamples:\n  sdnet devices info laptop\n  sdnet devices info 3f2a --json")
@click.argument("device", shell_complete=complete_devices)
@json_option
@pass_cli
def info(cli: Cli, device: str, as_json: bool) -> None:
    """Show all there is to know of DEVICE: who it is, where it is, and what passed over the connection."""
    found = cli.client.get(f"/devices/{quote_segment(device)}")
    if as_json:
        cli.print_json(found)
        return
    connection = found["connection"] or {}
    own_name = "" if found["own_name"] == found["name"] else f" (calls itself {found['own_name']})"
    latency_s = found["latency_s"]
    facts = [
        ("name", f"{found['name']}{own_name}"),
        ("id", found["device_id"]),
        ("fingerprint", f"{found['fingerprint']['words']}  ({found['fingerprint']['hex']})"),
        ("peer id", found["peer_id"]),
        ("system", f"{found['os']}, sdnet {found['version']}"),
        ("trust", found["trust"]),
        ("state", found["state"] + (f": {found['reason']}" if found["reason"] else "")),
        ("way to it", "" if found["connection_state"] == found["state"] else found["connection_state"]),
        ("last error", "" if found["last_error"] == found["reason"] else found["last_error"]),
        ("paired", format_time(found["paired_at"])),
        ("last seen", "now" if found["connected"] else format_time(found["last_seen"])),
        ("history", _totals(found["history"])),
        ("known addresses", ", ".join(found["known_addresses"])),
        ("connected at", found["address"]),
        ("transport", connection.get("transport", "")),
        ("connected since", format_time(connection["connected_at"]) if connection else ""),
        ("dialled by", {"us": "this device", "them": "the other device"}.get(connection.get("dialled_by", ""), "")),
        ("round trip", f"{latency_s * 1000:.2f} ms" if latency_s is not None else ""),
        (
            "encryption",
            f"{connection['suite'].replace('_', '-').upper()}, until {format_time(connection['keys_expire_at'])}"
            if connection
            else "",
        ),
        ("sent", _traffic(connection, "sent")),
        ("received", _traffic(connection, "received")),
        ("streams", f"{connection['streams']} open" if connection else ""),
    ]
    for title, value in facts:
        if value:
            cli.print(f"{title + ':':<17}{value}")


@devices.command(epilog="\b\nExamples:\n  sdnet devices history phone\n  sdnet devices history phone --limit 5 --json")
@click.argument("device", shell_complete=complete_devices)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the latest N entries.")
@json_option
@pass_cli
def history(cli: Cli, device: str, limit: int | None, as_json: bool) -> None:
    """Show when DEVICE was connected, where, for how long and why that ended, the latest first.

    Old entries go after 90 days, and when there are too many; the totals stay.
    """
    found = cli.client.get(f"/devices/{quote_segment(device)}/history")
    entries = found["entries"][:limit]
    if as_json:
        cli.print_json({**found, "entries": entries})
        return
    columns = [("when", "WHEN"), ("what", "WHAT"), ("where", "ADDRESS"), ("reason", "WHY IT ENDED OR FAILED")]
    cli.table(
        [
            {
                "when": format_time(entry["began_at"]),
                "what": _happened(entry),
                "where": entry.get("address"),
                "reason": entry["reason"],
            }
            for entry in entries
        ],
        columns,
        empty="It was never connected, nor was that tried.",
    )
    if entries:
        cli.print(f"In all: {_totals(found)}.")


def _happened(entry: dict[str, Any]) -> str:
    if entry["kind"] == "failures":
        over = entry["ended_at"] - entry["began_at"]
        took = f" in {format_duration(over)}" if over and entry["count"] > 1 else ""
        return f"{format_count(entry['count'], 'attempt')} failed{took}"
    whose = "we dialled" if entry["dialled_by"] == "us" else "it dialled"
    if entry["open"]:
        return f"connected now, {whose}"
    lasted = "" if entry["lasted_s"] is None else f" for {format_duration(entry['lasted_s'])}"
    return f"connected{lasted}, {whose}"


def _totals(found: dict[str, Any]) -> str:
    if not found["since"]:
        return ""
    times = "once" if found["connections"] == 1 else format_count(found["connections"], "time")
    failed = format_count(found["failures"], "attempt")
    # The totals are without the connection that there is now.
    connected_s = found["connected_s"] + sum(
        max(0.0, time.time() - entry["began_at"])
        for entry in found["entries"]
        if entry["kind"] == "connection" and entry["open"]
    )
    connected = f"connected {times}, for {format_duration(connected_s)}"
    return f"{connected}; {failed} failed; since {format_time(found['since'])}"


def _traffic(connection: dict[str, Any], way: str) -> str:
    if not connection:
        return ""
    records, messages = (format_count(connection[f"{what}s_{way}"], what) for what in ("record", "message"))
    return f"{format_size(connection[f'bytes_{way}'])} in {records}, {messages}"


@devices.command(epilog="\b\nExamples:\n  sdnet devices trust phone verified\n  sdnet devices trust laptop trusted")
@click.argument("device", shell_complete=complete_devices)
@click.argument("trust", type=click.Choice(["trusted", "verified"]))
@json_option
@pass_cli
def trust(cli: Cli, device: str, trust: str, as_json: bool) -> None:
    """Trust DEVICE, or have a person approve its sensitive operations.

    \b
    trusted   it may use everything that paired devices may
    verified  sensitive operations wait for "sdnet approvals approve"
    """
    changed = cli.client.post(f"/devices/{quote_segment(device)}/trust", {"trust": trust})
    _say(cli, as_json, changed, f"{changed['name']} is {changed['trust']}.")


@devices.command(epilog="\b\nExamples:\n  sdnet devices revoke phone")
@click.argument("device", shell_complete=complete_devices)
@json_option
@pass_cli
def revoke(cli: Cli, device: str, as_json: bool) -> None:
    """Cut DEVICE off at once, and refuse it from now on.

    What is under way with it ends, and its keys are deleted. Only pairing it again, with a new code, lets it back in.
    """
    revoked = cli.client.post(f"/devices/{quote_segment(device)}/revoke")
    told = "It was told." if revoked["told"] else "It is away and was not told."
    _say(cli, as_json, revoked, f"{revoked['name']} is revoked. {told}")


@devices.command(
    epilog="\b\nExamples:\n  sdnet devices rename phone 'kitchen phone'\n  sdnet devices rename kitchen --reset"
)
@click.argument("device", shell_complete=complete_devices)
@click.argument("name", required=False)
@click.option("--reset", is_flag=True, help="Call it what it calls itself.")
@json_option
@pass_cli
def rename(cli: Cli, device: str, name: str | None, reset: bool, as_json: bool) -> None:
    """Call DEVICE something else on this device."""
    if (name is None) is not reset:
        raise click.UsageError("Give a new name, or --reset.")
    renamed = cli.client.post(f"/devices/{quote_segment(device)}/rename", {"name": name})
    _say(cli, as_json, renamed, f"{renamed['own_name']} is called {renamed['name']} here.")


@devices.command(
    epilog="\b\nExamples:\n  sdnet devices configure nas --address /ip4/192.0.2.7/tcp/4001\n"
    "  sdnet devices configure phone --no-auto-connect"
)
@click.argument("device", shell_complete=complete_devices)
@click.option("--auto-connect/--no-auto-connect", default=True, help="Connect whenever possible, or only when needed.")
@click.option("--address", "addresses", multiple=True, help="Always look for it here, too; may be given several times.")
@click.option(
    "--transport",
    "transports",
    multiple=True,
    type=click.Choice(["tcp", "quic", "ws"]),
    help="Preferred one; the first given is tried first.",
)
@click.option("--pause-min", "reconnect_min_s", type=_SECONDS, help="First pause between attempts, seconds.")
@click.option("--pause-max", "reconnect_max_s", type=_SECONDS, help="Longest pause between attempts, seconds.")
@click.option("--keepalive", "keepalive_interval_s", type=_SECONDS, help="Seconds without a sign before one is given.")
@click.option(
    "--misses",
    "keepalive_misses",
    type=click.IntRange(1, 100),
    help="Keepalives missed before the connection counts as lost.",
)
@json_option
@pass_cli
def configure(cli: Cli, /, device: str, as_json: bool, **options: Any) -> None:
    """Choose how DEVICE is connected. What is not given is as for all devices."""
    body = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    changed = cli.client.post(f"/devices/{quote_segment(device)}/connection", body)
    when = "whenever possible" if changed["auto_connect"] else "when it is needed"
    _say(cli, as_json, changed, f"{changed['name']} is connected {when}.")


@devices.command(epilog="\b\nExamples:\n  sdnet devices forget 'old laptop'")
@click.argument("device", shell_complete=complete_devices)
@json_option
@pass_cli
def forget(cli: Cli, device: str, as_json: bool) -> None:
    """End the pairing with DEVICE and keep nothing of it.

    It may ask to pair again like any stranger; to keep it out, revoke it instead.
    """
    forgotten = cli.client.delete(f"/devices/{quote_segment(device)}")
    _say(cli, as_json, forgotten, f"{forgotten['name']} is forgotten.")


def _say(cli: Cli, as_json: bool, answer: Any, text: str) -> None:
    if as_json:
        cli.print_json(answer)
    else:
        cli.print(text)


@click.command(epilog="\b\nExamples:\n  sdnet ping laptop\n  sdnet ping 3f2a --count 10")
@click.argument("device", shell_complete=complete_devices)
@click.option("--count", type=click.IntRange(1, 10_000), default=3, show_default=True, help="How many pings.")
@click.option(
    "--interval", type=click.FloatRange(0, 3600), default=0.5, show_default=True, help="Seconds between them."
)
@json_option
@pass_cli
def ping(cli: Cli, device: str, count: int, interval: float, as_json: bool) -> None:
    """Measure the round-trip time to DEVICE.

    DEVICE is a name, an id, or the beginning of either.
    """
    path = f"/devices/{quote_segment(device)}/ping"
    times_ms: list[float] = []
    failure: NetworkingError | None = None
    answer: dict[str, Any] = {}
    for number in range(count):
        if number:
            time.sleep(interval)
        try:
            answer = cli.client.post(path)
        except NetworkingError as error:
            if error.code not in _WORTH_ANOTHER_TRY or count == 1:
                raise
            failure = error
            if not as_json:
                cli.print(f"{number + 1}: {error.detail}")
            continue
        times_ms.append(answer["rtt_s"] * 1000)
        if not as_json:
            cli.print(f"{number + 1}: answer from {answer['name']} in {times_ms[-1]:.2f} ms")
    if not times_ms:
        assert failure is not None
        raise failure
    least, mean, most = min(times_ms), sum(times_ms) / len(times_ms), max(times_ms)
    if as_json:
        cli.print_json(
            {
                "device_id": answer["device_id"],
                "name": answer["name"],
                "sent": count,
                "received": len(times_ms),
                "rtt_ms": times_ms,
                "min_ms": least,
                "avg_ms": mean,
                "max_ms": most,
            }
        )
    else:
        cli.print(f"{len(times_ms)} of {count} answered; min/avg/max = {least:.2f}/{mean:.2f}/{most:.2f} ms")
