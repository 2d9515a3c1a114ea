"""Where commands get a passphrase from: a descriptor, a systemd credential, the keyring, or the person.

Never from an argument or a variable: other users can read those.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from ..clock import SystemRandomness
from ..errors import NetworkingError, StorageError
from ..storage import KeyFile, Passphrase, PassphraseRequiredError, Unlock, Vault, VaultMode, WrongPassphraseError
from ..storage.keyring import KeyringError, PassphraseKeyring
from .kit import Cli

__all__ = ["CREDENTIAL_NAME", "ask_new", "ask_present", "can_ask", "read_secret", "unlocked"]

T = TypeVar("T")

CREDENTIAL_NAME = "sdnet.passphrase"
"""The systemd credential, as in ``LoadCredentialEncrypted=sdnet.passphrase:/etc/sdnet/passphrase``."""
MAX_LINE_BYTES = 1024
ATTEMPTS = 3


def unlocked(cli: Cli, descriptor: int | None, act: Callable[[Unlock], T]) -> T:
    """Do something with what opens this instance's data; a person who mistypes is asked again.

    :param descriptor: given by the person to read the passphrase from.
    :param act: raises `WrongPassphraseError`, or the local API's form of it, if it does not open them.
    :raises PassphraseRequiredError: there is a passphrase, and nobody to ask for it.
    """
    if descriptor is not None:
        return act(Passphrase(read_secret(descriptor)))
    if (credential := _credential()) is not None:
        return act(Passphrase(credential))
    directory = cli.config.paths.data
    stored = Vault.stored_protection(directory)
    if stored is None or stored.mode is VaultMode.KEY_FILE:
        return act(KeyFile())
    keyring = PassphraseKeyring(directory, SystemRandomness())
    if keyring.in_use:
        try:
            return act(Passphrase(keyring.recall()))
        except NetworkingError as error:
            if not can_ask() or error.code not in (KeyringError.code, WrongPassphraseError.code):
                raise
            cli.note("The keyring does not have the right passphrase any more." if _is_wrong(error) else error.detail)
    if not can_ask():
        raise PassphraseRequiredError(
            "The data is protected by a passphrase. Give it with --passphrase-fd, as the systemd credential "
            f"{CREDENTIAL_NAME}, by the keyring (sdnet passphrase change --keyring), or at a terminal."
        )
    for left in range(ATTEMPTS - 1, -1, -1):
        try:
            return act(Passphrase(ask_present()))
        except NetworkingError as error:
            if not left or not _is_wrong(error):
                raise
            cli.note("That is not the passphrase; try again.")
    raise AssertionError("unreachable")


def can_ask() -> bool:
    """Whether a person sits at a terminal."""
    return sys.stdin.isatty()


def ask_present() -> str:
    """Ask for the present passphrase."""
    answer: str = click.prompt("Passphrase", hide_input=True, err=True)
    return answer


def ask_new() -> str:
    """Ask twice for a new passphrase."""
    answer: str = click.prompt("New passphrase", hide_input=True, confirmation_prompt="The same again", err=True)
    return answer


def read_secret(descriptor: int) -> str:
    """Read one line from a descriptor; the next call reads the next line.

    :raises UsageError: it is no open descriptor.
    :raises StorageError: the line is empty, too long, or not UTF-8.
    """
    line = bytearray()
    try:
        # Byte by byte, so that what comes after the line stays for whoever reads it.
        while len(line) <= MAX_LINE_BYTES and (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
            line += byte
    except OSError as error:
        raise click.UsageError(
            f"The passphrase cannot be read from descriptor {descriptor}: {error.strerror}."
        ) from None
    return _text(bytes(line).removesuffix(b"\r"), f"descriptor {descriptor}")


def _credential() -> str | None:
    """The passphrase that systemd hands to this service."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    path = Path(directory, CREDENTIAL_NAME)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LINE_BYTES + 2)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"The credential {path} cannot be read: {error.strerror}.") from error
    return _text(data.removesuffix(b"\n").removesuffix(b"\r"), f"the credential {CREDENTIAL_NAME}")


def _text(data: bytes, source: str) -> str:
    if not data:
        raise StorageError(f"There is no passphrase in {source}.")
    if len(data) > MAX_LINE_BYTES:
        raise StorageError(f"The passphrase in {source} is longer than {MAX_LINE_BYTES} bytes.")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise StorageError(f"The passphrase in {source} is not UTF-8 text.") from None


def _is_wrong(error: NetworkingError) -> bool:
    return error.code == WrongPassphraseError.code
