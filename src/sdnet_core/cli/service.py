"""``sdnet service``"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from ..errors import NotRunningError
from .kit import Cli, json_option, pass_cli

if TYPE_CHECKING:
    from ..daemon.autostart import AutoStart

__all__ = ["service"]

_KIND = click.option(
    "--kind",
    type=click.Choice(["systemd", "launchd", "task-scheduler"]),
    help="The service manager; this system's own by default.",
)


@click.group(epilog="\b\nExamples:\n  sdnet service install\n  sdnet service status\n  sdnet service uninstall")
def service() -> None:
    """Have the system start the node whenever you log in.

    With systemd it runs only while you are logged in, unless you say: loginctl enable-linger
    """


@service.command(
    epilog="\b\nExamples:\n"
    "  sdnet service install\n"
    "  sdnet service install --print       only show the definition\n"
    "  sdnet --instance work service install --no-start"
)
@_KIND
@click.option("--no-start", is_flag=True, help="Do not start the node now.")
@click.option("--print", "only_print", is_flag=True, help="Print the definition and change nothing.")
@pass_cli
def install(cli: Cli, kind: str | None, no_start: bool, only_print: bool) -> None:
    """Install the service, and start the node through it."""
    found = _autostart(cli, kind)
    if only_print:
        cli.print(found.definition().rstrip("\n"))
        return
    if not no_start and _runs_by_hand(cli, found):
        from ..daemon.process import stop_node

        stop_node(cli.config)
        cli.note("The node that was started by hand has stopped; the service starts it from now on.")
    found.install(start=not no_start)
    cli.print(f"Installed as {found.file}.")
    if _needs_passphrase(cli):
        cli.note("The data has a passphrase: keep it in the keyring (sdnet passphrase set --keyring), or give it to")
        cli.note("systemd as the credential sdnet.passphrase; else the service cannot open the data.")


@service.command(epilog="\b\nExamples:\n  sdnet service uninstall")
@_KIND
@pass_cli
def uninstall(cli: Cli, kind: str | None) -> None:
    """Stop the node and take the service away. Data and settings stay."""
    found = _autostart(cli, kind)
    found.uninstall()
    cli.print(f"Removed {found.file}.")


@service.command(epilog="\b\nExamples:\n  sdnet service status --json")
@_KIND
@json_option
@pass_cli
def status(cli: Cli, kind: str | None, as_json: bool) -> None:
    """Say whether the service is installed and whether it runs."""
    state = _autostart(cli, kind).state()
    found: dict[str, Any] = {
        "kind": state.kind,
        "file": str(state.file),
        "installed": state.installed,
        "active": state.active or None,
    }
    if as_json:
        cli.print_json(found)
    elif not state.installed:
        cli.print(f"Not installed ({state.kind}, would be {state.file}).")
    else:
        cli.print(f"Installed ({state.kind}, {state.file}); {state.active or 'its state is not known'}.")


def _autostart(cli: Cli, kind: str | None) -> AutoStart:
    from ..daemon.autostart import find_autostart

    return find_autostart(cli.config, kind=kind, environ=os.environ)


def _runs_by_hand(cli: Cli, found: AutoStart) -> bool:
    if found.state().active in ("active", "activating", "Running"):
        return False
    try:
        cli.client.get("/version")
    except NotRunningError:
        return False
    return True


def _needs_passphrase(cli: Cli) -> bool:
    """Whether nobody could open the data without asking."""
    from ..clock import SystemRandomness
    from ..storage import Vault, VaultMode
    from ..storage.keyring import PassphraseKeyring

    directory = cli.config.paths.data
    stored = Vault.stored_protection(directory)
    protected = stored is not None and stored.mode is VaultMode.PASSPHRASE
    return protected and not PassphraseKeyring(directory, SystemRandomness()).in_use
