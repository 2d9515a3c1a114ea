"""``sdnet doctor``"""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from .kit import Cli, json_option, pass_cli

__all__ = ["doctor"]


@click.command(
    epilog="\b\nExamples:\n"
    "  sdnet doctor\n"
    "  sdnet doctor --json | jq '.[] | select(.health != \"ok\")'\n"
    "  sdnet --instance work doctor"
)
@json_option
@pass_cli
def doctor(cli: Cli, as_json: bool) -> int:
    """Check what the node needs, and say what to do.

    Looks at settings, folders, disk, clock, the node, its ports, the network, multicast, firewall, plugins and paired
    devices. Changes nothing. Ends with 1 if something is broken, with 0 if there are only warnings and notes.
    """
    from ..daemon.doctor import Doctor, Health

    found = []
    marks = {Health.OK: "ok", Health.NOTE: "note", Health.WARNING: "WARNING", Health.FAILED: "FAILED"}
    for finding in Doctor(cli.instance, environ=os.environ).examine():
        found.append(finding)
        if not as_json:
            cli.print(f"{marks[finding.health]:<8} {finding.subject:<10} {finding.detail}")
            if finding.advice:
                cli.print(f"{'':<19} {finding.advice}")
    if as_json:
        cli.print_json([asdict(finding) for finding in found])
    return int(any(finding.health is Health.FAILED for finding in found))
