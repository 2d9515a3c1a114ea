"""Lines of JSON, each authenticated together with all lines before it: none can be changed, moved or taken out unseen.

A line is a JSON object that ends with its ``mac``: HMAC-SHA256, cut to 16 bytes, over the previous line's MAC and the
line's bytes without its own. What a chain alone does not show is that lines are missing at its end; whoever keeps one
also keeps its `Chain.number` and `Chain.mac` elsewhere.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sdnet_core.errors import StorageError
from sdnet_core.storage.atomic import FILE_MODE, DamagedError, _explained, _sync, _sync_directory, _write_fully

__all__ = ["MAC_BYTES", "Chain", "append_durably"]

MAC_BYTES = 16
MAX_LINE_BYTES = 16 * 1024
_MAC_KEY = b',"mac":"'
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


class Chain:
    """Where in a chain somebody is who writes or checks it.

    :param key: 32 bytes.
    :param number: of the last line.
    :param mac: of the last line; zeros before the first.
    """

    __slots__ = ("_key", "mac", "number")

    def __init__(self, key: bytes, *, number: int = 0, mac: bytes = bytes(MAC_BYTES)) -> None:
        self._key = key
        self.number = number
        self.mac = mac

    def copy(self) -> Chain:
        """The same place, to go on from without moving this one."""
        return Chain(self._key, number=self.number, mac=self.mac)

    def append(self, values: Mapping[str, Any]) -> bytes:
        """Make the next line, with its end; its number is its ``n``."""
        body = msgspec.json.encode({"n": self.number + 1, **values}, enc_hook=str)
        mac = self._mac(body)
        self.number, self.mac = self.number + 1, mac
        return body[:-1] + _MAC_KEY + mac.hex().encode() + b'"}\n'

    def take(self, line: bytes) -> dict[str, Any]:
        """Check the next line, given without its end.

        :returns: what it says, without number and MAC.
        :raises DamagedError: it is not the next line of this chain.
        """
        body, found, end = line.rpartition(_MAC_KEY)
        if not found or not end.endswith(b'"}') or len(line) > MAX_LINE_BYTES:
            raise DamagedError("It is not a line with a MAC.")
        body += b"}"
        mac = self._mac(body)
        if not hmac.compare_digest(mac.hex().encode(), end[:-2]):
            raise DamagedError("Its MAC is wrong: it, or a line before it, was changed.")
        try:
            values: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise DamagedError(f"It is not JSON: {error}.") from error
        if values.pop("n", None) != self.number + 1:
            raise DamagedError("It has another number than the next one.")
        self.number, self.mac = self.number + 1, mac
        return values

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, self.mac + body, "sha256")[:MAC_BYTES]


def append_durably(path: Path, data: bytes) -> None:
    """Add to the end of a file, created for the owner alone if it is not there; on disk when this returns (blocking).

    :raises StorageError: it could not be written; the file is as long as before, unless the message says otherwise.
    """
    try:
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | _NO_FOLLOW, FILE_MODE)
    except OSError as error:
        raise _explained(error, path, "write", unchanged=True) from error
    try:
        length = os.fstat(descriptor).st_size
        try:
            _write_fully(descriptor, data)
            _sync(descriptor)
        except OSError as error:
            try:
                os.ftruncate(descriptor, length)
            except OSError:
                raise StorageError(f"{path} could be written in part only: {error.strerror}.") from error
            raise _explained(error, path, "write", unchanged=True) from error
        if is_new:
            try:
                _sync_directory(path.parent)
            except OSError as error:
                raise _explained(error, path, "write") from error
    finally:
        os.close(descriptor)
