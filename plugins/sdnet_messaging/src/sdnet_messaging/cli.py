"""The commands ``sdnet msg …``."""

from __future__ import annotations

import sys
from typing import Any

import click

from sdnet_core.cli.kit import Cli, format_duration, format_time, json_option, pass_cli

__all__ = ["msg"]

_MAX_STDIN_BYTES = 1 << 20


@click.group()
def msg() -> None:
    """Texts between paired devices."""


@msg.command()
@click.argument("device")
@click.argument("text", nargs=-1, required=True)
@click.option("--priority", type=click.Choice(["low", "normal", "high"]), default="normal", show_default=True)
@json_option
@pass_cli
def send(cli: Cli, device: str, text: tuple[str, ...], priority: str, as_json: bool) -> None:
    """Send TEXT to DEVICE, which is a name, an id or the beginning of either.

    Several words need no quotes. With - as TEXT, it is read from standard input. Succeeds once the text lies in the
    other device's inbox.
    """
    receipt = cli.client.post("/messaging/messages", {"device": device, "text": _text(text), "priority": priority})
    if as_json:
        cli.print_json(receipt)
    else:
        cli.print(f"Delivered to {receipt['device_name']} in {format_duration(receipt['rtt_s'])}.")


@msg.command()
@click.option("--unread", is_flag=True, help="Only those not read yet.")
@click.option("--keep-unread", is_flag=True, help="Do not mark what is shown as read.")
@json_option
@pass_cli
def inbox(cli: Cli, unread: bool, keep_unread: bool, as_json: bool) -> None:
    """Show what has come, oldest first, and mark it as read."""
    messages = cli.client.get("/messaging/inbox", unread="true" if unread else None)
    if as_json:
        cli.print_json(messages)
    elif not messages:
        cli.note("No unread messages." if unread else "No messages.")
    else:
        for message in messages:
            cli.print(_line(message))
    fresh = [message["id"] for message in messages if not message["read"]]
    if fresh and not keep_unread:
        cli.client.post("/messaging/inbox/read", {"ids": fresh})


@msg.command()
@click.option("--keep-unread", is_flag=True, help="Do not mark what is shown as read.")
@json_option
@pass_cli
def listen(cli: Cli, keep_unread: bool, as_json: bool) -> None:
    """Show texts as they come, until Ctrl-C, and mark them as read."""
    try:
        with cli.client.stream("/messaging/inbox/watch") as messages:
            for message in messages:
                if as_json:
                    cli.print_json(message, compact=True)
                else:
                    cli.print(_line(message))
                if not keep_unread:
                    cli.client.post("/messaging/inbox/read", {"ids": [message["id"]]})
    except KeyboardInterrupt:
        pass


def _text(words: tuple[str, ...]) -> str:
    if words != ("-",):
        return " ".join(words)
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError("Standard input is not UTF-8 text.") from error
    return text.removesuffix("\n").removesuffix("\r")


def _line(message: dict[str, Any]) -> str:
    """One message for a person; `Cli.print` takes out what would control the terminal."""
    text = message["text"]
    if message["kind"] == "notification":
        text = f"[{message['title']}] {text}".rstrip()
        if message["actions"]:
            text += " (" + " / ".join(action["label"] for action in message["actions"]) + ")"
    # Further lines are set in, so that a text cannot pass one of its lines off as another message.
    text = text.replace("\n", "\n    ")
    mark = " " if message["read"] else "*"
    return f"{mark} {format_time(message['received_at'])}  {message['device_name']}: {text}"
