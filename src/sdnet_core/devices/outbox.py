"""Messages that wait for their devices: durable, bounded, in order within a priority.

This is the queue; `Courier` in ``courier.py`` brings what is in it to the devices.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from ..clock import Clock, Randomness, Runner
from ..errors import ConflictError, InvalidRequestError, NotFoundError, NotRunningError, RefusedError, StorageError
from ..wording import format_count
from .delivery import Delivery, DeliveryOutcome, Priority
from .lanes import Lane, OutboxLimits, QueuedMessage
from .outbox_store import OutboxStore, Sealer, StoredLane, StoredMessage

__all__ = ["Outbox"]

logger = logging.getLogger(__name__)

MAX_COMMIT = 128
"""Messages made durable together in one transaction; those behind them are written while these are on their way."""
REMOVE_WITHIN_S = 0.2
"""A message that was delivered may lie on the disk for so long yet. If we crash meanwhile it is sent again, with the
same id and number, by which the other side knows it."""
RETRY_WRITE_S = 1.0
MAX_LOOK_S = 60.0


class Outbox:
    """The messages to all devices.

    :param path: of the database.
    :param settled: told of the end of every message that the device or its time to live put an end to.
    """

    def __init__(
        self,
        path: Path,
        sealer: Sealer,
        *,
        clock: Clock,
        randomness: Randomness,
        runner: Runner,
        settled: Callable[[Lane, Sequence[Delivery]], Awaitable[None]],
        limits: OutboxLimits | None = None,
    ) -> None:
        self._path = path
        self._sealer = sealer
        self._clock = clock
        self._randomness = randomness
        self._runner = runner
        self._settled = settled
        self._limits = limits or OutboxLimits()
        self._store: OutboxStore | None = None
        self._lanes: dict[tuple[uuid.UUID, str, Priority], Lane] = {}
        self._messages: dict[uuid.UUID, QueuedMessage] = {}
        self._counts: Counter[uuid.UUID] = Counter()
        self._bytes: Counter[uuid.UUID] = Counter()
        self._adding: list[QueuedMessage] = []
        self._storing: list[QueuedMessage] = []
        self._removing: dict[bytes, Lane] = {}
        self._failures = 0
        self._work = anyio.Event()
        self._urgent = anyio.Event()
        self._wrote = anyio.Event()
        self._nearest = math.inf
        self._nearer = anyio.Event()
        self._busy: Callable[[Lane], None] = lambda lane: None

    # Life

    async def open(self, devices: Iterable[uuid.UUID]) -> None:
        """Open the database. What it holds for devices that are not among these is removed.

        :raises StorageError: it cannot be opened or is damaged.
        """
        known = {device_id.bytes for device_id in devices}

        def load() -> tuple[OutboxStore, list[StoredLane], list[StoredMessage]]:
            store = OutboxStore(self._path, self._sealer)
            try:
                lanes, messages = store.load()
                if foreign := [lane.lane for lane in lanes if lane.device not in known]:
                    store.remove_lanes(foreign)
            except BaseException:
                store.close()
                raise
            return store, [lane for lane in lanes if lane.device in known], messages

        self._store, lanes, messages = await self._runner(load)
        rows: dict[int, Lane] = {}
        for stored in lanes:
            device_id, priority = uuid.UUID(bytes=stored.device), Priority(stored.priority)
            lane = Lane(device_id, stored.protocol, priority, stored.lane, stored.next)
            rows[lane.row] = self._lanes[device_id, stored.protocol, priority] = lane
        now, monotonic = self._clock.now(), self._clock.monotonic()
        for kept in messages:
            if (holder := rows.get(kept.lane)) is not None:
                self._take_in(self._restored(holder, kept, now, monotonic))
        for lane in self._lanes.values():
            lane.rewind()

    def _restored(self, lane: Lane, kept: StoredMessage, now: float, monotonic: float) -> QueuedMessage:
        deadline = math.inf
        if kept.expires_at is not None:
            # However the clock was set meanwhile, it never gets more time than it had.
            deadline = monotonic + min(kept.expires_at - now, kept.expires_at - kept.created_at)
        message = QueuedMessage(
            id=uuid.UUID(bytes=kept.id),
            lane=lane,
            number=kept.number,
            size=kept.size,
            created_at=kept.created_at,
            expires_at=kept.expires_at,
            deadline=deadline,
            data=None,
            tried=True,
        )
        message.stored.set()
        lane.queue[message.number] = message
        return message

    def on_work(self, busy: Callable[[Lane], None]) -> None:
        """From now on call this when a lane has something to deliver; at once for those that have."""
        self._busy = busy
        for lane in self._lanes.values():
            if lane.queue:
                busy(lane)

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Write to the disk, and end what expires, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._expire)
            task_status.started()
            while True:
                await self._work.wait()
                self._work = anyio.Event()
                if not self._adding:
                    with anyio.move_on_after(REMOVE_WITHIN_S):
                        await self._urgent.wait()
                self._urgent = anyio.Event()
                if not await self._write():
                    with anyio.move_on_after(RETRY_WRITE_S):
                        await self._urgent.wait()
                if self._adding or self._removing:
                    self._work.set()

    async def close(self) -> None:
        """Write what is left and close the database; nothing can be put any more."""
        store = self._store
        if store is None:
            return
        while (self._adding or self._removing) and await self._write():
            pass
        self._store = None
        for message in self._adding:
            message.error = StorageError("The node stopped before the message was stored.")
            message.stored.set()
        await self._runner(store.close)

    # What callers ask

    def put(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        data: bytes,
        *,
        priority: Priority = Priority.NORMAL,
        ttl_s: float | None = None,
        message_id: uuid.UUID | None = None,
    ) -> QueuedMessage:
        """Add a message; it goes out once it is stored (`wait_stored`).

        :param message_id: if a message with this id waits already, it is given instead.
        :raises RefusedError: the outbox is full.
        :raises InvalidRequestError: the time to live is not a positive number of seconds.
        """
        if self._store is None:
            raise NotRunningError("The node has stopped.")
        if ttl_s is not None and not 0 < ttl_s < math.inf:
            raise InvalidRequestError("A message's time to live is a positive number of seconds.")
        if message_id is not None and (known := self._messages.get(message_id)) is not None:
            if known.lane.device_id != device_id or known.lane.protocol_name != protocol_name:
                raise ConflictError("Another message has that id.")
            return known
        self._check_room(device_id, len(data))
        lane = self._lanes.get((device_id, protocol_name, priority))
        if lane is None:
            lane = self._lanes[device_id, protocol_name, priority] = Lane(device_id, protocol_name, priority)
        now = self._clock.now()
        message = QueuedMessage(
            id=message_id or uuid.UUID(bytes=self._randomness.bytes(16), version=4),
            lane=lane,
            number=lane.next_number,
            size=len(data),
            created_at=now,
            expires_at=None if ttl_s is None else now + ttl_s,
            deadline=math.inf if ttl_s is None else self._clock.monotonic() + ttl_s,
            data=data,
        )
        lane.next_number += 1
        self._take_in(message)
        self._adding.append(message)
        self._work.set()
        self._urgent.set()
        return message

    async def wait_stored(self, message: QueuedMessage) -> None:
        """Wait until a message is on the disk.

        :raises StorageError: it could not be put there, and will not be sent.
        """
        await message.stored.wait()
        if message.error is not None:
            raise message.error

    async def cancel(self, message_id: uuid.UUID) -> bool:
        """Take a message out; it will not be sent again.

        :returns: whether it is certain that it was never sent.
        :raises NotFoundError: it does not wait here (any more).
        :raises StorageError: the disk did not take it: it may be sent after a restart.
        """
        message = self._messages.get(message_id)
        if message is None:
            raise NotFoundError("No message with that id waits; it was delivered, cancelled, or has expired.")
        if not message.stored.is_set():
            await self.wait_stored(message)
        never_sent = not message.tried
        self._take_out(message)
        self._urgent.set()
        failures = self._failures
        while message.id.bytes in self._removing:
            await self._wrote.wait()
            if self._failures > failures:
                raise StorageError("The disk could not be written: the message may be sent after a restart.")
        return never_sent

    def find(self, message_id: uuid.UUID) -> QueuedMessage | None:
        """A message that waits."""
        return self._messages.get(message_id)

    @property
    def count(self) -> int:
        """Messages that wait."""
        return len(self._messages)

    @property
    def size_bytes(self) -> int:
        """Their bytes."""
        return self._bytes.total()

    @property
    def devices(self) -> int:
        """Devices that messages wait for."""
        return len(self._counts)

    @property
    def limits(self) -> OutboxLimits:
        """How much may wait."""
        return self._limits

    def has_messages(self, device_id: uuid.UUID) -> bool:
        """Whether messages wait for a device."""
        return device_id in self._counts

    def messages(
        self, *, device_id: uuid.UUID | None = None, protocols: Collection[str] | None = None
    ) -> list[QueuedMessage]:
        """What waits: the order in which it goes out, device by device.

        :param protocols: only messages of these.
        """
        now = self._clock.monotonic()
        found = [
            message
            for message in self._messages.values()
            if (device_id is None or message.lane.device_id == device_id)
            and (protocols is None or message.lane.protocol_name in protocols)
            and (message.deadline > now or message.sending)
        ]
        return sorted(found, key=lambda m: (m.lane.device_id, -m.lane.priority, m.created_at, m.number))

    async def payloads(self, messages: Sequence[QueuedMessage]) -> list[bytes | None]:
        """The payloads of messages; None for one that is gone or damaged."""
        missing = [m for m in messages if m.data is None]
        store = self._store
        if not missing or store is None:
            return [m.data for m in messages]

        def read() -> dict[uuid.UUID, bytes]:
            found: dict[uuid.UUID, bytes] = {}
            for message in missing:
                try:
                    found[message.id] = store.payload(message.lane.row, message.id.bytes)
                except StorageError as error:
                    logger.error("message %s in the outbox cannot be read: %s", message.id, error)
            return found

        read_now = await self._runner(read)
        return [m.data if m.data is not None else read_now.get(m.id) for m in messages]

    async def remove_device(self, device_id: uuid.UUID) -> None:
        """The device is gone: drop what waits for it, and remember nothing of it."""
        for message in [m for m in self._messages.values() if m.lane.device_id == device_id]:
            await message.stored.wait()
            self._take_out(message)
        gone = [lane for key, lane in self._lanes.items() if key[0] == device_id]
        for lane in gone:
            del self._lanes[lane.device_id, lane.protocol_name, lane.priority]
        if gone and self._store is not None:
            await self._runner(self._store.remove_lanes, [lane.row for lane in gone])

    # What the courier reports

    def is_over(self, message: QueuedMessage) -> bool:
        """Whether a message's time to live has run out."""
        return message.deadline <= self._clock.monotonic()

    async def settle(self, messages: Sequence[QueuedMessage], outcome: DeliveryOutcome, response: bytes = b"") -> None:
        """These messages have come to their end."""
        fresh = [message for message in messages if not message.settled]
        for message in fresh:
            self._take_out(message)
        by_lane: dict[Lane, list[Delivery]] = {}
        for message in fresh:
            delivery = Delivery(message_id=message.id, outcome=outcome, response=response)
            by_lane.setdefault(message.lane, []).append(delivery)
        for lane, deliveries in by_lane.items():
            await self._settled(lane, deliveries)

    async def renumber(self, lane: Lane, next_number: int) -> None:
        """The device knows the lane's numbers below this one from a life of ours that we have forgotten.

        :raises StorageError: it could not be stored.
        """
        assert self._store is not None
        waiting = [*lane.queue.values(), *(m for m in (*self._storing, *self._adding) if m.lane is lane)]
        first = max(next_number, lane.next_number)
        numbers = [(message.number, first + at) for at, message in enumerate(waiting)]
        # At once: what is put from now on comes behind them.
        lane.next_number = first + len(waiting)
        for message in waiting:
            await message.stored.wait()
        await self._runner(self._store.renumber, lane.row, numbers, lane.next_number)
        later = [m for m in lane.queue.values() if m.number >= first]
        for message, (_, number) in zip(waiting, numbers, strict=True):
            message.number = number
        lane.queue = {m.number: m for m in (*waiting, *later) if not m.settled}
        lane.rewind()

    # Inside

    def _check_room(self, device_id: uuid.UUID, size: int) -> None:
        limits = self._limits
        count, held = self._counts[device_id], self._bytes[device_id]
        if count >= limits.messages_per_device or held + size > limits.bytes_per_device:
            raise RefusedError(
                f"The outbox for this device is full: {format_count(count, 'message')} with "
                f"{format_count(held, 'byte')} for it. "
                "Cancel some, or wait until it is back."
            )
        if self._counts.total() >= limits.messages or self._bytes.total() + size > limits.bytes:
            raise RefusedError(
                f"The outbox is full: {format_count(self._counts.total(), 'message')} with "
                f"{format_count(self._bytes.total(), 'byte')} for {format_count(len(self._counts), 'device')}. "
                "Cancel some, or wait until one is back."
            )

    def _take_in(self, message: QueuedMessage) -> None:
        self._messages[message.id] = message
        self._counts[message.lane.device_id] += 1
        self._bytes[message.lane.device_id] += message.size
        if message.deadline < self._nearest:
            self._nearer.set()

    def _take_out(self, message: QueuedMessage) -> None:
        if message.settled:
            return
        message.settled = True
        lane = message.lane
        del self._messages[message.id]
        for counter, by in ((self._counts, 1), (self._bytes, message.size)):
            counter[lane.device_id] -= by
            if not counter[lane.device_id]:
                del counter[lane.device_id]
        if lane.queue.pop(message.number, None) is not None:
            self._removing[message.id.bytes] = lane
            lane.leaving[message.id.bytes] = message.number
            self._work.set()

    async def _write(self) -> bool:
        """Store and remove what waits for it; False if the disk did not take it."""
        store = self._store
        assert store is not None
        adding, self._adding = self._adding[:MAX_COMMIT], self._adding[MAX_COMMIT:]
        self._storing = adding
        removing = list(self._removing)

        def write() -> None:
            for lane in {id(m.lane): m.lane for m in adding if not m.lane.row}.values():
                lane.row = store.add_lane(lane.device_id.bytes, lane.protocol_name, lane.priority)
            store.change([_stored(message) for message in adding], removing)

        try:
            with anyio.CancelScope(shield=True):
                await self._runner(write)
        except StorageError as error:
            logger.error("the outbox could not be written: %s", error)
            for message in adding:
                message.error = StorageError(f"The message could not be stored and was not sent: {error}")
                self._take_out(message)
            self._failures += 1
            written = False
        else:
            for key in removing:
                if (lane := self._removing.pop(key, None)) is not None:
                    lane.leaving.pop(key, None)
                    lane.changed.set()
            for message in adding:
                self._stored_now(message)
            written = True
        self._storing = []
        for message in adding:
            message.stored.set()
        wrote, self._wrote = self._wrote, anyio.Event()
        wrote.set()
        return written

    def _stored_now(self, message: QueuedMessage) -> None:
        lane = message.lane
        lane.queue[message.number] = message
        lane.unsent.append(message)
        if not lane.open:
            message.data = None  # it may wait for long
        lane.changed.set()
        self._busy(lane)

    async def _expire(self) -> None:
        while True:
            now = self._clock.monotonic()
            gone = [m for m in self._messages.values() if m.deadline <= now and m.stored.is_set() and not m.sending]
            await self.settle(gone, DeliveryOutcome.EXPIRED)
            self._nearer = anyio.Event()
            self._nearest = min((m.deadline for m in self._messages.values() if m.deadline > now), default=math.inf)
            # The machine may sleep, in which time the event loop's clock stands still.
            with anyio.move_on_after(min(MAX_LOOK_S, max(0.0, self._nearest - self._clock.monotonic()))):
                await self._nearer.wait()


def _stored(message: QueuedMessage) -> StoredMessage:
    assert message.data is not None
    return StoredMessage(
        lane=message.lane.row,
        number=message.number,
        id=message.id.bytes,
        created_at=message.created_at,
        expires_at=message.expires_at,
        size=message.size,
        data=message.data,
    )
