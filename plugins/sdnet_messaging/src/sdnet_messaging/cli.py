"""The commands ``sdnet msg …`` and ``sdnet notify``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sdnet_core.cli.kit import Cli, Duration, format_duration, format_time, json_option, pass_cli
from sdnet_core.errors import NotFoundError

__all__ = ["msg", "notify"]

_MAX_STDIN_BYTES = 1 << 20
_POLL_S = 30

F = TypeVar("F", bound=Callable[..., Any])


def _sending(command: F) -> F:
    """The options of everything that sends."""
    for option in (
        click.option("--now", is_flag=True, help="Fail if the device is away, instead of queueing."),
        click.option("--ttl", type=Duration(), help="Give it up if it is not delivered within this time, such as 2d."),
        click.option("--priority", type=click.Choice(["low", "normal", "high"]), default="normal", show_default=True),
    ):
        command = option(command)
    return command


@click.group()
def msg() -> None:
    """Texts between paired devices."""


@msg.command(
    epilog="\b\nExamples:\n"
    "  sdnet msg send laptop Dinner at eight?\n"
    "  git log -1 | sdnet msg send laptop -\n"
    "  sdnet msg send phone 'Train in 10 minutes' --ttl 10m --priority high"
)
@click.argument("device")
@click.argument("text", nargs=-1, required=True)
@_sending
@json_option
@pass_cli
def send(
    cli: Cli, device: str, text: tuple[str, ...], priority: str, ttl: float | None, now: bool, as_json: bool
) -> None:
    """Send TEXT to DEVICE, which is a name, an id or the beginning of either.

    Several words need no quotes. With - as TEXT, it is read from standard input. Succeeds once the text lies in the
    other device's inbox or, while that is away, in this one's outbox.
    """
    body = {"device": device, "text": _text(text), "priority": priority, "ttl_s": ttl, "now": now}
    _say(cli, cli.client.post("/messaging/messages", body), as_json)


@click.command(epilog="\b\nExamples:\n  sdnet notify phone 'The backup is done'")
@click.argument("device")
@click.argument("title")
@click.argument("body", default="")
@click.option("--action", "actions", multiple=True, metavar="ID=LABEL", help="Something to choose; can be repeated.")
@click.option("--wait", type=Duration(), help="Wait so long for what is chosen, and print its id.")
@_sending
@json_option
@pass_cli
def notify(
    cli: Cli,
    device: str,
    title: str,
    body: str,
    actions: tuple[str, ...],
    wait: float | None,
    priority: str,
    ttl: float | None,
    now: bool,
    as_json: bool,
) -> None:
    """Notify the person at DEVICE. What they choose comes into the inbox here; see also --wait."""
    choices = []
    for action in actions:
        id_, separator, label = action.partition("=")
        if not separator or not id_ or not label:
            raise click.UsageError(f"{action!r} is not ID=LABEL.")
        choices.append({"id": id_, "label": label})
    if wait and not choices:
        raise click.UsageError("--wait needs at least one --action.")
    receipt = cli.client.post(
        "/messaging/notifications",
        {
            "device": device,
            "title": title,
            "body": body,
            "actions": choices,
            "priority": priority,
            "ttl_s": ttl,
            "now": now,
        },
    )
    if wait is None:
        _say(cli, receipt, as_json)
        return
    if not as_json:
        cli.note(_receipt(receipt))
    deadline = time.monotonic() + wait
    while (left := deadline - time.monotonic()) > 0:
        chosen = cli.client.get(
            f"/messaging/notifications/{receipt['id']}/choice", wait_s=max(1, min(_POLL_S, int(left)))
        )
        if chosen is not None:
            if as_json:
                cli.print_json(chosen)
            else:
                cli.print(chosen["chosen"])
            return
    raise NotFoundError(f"Nothing was chosen at {receipt['device_name']} within {format_duration(wait)}.")


@msg.command(epilog="\b\nExamples:\n  sdnet msg inbox\n  sdnet msg inbox --json")
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


@msg.command(epilog="\b\nExamples:\n  sdnet msg listen")
@click.option("--keep-unread", is_flag=True, help="Do not mark what is shown as read.")
@json_option
@pass_cli
def listen(cli: Cli, keep_unread: bool, as_json: bool) -> None:
    """Show messages as they come, until Ctrl-C or until the node stops, and mark them as read."""
    with cli.client.stream("/messaging/inbox/watch") as messages:
        for message in messages:
            if as_json:
                cli.print_json(message, compact=True)
            else:
                cli.print(_line(message))
            if not keep_unread:
                cli.client.post("/messaging/inbox/read", {"ids": [message["id"]]})


@msg.command(epilog="\b\nExamples:\n  sdnet msg choose 12 snooze")
@click.argument("notification")
@click.argument("action")
@json_option
@pass_cli
def choose(cli: Cli, notification: str, action: str, as_json: bool) -> None:
    """Choose ACTION of NOTIFICATION in the inbox; it is its number there or the beginning of its id."""
    messages = [m for m in cli.client.get("/messaging/inbox") if m["kind"] == "notification"]
    by_number = [m for m in messages if str(m["number"]) == notification.removeprefix("#")]
    message = _one(by_number or messages, notification if not by_number else by_number[0]["id"])
    _say(cli, cli.client.post(f"/messaging/inbox/{message['id']}/choice", {"action": action}), as_json)


@msg.command(epilog="\b\nExamples:\n  sdnet msg outbox")
@click.option("--device", help="Only what waits for this one.")
@json_option
@pass_cli
def outbox(cli: Cli, device: str | None, as_json: bool) -> None:
    """Show what waits for its device, in the order in which it goes out."""
    messages = cli.client.get("/messaging/outbox", device=device)
    if as_json:
        cli.print_json(messages)
        return
    now = time.time()
    cli.table(
        [
            {
                **message,
                "id": message["id"][:8],
                "queued": format_time(message["created_at"]),
                "left": None if message["expires_at"] is None else format_duration(message["expires_at"] - now),
                "text": message["text"][:60],
            }
            for message in messages
        ],
        [
            ("id", "ID"),
            ("device_name", "DEVICE"),
            ("kind", "KIND"),
            ("priority", "PRIORITY"),
            ("queued", "QUEUED"),
            ("left", "TIME LEFT"),
            ("state", "STATE"),
            ("reason", "REASON"),
            ("text", "TEXT"),
        ],
        empty="Nothing waits.",
    )


@msg.command(epilog="\b\nExamples:\n  sdnet msg cancel 3f2a")
@click.argument("message")
@json_option
@pass_cli
def cancel(cli: Cli, message: str, as_json: bool) -> None:
    """Take MESSAGE, an id or the beginning of one, out of the outbox."""
    found = _one(cli.client.get("/messaging/outbox"), message)
    result = cli.client.delete(f"/messaging/outbox/{found['id']}")
    if as_json:
        cli.print_json({"id": found["id"], **result})
    elif result["never_sent"]:
        cli.print(f"Cancelled; {found['device_name']} does not get it.")
    else:
        cli.print(f"Cancelled; it was tried before, so {found['device_name']} may have got it.")


def _one(messages: list[dict[str, Any]], reference: str) -> dict[str, Any]:
    wanted = reference.strip().lower()
    fitting = [message for message in messages if wanted and message["id"].startswith(wanted)]
    if len(fitting) != 1:
        raise NotFoundError(
            f"{len(fitting)} messages have an id that begins with {reference!r}."
            if fitting
            else f"There is no such message: {reference!r}."
        )
    return fitting[0]


def _say(cli: Cli, receipt: dict[str, Any], as_json: bool) -> None:
    if as_json:
        cli.print_json(receipt)
    else:
        cli.print(_receipt(receipt))


def _receipt(receipt: dict[str, Any]) -> str:
    name = receipt["device_name"]
    if receipt["state"] == "delivered":
        return f"Delivered to {name} in {format_duration(receipt['rtt_s'])}."
    if receipt["reason"]:
        return f"Queued for {name}: {receipt['reason']}."
    return f"Queued for {name}; it will be delivered when it is back."


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
        if message["chosen"]:
            text += f" (chosen: {message['chosen']})"
        elif message["actions"]:
            labels = " / ".join(f"{action['label']} = {action['id']}" for action in message["actions"])
            text += f" (#{message['number']}: {labels})"
    elif message["kind"] == "choice":
        text = f"[{message['title']}] chosen: {text} = {message['chosen']}"
    # Further lines are set in, so that a text cannot pass one of its lines off as another message.
    text = text.replace("\n", "\n    ")
    mark = " " if message["read"] else "*"
    return f"{mark} {format_time(message['received_at'])}  {message['device_name']}: {text}"
