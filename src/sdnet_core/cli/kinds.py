"""Checks the kinds of events that a person asks for: a wrong one would show nothing, and say nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

import click

from .kit import Cli

__all__ = ["AUDIT_KINDS", "check_kinds", "split_kinds"]

AUDIT_KINDS = ("audit-damaged", "audit-dropped", "audit-opened")
"""What the audit log says about itself."""


def split_kinds(given: Sequence[str]) -> list[str]:
    """The kinds in options of which each may hold several, separated by commas."""
    return [kind for text in given for part in text.split(",") if (kind := part.strip())]


def check_kinds(cli: Cli, wanted: Sequence[str], *, audited: bool = False, known: Collection[str] = ()) -> None:
    """See that there are events of the kinds that are wanted.

    :param audited: of events that go into the audit log.
    :param known: that there are others, too.
    :raises click.UsageError: there is no such kind; names the one that may have been meant.
    """
    if not wanted:
        return
    there = {"events-dropped", *known}
    there |= {found["kind"] for found in cli.client.get("/events/kinds") if found["audited"] or not audited}
    for kind in wanted:
        if kind not in there:
            near = get_close_matches(kind, sorted(there), n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(sorted(there))}."
            raise click.UsageError(f"There are no events of the kind {kind!r}. {hint}")
