"""Messaging between paired devices."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import anyio
from anyio.abc import TaskStatus

from sdnet_core import PluginContext, RemoteDevice, Trust
from sdnet_core.errors import (
    ConflictError,
    InvalidRequestError,
    NetworkingError,
    ProtocolError,
    RefusedError,
)

from .courier import Courier
from .inbox import Delivery, Inbox
from .messages import (
    MAX_ACTIONS,
    MAX_BODY_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_TEXT_BYTES,
    MAX_TITLE_BYTES,
    Ack,
    Action,
    Data,
    Notification,
    Outcome,
    Priority,
    Text,
)
from .records import Choice, DataReceived, InboxMessage, NotificationReceived, Receipt, TextReceived
from .settings import MessagingSettings

__all__ = ["DataHandler", "MessagingService"]

logger = logging.getLogger(__name__)

HANDLER_TIMEOUT_S = 30.0
"""How long a data handler may take."""
PING_TIMEOUT_S = 10.0
MAX_LISTED = 1000
"""Messages given at once."""

DataHandler = Callable[[DataReceived], Awaitable[bytes | None]]

_PROTOCOL_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class MessagingService:
    """Sends to devices and keeps the inbox; other plugins get it with ``ctx.get_service(MessagingService)``.

    :param settings: the plugin's table in the configuration; defaults if None.
    """

    def __init__(self, ctx: PluginContext, settings: MessagingSettings | None = None) -> None:
        self._ctx = ctx
        self._inbox = Inbox(ctx)
        self._courier = Courier(ctx, self._inbox, settings or MessagingSettings())
        self._handlers: dict[str, DataHandler] = {}

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled.

        :raises StorageError: the inbox cannot be opened or is damaged.
        """
        await self._inbox.open()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._inbox.run)
                self._courier.start(tasks)
                task_status.started()
        finally:
            self._courier.stop()
            with anyio.CancelScope(shield=True):
                await self._inbox.close()

    # Sending

    async def send_text(self, device_id: uuid.UUID, text: str, *, priority: Priority = Priority.NORMAL) -> Receipt:
        """Send a text.

        :param text: 1 to 65,536 bytes of UTF-8.
        :returns: once it lies durably in the other side's inbox.
        :raises InvalidRequestError: it is empty or too long.
        :raises DeviceNotFoundError: the device is not paired.
        :raises ConnectionFailedError: it is away, or the connection broke; the message says whether it was sent.
        :raises RefusedError: its inbox is full, or it does not take messages from us.
        """
        if not text:
            raise InvalidRequestError("There is no text to send.")
        _check_length("text", text, MAX_TEXT_BYTES)
        token, sent_ms = self._stamp()
        return await self._send(
            self._ctx.get_device(device_id),
            token,
            lambda sequence, below: Text(
                sequence=sequence, token=token, below=below, priority=priority, sent_ms=sent_ms, text=text
            ),
        )

    async def send_notification(
        self,
        device_id: uuid.UUID,
        title: str,
        body: str = "",
        *,
        actions: Sequence[Choice] = (),
        priority: Priority = Priority.NORMAL,
    ) -> Receipt:
        """Send a notification. Returns and raises as `send_text`.

        :param title: 1 to 512 bytes of UTF-8.
        :param body: up to 8,192 bytes.
        :param actions: up to 8 things that the person there can choose from, each with an id of its own.
        """
        if not title:
            raise InvalidRequestError("A notification needs a title.")
        _check_length("title", title, MAX_TITLE_BYTES)
        _check_length("body", body, MAX_BODY_BYTES)
        wire_actions = _actions(actions)
        token, sent_ms = self._stamp()
        return await self._send(
            self._ctx.get_device(device_id),
            token,
            lambda sequence, below: Notification(
                sequence=sequence,
                token=token,
                below=below,
                priority=priority,
                sent_ms=sent_ms,
                title=title,
                body=body,
                actions=wire_actions,
            ),
        )

    async def send_data(
        self,
        device_id: uuid.UUID,
        protocol: str,
        payload: bytes,
        *,
        version: int = 1,
        metadata: Mapping[str, str] | None = None,
        priority: Priority = Priority.NORMAL,
        timeout_s: float = HANDLER_TIMEOUT_S,
    ) -> bytes | None:
        """Send bytes to a protocol's handler at the other side, at least once if this returns.

        :param payload: up to 256 KiB.
        :param metadata: up to 16 entries; keys of up to 64, values of up to 256 characters.
        :returns: what the handler answered; None for nothing.
        :raises ProtocolError: there is no such handler there, or it failed.
        :raises NetworkTimeoutError: it did not answer in time.
        :raises NetworkingError: else as `send_text`.
        """
        _check_protocol_name(protocol)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise InvalidRequestError(f"The data have {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} can be sent.")
        entries = dict(metadata or {})
        if len(entries) > 16 or any(not 0 < len(k) <= 64 or len(v) > 256 for k, v in entries.items()):
            raise InvalidRequestError("The metadata have too many entries, or too long ones.")
        if not 0 < version < 65536:
            raise InvalidRequestError("The version of a protocol is a number from 1 to 65535.")
        device = self._ctx.get_device(device_id)
        token, _ = self._stamp()
        ack = await self._courier.deliver(
            device,
            lambda sequence, below: Data(
                sequence=sequence,
                token=token,
                below=below,
                priority=priority,
                protocol=protocol,
                version=version,
                payload=bytes(payload),
                metadata=entries,
            ),
            timeout_s=timeout_s,
            inbox=False,
        )
        if ack.outcome is Outcome.NO_HANDLER:
            raise ProtocolError(f"Nothing at {device.name} takes data for {protocol}.")
        _check_outcome(device, ack)
        return ack.response

    async def ping(self, device_id: uuid.UUID, *, timeout_s: float = PING_TIMEOUT_S) -> float:
        """Measure the round trip to the other side's messaging plugin.

        :returns: seconds.
        :raises ConnectionFailedError: the device is away.
        :raises NetworkTimeoutError: no answer in time.
        """
        return await self._courier.ping(self._ctx.get_device(device_id), timeout_s=timeout_s)

    def _stamp(self) -> tuple[bytes, int]:
        return self._ctx.randomness.bytes(16), round(self._ctx.clock.now() * 1000)

    async def _send(
        self, device: RemoteDevice, token: bytes, make: Callable[[int, int], Text | Notification]
    ) -> Receipt:
        started = anyio.current_time()
        ack = await self._courier.deliver(device, make)
        _check_outcome(device, ack)
        return Receipt(
            id=uuid.UUID(bytes=token),
            device_id=device.device_id,
            device_name=device.name,
            delivered_at=self._ctx.clock.now(),
            rtt_s=anyio.current_time() - started,
        )

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
        kinds = (TextReceived.kind, NotificationReceived.kind)
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

    @contextmanager
    def on_data(self, protocol: str, handler: DataHandler) -> Iterator[None]:
        """Take the data that devices send to a protocol, for the length of the block.

        The handler's result is the response. A message whose connection broke can come again, with the same id. What
        the handler raises is not told to the sender, who learns only that it failed.

        :param protocol: lower-case letters, digits and hyphens.
        :raises ConflictError: somebody takes them already.
        """
        _check_protocol_name(protocol)
        if protocol in self._handlers:
            raise ConflictError(f"Data for {protocol} are taken by another plugin already.")
        self._handlers[protocol] = handler
        try:
            yield
        finally:
            del self._handlers[protocol]

    # What came in; called by the protocol handler

    def accept(self, device: RemoteDevice, message: Text | Notification) -> Delivery | Ack:
        """Take a message for the inbox; see `Inbox.accept`."""
        return self._inbox.accept(device, message)

    async def handle_data(self, device: RemoteDevice, data: Data) -> Ack:
        """Give data to their handler."""
        if device.trust is not Trust.TRUSTED:
            return Ack(sequence=data.sequence, outcome=Outcome.REFUSED)
        handler = self._handlers.get(data.protocol)
        if handler is None:
            return Ack(sequence=data.sequence, outcome=Outcome.NO_HANDLER)
        received = DataReceived(
            id=uuid.UUID(bytes=data.token),
            device=device,
            protocol=data.protocol,
            version=data.version,
            payload=data.payload,
            metadata=data.metadata,
        )
        try:
            with anyio.fail_after(HANDLER_TIMEOUT_S):
                response = await handler(received)
            if response is not None and len(response) > MAX_PAYLOAD_BYTES:
                raise NetworkingError(f"The response has {len(response)} bytes; at most {MAX_PAYLOAD_BYTES} can go.")
        except (NetworkingError, TimeoutError) as error:
            logger.warning("data for %s from %s failed: %s", data.protocol, device.device_id, error or "timed out")
            return Ack(sequence=data.sequence, outcome=Outcome.HANDLER_FAILED)
        except Exception:
            logger.exception("the handler of data for %s raised", data.protocol)
            return Ack(sequence=data.sequence, outcome=Outcome.HANDLER_FAILED)
        return Ack(
            sequence=data.sequence,
            outcome=Outcome.DELIVERED,
            response=None if response is None else bytes(response),
        )


def _check_length(what: str, text: str, max_bytes: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"The {what} is not valid Unicode.") from error
    if size > max_bytes:
        raise InvalidRequestError(f"The {what} has {size:,} bytes; at most {max_bytes:,} fit into one message.")


def _check_protocol_name(protocol: str) -> None:
    if len(protocol) > 64 or not _PROTOCOL_NAME.fullmatch(protocol):
        raise InvalidRequestError("A protocol's name is made of lower-case letters, digits and single hyphens.")


def _actions(actions: Sequence[Choice]) -> tuple[Action, ...]:
    if len(actions) > MAX_ACTIONS:
        raise InvalidRequestError(f"A notification has at most {MAX_ACTIONS} actions.")
    if len({action.id for action in actions}) < len(actions):
        raise InvalidRequestError("Two actions of the notification have the same id.")
    for action in actions:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", action.id):
            raise InvalidRequestError("An action's id is 1 to 64 letters, digits and the signs _ . -")
        if not 0 < len(action.label) <= 64:
            raise InvalidRequestError("An action's label has 1 to 64 characters.")
    return tuple(Action(id=action.id, label=action.label) for action in actions)


def _check_outcome(device: RemoteDevice, ack: Ack) -> None:
    match ack.outcome:
        case Outcome.DELIVERED | Outcome.DUPLICATE:
            return
        case Outcome.INBOX_FULL:
            raise RefusedError(f"The inbox of {device.name} is full of unread messages; it was not delivered.")
        case Outcome.BUSY:
            raise RefusedError(f"{device.name} has too much to do; the message was not delivered.")
        case Outcome.NOT_STORED:
            raise RefusedError(f"{device.name} could not store the message; it was not delivered.")
        case Outcome.HANDLER_FAILED:
            raise ProtocolError(f"{device.name} got the data, but what takes them there failed.")
        case Outcome.REFUSED:
            raise RefusedError(f"{device.name} does not trust this device enough for that.")
        case _:
            raise ProtocolError(f"{device.name} gave an answer that does not fit the message.")
