"""``sdnet pair …``"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sdnet_core.cli.kit import ApiError, Cli, clean, format_duration, json_option, pass_cli, quote_segment
from sdnet_core.errors import (
    AuthenticationFailedError,
    ConflictError,
    ConnectionFailedError,
    InvalidRequestError,
    NetworkingError,
    NetworkTimeoutError,
    RefusedError,
)

from .introduction.cli import (
    answer_introduction,
    cancel_introduction,
    introduce,
    introductions,
    pending_rows,
    unless_unknown,
)

__all__ = ["pair"]

_SESSIONS = "/pairing/sessions"
_MAX_LINES = 50
"""Lines about one search that go into a pipe."""
_ENDED = ("completed", "failed", "cancelled", "expired")
_REFUSALS = ("refused", "rejected", "unanswered", "used", "expired", "cancelled", "conflict")
_TIMEOUTS = ("expired", "not-found", "timeout", "unanswered")
_COLUMNS = [
    ("id", "ID"),
    ("role", "ROLE"),
    ("state", "STATE"),
    ("name", "DEVICE"),
    ("left", "TIME LEFT"),
    ("detail", "DETAIL"),
]
_PENDING_COLUMNS = [
    ("id", "ID"),
    ("name", "DEVICE"),
    ("os", "OS"),
    ("fingerprint", "FINGERPRINT"),
    ("how", "HOW"),
]


@click.group()
def pair() -> None:
    """Pair this device with another one by a 12-word code, or by an introduction.

    \b
    On one device:        sdnet pair generate
    On the other device:  sdnet pair join
    Or, on a device that is paired with both:  sdnet pair introduce tablet --to phone
    """


@pair.command()
@click.option("--auto-accept", is_flag=True, help="Pair with whoever types the code, without asking.")
@click.option("--qr", is_flag=True, help="Also draw a QR code of the pairing link: the code and where this device is.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the QR code to a new .png or .svg.")
@click.option("--no-wait", is_flag=True, help="Print the code and return; answer later with 'pair accept'.")
@json_option
@pass_cli
def generate(cli: Cli, auto_accept: bool, qr: bool, out: Path | None, no_wait: bool, as_json: bool) -> None:
    """Show a new pairing code and wait for the other device.

    The code is good for five minutes and for one device. When a device has proven that it knows the code, you are
    asked whether to pair with it: compare the fingerprint with the one that it shows ('sdnet status' there).
    Ctrl-C takes the code back.

    --qr also draws a QR code, and prints the link in it. The link holds the code and where this device can be
    reached, so that the other one finds it sooner, also where the network hides the two from each other. Whoever
    sees the words, the QR code or the link can ask to pair.

    With --json, one line is printed for the code and one for every change.

    \b
    Examples:
      sdnet pair generate
      sdnet pair generate --qr
      sdnet pair generate --out code.png
      sdnet pair generate --auto-accept
      sdnet pair generate --no-wait --json
    """
    if out is not None:
        from .qr import file_format

        file_format(out)
    session = cli.client.post(_SESSIONS, {"role": "initiator", "auto_accept": auto_accept})
    if out is not None:
        _write_code(cli, session, out)
    if as_json:
        cli.print_json(session, compact=not no_wait)
    else:
        _show_code(cli, session, qr=qr)
    if not no_wait:
        _finish(cli, session, as_json)


@pair.command()
@click.argument("words", nargs=-1)
@click.option("--hint", "hints", multiple=True, metavar="MULTIADDR", help="Also try this address; ends in /p2p/<peer>.")
@click.option("--timeout", type=click.FloatRange(1, 300), metavar="SECONDS", help="How long to look for the device.")
@click.option("--no-wait", is_flag=True, help="Return at once; see how it goes with 'pair status'.")
@json_option
@pass_cli
def join(
    cli: Cli, words: Sequence[str], hints: Sequence[str], timeout: float | None, no_wait: bool, as_json: bool
) -> None:
    """Pair with the device that shows the code WORDS.

    Without WORDS you are asked for them, one by one or all at once, and "-" reads them from standard input. Prefer
    these: others who use the machine can see the arguments of your commands. A link (sdnet:pair?…), as the QR code
    holds it, may stand in place of the words. Case and punctuation do not matter, and four letters of each word are
    enough.

    \b
    Examples:
      sdnet pair join
      sdnet pair join - < code.txt
      sdnet pair join legal winner thank year wave sausage worth useful legal winner thank yellow
    """
    # Checked here first, so that what is misspelt goes no further.
    code = _read_code(cli, words)
    body: dict[str, Any] = {"role": "joiner", "code": code, "hints": list(hints)}
    if timeout is not None:
        body["timeout_s"] = timeout
    session = cli.client.post(_SESSIONS, body)
    if as_json:
        cli.print_json(session, compact=not no_wait)
    if not no_wait:
        _finish(cli, session, as_json)
    elif not as_json:
        cli.print(f"Looking for the device that shows the code: session {session['id']}")


@pair.command()
@click.argument("id", required=False)
@json_option
@pass_cli
def status(cli: Cli, id: str | None, as_json: bool) -> None:
    """List pairing sessions, or show the one with ID (a unique beginning of it is enough).

    \b
    Examples:
      sdnet pair status
      sdnet pair status 3f2a
    """
    if id is not None:
        found = cli.client.get(f"{_SESSIONS}/{quote_segment(id)}")
        if as_json:
            cli.print_json(found)
            return
        sessions = [found]
    else:
        sessions = cli.client.get(_SESSIONS)
        if as_json:
            cli.print_json(sessions)
            return
    cli.table([_row(session) for session in sessions], _COLUMNS, empty="No pairing is going on.")


@pair.command()
@json_option
@pass_cli
def pending(cli: Cli, as_json: bool) -> None:
    """List the devices that wait for our answer: they know a code of ours, or another device has introduced them.

    Compare the fingerprint with the one that the device shows itself ('sdnet status' there).

    \b
    Examples:
      sdnet pair pending
    """
    sessions, introduced = cli.client.get("/pairing/pending"), pending_rows(cli)
    if as_json:
        cli.print_json([*sessions, *introduced])
        return
    rows = [{**_row(session), "how": "knows the code"} for session in sessions]
    rows += [
        {**device, "id": one["id"], "how": f"introduced by {one['introducer']}"}
        for one in introduced
        for device in one["devices"]
    ]
    cli.table(rows, _PENDING_COLUMNS, empty="No device waits for an answer.")


@pair.command()
@click.argument("id")
@json_option
@pass_cli
def accept(cli: Cli, id: str, as_json: bool) -> None:
    """Pair with the device of the session or introduction ID, as 'pair pending' lists it.

    \b
    Examples:
      sdnet pair accept 3f2a
    """
    session = unless_unknown(lambda: cli.client.post(f"{_SESSIONS}/{quote_segment(id)}/accept"))
    if session is None:
        answer_introduction(cli, id, "accept", as_json=as_json)
        return
    last = _follow(cli, session["id"])
    if as_json:
        cli.print_json(last)
    _conclude(cli, last, quiet=as_json)


@pair.command()
@click.argument("id")
@json_option
@pass_cli
def reject(cli: Cli, id: str, as_json: bool) -> None:
    """Do not pair with the device of the session or introduction ID. A code is worthless then.

    \b
    Examples:
      sdnet pair reject 3f2a
    """
    session = unless_unknown(lambda: cli.client.post(f"{_SESSIONS}/{quote_segment(id)}/reject"))
    if session is None:
        answer_introduction(cli, id, "reject", as_json=as_json)
        return
    last = _follow(cli, session["id"])
    if as_json:
        cli.print_json(last)
    else:
        cli.print(f"Rejected {_describe(last)}.")


@pair.command()
@click.argument("id")
@json_option
@pass_cli
def cancel(cli: Cli, id: str, as_json: bool) -> None:
    """Give up the session ID, whichever side of it this device is, or the introduction ID that this device makes.

    \b
    Examples:
      sdnet pair cancel 3f2a
    """
    session = unless_unknown(lambda: cli.client.delete(f"{_SESSIONS}/{quote_segment(id)}"))
    if session is None:
        cancel_introduction(cli, id, as_json=as_json)
    elif as_json:
        cli.print_json(session)
    else:
        cli.print("The pairing is cancelled.")


pair.add_command(introduce)
pair.add_command(introductions)


def _read_code(cli: Cli, words: Sequence[str]) -> str:
    """The code as the node takes it: the whole words, or the link."""
    from .code import PairingCode
    from .uri import PairingUri, is_uri

    if list(words) == ["-"]:
        typed = sys.stdin.read(4096)
    elif words:
        typed = " ".join(words)
        cli.note("Others on this machine could see the code among your command's arguments; 'sdnet pair join' asks.")
    elif sys.stdin.isatty():
        from .prompt import ask_for_code

        cli.client.get(_SESSIONS)  # nobody types twelve words to hear that no node runs
        found = ask_for_code(cli.note)
        return str(found) if isinstance(found, PairingUri) else " ".join(found.words)
    else:
        raise click.UsageError("Give the 12 words of the code, or - to read them from standard input.")
    return str(PairingUri.parse(typed)) if is_uri(typed) else " ".join(PairingCode.parse(typed).words)


def _write_code(cli: Cli, session: dict[str, Any], path: Path) -> None:
    from .qr import write_qr

    try:
        write_qr(session["uri"], path)
    except InvalidRequestError:
        cli.client.delete(f"{_SESSIONS}/{session['id']}")
        raise
    cli.note(f"{path} holds the code; delete it when the devices are paired.")


def _show_code(cli: Cli, session: dict[str, Any], *, qr: bool = False) -> None:
    words = session["words"]
    half = len(words) // 2
    if cli.interactive:
        from rich.panel import Panel
        from rich.text import Text

        lines = "\n".join("  ".join(part) for part in (words[:half], words[half:]))
        panel = Panel(Text(lines, style="bold"), title="Pairing code", expand=False, padding=(1, 3))
        cli.console.print(panel)
    else:
        cli.print(" ".join(words))
    if qr:
        from .qr import draw_qr

        click.echo(draw_qr(session["uri"], encoding=sys.stdout.encoding or "ascii", colours=cli.interactive))
        cli.print(session["uri"])
    left = format_duration(max(0.0, session["expires_at"] - time.time()))
    cli.note(f"Type it on the other device: sdnet pair join\nIt is good for {left} and for one device.")


def _finish(cli: Cli, session: dict[str, Any], as_json: bool) -> None:
    """Follow a session of ours to its end; Ctrl-C gives it up."""
    try:
        last = _follow(cli, session["id"], talk=not as_json, print_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        try:
            cli.client.delete(f"{_SESSIONS}/{session['id']}")
            cli.note("\nThe pairing is cancelled.")
        except NetworkingError as error:
            cli.note(f"\n{error.detail}")
        raise
    _conclude(cli, last, quiet=as_json)


def _follow(cli: Cli, session_id: str, *, talk: bool = False, print_json: bool = False) -> dict[str, Any]:
    view = _View(cli)
    with cli.client.stream(f"{_SESSIONS}/{session_id}/watch") as changes:
        for number, session in enumerate(changes):
            if print_json and number > 0:
                cli.print_json(session, compact=True)
            if session["state"] in _ENDED:
                view.leave()
                last: dict[str, Any] = session
                return last
            if talk:
                view.show(session)
    raise ConnectionFailedError("The node stopped before the pairing was over.")


class _View:
    """What the person sees of a session while it goes on: a line for each new state, and one that changes in place."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self._live = sys.stderr.isatty()
        self._state = ""
        self._said: set[str] = set()
        self._open = False

    def show(self, session: dict[str, Any]) -> None:
        """Show how far it is."""
        search = session["search"]
        if session["state"] != self._state:
            self._state = session["state"]
            self._enter(session)
        if search and session["role"] == "joiner" and session["state"] != "awaiting-confirmation":
            self._progress(search["summary"])

    def leave(self) -> None:
        """Leave the line that changes as it is."""
        if self._open:
            click.echo(err=True)
            self._open = False

    def _enter(self, session: dict[str, Any]) -> None:
        initiator, device = session["role"] == "initiator", session["device"]
        match session["state"]:
            case "waiting-for-connection" if initiator:
                self._note("Waiting for the other device…")
            case "authenticating" if initiator:
                self._note("A device has connected; it has to prove that it knows the code…")
            case "awaiting-confirmation" if initiator:
                self.leave()
                _ask(self._cli, session)
            case "awaiting-confirmation" if device:
                self._note(f"Found {_describe(session)}.\nWaiting for the answer there…")

    def _note(self, text: str) -> None:
        self.leave()
        self._cli.note(text)

    def _progress(self, text: str) -> None:
        if self._live:
            width = max(20, shutil.get_terminal_size().columns - 1)
            shown = clean(text)
            click.echo(f"\r\x1b[2K{shown if len(shown) <= width else shown[: width - 1] + '…'}", nl=False, err=True)
            self._open = True
        elif text not in self._said and len(self._said) < _MAX_LINES:
            self._said.add(text)
            self._cli.note(text)


def _ask(cli: Cli, session: dict[str, Any]) -> None:
    question = f"{_describe(session)} asks to pair."
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        cli.note(f"{question}\nAnswer with: sdnet pair accept {session['id']}   or   sdnet pair reject {session['id']}")
        return
    cli.note(question)
    from .terminal import ask_while

    path = f"{_SESSIONS}/{session['id']}"
    yes = ask_while(lambda: bool(cli.client.get(path)["state"] == "awaiting-confirmation"))
    if yes is None:
        return
    answer = "accept" if yes else "reject"
    try:
        cli.client.post(f"{_SESSIONS}/{session['id']}/{answer}")
    except ApiError as error:
        cli.note(error.detail)  # answered elsewhere meanwhile, or too late: the end of the session says which


def _conclude(cli: Cli, session: dict[str, Any], *, quiet: bool) -> None:
    """Say how it ended.

    :raises NetworkingError: there is no pairing; with the exit code that fits.
    """
    state, reason, detail = session["state"], session["reason"], session["detail"]
    if state == "completed":
        if not quiet:
            cli.print(f"Paired with {_describe(session)}.")
        if session["pending"]:
            cli.note(detail)
        return
    if session["role"] == "joiner" and state == "failed":
        if reason in _REFUSALS:
            raise RefusedError(detail)
        if reason == "authentication":
            raise AuthenticationFailedError(detail)
    if reason in _TIMEOUTS:
        raise NetworkTimeoutError(detail)
    if reason == "connection-lost":
        raise ConnectionFailedError(detail)
    raise ConflictError(detail or f"The pairing is {state}.")


def _describe(session: dict[str, Any]) -> str:
    device = session["device"]
    if not device:
        return "the device"
    os = f" ({device['os']})" if device["os"] else ""
    return clean(f"{device['name']}{os}, fingerprint {device['fingerprint']}")


def _row(session: dict[str, Any]) -> dict[str, Any]:
    device = session["device"] or {}
    over = session["state"] in _ENDED
    left_s = session["expires_at"] - time.time()
    return {
        **session,
        "name": device.get("name"),
        "os": device.get("os"),
        "fingerprint": device.get("fingerprint"),
        "left": None if over or left_s <= 0 else format_duration(left_s),
    }
