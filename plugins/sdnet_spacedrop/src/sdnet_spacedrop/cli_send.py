"""``sdnet drop send``, and what belongs to sending."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from sdnet_core.cli.kit import Cli, Progress, complete_devices, json_option, pass_cli
from sdnet_core.errors import NetworkingError, RefusedError

from .cli_show import ENDED, drop_path, failure, what

__all__ = ["cancel", "confirm", "follow", "nearby", "send"]


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet drop send photo.jpg --to phone --message 'from the lake'\n"
    "  sdnet drop send album/ notes.txt --to laptop --to desktop\n"
    "  sdnet drop send slides.pdf --all\n"
    "  sdnet drop send slides.pdf --to anna --nearby"
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(exists=True))
@click.option(
    "--to",
    "devices",
    multiple=True,
    metavar="DEVICE",
    shell_complete=complete_devices,
    help="Name, id, or a unique prefix. Can be repeated.",
)
@click.option("--all", "everyone", is_flag=True, help="To every paired device that is connected.")
@click.option("--nearby", "near", is_flag=True, help="Look also for devices here that are not paired.")
@click.option("--message", default="", metavar="TEXT", help="Shown to the person there.")
@click.option("--detach", is_flag=True, help="Do not wait for the answer.")
@json_option
@pass_cli
def send(
    cli: Cli,
    paths: tuple[str, ...],
    devices: tuple[str, ...],
    everyone: bool,
    near: bool,
    message: str,
    detach: bool,
    as_json: bool,
) -> None:
    """Offer files and folders; wait for the answer, then until they have arrived.

    With a device that is not paired, both screens show a number; say whether it is the same before anything is offered.
    Ends with 4 when the offer is rejected, cancelled there, or not answered. Ctrl-C cancels.
    """
    if not devices and not everyone:
        raise click.UsageError("Say to whom: --to DEVICE, or --all. Who is there: sdnet drop nearby")
    places = [os.path.abspath(path) for path in paths]
    recipients = cli.client.post("/spacedrop/recipients", {"devices": list(devices), "all": everyone, "nearby": near})
    sending = _Sending(cli, places, message, quiet=as_json, several=len(recipients) > 1)
    # People have to look at two screens for the devices that are not paired: those come first, one after the other.
    for recipient in sorted(recipients, key=lambda recipient: bool(recipient["paired"])):
        sending.begin(recipient, wait=not detach)
    if not detach:
        sending.follow()
    sending.report(as_json=as_json)


class _Sending:
    """One command's drops.

    :param several: there is more than one recipient: a failure of one does not end the others.
    """

    def __init__(self, cli: Cli, paths: list[str], message: str, *, quiet: bool, several: bool) -> None:
        self._cli = cli
        self._body = {"paths": paths, "message": message}
        self._quiet = quiet
        self._several = several
        self._drops: dict[str, dict[str, Any]] = {}
        self._errors: list[NetworkingError] = []

    def begin(self, recipient: dict[str, Any], *, wait: bool) -> None:
        """Make the offer; with a device that is not paired, have the number compared first, if there is time to."""
        cli = self._cli
        whom = {"device": recipient["id"]} if recipient["paired"] else {"peer_id": recipient["peer_id"]}
        try:
            offered = cli.client.post("/spacedrop/drops", {**self._body, **whom})
        except NetworkingError as error:
            if not self._several:
                raise
            self._errors.append(error)
            cli.note(f"{recipient['name']}: {error.detail}")
            return
        self._drops[offered["id"]] = offered
        if offered["state"] != "comparing":
            self._say(f"Offering {what(offered)} to {offered['device_name']}.")
        elif wait:
            self._compare(offered)
        else:
            self._say(f"Number to compare with {offered['device_name']}: {offered['check']}")
            self._say(f"If it is the same there: sdnet drop confirm {offered['id'][:8]}")

    def _compare(self, offered: dict[str, Any]) -> None:
        cli, name = self._cli, offered["device_name"]
        cli.note(f"{name} is not paired with this device. Its screen has to show this number:  {offered['check']}")
        try:
            same = click.confirm(f"Does {name} show the same number?", err=True)
        except click.Abort:
            cli.note("")  # the cursor stands behind the question
            self.cancel_all("The sender left.")
            if sys.stdin.isatty():
                raise
            text = f"Nobody said that {name} shows the same number. Answer y, or use --detach and 'sdnet drop confirm'."
            raise NetworkingError(text) from None
        try:
            if same:
                cli.client.post(drop_path(offered["id"], "/confirm"))
                self._say(f"Offering {what(offered)} to {name}.")
            else:
                cli.client.delete(drop_path(offered["id"]) + "?reason=The%20numbers%20differ.")
                cli.note("Then somebody may be in between; nothing was sent.")
        except NetworkingError:
            status = cli.client.get(drop_path(offered["id"]))
            if status["state"] not in ENDED:
                raise
            # It ended while the person looked; that is reported like every other end.

    def follow(self) -> None:
        """Show how far all are until they are over. Ctrl-C cancels them."""
        if not self._drops:
            return
        try:
            for status in follow(self._cli, self._drops, quiet=self._quiet):
                if self._several and not self._quiet:
                    error = failure(status)
                    name = status["device_name"]
                    self._cli.note(f"{name}: {'received' if error is None else error.detail}")
        except KeyboardInterrupt:
            self.cancel_all()
            raise

    def cancel_all(self, reason: str = "") -> None:
        """Cancel what is not over."""
        from urllib.parse import quote

        for drop_id in self._drops:
            try:
                self._drops[drop_id] = self._cli.client.delete(f"{drop_path(drop_id)}?reason={quote(reason)}")
                self._cli.note("Cancelled.")
            except NetworkingError as error:
                if self._cli.client.get(drop_path(drop_id))["state"] not in ENDED:
                    self._cli.note(f"It could not be cancelled: {error.detail}")

    def report(self, *, as_json: bool) -> None:
        """Say how all ended.

        :raises RefusedError: the other side did not want it.
        :raises NetworkingError: it failed, or was cancelled here.
        """
        drops = list(self._drops.values())
        if as_json:
            self._cli.print_json(drops if self._several else drops[0])
        ended = [status for status in drops if status["state"] in ENDED]
        errors = [*self._errors, *(error for status in ended if (error := failure(status)) is not None)]
        if not errors:
            if not as_json and ended and not self._several:
                self._cli.print(f"{ended[0]['device_name']} has received {what(ended[0])}.")
            elif not as_json and ended:
                self._cli.print(f"All {len(ended)} have received it.")
            return
        if not self._several:
            raise errors[0]
        refused = all(getattr(error, "exit_code", 1) == RefusedError.exit_code for error in errors)
        total = len(drops) + len(self._errors)
        raise (RefusedError if refused else NetworkingError)(f"{len(errors)} of {total} have not received it.")

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._cli.note(text)


def follow(cli: Cli, drops: dict[str, dict[str, Any]], *, quiet: bool) -> Iterator[dict[str, Any]]:
    """Show how far drops are until they are over.

    :param drops: by id; brought up to date.
    :returns: gives each one's last status when it is over.
    :raises NetworkingError: the node stopped before.
    """
    waiting = set(drops)
    asked: set[str] = set()
    with cli.client.stream(f"/spacedrop/watch?ids={','.join(drops)}") as changes:
        progress: Progress | None = None
        shown = cli.progress(_title(drops), sum(drop["total_bytes"] for drop in drops.values()))
        try:
            for status in changes:
                drops[status["id"]] = status
                if status["asked"] and status["state"] == "asking" and status["id"] not in asked and not quiet:
                    asked.add(status["id"])
                    cli.note(f"Waiting for {status['device_name']} to accept.")
                if not quiet and status["state"] in ("transferring", "completed"):
                    progress = progress or shown.__enter__()
                    _update(progress, drops)
                if status["state"] in ENDED:
                    waiting.discard(status["id"])
                    yield status
        finally:
            if progress is not None:
                shown.__exit__(None, None, None)
    if waiting:
        raise NetworkingError("The node stopped before the drop had ended.")


def _title(drops: dict[str, dict[str, Any]]) -> str:
    return what(next(iter(drops.values()))) + (f" to {len(drops)} devices" if len(drops) > 1 else "")


def _update(progress: Progress, drops: dict[str, dict[str, Any]]) -> None:
    taken = [drop for drop in drops.values() if drop["state"] in ("accepted", "transferring", "completed")]
    progress.update(sum(drop["done_bytes"] for drop in taken), sum(drop["total_bytes"] for drop in taken))


@click.command(epilog="\b\nExamples:\n  sdnet drop nearby")
@json_option
@pass_cli
def nearby(cli: Cli, as_json: bool) -> None:
    """List the devices that are near: paired ones, and others that let everyone find them.

    A device that is not paired says its own name, which proves nothing. To be found by others yourself:
    sdnet drop visibility everyone
    """
    found = cli.client.get("/spacedrop/nearby")
    if as_json:
        cli.print_json(found)
        return
    rows = [
        {
            "name": device["name"],
            "id": device["id"][:8],
            "paired": device["paired"],
            "state": "connected" if device["connected"] else ("seen" if device["paired"] else "-"),
        }
        for device in found
    ]
    columns = [("name", "NAME"), ("id", "ID"), ("paired", "PAIRED"), ("state", "STATE")]
    cli.table(rows, columns, empty="Nobody is near. On the other device: sdnet drop visibility everyone --for 10m")


@click.command(epilog="\b\nExamples:\n  sdnet drop confirm 3f2a")
@click.argument("drop_id", metavar="ID")
@json_option
@pass_cli
def confirm(cli: Cli, drop_id: str, as_json: bool) -> None:
    """Say that the other screen shows the same number, for a drop sent with --detach."""
    confirmed = cli.client.post(drop_path(drop_id, "/confirm"))
    if as_json:
        cli.print_json(confirmed)
    else:
        cli.note(f"Offering {what(confirmed)} to {confirmed['device_name']}.")


@click.command(epilog="\b\nExamples:\n  sdnet drop cancel 3f2a")
@click.argument("drop_id", metavar="ID")
@json_option
@pass_cli
def cancel(cli: Cli, drop_id: str, as_json: bool) -> None:
    """Cancel a drop, sent or received, by its id or a unique prefix of it."""
    cancelled = cli.client.delete(drop_path(drop_id))
    if as_json:
        cli.print_json(cancelled)
    else:
        cli.note(f"Cancelled {what(cancelled)}.")
