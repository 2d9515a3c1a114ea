"""The durable memory of which codes were used and which introductions were seen."""

from __future__ import annotations

import uuid
from typing import Annotated

import msgspec

from sdnet_core import SecureStorage
from sdnet_core.errors import StorageError

__all__ = ["CODES", "INTRODUCTIONS", "UsedCodes"]

CODES = "used-codes"
INTRODUCTIONS = "seen-introductions"


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    used: dict[Annotated[str, msgspec.Meta(max_length=64)], float]
    version: int = 1


class UsedCodes:
    """Ids that were used, each with the time: of codes' sessions, which tell nothing of the codes, or of introductions.

    :param storage: the plugin's sealed store.
    :param limit: ids kept; the oldest give way.
    :param name: under which they are stored.
    """

    def __init__(self, storage: SecureStorage, *, limit: int, name: str = CODES) -> None:
        self._storage = storage
        self._name = name
        self._limit = limit
        self._used: dict[str, float] = {}

    async def load(self) -> None:
        """Read what was stored.

        :raises StorageError: it cannot be read, or is not what was stored.
        """
        data = await self._storage.load(self._name)
        if data is None:
            return
        try:
            self._used = dict(msgspec.json.decode(data, type=_Document).used)
        except msgspec.DecodeError as error:
            raise StorageError("The list of used pairing codes or introductions is damaged.") from error

    def __contains__(self, session_id: uuid.UUID) -> bool:
        return str(session_id) in self._used

    async def add(self, session_id: uuid.UUID, at: float) -> None:
        """Remember a code as used, durably before this returns.

        :param at: seconds since the epoch.
        :raises StorageError: it could not be stored; the code counts as used until the node stops.
        """
        self._used[str(session_id)] = at
        while len(self._used) > self._limit:
            del self._used[min(self._used, key=self._used.__getitem__)]
        await self._storage.store(self._name, msgspec.json.encode(_Document(self._used)))
