"""Keeps the history of the connections to every device, in ``history/<device id>``.

Written when a connection begins and when it has ended; attempts that fail are counted in memory and written with the
next of these, every hour, and when the node stops. Losing a file loses nothing but the past.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection

import anyio

from ..clock import Clock
from ..errors import SerializationError, StorageError
from ..storage import SecureStorage
from ..wire import decode, encode
from .connection import DeviceConnection
from .past import (
    MAX_ADDRESS_CHARACTERS,
    MAX_AGE_S,
    MAX_REASON_CHARACTERS,
    OPEN,
    FailedAttempts,
    Past,
    PastConnection,
    PastConnections,
)

__all__ = ["ConnectionHistory"]

logger = logging.getLogger(__name__)

FOLDER = "history"
MAX_TOTAL_BYTES = 8 << 20
"""Of all devices' histories on the disk; those of the devices that were away for longest go first."""
TIDY_EVERY_S = 3600.0


class ConnectionHistory:
    """The histories of a node's devices.

    :param storage: the node's sealed store.
    :param max_total_bytes: of all on the disk.
    """

    def __init__(self, storage: SecureStorage, clock: Clock, *, max_total_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._storage = storage
        self._clock = clock
        self._max_total_bytes = max_total_bytes
        self._waiting: dict[uuid.UUID, list[Past]] = {}
        self._writing: set[uuid.UUID] = set()
        self._writes = 0
        self._written = anyio.Event()

    # What happens; synchronous, and in memory until `write`

    def began(self, live: DeviceConnection) -> None:
        """A connection has come about."""
        self._note(live.device_id, self._past(live, OPEN, ""))

    def ended(self, live: DeviceConnection) -> None:
        """It is over."""
        lasted_s = max(0, int(self._clock.monotonic() - live.opened_at))
        self._note(live.device_id, self._past(live, lasted_s, live.reason))

    def failed(self, device_id: uuid.UUID, reason: str) -> None:
        """An attempt to connect was in vain."""
        now = max(0, int(self._clock.now()))
        self._note(device_id, FailedAttempts(now, now, 1, _short(reason, MAX_REASON_CHARACTERS)))

    # On the disk

    async def forget(self, device_id: uuid.UUID) -> None:
        """Write nothing more of what has happened so far to a device; none of it is under way when this returns."""
        self._waiting.pop(device_id, None)
        while device_id in self._writing:
            await self._written.wait()

    async def read(self, device_id: uuid.UUID) -> PastConnections:
        """The history of a device, with what was not written yet."""
        while True:
            while device_id in self._writing:
                await self._written.wait()
            before = self._writes
            stored = await self._load(device_id)
            if self._writes == before:
                return _folded(stored, self._waiting.get(device_id, [])).pruned(self._clock.now())

    async def write(self, device_id: uuid.UUID) -> None:
        """Store what waits to be. A failure is logged: what it was about is lost."""
        if device_id in self._writing:
            return  # whoever writes takes this along
        self._writing.add(device_id)
        self._writes += 1
        try:
            while waiting := self._waiting.pop(device_id, None):
                history = _folded(await self._load(device_id), waiting).pruned(self._clock.now())
                try:
                    await self._storage.store(_name(device_id), encode(history), keep_previous=False)
                except StorageError as error:
                    logger.warning("the history of device %s could not be written: %s", device_id, error)
                    return
        finally:
            self._writing.discard(device_id)
            written, self._written = self._written, anyio.Event()
            written.set()

    async def write_all(self) -> None:
        """Store everything that waits to be."""
        for device_id in tuple(self._waiting):
            await self.write(device_id)

    async def tidy(self, known: Callable[[], Collection[uuid.UUID]]) -> None:
        """Every hour: store what waits to be, and remove what is too old, too much or of no device.

        :param known: gives the paired devices.
        """
        while True:
            await anyio.sleep(TIDY_EVERY_S)
            await self.write_all()
            try:
                await self.prune(known())
            except StorageError as error:
                logger.warning("old connection histories could not be removed: %s", error)

    async def prune(self, known: Collection[uuid.UUID]) -> None:
        """Remove what is too old, too much or of no device.

        :param known: the paired devices.
        :raises StorageError: it cannot be removed.
        """
        await self._storage.prune(FOLDER, MAX_AGE_S)
        sizes = await self._storage.sizes(FOLDER)
        names = {_name(device_id) for device_id in known}
        for name in sizes.keys() - names:
            await self._storage.delete(name)
            del sizes[name]
        if sum(sizes.values()) <= self._max_total_bytes:
            return
        last = {name: await self._last_used(name) for name in sizes}
        for name in sorted(sizes, key=lambda name: last[name]):
            if sum(sizes.values()) <= self._max_total_bytes:
                break
            await self._storage.delete(name)
            del sizes[name]

    async def _last_used(self, name: str) -> float:
        entries = (await self._load(uuid.UUID(name.rpartition("/")[2]))).entries
        return max((one.ended_at for one in entries), default=0.0)

    async def _load(self, device_id: uuid.UUID) -> PastConnections:
        try:
            data = await self._storage.load(_name(device_id))
            return PastConnections() if data is None else decode(data, PastConnections)
        except (StorageError, SerializationError) as error:
            logger.warning("the history of device %s is lost: %s", device_id, error)
            return PastConnections()

    def _note(self, device_id: uuid.UUID, past: Past) -> None:
        waiting = self._waiting.setdefault(device_id, [])
        last = waiting[-1] if waiting else None
        if isinstance(past, FailedAttempts) and isinstance(last, FailedAttempts):
            waiting[-1] = FailedAttempts(last.began_at, past.ended_at, last.count + 1, past.reason)
        else:
            waiting.append(past)

    def _past(self, live: DeviceConnection, lasted_s: int, reason: str) -> PastConnection:
        return PastConnection(
            max(0, int(live.began_at)),
            lasted_s,
            live.dialled_address is not None,
            (live.address or "")[:MAX_ADDRESS_CHARACTERS],
            _short(reason, MAX_REASON_CHARACTERS),
        )


def _folded(history: PastConnections, waiting: Collection[Past]) -> PastConnections:
    for past in waiting:
        history = history.with_past(past)
    return history


def _name(device_id: uuid.UUID) -> str:
    return f"{FOLDER}/{device_id}"


def _short(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
