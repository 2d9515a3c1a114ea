"""A QUIC client that sends what it likes, on aioquic as it comes and a UDP socket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from sdnet_core.swarm.libp2p import Libp2pSwarm

# isort: split
from aioquic.quic import events
from aioquic.quic.connection import QuicConnection
from libp2p.crypto.ed25519 import create_new_key_pair

from sdnet_core.swarm.quic.core import make_configuration
from sdnet_core.swarm.quic.identity import Credentials, make_credentials

__all__ = ["HostileClient", "hostile_client", "port_of"]


def port_of(swarm: Libp2pSwarm) -> int:
    """The UDP port that a swarm listens on."""
    return int(next(address.split("/")[4] for address in swarm.addresses if "/udp/" in address))


class HostileClient:
    """One connection. Its windows and limits are those that it makes up itself.

    :ivar ended: set when the other side has ended the connection.
    :ivar sent_bytes: what has gone out in all.
    :ivar received_bytes: what has come in.
    """

    def __init__(self, quic: QuicConnection, sock: trio.socket.SocketType) -> None:
        self.quic = quic
        self.sock = sock
        self.connected = trio.Event()
        self.ended = trio.Event()
        self.reason = ""
        self.error_code: int | None = None
        self.sent_bytes = self.received_bytes = 0
        self.on_event: Callable[[Any], None] = lambda event: None

    async def flush(self) -> None:
        """Send what is to be sent now."""
        for data, _ in self.quic.datagrams_to_send(trio.current_time()):
            try:
                await self.sock.send(data)
                self.sent_bytes += len(data)
            except OSError:
                pass

    async def run(self) -> None:
        """Keep the connection going until it ends."""
        while not self.ended.is_set():
            await self.flush()
            timer = self.quic.get_timer()
            data = b""
            with trio.move_on_at(float("inf") if timer is None else timer):
                try:
                    data = await self.sock.recv(65536)
                except OSError:
                    await trio.sleep(0.01)
            now = trio.current_time()
            if data:
                self.received_bytes += len(data)
                self.quic.receive_datagram(data, "peer", now)
            elif timer is not None and now >= timer:
                self.quic.handle_timer(now)
            if self.quic._close_event is not None:
                self.reason, self.error_code = self.quic._close_event.reason_phrase, self.quic._close_event.error_code
                self.ended.set()
            while (event := self.quic.next_event()) is not None:
                self.on_event(event)
                if isinstance(event, events.HandshakeCompleted):
                    self.connected.set()

    def boast(self) -> None:
        """Believe that the other side takes any number of streams and bytes."""
        self.quic._remote_max_streams_bidi = 1 << 30
        self.quic._remote_max_data = 1 << 50
        self.quic._remote_max_stream_data_bidi_remote = 1 << 50
        for stream in self.quic._streams.values():
            stream.max_stream_data_remote = 1 << 50
        self.quic._unblock_streams(is_unidirectional=False)


@asynccontextmanager
async def hostile_client(
    swarm: Libp2pSwarm, credentials: Credentials | None = None, *, prepare: Callable[[Any], None] = lambda tls: None
) -> AsyncIterator[HostileClient]:
    """Begin a connection, and keep it going for the length of the block.

    :param credentials: the certificate that it shows; an honest one of a new key by default.
    :param prepare: is given the TLS part before the handshake.
    """
    credentials = credentials or make_credentials(create_new_key_pair(os.urandom(32)).private_key)
    quic = QuicConnection(configuration=make_configuration(credentials, is_client=True))
    initialize = quic._initialize

    def begin(peer_cid: bytes) -> None:
        initialize(peer_cid)
        prepare(quic.tls)

    quic._initialize = begin  # type: ignore[method-assign]
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(("127.0.0.1", port_of(swarm)))
        client = HostileClient(quic, sock)
        quic.connect("peer", trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            yield client
            nursery.cancel_scope.cancel()
