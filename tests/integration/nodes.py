"""Real nodes on loopback, in one process, and plugins for them to serve."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio

from sdnet_core import (
    NetworkingCore,
    PeerStream,
    PluginContext,
    ProtocolHandler,
    ProtocolSpec,
    RemoteDevice,
    hookimpl,
    load_config,
)
from sdnet_core.events import ConnectionEstablished, ConnectionLost, NetworkEvent


class EchoHandler(ProtocolHandler):
    """Answers with what it was asked."""

    protocol_name = "echo"

    def __init__(self) -> None:
        self.responses: list[bytes] = []
        self.answered = anyio.Event()
        self.events: list[str] = []

    async def handle_request(self, device: RemoteDevice, data: bytes) -> bytes:
        return data

    async def handle_response(self, device: RemoteDevice, data: bytes) -> None:
        self.responses.append(data)
        self.answered.set()

    async def handle_event(self, event: NetworkEvent) -> None:
        assert isinstance(event, ConnectionEstablished | ConnectionLost)
        self.events.append(event.kind)


class RaisingHandler(ProtocolHandler):
    """Raises at once."""

    protocol_name = "raising"

    async def handle_stream(self, stream: PeerStream) -> None:
        raise ZeroDivisionError("a bug in a plugin")


class WaitingHandler(ProtocolHandler):
    """Never ends by itself, and tells when it is made to."""

    protocol_name = "waiting"

    def __init__(self) -> None:
        self.running = 0
        self.changed = anyio.Event()

    async def handle_stream(self, stream: PeerStream) -> None:
        self._count(1)
        try:
            await anyio.sleep_forever()
        finally:
            self._count(-1)

    def _count(self, by: int) -> None:
        self.running += by
        self.changed.set()
        self.changed = anyio.Event()

    async def wait_for(self, running: int) -> None:
        """Wait until so many are running."""
        with anyio.fail_after(5):
            while self.running != running:
                await self.changed.wait()


class SamplePlugin:
    """Serves all of them."""

    name = "sample"

    def __init__(self, *, waiting_idle_timeout_s: float = 120.0) -> None:
        self.echo, self.raising, self.waiting = EchoHandler(), RaisingHandler(), WaitingHandler()
        self._waiting_idle_timeout_s = waiting_idle_timeout_s

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        return [
            ProtocolSpec(protocol_name="echo", version=1, handler=self.echo),
            ProtocolSpec(protocol_name="raising", version=1, handler=self.raising),
            ProtocolSpec(
                protocol_name="waiting",
                version=1,
                handler=self.waiting,
                max_streams_per_peer=8,
                idle_timeout_s=self._waiting_idle_timeout_s,
            ),
        ]


def real_node(home: Path, name: str, plugins: list[Any], **settings: str) -> NetworkingCore:
    """A node on libp2p and mDNS, both on loopback only."""
    environ = {
        "SDNET_HOME": str(home),
        "SDNET_NODE_NAME": name,
        "SDNET_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0",
        "SDNET_DISCOVERY_MDNS_INTERFACES": "127.0.0.1",
        "SDNET_CONNECTIONS_RECONNECT_MIN_S": "0.1",
        **settings,
    }
    return NetworkingCore(load_config(name, environ=environ), plugins=plugins)
