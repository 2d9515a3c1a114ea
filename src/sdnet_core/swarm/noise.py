"""The security transport ``/noise`` for py-libp2p: lean, and safe to cancel.

It replaces the library's own (libp2p 0.8.1), which copies every byte several times, sends each message by itself, loses
its place when a write is cancelled, and takes the Noise key for the peer's identity. The bytes are made and taken apart
in ``noise_core.py`` and ``noise_handshake.py``; this module moves them.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Protocol

import trio
from anyio import ResourceGuard
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from libp2p.abc import IRawConnection, ISecureConn, ISecureTransport
from libp2p.connection_types import ConnectionType
from libp2p.crypto.keys import KeyPair, PrivateKey
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import ConnectionClosedError, DecryptionFailedException, IncompleteReadError, IOException
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.base_session import BaseSession
from libp2p.security.noise.exceptions import NoiseFailure
from multiaddr import Multiaddr

from ..ciphers import aes_is_faster
from .noise_core import MAX_PLAINTEXT_BYTES, PREFIX_BYTES, TAG_BYTES, NoiseError, Sealer, Sink
from .noise_handshake import Established, NoiseHandshake, make_payload
from .tcp import limit_unsent

__all__ = ["PROTOCOL_ID", "NoiseSession", "NoiseTransport"]

PROTOCOL_ID = TProtocol("/noise")

_HANDSHAKE_RECEIVE_BYTES = 8192
_BUFFER_BYTES = 16 * (PREFIX_BYTES + MAX_PLAINTEXT_BYTES + TAG_BYTES)
"""What is sealed and sent at a time: sixteen messages of the largest size."""
_RECEIVE_BYTES = _BUFFER_BYTES // 2
_SMALL_BYTES = 16 * 1024
_YIELD_BYTES = 256 * 1024
"""What a connection sends or receives without letting other tasks run."""
_YIELD_CALL_BYTES = 16 * 1024
"""What one call counts for at least."""
_MAX_SPARE_BUFFERS = 4
_DESCRIPTORS = os.name == "posix"
"""Whether sockets are read and written as files are."""


class _Wire(Protocol):
    """A raw connection, as far as a session needs it."""

    async def receive(self, max_bytes: int) -> bytes:
        """Receive some bytes; none at the end."""
        ...

    async def receive_at_once(self, buffer: memoryview) -> bytes | memoryview:
        """Receive some bytes, at most as many as the buffer has; none at the end.

        The buffer serves many connections: what it holds is to be used before anything is awaited.
        """
        ...

    async def send_some(self, data: memoryview) -> int:
        """Send at least one byte and return how many. Cancelling leaves it clear how many were sent."""
        ...

    def limit_unsent(self, max_bytes: int) -> None:
        """Have the system take no more than so many bytes that it cannot send yet, if it can be told."""
        ...


class _SocketWire:
    """A TCP connection, without the layers that py-libp2p has on it.

    The system is called without a round of the scheduler for each call. trio's own methods, which make one, serve where
    a socket is no file descriptor.
    """

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self._socket = socket
        self._unyielded = 0

    async def receive(self, max_bytes: int) -> bytes:
        try:
            return await self._socket.recv(max_bytes)
        except (OSError, trio.ClosedResourceError) as exc:
            return self._received_nothing(exc)

    async def receive_at_once(self, buffer: memoryview) -> bytes | memoryview:
        if not _DESCRIPTORS:
            return await self.receive(len(buffer))
        try:
            await self._yield()
            while True:
                try:
                    count = os.readv(self._socket.fileno(), [buffer])
                except BlockingIOError:
                    self._unyielded = 0
                    await trio.lowlevel.wait_readable(self._socket.fileno())
                else:
                    self._unyielded += max(count, _YIELD_CALL_BYTES)
                    return buffer[:count]
        except (OSError, trio.ClosedResourceError) as exc:
            return self._received_nothing(exc)

    def _received_nothing(self, exc: Exception) -> bytes:
        if not isinstance(exc, OSError) or self._socket.fileno() < 0:
            return b""
        raise ConnectionClosedError(f"The connection was lost: {exc.strerror}.", transport="tcp") from exc

    async def send_some(self, data: memoryview) -> int:
        try:
            if not _DESCRIPTORS:
                return await self._socket.send(data)
            await self._yield()
            while True:
                try:
                    sent = os.write(self._socket.fileno(), data)
                except BlockingIOError:
                    self._unyielded = 0
                    await trio.lowlevel.wait_writable(self._socket.fileno())
                else:
                    self._unyielded += max(sent, _YIELD_CALL_BYTES)
                    return sent
        except (OSError, trio.ClosedResourceError) as exc:
            raise ConnectionClosedError(f"The connection was lost: {exc}.", transport="tcp") from exc

    async def _yield(self) -> None:
        if self._unyielded >= _YIELD_BYTES:
            self._unyielded = 0
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    def limit_unsent(self, max_bytes: int) -> None:
        with suppress(OSError):  # closed, or no TCP
            limit_unsent(self._socket, max_bytes)


class _ConnectionWire:
    """Any other raw connection: nobody knows what a cancelled write has sent, so there is none after it."""

    def __init__(self, connection: IRawConnection) -> None:
        self._connection = connection
        self._torn = False

    async def receive(self, max_bytes: int) -> bytes:
        return await self._connection.read(max_bytes)

    async def receive_at_once(self, buffer: memoryview) -> bytes | memoryview:
        return await self.receive(len(buffer))

    async def send_some(self, data: memoryview) -> int:
        if self._torn:
            raise ConnectionClosedError("The connection broke off while something was sent.")
        self._torn = True
        # Not the view: the buffer is used again, and the connection may keep what it is given.
        await self._connection.write(bytes(data))
        self._torn = False
        return len(data)

    def limit_unsent(self, max_bytes: int) -> None:
        pass


def _wire(connection: IRawConnection) -> _Wire:
    # Exactly these classes: anything derived from them may do something of its own with the bytes.
    if type(connection) is RawConnection and type(connection.stream) is TrioTCPStream:
        stream = connection.stream.stream
        if type(stream) is trio.SocketStream:
            return _SocketWire(stream.socket)
    return _ConnectionWire(connection)


class _Buffers:
    """Buffers for all connections, so that idle ones hold none: lent for one write, and one to receive into."""

    def __init__(self) -> None:
        self._spare: list[memoryview] = []

    @cached_property
    def incoming(self) -> memoryview:
        """What has come in, until something is awaited."""
        return memoryview(bytearray(_RECEIVE_BYTES))

    def borrow(self, size: int) -> memoryview:
        if size <= _SMALL_BYTES:
            return memoryview(bytearray(size))
        return self._spare.pop() if self._spare else memoryview(bytearray(_BUFFER_BYTES))

    def give_back(self, buffer: memoryview) -> None:
        if len(buffer) == _BUFFER_BYTES and len(self._spare) < _MAX_SPARE_BUFFERS:
            self._spare.append(buffer)


class _Pending(deque[bytes | memoryview]):
    """Plaintexts that were received and not read."""

    def receive(self, data: bytes) -> None:
        self.append(data)

    def place(self, size: int) -> memoryview | None:
        return None

    def placed(self, size: int) -> None:
        raise AssertionError


class NoiseSession(BaseSession):
    """A secured connection. One task may read while another writes.

    :param agreed_muxer: the multiplexer that both sides have named in the handshake, if any.
    """

    def __init__(
        self,
        connection: IRawConnection,
        wire: _Wire,
        established: Established,
        *,
        local_peer: ID,
        local_private_key: PrivateKey,
        is_initiator: bool,
        buffers: _Buffers,
        agreed_muxer: str | None = None,
    ) -> None:
        super().__init__(
            local_peer=local_peer,
            local_private_key=local_private_key,
            remote_peer=established.remote.peer_id,
            remote_permanent_pubkey=established.remote.public_key,
            is_initiator=is_initiator,
        )
        self.conn = connection
        self.agreed_muxer = agreed_muxer
        self._wire = wire
        self._sealer = established.sealer
        self._opener = established.opener
        self._buffers = buffers
        self._reading = ResourceGuard("reading from")
        self._writing = ResourceGuard("writing to")
        self._pending = _Pending()
        self._buffer: memoryview | None = None
        self._unsent = memoryview(b"")
        self._closed = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``, in as few messages as possible; see :meth:`write_messages`."""
        view = memoryview(data)
        await self.write_messages(
            [view[at : at + MAX_PLAINTEXT_BYTES] for at in range(0, len(view), MAX_PLAINTEXT_BYTES)]
        )

    async def write_messages(self, plaintexts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send each plaintext as one Noise message, several with one call to the system.

        When cancelled, the messages that are sealed already are sent before those of the next call, and the others
        never: the channel stays in step.

        :param plaintexts: at most 65,519 bytes each; they are not used any more when this returns.
        :raises IOException: the connection is lost or closed.
        """
        with self._writing:
            if self._closed:
                raise ConnectionClosedError("The connection is closed.")
            if max(map(len, plaintexts), default=0) > MAX_PLAINTEXT_BYTES:
                raise ValueError("That does not fit one Noise message.")
            await self._flush()
            done = 0
            while done < len(plaintexts):
                size = Sealer.sealed_bytes(plaintexts[done:] if done else plaintexts)
                end = len(plaintexts)
                while size > _BUFFER_BYTES:
                    end -= 1
                    size -= Sealer.sealed_bytes(plaintexts[end : end + 1])
                self._seal(plaintexts[done:end], size)
                done = end
                await self._flush()

    def _seal(self, plaintexts: Sequence[bytes | bytearray | memoryview], size: int) -> None:
        self._buffer = self._buffers.borrow(size)
        try:
            self._unsent = self._buffer[: self._sealer.seal_into(plaintexts, self._buffer)]
        except NoiseError as exc:
            self._closed = True
            raise IOException(str(exc)) from exc

    async def _flush(self) -> None:
        """Send what is sealed."""
        while self._unsent:
            sent = await self._wire.send_some(self._unsent)
            self._unsent = self._unsent[sent:]
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None

    def limit_unsent(self, max_bytes: int) -> None:
        """Have the system take no more than so many bytes that it cannot send yet, if it can be told."""
        self._wire.limit_unsent(max_bytes)

    async def read(self, n: int | None = None) -> bytes:
        """Receive at least one and at most ``n`` bytes, from one message; none when the other side has closed.

        What has been received already is returned without letting other tasks run.

        :raises IOException: the connection is lost, or something came in that the other side has not sent.
        """
        if n == 0:
            return b""
        with self._reading:
            if not self._pending:
                try:
                    if not await self._receive(self._pending):
                        return b""
                except DecryptionFailedException:
                    if not self._pending:  # else it is the next call's
                        raise
            message = self._pending.popleft()
            if n is not None and 0 < n < len(message):
                view = memoryview(message)
                self._pending.appendleft(view[n:])
                message = view[:n]
            return bytes(message)

    async def deliver(self, sink: Sink) -> bool:
        """Hand over the plaintexts of all messages that one call to the system brings.

        :returns: whether there was any; there is none when the other side has closed.
        :raises IOException: as :meth:`read`.
        """
        with self._reading:
            if not self._pending:
                return await self._receive(sink)
            while self._pending:
                sink.receive(bytes(self._pending.popleft()))
            return True

    async def _receive(self, sink: Sink) -> bool:
        try:
            # What the handshake has read too many.
            received = self._opener.deliver(sink)
            while not received:
                data = await self._wire.receive_at_once(self._buffers.incoming)
                if not data:
                    if not self._opener.whole and not self._closed:
                        raise IncompleteReadError("The connection was closed in the middle of a message.")
                    return False
                received = self._opener.deliver(sink, data)
        except NoiseError as exc:
            raise DecryptionFailedException(str(exc)) from exc
        return True

    async def close(self) -> None:
        """Close the connection."""
        self._closed = True
        await self.conn.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """IP address and port of the peer, if known."""
        return self.conn.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The peer's address on this connection."""
        return self.conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Direct or relayed."""
        return self.conn.get_connection_type()


class NoiseTransport(ISecureTransport):
    """Makes secured connections of raw ones. Deadlines are the caller's, who also closes what failed.

    :param key_pair: our identity.
    :param static: our static Noise key; a new one when not given.
    :param make_ephemeral: makes the key of one handshake.
    :param aes: use AES-256-GCM after the handshake if the other side wants it too; None: if it is the faster here.
    :param stream_muxers: multiplexers, best first, that are used without further negotiation if the peer names one of
        them too (https://github.com/libp2p/specs/blob/master/connections/inlined-muxer-negotiation.md). Only for an
        upgrader that honours :attr:`NoiseSession.agreed_muxer`.
    """

    def __init__(
        self,
        key_pair: KeyPair,
        *,
        static: X25519PrivateKey | None = None,
        make_ephemeral: Callable[[], X25519PrivateKey] = X25519PrivateKey.generate,
        aes: bool | None = None,
        stream_muxers: Sequence[str] = (),
    ) -> None:
        self._private_key = key_pair.private_key
        self._local_peer = ID.from_pubkey(key_pair.public_key)
        self._static = static or X25519PrivateKey.generate()
        self._make_ephemeral = make_ephemeral
        self._stream_muxers = tuple(stream_muxers)
        self._payload = make_payload(
            self._private_key, self._static, self._stream_muxers, aes=aes_is_faster() if aes is None else aes
        )
        self._buffers = _Buffers()

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Secure a connection that the other side has opened.

        :raises NoiseFailure: the other side is not acceptable.
        :raises IOException: the connection was lost.
        """
        return await self._secure(conn, False, None)

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID | None) -> ISecureConn:
        """Secure a connection that we have opened.

        :param peer_id: who must be at the other end.
        :raises PeerIDMismatchesPubkey: somebody else is there.
        :raises NoiseFailure: the other side is not acceptable.
        :raises IOException: the connection was lost.
        """
        return await self._secure(conn, True, peer_id)

    async def _secure(self, conn: IRawConnection, initiator: bool, expected_peer: ID | None) -> NoiseSession:
        handshake = NoiseHandshake(
            initiator=initiator,
            static=self._static,
            ephemeral=self._make_ephemeral(),
            payload=self._payload,
            expected_peer=expected_peer,
        )
        wire = _wire(conn)
        await _send_all(wire, handshake.start())
        while (established := handshake.established) is None:
            data = await wire.receive(_HANDSHAKE_RECEIVE_BYTES)
            if not data:
                raise NoiseFailure("The other side closed the connection during the handshake.")
            await _send_all(wire, handshake.receive(data))
        return NoiseSession(
            conn,
            wire,
            established,
            local_peer=self._local_peer,
            local_private_key=self._private_key,
            is_initiator=initiator,
            buffers=self._buffers,
            agreed_muxer=self._agree(initiator, established.remote.stream_muxers),
        )

    def _agree(self, initiator: bool, theirs: tuple[str, ...]) -> str | None:
        """The first of the initiator's multiplexers that the responder has too."""
        preferred, known = (self._stream_muxers, theirs) if initiator else (theirs, self._stream_muxers)
        return next((muxer for muxer in preferred if muxer in known), None)


async def _send_all(wire: _Wire, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await wire.send_some(view) :]
