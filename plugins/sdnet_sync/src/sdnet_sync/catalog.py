"""Which libraries this device has, in the node's sealed store: their names and keys lie nowhere else."""

from __future__ import annotations

import logging
import uuid
from typing import Annotated

import anyio
import msgspec

from sdnet_core import SecureStorage
from sdnet_core.errors import NetworkingError, StorageError
from sdnet_core.wire import Bytes16, Bytes32, Message, decode, encode

from .operations import Role

__all__ = ["Catalog", "LibraryRecord", "OpenInvitation"]

logger = logging.getLogger(__name__)

_FOLDER = "libraries"


class OpenInvitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A device that we have invited and that has not answered.

    :param told: whether the invitation has reached it.
    """

    device: Bytes16
    role: Role
    told: bool


class LibraryRecord(Message, frozen=True, kw_only=True, tag=1):
    """What a device must remember of a library outside of its database.

    :param state: ``invited``, ``joining``, ``active``, ``leaving``, ``left`` or ``removed``.
    :param source: the device that invited us; empty for a library of our own.
    :param role: in which we were invited.
    """

    id: Bytes16
    name: str
    state: Annotated[str, msgspec.Meta(pattern="^(invited|joining|active|leaving|left|removed)$")]
    secret: Bytes32
    row_key: Bytes32
    founder: Bytes16
    founder_key: Bytes32
    source: Annotated[bytes, msgspec.Meta(max_length=16)]
    role: Role
    paused: bool = False
    invitations: tuple[OpenInvitation, ...] = ()

    @property
    def uuid(self) -> uuid.UUID:
        """The library's id."""
        return uuid.UUID(bytes=self.id)


class Catalog:
    """The records, in memory and sealed on disk."""

    def __init__(self, storage: SecureStorage) -> None:
        self._storage = storage
        self.records: dict[bytes, LibraryRecord] = {}
        self._changed = anyio.Event()

    async def load(self) -> None:
        """Read all records.

        :raises StorageError: they cannot be read.
        """
        for name in await self._storage.list(_FOLDER):
            try:
                data = await self._storage.load(name)
                if data is not None:
                    record: LibraryRecord = decode(data, LibraryRecord)
                    self.records[record.id] = record
            except NetworkingError as error:
                logger.error("the record of a library cannot be read and it is left out: %s", error)

    async def store(self, record: LibraryRecord) -> None:
        """Put a record in the place of the one before it.

        :raises StorageError: it could not be stored; the old one stays.
        """
        await self._storage.store(f"{_FOLDER}/{record.uuid}", encode(record))
        self.records[record.id] = record
        self._notify()

    async def remove(self, record: LibraryRecord) -> None:
        """Forget a library."""
        await self._storage.delete(f"{_FOLDER}/{record.uuid}")
        self.records.pop(record.id, None)
        self._notify()

    async def wait_while(self, library: bytes, state: str) -> None:
        """Wait until a library is in another state, or forgotten."""
        while library in self.records and self.records[library].state == state:
            await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def get(self, library: bytes) -> LibraryRecord:
        """One record.

        :raises StorageError: there is none.
        """
        try:
            return self.records[library]
        except KeyError:
            raise StorageError("There is no such library.") from None
