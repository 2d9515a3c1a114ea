"""The passphrase in the desktop's keyring, so that nobody has to type it at a start (blocking).

The data directory then holds the file ``keyring``, which names the entry and is no secret. A keyring that has lost the
entry loses nothing else: the passphrase can still be typed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdnet_core.clock import Randomness
from sdnet_core.errors import StorageError
from sdnet_core.storage.atomic import DamagedError, ensure_private_directory, read_bounded, remove_durably, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KeyringError", "PassphraseKeyring"]

SERVICE = "sdnet"
MARKER_NAME = "keyring"
_MAX_MARKER_BYTES = 1024


class KeyringError(StorageError):
    """The desktop's keyring is not there, is locked, or has no passphrase for this data."""

    code = "keyring"


class PassphraseKeyring:
    """The keyring's entry for one data directory.

    Every passphrase gets an entry of its own: the old one stays until the vault has changed, whenever the machine dies.

    :param directory: the data directory.
    """

    def __init__(self, directory: Path, randomness: Randomness) -> None:
        self._marker = directory / MARKER_NAME
        self._randomness = randomness

    @property
    def in_use(self) -> bool:
        """Whether the passphrase was put into a keyring."""
        return self._marker.exists()

    def check(self) -> None:
        """Find out whether there is a keyring, before anything is changed.

        :raises KeyringError: there is none; says what to do.
        """
        _backend()

    def recall(self) -> str:
        """Get the passphrase.

        :raises KeyringError: it is not there, or the keyring cannot be read now.
        """
        account = self._account()
        if account is None:
            raise KeyringError("The passphrase was never put into a keyring.")
        with _reported("read"):
            passphrase = _backend().get_password(SERVICE, account)
        if passphrase is None:
            raise KeyringError("The keyring has no passphrase for this data any more; give it in another way.")
        return str(passphrase)

    def prepare(self, passphrase: str) -> str:
        """Put a passphrase in beside the one that is there.

        :returns: the new entry, for `commit` or `drop`.
        :raises KeyringError: that did not work; nothing has changed.
        """
        account = self._randomness.bytes(16).hex()
        backend = _backend()
        with _reported("written"):
            backend.set_password(SERVICE, account, passphrase)
            kept = backend.get_password(SERVICE, account)
        if kept != passphrase:
            raise KeyringError(f"The keyring {_name(backend)} does not keep what is put into it.")
        return account

    def commit(self, account: str) -> None:
        """Use an entry that was prepared from now on, and remove the one before.

        :raises StorageError: which entry to use could not be stored.
        """
        before = self._account()
        ensure_private_directory(self._marker.parent)
        document = json.dumps({"service": SERVICE, "account": account}).encode()
        write_atomic(self._marker, document, randomness=self._randomness, keep_previous=False)
        if before is not None:
            self.drop(before)

    def forget(self) -> None:
        """Use no keyring any more, and remove the entry.

        :raises StorageError: that could not be stored.
        """
        before = self._account()
        remove_durably(self._marker)
        if before is not None:
            self.drop(before)

    def drop(self, account: str) -> None:
        """Remove an entry, if the keyring lets us."""
        with contextlib.suppress(KeyringError), _reported("changed"):
            _backend().delete_password(SERVICE, account)

    def _account(self) -> str | None:
        try:
            data = read_bounded(self._marker, _MAX_MARKER_BYTES)
            if data is None:
                return None
            return str(json.loads(data)["account"])
        except (DamagedError, ValueError, KeyError, TypeError):
            return None


def _backend() -> Any:
    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        raise KeyringError("Using the desktop's keyring needs an extra: pip install 'sdnet-core[keyring]'") from None
    with _reported("opened"):
        backend = keyring.get_keyring()
    # Its own stand-in when there is none; it only raises.
    if type(backend).__module__ == "keyring.backends.fail":
        raise KeyringError(
            "There is no keyring on this machine that could keep a passphrase (on Linux: GNOME Keyring or KWallet, in "
            "a desktop session). Use --passphrase-fd or a systemd credential instead."
        )
    return backend


def _name(backend: Any) -> str:
    return str(getattr(backend, "name", type(backend).__name__))


@contextlib.contextmanager
def _reported(action: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # backends raise what their systems raise: D-Bus errors, time-outs, refusals
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise KeyringError(f"The keyring cannot be {action} now: {reason}.") from error
