"""``sdnet devices``, ``ping`` and ``events``."""

from __future__ import annotations

import time
from typing import Any

import click

from ..errors import ConnectionFailedError, NetworkingError, NetworkTimeoutError
from .kit import Cli, clean, format_time, json_option, pass_cli, quote_segment

__all__ = ["devices", "events", "ping"]

_WORTH_ANOTHER_TRY = (ConnectionFailedError.code, NetworkTimeoutError.code)


@click.command(
    epilog="\b\nExamples:\n  sdnet devices\n  sdnet devices --json | jq -r '.[] | select(.connected) | .name'"
)
@json_option
@pass_cli
def devices(cli: Cli, as_json: bool) -> None:
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
            "where": device["address"] or device["reason"],
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


@click.command(epilog="\b\nExamples:\n  sdnet ping laptop\n  sdnet ping 3f2a --count 10")
@click.argument("device")
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


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet events\n"
    "  sdnet events --kinds connection-established,connection-lost\n"
    "  sdnet events --json | jq ."
)
@click.option("--kinds", metavar="KIND,…", help="Only events of these kinds.")
@json_option
@pass_cli
def events(cli: Cli, kinds: str | None, as_json: bool) -> None:
    """Follow what happens in the node.

    Ends with Ctrl-C, or when the node stops.
    """
    with cli.client.stream("/events", kinds=kinds) as stream:
        for event in stream:
            if as_json:
                cli.print_json(event, compact=True)
                continue
            rest = "  ".join(
                f"{key}={value}"
                for key, value in event.items()
                if key not in ("kind", "at") and value not in (None, "")
            )
            cli.print(clean(f"{format_time(event['at'])}  {event['kind']}  {rest}"))
