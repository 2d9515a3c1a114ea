"""Sessions of real nodes over real sockets: keys that change under traffic, and recordings that are played again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_core import InboundMessage, NetworkingCore, PluginContext, ProtocolHandler, ProtocolSpec, hookimpl
from sdnet_core.clock import SystemRandomness
from sdnet_core.devices.registry import Connected
from sdnet_core.errors import NetworkingError
from sdnet_core.events import ConnectionLost
from sdnet_core.session import Session, SessionLimits, connect
from sdnet_core.testing import pair, record_events
from tests.integration.nodes import real_node

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]

LIMITS = SessionLimits(lifetime_s=20.0, rotate_after_s=0.8, rotate_jitter_s=0.1, old_epoch_s=3.0)
"""Keys that live some thousand times shorter than in life."""
ROTATIONS = 4


class Counted(ProtocolHandler):
    """Keeps what messages come, and answers requests."""

    protocol_name = "counted"

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.requests: list[bytes] = []

    async def handle_message(self, device: Any, message: InboundMessage) -> None:
        self.messages.append(message.data)

    async def handle_request(self, device: Any, data: bytes) -> bytes:
        self.requests.append(data)
        return b"done"


class CountedPlugin:
    """Serves it."""

    name = "counted"

    def __init__(self) -> None:
        self.handler = Counted()

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="counted", version=1, handler=self.handler)]


@asynccontextmanager
async def two(home: Path) -> AsyncIterator[tuple[NetworkingCore, NetworkingCore, Counted]]:
    """Two paired nodes, and what the second one was sent."""
    plugins = [CountedPlugin(), CountedPlugin()]
    async with real_node(home, "a", [plugins[0]]) as a, real_node(home, "b", [plugins[1]]) as b:
        await pair(a, b, SystemRandomness())
        await a.connect(b.device_info.id)
        yield a, b, plugins[1].handler


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await anyio.sleep(0.01)


def session_of(node: NetworkingCore, other: NetworkingCore) -> Session:
    state = node._registry.get(other.device_info.id)
    assert isinstance(state, Connected)
    return state.live.session


async def test_keys_change_under_traffic_and_no_message_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "SessionLimits", lambda: LIMITS)
    sent: list[bytes] = []
    with anyio.fail_after(120):
        async with two(tmp_path) as (a, b, counted), record_events(a) as events:
            first = session_of(a, b)
            epochs = {first.keys.epoch_id: first.epoch}
            while first.rotations < ROTATIONS:
                sent.append(b"%d" % len(sent))
                await a.send_message(b.device_info.id, "counted", sent[-1])
                assert await a.request(b.device_info.id, "counted", sent[-1]) == b"done"
                epochs.setdefault(first.keys.epoch_id, first.epoch)
            await until(lambda: len(counted.messages) == len(sent))
            assert counted.messages == counted.requests == sent
            assert session_of(a, b) is first, "the session itself went on"
            assert not [event for event in events.events if isinstance(event, ConnectionLost)]
            assert len(epochs) >= ROTATIONS
            gone = next(iter(epochs.values()))
            await until(lambda: gone.over)
            with pytest.raises(NetworkingError, match="expired"):
                gone.take_number()
            for session in (session_of(a, b), session_of(b, a)):
                assert not session.has_epoch(gone.keys.epoch_id)
                assert gone.keys.epoch_id != session.keys.epoch_id


async def test_a_recording_of_a_stream_played_again_is_refused(tmp_path: Path) -> None:
    async with two(tmp_path) as (a, b, counted):
        recorded: list[bytes] = []
        open_stream = a._swarm.open_stream

        async def recording(*args: Any, **options: Any) -> Any:
            stream = await open_stream(*args, **options)
            send = stream.send

            async def record(item: bytes) -> None:
                recorded.append(bytes(item))
                await send(item)

            stream.send = record  # type: ignore[method-assign]
            return stream

        a._swarm.open_stream = recording  # type: ignore[method-assign]
        assert await a.request(b.device_info.id, "counted", b"pay 100") == b"done"
        a._swarm.open_stream = open_stream  # type: ignore[method-assign]
        assert recorded
        for _ in range(3):
            again = await open_stream(b.identity.peer_id, ["/sdnet/counted/1"])
            await again.send(b"".join(recorded))
            with anyio.fail_after(30), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await again.receive()
        assert counted.requests == [b"pay 100"]
        assert await a.request(b.device_info.id, "counted", b"and 5") == b"done"  # the session goes on
