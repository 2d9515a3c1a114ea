"""What a protocol plugin implements, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import ClassVar

import anyio

from ..devices.delivery import Delivery, DeliveryOutcome, InboundMessage
from ..devices.trust import Access, RemoteDevice
from ..errors import ProtocolError
from ..events import NetworkEvent
from ..session import SealedStream
from ..swarm.abc import SwarmStream
from ..wire import MessageStream

__all__ = ["Access", "Capability", "PeerStream", "ProtocolHandler", "ProtocolSpec", "RemoteDevice"]


class Capability(StrEnum):
    """A privilege that a plugin declares in its `ProtocolSpec`; the context refuses what was not declared."""

    STRANGERS = "talk-to-strangers"
    """Serve or open protocols to peers that are not paired."""
    PAIR = "add-trusted-devices"
    """Store devices as paired."""
    ADVERTISE = "advertise"
    """Announce tags in discovery and look for peers there."""


class PeerStream(SwarmStream):
    """A stream as handlers get it: sealed end to end for a paired device, Noise only for a stranger.

    A byte stream like :class:`~sdnet_core.swarm.abc.SwarmStream`. Sealed streams move whole *records* of up to 1 MiB;
    `send_record`, `receive_record` and `receive_record_into` give access to them without cutting or joining.

    :ivar device: the paired device at the other end, None for a stranger (then only ``peer_id`` is known).
    """

    def __init__(self, inner: SwarmStream | SealedStream, device: RemoteDevice | None) -> None:
        self._inner = inner
        self.device = device
        self._idle: tuple[anyio.CancelScope, float] | None = None
        self._on_request: Callable[[int], None] | None = None

    @contextmanager
    def idle_limit(self, timeout_s: float) -> Iterator[anyio.CancelScope]:
        """A cancel scope that is cancelled when nothing has moved on this stream for so long."""
        with anyio.move_on_after(timeout_s) as scope:
            self._idle = scope, timeout_s
            try:
                yield scope
            finally:
                self._idle = None

    def _moved(self) -> None:
        if self._idle is not None:
            scope, timeout_s = self._idle
            scope.deadline = anyio.current_time() + timeout_s

    @property
    def peer_id(self) -> str:
        return self._inner.peer_id

    @property
    def protocol(self) -> str:
        return self._inner.protocol

    @property
    def generation(self) -> int:
        return self._inner.generation

    @property
    def draining(self) -> bool:
        """Whether the session has newer keys, so that a long-lived stream is to end soon and be opened anew."""
        return isinstance(self._inner, SealedStream) and self._inner.draining

    @property
    def sealed(self) -> bool:
        """Whether it is encrypted end to end beyond Noise."""
        return isinstance(self._inner, SealedStream)

    def require_device(self) -> RemoteDevice:
        """The paired device at the other end.

        :raises ProtocolError: it is a stranger.
        """
        if self.device is None:
            raise ProtocolError("Only a paired device may do this.")
        return self.device

    def messages(self, *, max_bytes: int = 1 << 20) -> MessageStream:
        """Read and write whole messages on this stream.

        :param max_bytes: longest message accepted.
        """
        return MessageStream(self, max_bytes=max_bytes)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._inner.receive(max_bytes)
        self._moved()
        return data

    async def send(self, item: bytes) -> None:
        await self._inner.send(item)
        self._moved()

    async def send_record(self, data: bytes | bytearray | memoryview) -> None:
        """Send up to 1 MiB as one record. On a stranger's stream: as bytes."""
        if isinstance(self._inner, SealedStream):
            await self._inner.send_record(data)
        else:
            await self._inner.send(bytes(data))
        self._moved()

    async def receive_record(self) -> bytes:
        """Receive one whole record. On a stranger's stream: what bytes have come.

        :raises anyio.EndOfStream: the other side ended the stream in order.
        """
        inner = self._inner
        data = await inner.receive_record() if isinstance(inner, SealedStream) else await inner.receive()
        self._moved()
        return data

    async def receive_record_into(self, buffer: memoryview) -> int:
        """Receive one whole record into a buffer, without allocating anything for it.

        :param buffer: of bytes, 1 MiB long.
        :returns: how many bytes the record has; what is beyond them is undefined.
        :raises anyio.EndOfStream: the other side ended the stream in order.
        """
        inner = self._inner
        if isinstance(inner, SealedStream):
            size = await inner.receive_record_into(buffer)
        else:
            data = await inner.receive(len(buffer))
            size = len(data)
            buffer[:size] = data
        self._moved()
        return size

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def reset(self) -> None:
        await self._inner.reset()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What was broken off must not look complete to the other side.
        await (self.aclose() if exc_type is None else self.reset())


class ProtocolHandler:
    """Serves one protocol. Implement `handle_request` for request and answer, or `handle_stream` for anything else."""

    protocol_name: ClassVar[str]
    """As in ``/sdnet/<protocol_name>/<version>``: lower-case letters, digits, hyphens."""

    async def handle_request(self, device: RemoteDevice, data: bytes) -> bytes:
        """Answer one request.

        :param data: at most the protocol's ``max_message_bytes``.
        :raises NetworkingError: the stream is reset; the other side sees a failed request, not the text.
        """
        raise ProtocolError(f"{self.protocol_name} takes no requests.")

    async def handle_message(self, device: RemoteDevice, message: InboundMessage) -> bytes | None:
        """Do the work of one message that the device sent with ``send_message``; calls `handle_request` by default.

        Messages of one priority come in the order in which they were sent, each at least once: after a lost
        connection or a crash the same message can come again, with the same id. Work that is done in
        ``ctx.transaction`` is done exactly once.

        :returns: the answer for the sender's `handle_delivery`; None or empty for none.
        :raises TryLaterError: not now; it comes again later, and so does what was sent after it.
        :raises StorageError: the same.
        :raises NetworkingError: it failed for good; the sender learns that, not the text.
        """
        return await self.handle_request(device, message.data)

    async def handle_messages(self, device: RemoteDevice, messages: Sequence[InboundMessage]) -> Sequence[bytes | None]:
        """Do the work of up to `message_batch` messages at once, in order. What it raises holds for all of them.

        :returns: an answer, or None, for each.
        """
        return [await self.handle_message(device, message) for message in messages]

    async def handle_delivery(self, device: RemoteDevice, delivery: Delivery) -> None:
        """Hear what became of a message that we sent with ``send_message``.

        By default the answer to one that was delivered goes to `handle_response`. If this node is killed meanwhile,
        it may be told again, or not at all.
        """
        if delivery.outcome is DeliveryOutcome.DELIVERED:
            await self.handle_response(device, delivery.response)

    async def handle_response(self, device: RemoteDevice, data: bytes) -> None:
        """Take the answer to a message sent with ``send_message``, which does not wait for it."""

    async def handle_stream(self, stream: PeerStream) -> None:
        """Serve one inbound stream until it ends.

        The default answers each request that comes with `handle_request`. The stream is closed when this returns and
        reset when it raises; it is cancelled when the connection is lost or the device revoked.
        """
        device = stream.require_device()
        messages = stream.messages(max_bytes=self.max_message_bytes)
        while (request := await messages.receive_bytes_or_end()) is not None:
            answer = await self.handle_request(device, request)
            if stream._on_request is not None:
                stream._on_request(len(request))
            await messages.send_bytes(answer)

    async def handle_event(self, event: NetworkEvent) -> None:
        """Hear of connections to devices established and lost, in order."""

    max_message_bytes: int = 1 << 20
    """Set from the `ProtocolSpec` when the protocol is registered."""
    message_batch: ClassVar[int] = 1
    """How many messages `handle_messages` takes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolSpec:
    """One protocol that a plugin serves, returned from ``sdnet_protocols``.

    Example::

        @hookimpl
        def sdnet_protocols(self, ctx):
            return [ProtocolSpec(protocol_name="echo", version=1, handler=EchoHandler())]

    :param version: major version; part of the protocol id.
    :param access: the least trust needed to open it.
    :param sensitive: a person approves each stream of a device whose trust is only "verified". For finer questions a
        handler asks itself, with `PluginContext.approve`.
    :param max_message_bytes: longest single message.
    :param max_streams: inbound streams of this protocol open at once, from all peers together.
    :param max_streams_per_peer: the same from one peer.
    :param max_streams_per_s: how often one peer may open this protocol; more are refused.
    :param idle_timeout_s: a stream in which nothing moved in either direction for so long is reset.
    :param deadline_s: longest life of one inbound stream; None for as long as it moves.
    :param capabilities: what the plugin needs beyond plain messaging; shown by ``sdnet plugins``.
    """

    protocol_name: str
    version: int
    handler: ProtocolHandler
    access: Access = Access.TRUSTED
    sensitive: bool = False
    max_message_bytes: int = 1 << 20
    max_streams: int = 256
    max_streams_per_peer: int = 32
    max_streams_per_s: float = 1000.0
    idle_timeout_s: float = 120.0
    deadline_s: float | None = None
    capabilities: frozenset[Capability] = field(default_factory=frozenset)

    @property
    def protocol_id(self) -> str:
        """The libp2p protocol id, ``/sdnet/<protocol_name>/<version>``."""
        return f"/sdnet/{self.protocol_name}/{self.version}"
