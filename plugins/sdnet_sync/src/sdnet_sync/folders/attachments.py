"""Which folders of this device belong to libraries, in the node's sealed store."""

from __future__ import annotations

import logging
from typing import Annotated

import msgspec

from sdnet_core import SecureStorage
from sdnet_core.errors import NetworkingError
from sdnet_core.wire import Bytes16, Message, decode, encode

from .entries import Mode

__all__ = ["Attachments", "FolderRecord"]

logger = logging.getLogger(__name__)

_FOLDER = "folders"


class FolderRecord(Message, frozen=True, kw_only=True, tag=2):
    """One folder.

    :param location: id of the location.
    :param path: absolute, without links.
    :param inode: of the folder; tells a location whose disk is not mounted. Mirrors have a marker.
    """

    location: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    library: Bytes16
    path: str
    mode: Mode
    inode: int


class Attachments:
    """The records, in memory and sealed on disk."""

    def __init__(self, storage: SecureStorage) -> None:
        self._storage = storage
        self.records: dict[str, FolderRecord] = {}

    async def load(self) -> None:
        """Read all records."""
        for name in await self._storage.list(_FOLDER):
            try:
                data = await self._storage.load(name)
                if data is not None:
                    record: FolderRecord = decode(data, FolderRecord)
                    self.records[record.location] = record
            except NetworkingError as error:
                logger.error("the record of a folder cannot be read and it is left out: %s", error)

    async def store(self, record: FolderRecord) -> None:
        """Remember a folder.

        :raises StorageError: it could not be stored.
        """
        await self._storage.store(f"{_FOLDER}/{record.location}", encode(record))
        self.records[record.location] = record

    async def remove(self, record: FolderRecord) -> None:
        """Forget a folder."""
        await self._storage.delete(f"{_FOLDER}/{record.location}")
        self.records.pop(record.location, None)
