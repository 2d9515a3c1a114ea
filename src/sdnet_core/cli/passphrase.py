"""``sdnet passphrase``: what protects the data at rest, with a running node or without."""

from __future__ import annotations

from typing import Any

import click

from ..errors import ConflictError, NotRunningError
from .kit import Cli, format_count, json_option, pass_cli

__all__ = ["explain_protection", "passphrase"]

SHORT_CHARACTERS = 10

_kdf_option = click.option(
    "--kdf", type=click.Choice(["pbkdf2", "argon2id"]), help="How the key is made of it; pbkdf2 unless chosen before."
)
_present_option = click.option(
    "--passphrase-fd", type=click.IntRange(0), metavar="N", help="Read the present one from descriptor N."
)


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n"
    "  sdnet passphrase                              what protects the data\n"
    "  sdnet passphrase set\n"
    "  sdnet passphrase change --kdf argon2id\n"
    '  printf \'%s\\n%s\\n\' "$old" "$new" | sdnet passphrase change --passphrase-fd 0 --new-passphrase-fd 0',
)
@json_option
@click.pass_context
def passphrase(ctx: click.Context, as_json: bool) -> None:
    """Protect what this device keeps on disk with a passphrase.

    Without one, a key file beside the data opens it. A passphrase is asked for at a terminal, or read from a
    descriptor; it is never an argument. Nothing is encrypted anew but the key to everything else, so that this is
    quick however much there is. Copies of the data made before still open as before.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(status, as_json=as_json)


@passphrase.command(epilog="\b\nExamples:\n  sdnet passphrase status\n  sdnet passphrase status --json")
@json_option
@pass_cli
def status(cli: Cli, as_json: bool) -> None:
    """Show what protects the data."""
    found = _protection(cli)
    if as_json:
        cli.print_json(found)
    elif found["mode"] is None:
        cli.print("There is no data yet.")
    else:
        cli.print(explain_protection(found) + ("; the passphrase is in the keyring" if found["keyring"] else ""))


@passphrase.command(name="set", epilog="\b\nExamples:\n  sdnet passphrase set\n  sdnet passphrase set --keyring")
@_kdf_option
@click.option("--keyring", is_flag=True, help="Also put it into the desktop's keyring, so that a start does not ask.")
@click.option("--passphrase-fd", type=click.IntRange(0), metavar="N", help="Read it from descriptor N.")
@json_option
@pass_cli
def set_passphrase(cli: Cli, kdf: str | None, keyring: bool, passphrase_fd: int | None, as_json: bool) -> None:
    """Protect the data with a passphrase.

    Whoever forgets it has lost the data; there is no other way in.
    """
    if _protection(cli)["mode"] == "passphrase":
        raise ConflictError("The data has a passphrase already; change it with: sdnet passphrase change")
    new = _new(cli, passphrase_fd)
    _say(cli, as_json, _change(cli, new, None, kdf, keyring=keyring), "The data is protected now")


@passphrase.command(epilog="\b\nExamples:\n  sdnet passphrase change\n  sdnet passphrase change --kdf argon2id")
@_kdf_option
@click.option("--keyring/--no-keyring", default=None, help="Put it into the desktop's keyring; as before by default.")
@_present_option
@click.option("--new-passphrase-fd", type=click.IntRange(0), metavar="N", help="Read the new one from descriptor N.")
@json_option
@pass_cli
def change(
    cli: Cli,
    kdf: str | None,
    keyring: bool | None,
    passphrase_fd: int | None,
    new_passphrase_fd: int | None,
    as_json: bool,
) -> None:
    """Replace the passphrase by another one. From then on the old one opens nothing here."""
    _check_set(cli)
    current = _present(passphrase_fd)
    new = _new(cli, new_passphrase_fd)
    _say(cli, as_json, _change(cli, new, current, kdf, keyring=keyring), "The passphrase is changed")


@passphrase.command(epilog="\b\nExamples:\n  sdnet passphrase remove")
@_present_option
@json_option
@pass_cli
def remove(cli: Cli, passphrase_fd: int | None, as_json: bool) -> None:
    """Have a key file beside the data open it again: whoever can read the disk can then read the data."""
    _check_set(cli)
    found = _change(cli, None, _present(passphrase_fd), None, keyring=False)
    _say(cli, as_json, found, "The passphrase is removed")


def explain_protection(found: dict[str, Any]) -> str:
    """Say what protects the data, such as ``protected (passphrase, pbkdf2-sha256, 600,000 iterations)``."""
    kdf = found["kdf"]
    if kdf is None:
        return f"{found['protection']} ({found['mode']})"
    memory = f", {kdf['memory_kib'] >> 10} MiB" if "memory_kib" in kdf else ""
    return f"{found['protection']} ({found['mode']}, {kdf['name']}, {kdf['iterations']:,} iterations{memory})"


def _protection(cli: Cli) -> dict[str, Any]:
    from ..clock import SystemRandomness
    from ..storage import Vault
    from ..storage.keyring import PassphraseKeyring

    directory = cli.config.paths.data
    try:
        found = cli.client.get("/protection")
    except NotRunningError:
        stored = Vault.stored_protection(directory)
        found = {"mode": None, "protection": None, "kdf": None} if stored is None else stored.to_dict()
    return {**found, "keyring": PassphraseKeyring(directory, SystemRandomness()).in_use}


def _check_set(cli: Cli) -> None:
    """Do not ask for what cannot be of use."""
    if _protection(cli)["mode"] != "passphrase":
        raise ConflictError("The data has no passphrase yet; set one with: sdnet passphrase set")


def _present(descriptor: int | None) -> str:
    from .unlock import ask_present, can_ask, read_secret

    if descriptor is not None:
        return read_secret(descriptor)
    if not can_ask():
        raise click.UsageError("There is no terminal to ask at; give the present passphrase with --passphrase-fd.")
    return ask_present()


def _new(cli: Cli, descriptor: int | None) -> str:
    from .unlock import ask_new, can_ask, read_secret

    if descriptor is None and not can_ask():
        raise click.UsageError("There is no terminal to ask at; give the passphrase through a descriptor (see --help).")
    new = ask_new() if descriptor is None else read_secret(descriptor)
    if len(new) < SHORT_CHARACTERS:
        cli.note(f"A passphrase of {format_count(len(new), 'character')} is soon guessed by whoever has the disk.")
    return new


def _change(cli: Cli, new: str | None, current: str | None, kdf: str | None, *, keyring: bool | None) -> dict[str, Any]:
    """Change it, in the keyring too.

    :param keyring: whether the new one goes there; as with the one before when None.
    """
    from ..clock import SystemRandomness
    from ..storage.keyring import PassphraseKeyring

    entries = PassphraseKeyring(cli.config.paths.data, SystemRandomness())
    remember = new is not None and (entries.in_use if keyring is None else keyring)
    # The entry comes first and counts last: whenever this is cut short, the old or the new one can be used.
    entry = entries.prepare(new) if remember and new is not None else None
    try:
        found = _change_data(cli, new, current, kdf)
    except BaseException:
        if entry is not None:
            entries.drop(entry)
        raise
    if entry is not None:
        entries.commit(entry)
    elif entries.in_use:
        entries.forget()
    return {**found, "keyring": entries.in_use}


def _change_data(cli: Cli, new: str | None, current: str | None, kdf: str | None) -> dict[str, Any]:
    try:
        found: dict[str, Any] = cli.client.post("/protection", {"passphrase": new, "current": current, "kdf": kdf})
        return found
    except NotRunningError:
        pass
    from ..clock import SystemClock, SystemRandomness
    from ..core_protection import KDFS, change_protection_offline
    from ..daemon.memory import keep_memory_private
    from ..storage import KeyFile, Passphrase

    keep_memory_private()
    return change_protection_offline(
        cli.config,
        KeyFile() if new is None else Passphrase(new, None if kdf is None else KDFS[kdf]),
        current=None if current is None else Passphrase(current),
        clock=SystemClock(),
        randomness=SystemRandomness(),
    ).to_dict()


def _say(cli: Cli, as_json: bool, found: dict[str, Any], text: str) -> None:
    if as_json:
        cli.print_json(found)
    else:
        cli.print(f"{text}: {explain_protection(found)}")
