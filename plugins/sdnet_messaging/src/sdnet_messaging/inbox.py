"""The inbox: takes each message once, durably, and gives them back to the person."""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, TypeVar

from msgspec import Meta
from msgspec.structs import replace as changed

from sdnet_core import InboundMessage, PluginContext, Priority, RemoteDevice
from sdnet_core.errors import (
    ConflictError,
    DeviceNotFoundError,
    InvalidRequestError,
    NotFoundError,
    SerializationError,
)
from sdnet_core.wire import Bytes16, Message, decode, encode

from .messages import MAX_MESSAGE_BYTES, Answer, AnyMessage, Chosen, Notification, Outcome, Text
from .records import ActionChosen, Choice, InboxMessage, NotificationReceived, TextReceived
from .store import InboxStore, NewRow, Sealer, StoredRow

__all__ = ["Inbox", "StoredMessage"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_INVALID = encode(Answer(outcome=Outcome.INVALID, response=None))


class StoredMessage(Message, frozen=True, kw_only=True, tag=1):
    """What is sealed in a row of the inbox.

    :param received_ms: our wall clock, milliseconds since the epoch.
    :param chosen: the id of the action that the person chose in answer; empty for none.
    """

    device_id: Bytes16
    device_name: Annotated[str, Meta(max_length=256)]
    received_ms: Annotated[int, Meta(ge=0)]
    priority: Priority
    chosen: Annotated[str, Meta(max_length=64)] = ""
    message: AnyMessage


class Inbox:
    """The node's inbox. `open` it first."""

    def __init__(self, ctx: PluginContext) -> None:
        self._ctx = ctx
        storage = ctx.storage
        self._store = InboxStore(Sealer(storage.encrypt_data, storage.decrypt_data))

    async def open(self) -> None:
        """Make the tables if they are not there.

        :raises StorageError: the database cannot be opened, is damaged or too new.
        """
        await self._run(self._store.prepare)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._ctx.transaction(lambda db, _: work(db))

    # Receiving

    async def take(self, device: RemoteDevice, messages: Sequence[InboundMessage]) -> list[bytes | None]:
        """Put messages into the inbox, each once, durably before this returns.

        :returns: an answer for each that is no message we know, None for the others.
        :raises TryLaterError: the inbox is full; nothing was put in.
        :raises StorageError: it could not be stored; nothing was put in.
        """
        contents: dict[uuid.UUID, AnyMessage] = {}
        answers: list[bytes | None] = []
        for message in messages:
            try:
                contents[message.id] = decode(message.data, AnyMessage, max_bytes=MAX_MESSAGE_BYTES)
                answers.append(None)
            except SerializationError as error:
                logger.warning("a message from %s is not one we know: %s", device.device_id, error)
                answers.append(_INVALID)
        received_ms = round(self._ctx.clock.now() * 1000)

        def store(
            db: sqlite3.Connection, new: Sequence[InboundMessage]
        ) -> tuple[Sequence[InboundMessage], Sequence[int]]:
            rows = []
            for message in new:
                content = contents[message.id]
                kept = StoredMessage(
                    device_id=device.device_id.bytes,
                    device_name=device.name,
                    received_ms=received_ms,
                    priority=message.priority,
                    message=content,
                )
                reply_to = content.notification if isinstance(content, Chosen) else None
                rows.append(NewRow(message.id.bytes, encode(kept), reply_to))
            return new, self._store.add(db, device.pairing_id.bytes, rows)

        known = [message for message in messages if message.id in contents]
        for message, number in zip(*await self._ctx.transaction(store, *known), strict=True):
            self._tell(device, message.id, number, contents[message.id])
        return answers

    def _tell(self, device: RemoteDevice, id_: uuid.UUID, number: int, message: AnyMessage) -> None:
        device_id, name = device.device_id, device.name
        match message:
            case Text(text=text):
                self._ctx.publish(
                    TextReceived(device_id=device_id, device_name=name, message_id=id_, number=number, text=text)
                )
            case Notification(title=title):
                self._ctx.publish(
                    NotificationReceived(
                        device_id=device_id, device_name=name, message_id=id_, number=number, title=title
                    )
                )
            case Chosen(notification=notification, action=action):
                self._ctx.publish(
                    ActionChosen(
                        device_id=device_id,
                        device_name=name,
                        message_id=id_,
                        number=number,
                        notification_id=uuid.UUID(bytes=notification),
                        action=action.id,
                    )
                )

    # Reading

    async def last_number(self) -> int:
        """The place of the message that came last, 0 for none."""
        return await self._run(self._store.last_number)

    async def messages(self, after: int | None, *, unread_only: bool, limit: int) -> list[InboxMessage]:
        """Messages in the order in which they came; see `InboxStore.messages`."""
        rows = await self._run(lambda db: self._store.messages(db, after, unread_only=unread_only, limit=limit))
        return [self._renamed(message) for row in rows if (message := _shown(row)) is not None]

    async def reply(self, id_: uuid.UUID) -> InboxMessage | None:
        """The answer to a notification of ours, if one has come."""
        row = await self._run(lambda db: self._store.reply(db, id_.bytes))
        shown = None if row is None else _shown(row)
        return None if shown is None else self._renamed(shown)

    async def notification(self, id_: uuid.UUID, action_id: str) -> tuple[uuid.UUID, Chosen]:
        """Who is to be told that this action was chosen in answer to a notification, and in which words.

        :raises NotFoundError: there is no such notification.
        :raises InvalidRequestError: it has no such action.
        :raises ConflictError: another one was chosen already.
        """
        row = await self._run(lambda db: self._store.find(db, id_.bytes))
        stored = None if row is None else _stored(row)
        if stored is None or not isinstance(stored.message, Notification):
            raise NotFoundError(f"There is no notification {id_} in the inbox.")
        action = next((action for action in stored.message.actions if action.id == action_id), None)
        if action is None:
            known = ", ".join(action.id for action in stored.message.actions) or "none"
            raise InvalidRequestError(f"The notification has no action {action_id!r}; it has {known}.")
        if stored.chosen not in ("", action_id):
            raise ConflictError(f"{stored.chosen!r} was chosen already.")
        chosen = Chosen(
            sent_ms=round(self._ctx.clock.now() * 1000),
            notification=id_.bytes,
            title=stored.message.title,
            action=action,
        )
        return uuid.UUID(bytes=stored.device_id), chosen

    async def mark_chosen(self, id_: uuid.UUID, action_id: str) -> None:
        """Remember what was chosen; the notification counts as read then."""

        def mark(db: sqlite3.Connection) -> None:
            row = self._store.find(db, id_.bytes)
            if row is not None and (stored := _stored(row)) is not None:
                self._store.replace(db, row, encode(changed(stored, chosen=action_id)))
                self._store.mark_read(db, [id_.bytes])

        await self._run(mark)

    async def mark_read(self, ids: Sequence[uuid.UUID] | None, up_to: int | None) -> int:
        """Mark messages as read; see `InboxStore.mark_read`."""
        raw = None if ids is None else [id_.bytes for id_ in ids]
        return await self._run(lambda db: self._store.mark_read(db, raw, up_to))

    async def delete(self, id_: uuid.UUID) -> None:
        """Remove a message.

        :raises NotFoundError: it is not there.
        """
        if not await self._run(lambda db: self._store.delete(db, id_.bytes)):
            raise NotFoundError(f"There is no message {id_} in the inbox.")

    def _renamed(self, message: InboxMessage) -> InboxMessage:
        """Show the device's present name while it is paired."""
        try:
            name = self._ctx.get_device(message.device_id).name
        except DeviceNotFoundError:
            return message
        return replace(message, device_name=name)


def _stored(row: StoredRow) -> StoredMessage | None:
    try:
        stored: StoredMessage = decode(row.content, StoredMessage)
    except SerializationError as error:
        logger.error("message %d of the inbox does not decode and is left out: %s", row.number, error)
        return None
    return stored


def _shown(row: StoredRow) -> InboxMessage | None:
    stored = _stored(row)
    if stored is None:
        return None
    message = stored.message
    kind, title, text = "text", "", ""
    actions: tuple[Choice, ...] = ()
    reply_to: uuid.UUID | None = None
    chosen = stored.chosen
    match message:
        case Text():
            text = message.text
        case Notification():
            kind, title, text = "notification", message.title, message.body
            actions = tuple(Choice(id=action.id, label=action.label) for action in message.actions)
        case Chosen():
            kind, title, text = "choice", message.title, message.action.label
            reply_to, chosen = uuid.UUID(bytes=message.notification), message.action.id
    return InboxMessage(
        number=row.number,
        id=uuid.UUID(bytes=row.id),
        kind=kind,
        device_id=uuid.UUID(bytes=stored.device_id),
        device_name=stored.device_name,
        text=text,
        title=title,
        actions=actions,
        chosen=chosen,
        reply_to=reply_to,
        sent_at=message.sent_ms / 1000,
        received_at=stored.received_ms / 1000,
        read=row.read,
        priority=stored.priority.name.lower(),
    )
