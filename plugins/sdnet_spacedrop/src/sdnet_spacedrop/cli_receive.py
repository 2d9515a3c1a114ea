"""Answering offers, and deciding who may make them: ``sdnet drop pending|accept|reject|listen|visibility|policy``."""

from __future__ import annotations

import os
from typing import Any

import click

from sdnet_core.cli.kit import Cli, Duration, complete_devices, format_time, json_option, pass_cli, quote_segment

from .cli_send import follow
from .cli_show import drop_path, failure, sender, what

__all__ = ["accept", "listen", "pending", "policy", "reject", "visibility"]

_WHO = {
    "everyone": "Everyone near may find this device and offer files; a number is compared first.",
    "paired": "Only paired devices may offer files.",
    "off": "Nobody may offer files.",
}


@click.command(epilog="\b\nExamples:\n  sdnet drop pending")
@json_option
@pass_cli
def pending(cli: Cli, as_json: bool) -> None:
    """List the offers that wait for your answer."""
    found = cli.client.get("/spacedrop/pending")
    if as_json:
        cli.print_json(found)
        return
    rows = [
        {
            "id": offer["id"][:8],
            "from": sender(offer),
            "what": what(offer),
            "until": format_time(offer["expires_at"]),
            "message": offer["message"],
            "check": offer["check"],
        }
        for offer in found
    ]
    columns = [("id", "ID"), ("from", "FROM"), ("what", "WHAT"), ("until", "UNTIL"), ("message", "MESSAGE")]
    # The number is there for devices that are not paired only.
    columns += [("check", "NUMBER TO COMPARE")] if any(offer["check"] for offer in found) else []
    cli.table(rows, columns, empty="No offer waits for an answer.")


@click.command(epilog="\b\nExamples:\n  sdnet drop accept 3f2a\n  sdnet drop accept 3f2a --to ~/Pictures")
@click.argument("drop_id", metavar="ID")
@click.option("--to", "folder", metavar="FOLDER", type=click.Path(file_okay=False), help="Where to put it.")
@click.option("--detach", is_flag=True, help="Do not wait until it has arrived.")
@json_option
@pass_cli
def accept(cli: Cli, drop_id: str, folder: str | None, detach: bool, as_json: bool) -> None:
    """Accept an offer, by its id or a unique prefix of it. Ctrl-C leaves the files coming.

    From a device that is not paired, accept only if its screen shows the number that `sdnet drop pending` shows.
    """
    body = {"folder": None if folder is None else os.path.abspath(folder)}
    accepted = cli.client.post(drop_path(drop_id, "/accept"), body)
    if detach:
        if as_json:
            cli.print_json(accepted)
        else:
            cli.note(f"{what(accepted)} will be put into {accepted['folder']}.")
        return
    try:
        (ended,) = follow(cli, {accepted["id"]: accepted}, quiet=as_json)
    except KeyboardInterrupt:
        cli.note("The files keep coming.")
        raise
    if as_json:
        cli.print_json(ended)
    error = failure(ended)
    if error is not None:
        raise error
    if not as_json:
        places = ", ".join(ended["paths"][:5]) or ended["folder"]
        cli.print(f"Received {what(ended)} from {ended['device_name']}: {places}")


@click.command(epilog="\b\nExamples:\n  sdnet drop reject 3f2a")
@click.argument("drop_id", metavar="ID")
@click.option("--reason", default="", metavar="TEXT", help="Told to the sender.")
@json_option
@pass_cli
def reject(cli: Cli, drop_id: str, reason: str, as_json: bool) -> None:
    """Reject an offer, by its id or a unique prefix of it."""
    rejected = cli.client.post(drop_path(drop_id, "/reject"), {"reason": reason})
    if as_json:
        cli.print_json(rejected)
    else:
        cli.note(f"Rejected {what(rejected)} from {rejected['device_name']}.")


@click.command(epilog="\b\nExamples:\n  sdnet drop listen")
@click.option("--to", "folder", metavar="FOLDER", type=click.Path(file_okay=False), help="Where accepted files go.")
@json_option
@pass_cli
def listen(cli: Cli, folder: str | None, as_json: bool) -> None:
    """Wait for offers and ask about each as it comes; Ctrl-C ends it.

    With --json, print what happens as one JSON document a line, and ask nothing.
    """
    from .listening import Listening

    Listening(cli, None if folder is None else os.path.abspath(folder)).run(as_json=as_json)


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet drop visibility                      who may send files here now\n"
    "  sdnet drop visibility everyone --for 10m\n"
    "  sdnet drop visibility off --for 1h"
)
@click.argument("who", required=False, type=click.Choice(["everyone", "paired", "off"]))
@click.option("--for", "for_s", type=Duration(), metavar="TIME", help="Only for so long, such as 10m or 2h.")
@json_option
@pass_cli
def visibility(cli: Cli, who: str | None, for_s: float | None, as_json: bool) -> None:
    """Show or choose who may offer files to this device.

    With "everyone", devices nearby that are not paired can find this one, learn its name, and ask.
    """
    if who is None:
        if for_s is not None:
            raise click.UsageError("--for needs one of everyone, paired, off.")
        status = cli.client.get("/spacedrop/visibility")
    else:
        status = cli.client.put("/spacedrop/visibility", {"visibility": who, "for_s": for_s})
    if as_json:
        cli.print_json(status)
        return
    until = "" if status["until"] is None else f" Until {format_time(status['until'])}, then: {status['then']}."
    cli.print(f"{status['visibility']}: {_WHO[status['visibility']]}{until}")


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet drop policy                          what is done with each device's offers\n"
    "  sdnet drop policy phone accept-trusted\n"
    "  sdnet drop policy laptop never\n"
    "  sdnet drop policy phone default            as the settings say"
)
@click.argument("device", required=False, shell_complete=complete_devices)
@click.argument("policy", required=False, type=click.Choice(["ask", "accept-trusted", "never", "default"]))
@json_option
@pass_cli
def policy(cli: Cli, device: str | None, policy: str | None, as_json: bool) -> None:
    """Show or choose what is done with the offers of a paired device.

    "ask" asks you each time; "accept-trusted" takes them unasked while the device is trusted; "never" refuses them.
    Without POLICY, it shows what counts for DEVICE, and without DEVICE for all.
    """
    if device is not None and policy is not None:
        body = {"policy": None if policy == "default" else policy}
        found: list[dict[str, Any]] = [cli.client.put(f"/spacedrop/policies/{quote_segment(device)}", body)]
    elif device is not None:
        found = [cli.client.get(f"/spacedrop/policies/{quote_segment(device)}")]
    else:
        found = cli.client.get("/spacedrop/policies")
    if as_json:
        cli.print_json(found[0] if device is not None else found)
        return
    rows = [
        {
            "name": entry["device_name"],
            "id": entry["device_id"][:8],
            "policy": entry["policy"],
            "set": "for this device" if entry["own"] else "by default",
        }
        for entry in found
    ]
    cli.table(
        rows, [("name", "DEVICE"), ("id", "ID"), ("policy", "POLICY"), ("set", "SET")], empty="No device is paired."
    )
