"""Stock py-libp2p, in a process that contains nothing of this project's.

Its host is made by its own ``new_host`` with Noise and Yamux. What is set differs from the defaults only so that it
meets no limit and dials and prunes nothing in the background. The variant ``tuned`` is the fastest that was found
without changing the library: writes that fit one Noise message each, and its own environment settings for windows. The
variant ``quic`` has the library's QUIC as its only transport.
"""

from __future__ import annotations

from benchmarks.stacks import fastecdsa_stand_in as fastecdsa_stand_in

# isort: split
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.rcmgr import ResourceLimits, ResourceManager
from libp2p.rcmgr.connection_limits import ConnectionLimits
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from benchmarks.stacks import Handler, Stack, Stream, Where

__all__ = ["make"]

_MANY = 100_000
_NOISE_PLAINTEXT_BYTES = 65_519
_YAMUX_HEADER_BYTES = 12


def _bind(stream: INetStream) -> Stream:
    return Stream(stream.write, stream.read, stream.close)


class StockStack(Stack):
    """py-libp2p's host.

    :param tuned: whether to make it as fast as it can be.
    :param quic: whether to use QUIC.
    """

    ends = (StreamError,)

    def __init__(self, tuned: bool, quic: bool) -> None:
        self._address = "/ip4/127.0.0.1/udp/{}/quic-v1" if quic else "/ip4/127.0.0.1/tcp/{}"
        if tuned:
            # A longer write is cut into frames of which each takes two Noise messages.
            self.chunk_bytes = _NOISE_PLAINTEXT_BYTES - _YAMUX_HEADER_BYTES
            # Fewer window updates, and windows that grow at once.
            os.environ["PY_YAMUX_RELEASE_ON_READ"] = "0"
            os.environ["PY_YAMUX_ASSUME_RTT_MS"] = "100"
        keys = create_new_key_pair()
        self._host = new_host(
            key_pair=keys,
            enable_quic=quic,
            sec_opt={NOISE: NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)},
            connection_config=ConnectionConfig(
                max_connections=_MANY,
                high_watermark=_MANY,
                min_connections=0,
                low_watermark=0,
                max_connections_per_peer=_MANY,
            ),
            resource_manager=ResourceManager(
                limits=ResourceLimits(max_connections=_MANY, max_streams=_MANY, max_memory_mb=_MANY),
                connection_limits=ConnectionLimits(),
                enable_rate_limiting=False,
            ),
        )
        self._remote: ID | None = None

    @asynccontextmanager
    async def run(self, *, listening: bool) -> AsyncIterator[None]:
        addresses = [Multiaddr(self._address.format(0))] if listening else []
        async with self._host.run(addresses):
            yield

    def where(self) -> Where:
        port = str(self._host.get_addrs()[0]).split("/")[4]
        return Where(port=int(port), peer_id=str(self._host.get_id()))

    def serve(self, protocol: str, handler: Handler) -> None:
        async def handle(stream: INetStream) -> None:
            try:
                await handler(_bind(stream))
                await stream.close()
            except self.ends:
                await stream.reset()

        self._host.set_stream_handler(TProtocol(protocol), handle)

    async def connect(self, where: Where) -> None:
        remote = ID.from_base58(where.peer_id)
        await self._host.connect(PeerInfo(remote, [Multiaddr(self._address.format(where.port))]))
        self._remote = remote

    async def connect_directly(self, where: Where) -> None:
        remote = ID.from_base58(where.peer_id)
        await self._host.get_network().dial_addr(Multiaddr(self._address.format(where.port)), remote)
        self._remote = remote

    async def disconnect(self) -> None:
        if self._remote is not None:
            await self._host.disconnect(self._remote)

    async def open(self, protocol: str) -> Stream:
        assert self._remote is not None
        return _bind(await self._host.new_stream(self._remote, [TProtocol(protocol)]))

    def connection_count(self) -> int:
        return len(self._host.get_network().connections)


def make(variant: str) -> Stack:
    """Make a node, tuned if the variant is ``tuned``, on QUIC if it is ``quic``."""
    return StockStack(variant == "tuned", variant == "quic")
