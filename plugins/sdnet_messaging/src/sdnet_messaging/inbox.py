"""The inbox: takes each message once, durably, and gives them back to the person."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import anyio
from msgspec import Meta

from sdnet_core import PluginContext, RemoteDevice
from sdnet_core.errors import DeviceNotFoundError, NotFoundError, NotRunningError, SerializationError, StorageError
from sdnet_core.wire import Bytes16, Message, decode, encode

from .machine import ReceiveWindow, SendSequence, Verdict
from .messages import Ack, Notification, Outcome, Text
from .records import Choice, InboxMessage, NotificationReceived, TextReceived
from .store import InboxStore, NewRow, Sealer, StoredRow

__all__ = ["Delivery", "Inbox", "StoredMessage"]

logger = logging.getLogger(__name__)

MAX_BATCH = 256
"""Messages made durable together in one transaction."""


class StoredMessage(Message, frozen=True, kw_only=True, tag=1):
    """What is sealed in a row of the inbox.

    :param received_ms: our wall clock, milliseconds since the epoch.
    """

    device_id: Bytes16
    device_name: Annotated[str, Meta(max_length=256)]
    received_ms: Annotated[int, Meta(ge=0)]
    message: Text | Notification


@dataclass(slots=True, eq=False)
class Delivery:
    """A message on its way into the inbox."""

    row: NewRow
    device: RemoteDevice
    message: Text | Notification = field(repr=False)
    done: anyio.Event = field(default_factory=anyio.Event)
    """Set when `NewRow.outcome` is final."""

    async def ack(self) -> Ack:
        """Wait until it is settled."""
        await self.done.wait()
        assert self.row.outcome is not None
        return Ack(sequence=self.message.sequence, outcome=self.row.outcome)


class Inbox:
    """The node's inbox. `open` it, then `run` its writer."""

    def __init__(self, ctx: PluginContext) -> None:
        self._ctx = ctx
        self._opened: InboxStore | None = None
        self._windows: dict[bytes, ReceiveWindow] = {}
        self._reserved: dict[bytes, int] = {}
        self._pending: dict[tuple[bytes, int], Delivery] = {}
        self._queue: list[Delivery] = []
        self._filled = anyio.Event()

    @property
    def _store(self) -> InboxStore:
        if self._opened is None:
            raise NotRunningError("Messaging is not running.")
        return self._opened

    async def open(self) -> None:
        """Open the database.

        :raises StorageError: it cannot be opened or is damaged.
        """
        storage = self._ctx.storage
        sealer = Sealer(storage.encrypt_data, storage.decrypt_data)
        pairings = [device.pairing_id.bytes for device in self._ctx.devices()]

        def open_and_load() -> None:
            path: Path = self._ctx.data_dir / "inbox.sqlite3"
            store = InboxStore(path, sealer)
            for pairing, peer in store.load_peers(pairings).items():
                self._windows[pairing] = ReceiveWindow(peer.below, peer.seen)
                self._reserved[pairing] = peer.reserved
            self._opened = store

        await self._ctx.run_blocking(open_and_load)

    async def close(self) -> None:
        """Close the database."""
        if self._opened is not None:
            await self._ctx.run_blocking(self._opened.close)

    # Receiving

    def accept(self, device: RemoteDevice, message: Text | Notification) -> Delivery | Ack:
        """Take a message that came. Messages lie in the inbox in the order of these calls.

        :returns: an answer at once, or a delivery to wait for.
        """
        pairing = device.pairing_id.bytes
        window = self._windows.setdefault(pairing, ReceiveWindow())
        match window.offer(message.sequence, message.token, message.below):
            case Verdict.NEW:
                return self._enqueue(device, message)
            case Verdict.PENDING:
                return self._pending[pairing, message.sequence]
            case Verdict.DUPLICATE:
                return Ack(sequence=message.sequence, outcome=Outcome.DUPLICATE)
            case Verdict.STALE:
                return Ack(sequence=message.sequence, outcome=Outcome.STALE, next_sequence=window.next_free)
            case Verdict.AHEAD:
                return Ack(sequence=message.sequence, outcome=Outcome.BUSY)

    def _enqueue(self, device: RemoteDevice, message: Text | Notification) -> Delivery:
        stored = StoredMessage(
            device_id=device.device_id.bytes,
            device_name=device.name,
            received_ms=round(self._ctx.clock.now() * 1000),
            message=message,
        )
        row = NewRow(device.pairing_id.bytes, message.sequence, message.token, message.below, encode(stored))
        delivery = Delivery(row, device, message)
        self._pending[row.pairing, row.sequence] = delivery
        self._queue.append(delivery)
        self._filled.set()
        return delivery

    async def run(self) -> None:
        """Write what was accepted, until cancelled."""
        while True:
            await self._filled.wait()
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
            if not self._queue:
                self._filled = anyio.Event()
            try:
                await self._ctx.run_blocking(self._store.add, [delivery.row for delivery in batch])
            except StorageError as error:
                logger.error("%d messages could not be stored: %s", len(batch), error)
                for delivery in batch:
                    delivery.row.outcome = Outcome.NOT_STORED
            for delivery in batch:
                self._settle(delivery)

    def _settle(self, delivery: Delivery) -> None:
        row, device, message = delivery.row, delivery.device, delivery.message
        del self._pending[row.pairing, row.sequence]
        window = self._windows[row.pairing]
        if row.outcome is Outcome.DELIVERED:
            window.confirm(row.sequence)
            if isinstance(message, Text):
                self._ctx.publish(
                    TextReceived(
                        device_id=device.device_id,
                        device_name=device.name,
                        message_id=uuid.UUID(bytes=message.token),
                        number=row.number,
                        text=message.text,
                    )
                )
            else:
                self._ctx.publish(
                    NotificationReceived(
                        device_id=device.device_id,
                        device_name=device.name,
                        message_id=uuid.UUID(bytes=message.token),
                        number=row.number,
                        title=message.title,
                    )
                )
        else:
            window.withdraw(row.sequence)
        delivery.done.set()

    # Our own numbers, which live in the same file

    def send_sequence(self, pairing: bytes) -> SendSequence:
        """The numbers for messages to a device, continued from the last run. Ask once a run and pairing."""
        return SendSequence(self._reserved.get(pairing, 1))

    async def reserve(self, pairing: bytes, reserved: int) -> None:
        """Make durable that our numbers below ``reserved`` may be used.

        :raises StorageError: it could not be stored.
        """
        await self._ctx.run_blocking(self._store.reserve, pairing, reserved)

    # Reading

    async def last_number(self) -> int:
        """The place of the message that came last, 0 for none."""
        return await self._ctx.run_blocking(self._store.last_number)

    async def messages(self, after: int | None, *, unread_only: bool, limit: int) -> list[InboxMessage]:
        """Messages in the order in which they came; see `InboxStore.messages`."""

        def read() -> list[InboxMessage]:
            rows = self._store.messages(after, unread_only=unread_only, limit=limit)
            return [message for row in rows if (message := _shown(row)) is not None]

        return [self._renamed(message) for message in await self._ctx.run_blocking(read)]

    async def mark_read(self, ids: Sequence[uuid.UUID] | None, up_to: int | None) -> int:
        """Mark messages as read; see `InboxStore.mark_read`."""
        tokens = None if ids is None else [id_.bytes for id_ in ids]
        return await self._ctx.run_blocking(self._store.mark_read, tokens, up_to)

    async def delete(self, id_: uuid.UUID) -> None:
        """Remove a message.

        :raises NotFoundError: it is not there.
        """
        if not await self._ctx.run_blocking(self._store.delete, id_.bytes):
            raise NotFoundError(f"There is no message {id_} in the inbox.")

    def _renamed(self, message: InboxMessage) -> InboxMessage:
        """Show the device's present name while it is paired."""
        try:
            name = self._ctx.get_device(message.device_id).name
        except DeviceNotFoundError:
            return message
        return replace(message, device_name=name)


def _shown(row: StoredRow) -> InboxMessage | None:
    try:
        stored: StoredMessage = decode(row.content, StoredMessage)
    except SerializationError as error:
        logger.error("message %d of the inbox does not decode and is left out: %s", row.number, error)
        return None
    message = stored.message
    notification = message if isinstance(message, Notification) else None
    return InboxMessage(
        number=row.number,
        id=uuid.UUID(bytes=row.token),
        kind="text" if notification is None else "notification",
        device_id=uuid.UUID(bytes=stored.device_id),
        device_name=stored.device_name,
        text=message.text if isinstance(message, Text) else message.body,
        title="" if notification is None else notification.title,
        actions=() if notification is None else tuple(Choice(id=a.id, label=a.label) for a in notification.actions),
        sent_at=message.sent_ms / 1000,
        received_at=stored.received_ms / 1000,
        read=row.read,
        priority=message.priority.name.lower(),
    )
