"""Messaging between paired devices."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskStatus

from sdnet_core import Delivery, DeliveryOutcome, InboundMessage, PluginContext, Priority, RemoteDevice
from sdnet_core.errors import (
    ConnectionFailedError,
    InvalidRequestError,
    NetworkTimeoutError,
    NotFoundError,
    ProtocolError,
    RefusedError,
)
from sdnet_core.wire import Message, decode, encode

from .checks import check_delivery, check_length, make_actions, make_data, shown
from .data import DataHandler, DataHandlers
from .inbox import Inbox
from .messages import (
    MAX_BODY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_TEXT_BYTES,
    MAX_TITLE_BYTES,
    Answer,
    Chosen,
    Notification,
    Outcome,
    Ping,
    Pong,
    Text,
)
from .records import (
    ActionChosen,
    Choice,
    InboxMessage,
    MessageUndelivered,
    NotificationReceived,
    OutboxMessage,
    Receipt,
    TextReceived,
)
from .settings import MessagingSettings

__all__ = ["DATA_PROTOCOL", "PROTOCOL", "DataHandler", "MessagingService"]

logger = logging.getLogger(__name__)

PROTOCOL = "messaging"
"""For what goes into the inbox, and for pings."""
DATA_PROTOCOL = "messaging-data"
"""For data of other protocols, so that a handler that is slow holds up no text."""
DATA_TIMEOUT_S = 30.0
PING_TIMEOUT_S = 10.0
MAX_LISTED = 1000
"""Messages given at once."""
LOOK_S = 0.25


_CHOICE = uuid.UUID("9d5f0f0a-9c1e-5b52-9b57-2b5d4a2f3c11")
"""Namespace for the ids of choices: one for each notification, however often somebody chooses."""


@dataclass(eq=False, slots=True)
class _Waiter:
    done: anyio.Event = field(default_factory=anyio.Event)
    delivery: Delivery | None = None


class MessagingService:
    """Sends to devices and keeps the inbox; other plugins get it with ``ctx.get_service(MessagingService)``.

    :param settings: the plugin's table in the configuration; defaults if None.
    """

    def __init__(self, ctx: PluginContext, settings: MessagingSettings | None = None) -> None:
        self._ctx = ctx
        self._settings = settings or MessagingSettings()
        self._inbox = Inbox(ctx)
        self._waiters: dict[uuid.UUID, _Waiter] = {}
        self._handlers = DataHandlers()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Open the inbox.

        :raises StorageError: it cannot be opened, is damaged or too new.
        """
        await self._inbox.open()
        task_status.started()

    # Sending

    async def send_text(
        self,
        device_id: uuid.UUID,
        text: str,
        *,
        priority: Priority = Priority.NORMAL,
        ttl_s: float | None = None,
        now: bool = False,
    ) -> Receipt:
        """Send a text. It is queued, durably, while the device is away, and delivered once when it is back.

        :param text: 1 to 65,536 bytes of UTF-8.
        :param ttl_s: give it up if it is not delivered within so many seconds; None for never.
        :param now: fail instead of queueing it.
        :returns: once it lies durably in the other side's inbox or in our outbox; says which.
        :raises InvalidRequestError: it is empty or too long.
        :raises DeviceNotFoundError: the device is not paired.
        :raises RefusedError: the outbox is full, or the other side does not take messages from us.
        :raises ConnectionFailedError: with ``now``: the device is away; the message was not sent.
        :raises NetworkTimeoutError: with ``now``: it did not answer in time; whether the message arrived is not known.
        """
        if not text:
            raise InvalidRequestError("There is no text to send.")
        check_length("text", text, MAX_TEXT_BYTES)
        return await self._send(device_id, Text(sent_ms=self._now_ms(), text=text), priority, ttl_s, now)

    async def send_notification(
        self,
        device_id: uuid.UUID,
        title: str,
        body: str = "",
        *,
        actions: Sequence[Choice] = (),
        priority: Priority = Priority.NORMAL,
        ttl_s: float | None = None,
        now: bool = False,
    ) -> Receipt:
        """Send a notification. Returns and raises as `send_text`; what the person chooses comes into our inbox.

        :param title: 1 to 512 bytes of UTF-8.
        :param body: up to 8,192 bytes.
        :param actions: up to 8 things that the person there can choose from, each with an id of its own.
        """
        if not title:
            raise InvalidRequestError("A notification needs a title.")
        check_length("title", title, MAX_TITLE_BYTES)
        check_length("body", body, MAX_BODY_BYTES)
        message = Notification(sent_ms=self._now_ms(), title=title, body=body, actions=make_actions(actions))
        return await self._send(device_id, message, priority, ttl_s, now)

    async def choose(self, notification_id: uuid.UUID, action_id: str) -> Receipt:
        """Choose an action of a notification in the inbox; who sent it is told, now or when it is back.

        :raises NotFoundError: there is no such notification.
        :raises InvalidRequestError: it has no such action.
        :raises ConflictError: another one was chosen already.
        """
        device_id, chosen = await self._inbox.notification(notification_id, action_id)
        message_id = uuid.uuid5(_CHOICE, str(notification_id))
        receipt = await self._send(device_id, chosen, Priority.HIGH, None, False, message_id)
        await self._inbox.mark_chosen(notification_id, action_id)
        return receipt

    async def wait_choice(self, notification_id: uuid.UUID, *, timeout_s: float) -> InboxMessage | None:
        """What was chosen in answer to a notification of ours, waiting for it; None if nothing was in time."""
        async with self._ctx.subscribe((ActionChosen.kind,), buffer=1) as arrivals:
            with anyio.move_on_after(timeout_s):
                while (reply := await self._inbox.reply(notification_id)) is None:
                    await arrivals.receive()
                return reply
        return await self._inbox.reply(notification_id)

    async def send_data(
        self,
        device_id: uuid.UUID,
        protocol: str,
        payload: bytes,
        *,
        version: int = 1,
        metadata: Mapping[str, str] | None = None,
        priority: Priority = Priority.NORMAL,
        timeout_s: float = DATA_TIMEOUT_S,
    ) -> bytes | None:
        """Send bytes to a protocol's handler at the other side and wait for its response.

        :param payload: up to 256 KiB.
        :param metadata: up to 16 entries; keys of up to 64, values of up to 256 characters.
        :returns: what the handler answered; None for nothing.
        :raises ConnectionFailedError: the device is away.
        :raises ProtocolError: there is no such handler there, or it failed.
        :raises NetworkTimeoutError: it did not answer in time; it may have got the data, and gets them no more.
        """
        data = make_data(protocol, payload, version, metadata)
        device = await self._connected(device_id)
        delivery = await self._deliver(device, DATA_PROTOCOL, data, priority, timeout_s, timeout_s)
        if delivery is None or delivery.outcome is DeliveryOutcome.EXPIRED:
            raise NetworkTimeoutError(f"{device.name} did not answer within {timeout_s:g} s.")
        check_delivery(device, delivery)
        answer: Answer = decode(delivery.response, Answer, max_bytes=MAX_MESSAGE_BYTES)
        match answer.outcome:
            case Outcome.DELIVERED:
                return answer.response
            case Outcome.NO_HANDLER:
                raise ProtocolError(f"Nothing at {device.name} takes data for {protocol}.")
            case _:
                raise ProtocolError(f"{device.name} got the data, but what takes them there failed.")

    async def queue_data(
        self,
        device_id: uuid.UUID,
        protocol: str,
        payload: bytes,
        *,
        version: int = 1,
        metadata: Mapping[str, str] | None = None,
        priority: Priority = Priority.NORMAL,
        ttl_s: float | None = None,
    ) -> uuid.UUID:
        """Send bytes to a protocol's handler at the other side, now or when the device is back; see `send_data`.

        :returns: the message's id, once it lies durably in the outbox.
        """
        data = encode(make_data(protocol, payload, version, metadata))
        return await self._ctx.send_message(device_id, DATA_PROTOCOL, data, priority=priority, ttl_s=ttl_s)

    async def ping(self, device_id: uuid.UUID, *, timeout_s: float = PING_TIMEOUT_S) -> float:
        """Measure the round trip to the other side's messaging plugin.

        :returns: seconds.
        :raises ConnectionFailedError: the device is away.
        :raises NetworkTimeoutError: no answer in time.
        """
        device = await self._connected(device_id)
        try:
            with anyio.fail_after(timeout_s):
                async with await self._ctx.open_stream(device_id, PROTOCOL, timeout_s=timeout_s) as stream:
                    messages = stream.messages(max_bytes=MAX_MESSAGE_BYTES)
                    # The first one opens the stream, the second one measures.
                    for nonce in range(2):
                        started = anyio.current_time()
                        await messages.send(Ping(nonce=nonce))
                        await messages.receive(Pong)
                    return anyio.current_time() - started
        except TimeoutError:
            raise NetworkTimeoutError(f"{device.name} did not answer within {timeout_s:g} s.") from None

    def _now_ms(self) -> int:
        return round(self._ctx.clock.now() * 1000)

    async def _connected(self, device_id: uuid.UUID) -> RemoteDevice:
        device = self._ctx.get_device(device_id)
        try:
            await self._ctx.connect(device_id, timeout_s=self._settings.connect_timeout_s)
        except ConnectionFailedError as error:
            raise ConnectionFailedError(f"{device.name} is not connected; the message was not sent.") from error
        return device

    async def _send(
        self,
        device_id: uuid.UUID,
        message: Text | Notification | Chosen,
        priority: Priority,
        ttl_s: float | None,
        now: bool,
        message_id: uuid.UUID | None = None,
    ) -> Receipt:
        device = await self._connected(device_id) if now else self._ctx.get_device(device_id)
        wait_s = self._settings.ack_timeout_s if device.connected else self._settings.away_wait_s
        message_id = message_id or self._new_id()
        started = anyio.current_time()
        delivery = await self._deliver(device, PROTOCOL, message, priority, wait_s, ttl_s, message_id, keep=not now)
        if delivery is None:
            return Receipt(
                id=message_id,
                device_id=device.device_id,
                device_name=device.name,
                state="queued",
                reason=self._ctx.why_waiting(message_id) if self._ctx.get_device(device_id).connected else "",
            )
        check_delivery(device, delivery)
        if delivery.response:
            raise ProtocolError(f"{device.name} does not know messages of that kind.")
        return Receipt(
            id=message_id,
            device_id=device.device_id,
            device_name=device.name,
            state="delivered",
            delivered_at=self._ctx.clock.now(),
            rtt_s=anyio.current_time() - started,
        )

    def _new_id(self) -> uuid.UUID:
        return uuid.UUID(bytes=self._ctx.randomness.bytes(16), version=4)

    async def _deliver(
        self,
        device: RemoteDevice,
        protocol: str,
        message: Message,
        priority: Priority,
        wait_s: float,
        ttl_s: float | None,
        message_id: uuid.UUID | None = None,
        *,
        keep: bool = False,
    ) -> Delivery | None:
        """Put a message into the outbox and wait for its end.

        :param keep: leave it there if its end does not come in time; else it is taken out.
        :returns: None if its end did not come in time.
        :raises NetworkingError: it cannot be delivered now, and is not kept.
        """
        message_id = message_id or self._new_id()
        waiter = self._waiters[message_id] = _Waiter()
        try:
            await self._ctx.send_message(
                device.device_id, protocol, encode(message), priority=priority, ttl_s=ttl_s, message_id=message_id
            )
            give_up_at = anyio.current_time() + wait_s
            while (
                waiter.delivery is None
                and (left_s := give_up_at - anyio.current_time()) > 0
                and not self._ctx.why_waiting(message_id)
            ):
                with anyio.move_on_after(min(LOOK_S, left_s)):
                    await waiter.done.wait()
            if waiter.delivery is None and not keep:
                await self._withdraw(device, message_id, waiter)
            return waiter.delivery
        finally:
            self._waiters.pop(message_id, None)

    async def _withdraw(self, device: RemoteDevice, message_id: uuid.UUID, waiter: _Waiter) -> None:
        reason = self._ctx.why_waiting(message_id)
        try:
            never_sent = await self._ctx.cancel_message(message_id)
        except NotFoundError:
            return  # its end has just come
        if waiter.delivery is not None:
            return
        if never_sent:
            raise ConnectionFailedError(f"The connection to {device.name} broke; the message was not sent.")
        if reason and self._ctx.get_device(device.device_id).connected:
            raise RefusedError(f"{device.name} did not take the message: {reason}.")
        raise NetworkTimeoutError(f"{device.name} did not answer in time; whether the message arrived is not known.")

    # What waits

    async def outbox(self, device_id: uuid.UUID | None = None) -> list[OutboxMessage]:
        """What waits for its device, in the order in which it goes out."""
        waiting = await self._ctx.waiting_messages(device_id=device_id, protocols=(PROTOCOL, DATA_PROTOCOL))
        names = {device.device_id: device.name for device in self._ctx.devices()}
        return [
            OutboxMessage(
                id=message.id,
                device_id=message.device_id,
                device_name=names.get(message.device_id, ""),
                kind=kind,
                text=text,
                priority=message.priority.name.lower(),
                created_at=message.created_at,
                expires_at=message.expires_at,
                state="sending" if message.sending else "waiting",
                reason=message.reason,
            )
            for message in waiting
            for kind, text in (shown(message.data),)
        ]

    async def cancel(self, message_id: uuid.UUID) -> bool:
        """Take a message out of the outbox.

        :returns: whether it is certain that it was never sent.
        :raises NotFoundError: no message with that id waits.
        """
        if not any(message.id == message_id for message in await self.outbox()):
            raise NotFoundError("No message with that id waits; it was delivered, cancelled, or has expired.")
        return await self._ctx.cancel_message(message_id)

    # The inbox

    async def inbox(
        self, since: int | None = None, *, unread_only: bool = False, limit: int = MAX_LISTED
    ) -> list[InboxMessage]:
        """What lies in the inbox, in the order in which it came.

        :param since: only messages with higher numbers, the first ``limit`` of them; None for the last ``limit``.
        :param limit: 1 to 1,000.
        """
        if not 0 < limit <= MAX_LISTED:
            raise InvalidRequestError(f"1 to {MAX_LISTED} messages can be listed at once.")
        if since is not None and not 0 <= since < 1 << 63:
            raise InvalidRequestError("A message's number is 0 or higher.")
        return await self._inbox.messages(since, unread_only=unread_only, limit=limit)

    async def listen(self, since: int | None = None) -> AsyncGenerator[InboxMessage, None]:
        """Give messages as they come, for ever; none is left out however slow the listener is.

        Close it in the end: ``async with aclosing(messaging.listen()) as messages: async for message in messages``.

        :param since: begin with those that have higher numbers than this; None for new ones only.
        """
        kinds = (TextReceived.kind, NotificationReceived.kind, ActionChosen.kind)
        async with self._ctx.subscribe(kinds, buffer=1) as arrivals:
            after = await self._inbox.last_number() if since is None else since
            while True:
                messages = await self.inbox(after, limit=100)
                for message in messages:
                    yield message
                    after = message.number
                if not messages:
                    try:
                        await arrivals.receive()
                    except anyio.EndOfStream:
                        return

    async def mark_read(self, ids: Sequence[uuid.UUID]) -> int:
        """Mark messages as read.

        :returns: how many of them were unread.
        """
        return await self._inbox.mark_read(ids, None)

    async def mark_read_up_to(self, number: int) -> int:
        """Mark all messages with numbers up to this one as read.

        :returns: how many of them were unread.
        """
        return await self._inbox.mark_read(None, number)

    async def delete(self, message_id: uuid.UUID) -> None:
        """Remove a message from the inbox.

        :raises NotFoundError: it is not there.
        """
        await self._inbox.delete(message_id)

    # Data for other protocols

    def on_data(self, protocol: str, handler: DataHandler) -> AbstractContextManager[None]:
        """Take the data that devices send to a protocol, for the length of the block.

        The handler's result is the response. A message whose connection broke can come again, with the same id. What
        the handler raises is not told to the sender, who learns only that it failed.

        :param protocol: lower-case letters, digits and hyphens.
        :raises ConflictError: somebody takes them already.
        """
        return self._handlers.on_data(protocol, handler)

    # Called by the protocol handlers

    async def take(self, device: RemoteDevice, messages: Sequence[InboundMessage]) -> list[bytes | None]:
        """Put messages into the inbox; see `Inbox.take`."""
        return await self._inbox.take(device, messages)

    def delivered(self, device: RemoteDevice, delivery: Delivery) -> None:
        """A message of ours has come to its end."""
        waiter = self._waiters.pop(delivery.message_id, None)
        if waiter is not None:
            waiter.delivery = delivery
            waiter.done.set()
        elif delivery.outcome is not DeliveryOutcome.DELIVERED:
            logger.warning("message %s to %s: %s", delivery.message_id, device.device_id, delivery.outcome)
            self._ctx.publish(
                MessageUndelivered(
                    device_id=device.device_id,
                    device_name=device.name,
                    message_id=delivery.message_id,
                    outcome=str(delivery.outcome),
                )
            )

    async def handle_data(self, device: RemoteDevice, message: InboundMessage) -> bytes:
        """Give data to their handler; see `DataHandlers.handle`."""
        return await self._handlers.handle(device, message)
