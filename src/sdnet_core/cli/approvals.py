"""``sdnet approvals``: what devices wait to be allowed."""

from __future__ import annotations

import time
from typing import Any

import click

from .kit import Cli, format_duration, json_option, pass_cli, quote_segment

__all__ = ["approvals"]


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n  sdnet approvals\n  sdnet approvals approve 3f2a\n  sdnet approvals deny 3f2a",
)
@json_option
@click.pass_context
def approvals(ctx: click.Context, as_json: bool) -> None:
    """List what devices wait to be allowed, or answer.

    A device with the trust "verified" waits here with sensitive operations. No answer in time is "no".
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_approvals, as_json=as_json)


@approvals.command(name="list", epilog="\b\nExamples:\n  sdnet approvals list --json")
@json_option
@pass_cli
def list_approvals(cli: Cli, as_json: bool) -> None:
    """List what waits for an answer."""
    found = cli.client.get("/approvals")
    if as_json:
        cli.print_json(found)
        return
    now = time.time()
    rows = [
        {
            **approval,
            "id": approval["id"][:8],
            "left": format_duration(max(0.0, approval["expires_at"] - now)),
        }
        for approval in found
    ]
    columns = [("id", "ID"), ("device_name", "DEVICE"), ("protocol", "WANTS"), ("what", "MORE"), ("left", "TIME LEFT")]
    cli.table(rows, columns, empty="Nothing waits for an answer.")


@approvals.command(epilog="\b\nExamples:\n  sdnet approvals approve 3f2a")
@click.argument("approval_id", metavar="ID")
@json_option
@pass_cli
def approve(cli: Cli, approval_id: str, as_json: bool) -> None:
    """Allow it, this once. ID may be the beginning of one."""
    _answer(cli, approval_id, "approve", "may go on with", as_json)


@approvals.command(epilog="\b\nExamples:\n  sdnet approvals deny 3f2a")
@click.argument("approval_id", metavar="ID")
@json_option
@pass_cli
def deny(cli: Cli, approval_id: str, as_json: bool) -> None:
    """Do not allow it. ID may be the beginning of one."""
    _answer(cli, approval_id, "deny", "is refused", as_json)


def _answer(cli: Cli, approval_id: str, answer: str, text: str, as_json: bool) -> None:
    approval: dict[str, Any] = cli.client.post(f"/approvals/{quote_segment(approval_id)}/{answer}")
    if as_json:
        cli.print_json(approval)
    else:
        cli.print(f"{approval['device_name']} {text} {approval['protocol']}.")
