"""Brings messages to devices: a link to each, sequence numbers, repetitions when connections break."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from sdnet_core import PeerStream, PluginContext, RemoteDevice
from sdnet_core.errors import (
    ConnectionFailedError,
    NetworkingError,
    NetworkTimeoutError,
    NotRunningError,
    ProtocolError,
    RefusedError,
)

from .inbox import Inbox
from .link import Link, LinkBrokenError
from .machine import SendSequence, WindowFullError
from .messages import MAX_SEQUENCE, Ack, Data, Notification, Outcome, Text
from .settings import MessagingSettings

__all__ = ["Courier"]

PROTOCOL_NAME = "messaging"
FIRST_PAUSE_S = 0.02
ATTEMPTS = 5
"""How often a message is sent, with the same id, while connections break: when two devices find each other again, both
dial, and the first connections may not be the ones that stay."""
MAX_LATE = 2
"""How often of these it is sent into silence."""

MakeMessage = Callable[[int, int], Data | Text | Notification]
"""Makes a message from its sequence number and the limit below which nothing will be sent again."""


@dataclass(slots=True, eq=False)
class _Opening:
    done: anyio.Event = field(default_factory=anyio.Event)
    error: NetworkingError | None = None


class Courier:
    """The sending side of messaging.

    :param inbox: whose file also keeps our sequence numbers.
    """

    def __init__(self, ctx: PluginContext, inbox: Inbox, settings: MessagingSettings) -> None:
        self._ctx = ctx
        self._inbox = inbox
        self._settings = settings
        self._tasks: TaskGroup | None = None
        self._links: dict[uuid.UUID, Link] = {}
        self._openings: dict[uuid.UUID, _Opening] = {}
        self._sequences: dict[uuid.UUID, SendSequence] = {}

    def start(self, tasks: TaskGroup) -> None:
        """From now on links can be opened; they live in ``tasks``."""
        self._tasks = tasks

    def stop(self) -> None:
        """No more links."""
        self._tasks = None

    async def deliver(
        self, device: RemoteDevice, make: MakeMessage, *, timeout_s: float | None = None, inbox: bool = True
    ) -> Ack:
        """Send a message until the other side has settled it.

        :param timeout_s: for its acknowledgement; one that is late is an error, not a broken link. None for a message
            that is acknowledged at once.
        :param inbox: whether it is kept apart from its repetitions, and so holds up the limit while it is unsettled.
        :raises ConnectionFailedError: the device is away, or connections to it keep breaking.
        :raises NetworkTimeoutError: no acknowledgement in time.
        :raises ProtocolError: it has no such plugin, or breaks the protocol.
        :raises RefusedError: too many messages are under way to it.
        """
        sequences = self._sequences_of(device)
        for _ in range(2):
            sequence = await self._take(device, sequences)
            if not inbox:
                sequences.settle(sequence)
            try:
                ack = await self._attempt(device, make, sequence, sequences, timeout_s)
            finally:
                sequences.settle(sequence)
            if ack.outcome is not Outcome.STALE:
                return ack
            # The other side remembers messages of ours that we know nothing of: our data were restored from a backup.
            if ack.next_sequence is None or not sequence < ack.next_sequence < MAX_SEQUENCE:
                break
            sequences.skip_to(ack.next_sequence)
        raise ProtocolError(f"{device.name} finds no sequence number of ours good.")

    async def ping(self, device: RemoteDevice, *, timeout_s: float) -> float:
        """Measure the round trip to the device's messaging, seconds. Errors as `deliver`."""
        for _ in range(ATTEMPTS):
            try:
                link = await self._link(device)
                return await link.ping(timeout_s=timeout_s)
            except LinkBrokenError:
                continue
            except TimeoutError:
                raise NetworkTimeoutError(f"{device.name} did not answer within {timeout_s:g} s.") from None
        raise ConnectionFailedError(f"The connection to {device.name} broke.")

    async def _attempt(
        self,
        device: RemoteDevice,
        make: MakeMessage,
        sequence: int,
        sequences: SendSequence,
        timeout_s: float | None,
    ) -> Ack:
        sent = False
        late = 0
        for attempt in range(ATTEMPTS):
            if attempt > 1:
                await anyio.sleep(FIRST_PAUSE_S * 2**attempt)
            try:
                link = await self._link(device)
            except (ConnectionFailedError, NetworkTimeoutError) as error:
                if sent:
                    break
                raise ConnectionFailedError(f"{device.name} is not connected; the message was not sent.") from error
            try:
                message = make(sequence, min(sequence, sequences.below))
                sent = True
                return await link.deliver(message, timeout_s=timeout_s or self._settings.ack_timeout_s)
            except LinkBrokenError:
                continue
            except TimeoutError:
                if timeout_s is not None:
                    raise NetworkTimeoutError(f"{device.name} did not answer within {timeout_s:g} s.") from None
                # An inbox answers at once: whatever we wait for, it does not come on this link.
                link.cut()
                late += 1
                if late == MAX_LATE:
                    break
        raise ConnectionFailedError(f"The connection to {device.name} broke; whether the message arrived is not known.")

    def _sequences_of(self, device: RemoteDevice) -> SendSequence:
        sequences = self._sequences.get(device.pairing_id)
        if sequences is None:
            sequences = self._inbox.send_sequence(device.pairing_id.bytes)
            self._sequences[device.pairing_id] = sequences
        return sequences

    async def _take(self, device: RemoteDevice, sequences: SendSequence) -> int:
        while (reserved := sequences.reservation_needed) is not None:
            await self._inbox.reserve(device.pairing_id.bytes, reserved)
            sequences.reserved_up_to(reserved)
        try:
            return sequences.take()
        except WindowFullError:
            raise RefusedError(f"Too many messages to {device.name} are under way; try again later.") from None

    async def _link(self, device: RemoteDevice) -> Link:
        """The link to a device, opened if there is none."""
        while True:
            link = self._links.get(device.device_id)
            if link is not None and not link.broken:
                return link
            opening = self._openings.get(device.device_id)
            if opening is None:
                return await self._open(device)
            await opening.done.wait()
            if opening.error is not None:
                raise opening.error

    async def _open(self, device: RemoteDevice) -> Link:
        opening = self._openings[device.device_id] = _Opening()
        try:
            stream = await self._open_stream(device)
            if self._tasks is None:
                await stream.reset()
                raise NotRunningError("Messaging is not running.")
            link = self._links[device.device_id] = Link(stream, idle_s=self._settings.idle_s)
            self._tasks.start_soon(self._run, device.device_id, link)
            return link
        except NetworkingError as error:
            opening.error = error
            raise
        finally:
            del self._openings[device.device_id]
            opening.done.set()

    async def _open_stream(self, device: RemoteDevice) -> PeerStream:
        """Open a stream, again while there is time: a connection that has just broken may be there a moment longer."""
        deadline = anyio.current_time() + self._settings.connect_timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            left_s = deadline - anyio.current_time()
            try:
                return await self._ctx.open_stream(device.device_id, PROTOCOL_NAME, timeout_s=left_s)
            except ConnectionFailedError:
                if anyio.current_time() + pause_s >= deadline:
                    raise
            await anyio.sleep(pause_s)
            pause_s *= 2

    async def _run(self, device_id: uuid.UUID, link: Link) -> None:
        try:
            await link.run()
        finally:
            if self._links.get(device_id) is link:
                del self._links[device_id]
