"""``sdnet drop listen``: offers are shown as they come, and a person answers at the terminal."""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
from typing import Any

from sdnet_core.cli.kit import Cli, EventStream, format_duration
from sdnet_core.errors import NetworkingError

from .cli_show import drop_path, failure, sender, what

__all__ = ["Listening"]

_KINDS = "spacedrop-met,spacedrop-offered,spacedrop-answered,spacedrop-completed,spacedrop-failed"
_QUESTION = "Take it? [y/N] "


class Listening:
    """One run of the command.

    :param folder: where accepted files go; the node's downloads folder when None.
    """

    def __init__(self, cli: Cli, folder: str | None) -> None:
        self._cli = cli
        self._folder = folder
        self._events: queue.Queue[dict[str, Any] | NetworkingError | None] = queue.Queue()
        self._wake_read, self._wake_write = os.pipe()
        self._offers: list[dict[str, Any]] = []
        """Those that wait for an answer; the first is being asked about."""
        self._input = b""
        self._leaving = False

    def run(self, *, as_json: bool) -> None:
        """Listen until Ctrl-C, the end of the input, or the end of the node.

        :raises NetworkingError: the node stopped.
        """
        with self._cli.client.stream(f"/events?kinds={_KINDS}") as events:
            waiting = self._cli.client.get("/spacedrop/pending")
            if as_json:
                for offer in reversed(waiting):
                    self._cli.print_json({"kind": "spacedrop-pending", **offer}, compact=True)
                for event in events:
                    self._cli.print_json(event, compact=True)
                raise NetworkingError("The node has stopped.")
            status = self._cli.client.get("/spacedrop/visibility")
            who = {"everyone": "everyone near", "paired": "paired devices", "off": "nobody, as visibility is off"}
            self._cli.note(f"Waiting for offers of {who[status['visibility']]}. Ctrl-C ends it.")
            threading.Thread(target=self._pump, args=(events,), daemon=True).start()
            try:
                for offer in reversed(waiting):
                    self._show(offer)
                self._loop()
            finally:
                self._leaving = True

    def _pump(self, events: EventStream) -> None:
        try:
            for event in events:
                self._put(event)
            self._put(None)
        except NetworkingError as error:
            self._put(error)
        except Exception:
            if not self._leaving:  # otherwise the stream was closed under this thread
                raise

    def _put(self, event: dict[str, Any] | NetworkingError | None) -> None:
        self._events.put(event)
        os.write(self._wake_write, b"x")

    def _loop(self) -> None:
        keyboard = sys.stdin.fileno()
        while True:
            ready, _, _ = select.select([keyboard, self._wake_read], [], [])
            if self._wake_read in ready:
                os.read(self._wake_read, 1)
                self._hear(self._events.get())
            elif keyboard in ready:
                data = os.read(keyboard, 4096)
                if not data:
                    self._cli.note("The input has ended; what waits can still be answered: sdnet drop pending")
                    return
                self._input += data
                while b"\n" in self._input:
                    line, _, self._input = self._input.partition(b"\n")
                    self._answer(line.decode("utf-8", "replace").strip().casefold())

    def _hear(self, event: dict[str, Any] | NetworkingError | None) -> None:
        if event is None:
            raise NetworkingError("The node has stopped.")
        if isinstance(event, NetworkingError):
            raise event
        kind = event["kind"]
        if kind == "events-dropped":
            return
        if kind == "spacedrop-answered" and (event["accepted"] or event["role"] == "sender"):
            return
        try:
            status = self._cli.client.get(drop_path(event["drop_id"]))
        except NetworkingError:  # it is forgotten already
            return
        if status["role"] == "receiver":
            if kind in ("spacedrop-met", "spacedrop-offered"):
                self._show(status)
            else:
                self._over(status)

    def _show(self, status: dict[str, Any]) -> None:
        """Say what came; ask about it if nothing else is being asked."""
        name = sender(status)
        if status["state"] == "comparing":
            self._line(f"{name} wants to send you something. Compare this number with its screen:  {status['check']}")
            return
        if status["state"] != "asking":
            return
        self._offers = [offer for offer in self._offers if offer["id"] != status["id"]] + [status]
        if len(self._offers) == 1:
            self._ask()
        else:
            self._line(f"{name} offers {what(status)}, too.")
            self._prompt()

    def _ask(self) -> None:
        offer = self._offers[0]
        self._line(f"{sender(offer)} offers {what(offer)}.")
        if offer["message"]:
            self._cli.print("\n".join(f"  > {line}" for line in offer["message"].splitlines()))
        if offer["check"]:
            self._cli.print(f"  Take it only if its screen shows the number  {offer['check']}")
        self._prompt()

    def _answer(self, word: str) -> None:
        if not self._offers:
            return
        if word not in ("y", "yes", "n", "no", ""):
            self._cli.note("Please answer y or n.")
            self._prompt()
            return
        offer = self._offers.pop(0)
        try:
            if word.startswith("y"):
                taken = self._cli.client.post(drop_path(offer["id"], "/accept"), {"folder": self._folder})
                self._cli.note(f"It will be put into {taken['folder']}.")
            else:
                self._cli.client.post(drop_path(offer["id"], "/reject"), {"reason": ""})
                self._cli.note("Rejected.")
        except NetworkingError as error:
            self._cli.note(error.detail)
            if self._cli.client.get(drop_path(offer["id"]))["state"] == "asking":  # the folder was at fault
                self._offers.insert(0, offer)
        if self._offers:
            self._ask()

    def _over(self, status: dict[str, Any]) -> None:
        """Say how a drop ended, and do not ask about it any more."""
        asked = bool(self._offers) and self._offers[0]["id"] == status["id"]
        known = asked or any(offer["id"] == status["id"] for offer in self._offers)
        self._offers = [offer for offer in self._offers if offer["id"] != status["id"]]
        if status["state"] == "completed":
            took_s = (status["ended_at"] or 0) - (status["answered_at"] or 0)
            places = ", ".join(status["paths"][:5]) or status["folder"]
            self._line(f"Received {what(status)} from {sender(status)} in {format_duration(took_s)}: {places}")
        elif known or status["state"] != "rejected":
            error = failure(status)
            self._line(f"{sender(status)}: {error.detail if error else status['state']}")
        if self._offers:
            self._ask() if asked else self._prompt()

    def _line(self, text: str) -> None:
        if self._offers and sys.stdin.isatty():
            sys.stdout.write("\r\x1b[K")  # what is printed takes the place of the question
            sys.stdout.flush()
        self._cli.print(text)
        sys.stdout.flush()

    def _prompt(self) -> None:
        sys.stdout.write(_QUESTION)
        sys.stdout.flush()
