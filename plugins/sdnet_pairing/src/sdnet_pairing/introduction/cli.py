"""``sdnet pair introduce`` and what else the command line has of introductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from sdnet_core.cli.kit import ApiError, Cli, clean, json_option, pass_cli, quote_segment
from sdnet_core.errors import ConflictError, ConnectionFailedError, NetworkTimeoutError, RefusedError

__all__ = ["answer_introduction", "cancel_introduction", "introduce", "introductions", "pending_rows", "unless_unknown"]

PATH = "/pairing/introductions"
_ENDED = ("completed", "failed", "cancelled", "expired")
_REFUSALS = ("rejected", "never", "already", "revoked", "conflict", "busy", "replayed", "unsupported")
_COLUMNS = [
    ("id", "ID"),
    ("by", "INTRODUCED BY"),
    ("names", "DEVICES"),
    ("state", "STATE"),
    ("detail", "DETAIL"),
]


@click.command()
@click.argument("device")
@click.option(
    "--to", "others", multiple=True, required=True, metavar="DEVICE", help="To whom; can be given repeatedly."
)
@click.option("--no-wait", is_flag=True, help="Return at once; see how it goes with 'pair introductions'.")
@json_option
@pass_cli
def introduce(cli: Cli, device: str, others: Sequence[str], no_wait: bool, as_json: bool) -> None:
    """Introduce DEVICE, which is paired with this one, to other devices that are too.

    This device vouches for each to the other, and they pair, with a secret of their own that this device does not
    get. By default the person at each of the two is asked ('pair pending' there). It is good for ten minutes; a
    device that is away hears of it when it is back. Ctrl-C stops waiting, not the introduction.

    \b
    Examples:
      sdnet pair introduce tablet --to phone
      sdnet pair introduce tablet --to phone --to attic
    """
    started = cli.client.post(PATH, {"device": device, "to": list(others)})
    if no_wait:
        if as_json:
            cli.print_json(started)
        else:
            for introduction in started:
                cli.print(f"Introducing {_names(introduction, ' and ')}: {introduction['id']}")
        return
    failed: list[dict[str, Any]] = []
    for introduction in started:
        last = _follow(cli, introduction, as_json=as_json)
        if last["state"] != "completed":
            failed.append(last)
        elif not as_json:
            cli.print(f"{_names(last, ' and ')} are paired.")
    if failed:
        _raise(failed)


@click.command()
@click.argument("id", required=False)
@json_option
@pass_cli
def introductions(cli: Cli, id: str | None, as_json: bool) -> None:
    """List introductions, those of this device and those by others, or show the one with ID.

    Answer one that waits with 'pair accept ID' or 'pair reject ID'.

    \b
    Examples:
      sdnet pair introductions
      sdnet pair introductions 7c1e --json
    """
    found = cli.client.get(PATH if id is None else f"{PATH}/{quote_segment(id)}")
    if as_json:
        cli.print_json(found)
        return
    listed = found if id is None else [found]
    rows = [{**one, "by": one["introducer"], "names": _names(one, ", ")} for one in listed]
    cli.table(rows, _COLUMNS, empty="No introduction is going on.")


def pending_rows(cli: Cli) -> list[dict[str, Any]]:
    """The introductions that wait for an answer here."""
    return [one for one in cli.client.get(PATH) if one["state"] == "awaiting-confirmation"]


def unless_unknown(call: Callable[[], Any]) -> Any:
    """What a call gives; None if the node knows no such thing."""
    try:
        return call()
    except ApiError as error:
        if error.http_status == 404 and error.code == "not-found":
            return None
        raise


def answer_introduction(cli: Cli, id: str, answer: str, *, as_json: bool) -> None:
    """Accept or reject an introduction."""
    status = cli.client.post(f"{PATH}/{quote_segment(id)}/{answer}")
    if as_json:
        cli.print_json(status)
    elif answer == "accept":
        cli.print(f"Accepted {_names(status, ', ')}, introduced by {clean(status['introducer'])}.")
        cli.note("The two are paired as soon as the other one has accepted too; see 'sdnet devices'.")
    else:
        cli.print(f"Rejected {_names(status, ', ')}, introduced by {clean(status['introducer'])}.")


def cancel_introduction(cli: Cli, id: str, *, as_json: bool) -> None:
    """Give up an introduction that this device makes."""
    status = cli.client.delete(f"{PATH}/{quote_segment(id)}")
    if as_json:
        cli.print_json(status)
    else:
        cli.print("The introduction is cancelled.")


def _follow(cli: Cli, introduction: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    told = ""
    with cli.client.stream(f"{PATH}/{introduction['id']}/watch") as changes:
        for now in changes:
            status: dict[str, Any] = now
            if as_json:
                cli.print_json(status, compact=True)
            if status["state"] in _ENDED:
                return status
            if not as_json and status["detail"] != told:
                told = status["detail"]
                cli.note(told)
    raise ConnectionFailedError("The node stopped before the introduction was over.")


def _raise(failed: Sequence[dict[str, Any]]) -> None:
    detail = " ".join(f"{_names(one, ' and ')}: {one['detail']}" for one in failed)
    reasons = {one["reason"] for one in failed}
    if reasons & set(_REFUSALS):
        raise RefusedError(detail)
    if "expired" in reasons:
        raise NetworkTimeoutError(detail)
    raise ConflictError(detail)


def _names(introduction: dict[str, Any], between: str) -> str:
    return clean(between.join(device["name"] for device in introduction["devices"]))
