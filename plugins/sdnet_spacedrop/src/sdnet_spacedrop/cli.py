"""``sdnet drop``."""

from __future__ import annotations

import click

from .cli_receive import accept, listen, pending, policy, reject, visibility
from .cli_send import cancel, confirm, nearby, send
from .cli_show import history, inbox

__all__ = ["drop"]


@click.group(
    epilog="\b\nExamples:\n"
    "  sdnet drop send holiday.jpg --to laptop --message 'from the lake'\n"
    "  sdnet drop listen                     answer offers as they come\n"
    "  sdnet drop accept 3f2a --to ~/Pictures\n"
    "  sdnet drop visibility everyone --for 10m\n"
    "  sdnet drop send slides.pdf --to anna --nearby"
)
def drop() -> None:
    """Offer files to a device, whose person decides; answer offers made to this one."""


for command in (accept, cancel, confirm, history, inbox, listen, nearby, pending, policy, reject, send, visibility):
    drop.add_command(command)
