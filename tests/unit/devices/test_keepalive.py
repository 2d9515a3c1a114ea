"""Keepalives in virtual time, at the default settings: as many as silence needs, none where there is traffic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio
import pytest

from sdnet_core import (
    NetworkingCore,
    PeerStream,
    PluginContext,
    ProtocolHandler,
    ProtocolSpec,
    RemoteDevice,
    hookimpl,
)
from sdnet_core.devices.watch import PING_INTERVALS
from sdnet_core.events import ConnectionLost
from sdnet_core.session import ControlChannel
from sdnet_core.session.control import ControlSettings, Keepalive, Ping
from sdnet_core.testing import LinkedNodes, VirtualClock, linked_nodes, record_events, run_in_virtual_time, run_inline

HOUR_S = 3600.0
INTERVAL_S = 30.0


class _Sink(ProtocolHandler):
    """Answers requests, and reads streams without a word."""

    protocol_name = "sink"

    async def handle_request(self, device: RemoteDevice, data: bytes) -> bytes:
        return b"taken"


class _Drain(ProtocolHandler):
    protocol_name = "drain"

    async def handle_stream(self, stream: PeerStream) -> None:
        while True:
            await stream.receive_record()


class SinkPlugin:
    name = "sink"

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        return [
            ProtocolSpec(protocol_name="sink", version=1, handler=_Sink()),
            ProtocolSpec(protocol_name="drain", version=1, handler=_Drain()),
        ]


class Said:
    """What control channels have sent, by node."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[tuple[str, type]] = Counter()
        send = ControlChannel._send

        def counted(channel: ControlChannel, message: Any, **options: Any) -> None:
            self.counts[channel._session.local_peer_id, type(message)] += 1
            send(channel, message, **options)

        monkeypatch.setattr(ControlChannel, "_send", counted)

    def by(self, node: NetworkingCore, kind: type) -> int:
        return self.counts[node.identity.peer_id, kind]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    return Said(monkeypatch)


def with_two_nodes(test: Callable[[LinkedNodes], Awaitable[None]]) -> None:
    async def run() -> None:
        async with linked_nodes(2, plugins=[SinkPlugin], clock=VirtualClock(), runner=run_inline) as nodes:
            assert nodes[0].config.connections.keepalive_interval_s == INTERVAL_S
            assert nodes[0].config.connections.keepalive_misses == 3
            await test(nodes)

    run_in_virtual_time(run)


def test_a_quiet_connection_costs_a_word_every_thirty_seconds(said: Said) -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await anyio.sleep(1)
        said.counts.clear()
        before = a.describe_device(b.device_info.id)["connection"]["bytes_sent"]
        async with record_events(a) as events:
            await anyio.sleep(HOUR_S)
            assert events.of(ConnectionLost) == ()
        pings = HOUR_S / (PING_INTERVALS * INTERVAL_S)
        for node in nodes:
            assert said.by(node, Ping) <= pings + 1
            words = sum(said.by(node, kind) for kind in {kind for _, kind in said.counts})
            assert HOUR_S / (INTERVAL_S * 1.1) - 1 <= words <= HOUR_S / (INTERVAL_S * 0.9) + 2 * pings + 2
        sent = a.describe_device(b.device_info.id)["connection"]["bytes_sent"] - before
        assert sent / HOUR_S * INTERVAL_S < 100  # the promised size, for what else is said too

    with_two_nodes(test)


def test_what_is_said_anyway_takes_the_place_of_keepalives(said: Said) -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        said.counts.clear()
        for _ in range(360):
            assert await a.request(b.device_info.id, "sink", b"x") == b"taken"
            await anyio.sleep(10)
        for node in nodes:
            assert said.by(node, Keepalive) == 0
            assert said.by(node, Ping) <= HOUR_S / (PING_INTERVALS * INTERVAL_S) + 1
        await anyio.sleep(10 * INTERVAL_S)
        assert min(said.by(node, Keepalive) for node in nodes) > 0  # and begins when it is quiet

    with_two_nodes(test)


def test_who_only_listens_goes_on_saying_that_it_is_there(said: Said) -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        said.counts.clear()
        async with record_events(a) as events, await a.open_stream(b.device_info.id, "drain") as stream:
            for _ in range(360):
                await stream.send_record(b"x")
                await anyio.sleep(10)
            assert events.of(ConnectionLost) == ()
        assert said.by(a, Keepalive) == 0
        assert said.by(b, Keepalive) > HOUR_S / INTERVAL_S / 2

    with_two_nodes(test)


@pytest.mark.parametrize("talking", [False, True])
@pytest.mark.parametrize("phase_s", [0.0, 8.0, 16.0, 24.0, 29.0])
def test_three_missed_are_noticed_within_a_hundred_seconds(phase_s: float, talking: bool) -> None:
    assert ControlSettings().stale_after_s <= 100

    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await anyio.sleep(240)
        if talking:
            stream = await a.open_stream(b.device_info.id, "drain")
            await stream.send_record(b"x")
        await anyio.sleep(phase_s)
        lost_at = {}

        async def lost(node: NetworkingCore) -> None:
            async with record_events(node) as events:
                await events.wait_for(ConnectionLost, timeout_s=200)
                lost_at[node] = anyio.current_time()

        async with anyio.create_task_group() as tasks:
            for node in nodes:
                tasks.start_soon(lost, node)
            await anyio.wait_all_tasks_blocked()
            began = anyio.current_time()
            nodes.cut(a, b, silent=True)
        for node in nodes:
            took_s = lost_at[node] - began
            assert 2 * INTERVAL_S < took_s <= 100

    with_two_nodes(test)
