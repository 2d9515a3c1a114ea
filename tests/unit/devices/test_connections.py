"""How paired devices are kept connected: states, pauses, the pool, sleep, settings of one device."""

from __future__ import annotations

import gc
import resource
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import msgspec
import pytest

from sdnet_core import ApiRequest, NetworkingCore
from sdnet_core.clock import SystemRandomness
from sdnet_core.commands import SwarmHappened
from sdnet_core.daemon.trust_routes import TrustRoutes
from sdnet_core.devices.connection import transport_of
from sdnet_core.devices.records import ConnectionConfig
from sdnet_core.devices.registry import Disconnected
from sdnet_core.errors import InvalidRequestError
from sdnet_core.events import ConnectionFailed, ConnectionLost, ConnectionStateChanged, DeviceConfirmed
from sdnet_core.identity import NetworkIdentity
from sdnet_core.swarm.abc import AddressesChanged
from sdnet_core.testing import (
    LinkedNodes,
    MemoryNetwork,
    VirtualClock,
    linked_nodes,
    memory_node,
    pair,
    record_events,
    run_in_virtual_time,
    run_inline,
)
from sdnet_core.testing.nodes import MemoryDiscovery

DEFAULTS = {"connections": {"reconnect_min_s": 0.5, "reconnect_max_s": 60.0}}


class SleepyClock(VirtualClock):
    """A clock of a machine that can sleep."""

    slept_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.slept_s


def in_virtual_time(
    test: Callable[[LinkedNodes], Awaitable[None]],
    count: int = 2,
    clock: VirtualClock | None = None,
    **connections: float,
) -> None:
    """Run a test with linked nodes and the default connection settings, but for those given."""

    async def run() -> None:
        settings = {"connections": {**DEFAULTS["connections"], **connections}}
        async with linked_nodes(
            count, settings=settings, clock=clock or VirtualClock(), runner=run_inline, paired=count == 2
        ) as nodes:
            await test(nodes)

    run_in_virtual_time(run)


async def until(condition: Callable[[], bool], *, within_s: float) -> float:
    """Wait until something holds; gives how long it took, in seconds."""
    began = anyio.current_time()
    with anyio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - virtual time costs nothing
            await anyio.sleep(0.1)
    return anyio.current_time() - began


def connected(node: NetworkingCore) -> list[str]:
    return [device.name for device in node.get_connected_devices()]


def test_a_silent_cut_is_noticed_within_100_s_and_a_healed_network_within_10_s() -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await anyio.sleep(60)
        nodes.cut(a, b, silent=True)
        took = await until(lambda: not connected(a) and not connected(b), within_s=100)
        assert took > 60
        await anyio.sleep(3600)
        nodes.heal(a, b)
        await until(lambda: bool(connected(a) and connected(b)), within_s=10)

    in_virtual_time(test)


def test_states_are_told_and_described() -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await anyio.sleep(10)
        described = a.describe_device(b.device_info.id)
        assert described["connection_state"] == "connected"
        assert described["connection"]["transport"] == "memory"
        assert described["connection"]["latency_s"] is not None
        async with record_events(a) as events:
            nodes.cut(a, b)
            await events.wait_for(ConnectionFailed, timeout_s=5)
            described = a.describe_device(b.device_info.id)
            assert described["connection_state"] == "failed"
            assert described["attempts"] == 1
            assert 0 < described["next_attempt_in_s"] < 1
            nodes.heal(a, b)
            await until(lambda: bool(connected(a)), within_s=10)
            states = [event.state for event in events.of(ConnectionStateChanged)]
        assert states[:3] == ["disconnected", "reconnecting", "failed"]
        assert states[-1] == "connected"

    in_virtual_time(test)


def test_pauses_grow_up_to_a_cap_and_a_sighting_ends_one() -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await a.configure_connection(b.device_info.id, ConnectionConfig(reconnect_max_s=40.0))
        await anyio.sleep(10)
        async with record_events(a) as events:
            nodes.cut(a, b)
            await anyio.sleep(300)
            pauses = [event.retry_in_s for event in events.of(ConnectionFailed)]
            assert pauses[0] is not None
            assert pauses[0] < 1
            assert [p for p in pauses if p is not None and p > 50] == []
            assert [p for p in pauses[-2:] if p is not None and p < 30] == []
            for happens in (
                lambda: a._connections.sighted(b.identity.peer_id),
                lambda: a._connections.look_around("another network"),
            ):
                before = len(events.of(ConnectionFailed))
                happens()
                await until(lambda before=before: len(events.of(ConnectionFailed)) > before, within_s=1)  # type: ignore[misc]
                again = events.of(ConnectionFailed)[before].retry_in_s
                assert again is not None
                assert again < 1  # it begins short again
                await anyio.sleep(100)
            nodes.heal(a, b)
            a._connections.sighted(b.identity.peer_id)
            await until(lambda: bool(connected(a)), within_s=0.5)

    in_virtual_time(test)


def test_another_network_ends_a_pause() -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await a.configure_connection(b.device_info.id, ConnectionConfig(reconnect_max_s=600.0))
        await b.configure_connection(a.device_info.id, ConnectionConfig(), auto_connect=False)
        await anyio.sleep(10)
        nodes.cut(a, b)
        await anyio.sleep(3600)
        assert connected(a) == []
        nodes.heal(a, b)
        await a._commands.call(SwarmHappened(AddressesChanged((*a.addresses, "/memory/99"))))
        await until(lambda: bool(connected(a)), within_s=1)

    in_virtual_time(test)


def test_a_device_that_is_gone_keeps_its_reason_and_its_addresses() -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await anyio.sleep(10)
        addresses = a.describe_device(b.device_info.id)["known_addresses"]
        assert addresses
        async with record_events(a) as events:
            await b._farewell()
            lost = await events.wait_for(ConnectionLost, timeout_s=15)
        assert lost.reason == "the other device stopped"
        state = a._registry.get(b.device_info.id)
        assert isinstance(state, Disconnected)
        assert state.reason == lost.reason
        shown = a.describe_device(b.device_info.id)
        assert (shown["known_addresses"], shown["trust"]) == (addresses, "trusted")
        assert (await a.device_history(b.device_info.id))["entries"][0]["reason"] == lost.reason

    in_virtual_time(test)


def test_after_sleep_devices_are_asked_for_a_sign_at_once() -> None:
    clock = SleepyClock()

    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await anyio.sleep(12)
        nodes.cut(a, b, silent=True)
        clock.slept_s += 60  # too short for anything else to be noticed
        async with record_events(a) as events:
            lost = await events.wait_for(ConnectionLost, timeout_s=15)
        assert "silent" in lost.reason

    in_virtual_time(test, clock=clock)


def test_the_keepalive_of_one_side_may_be_shorter() -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await a.configure_connection(b.device_info.id, ConnectionConfig(keepalive_interval_s=2.0, keepalive_misses=2))
        nodes.cut(a, b)
        await until(lambda: not connected(a), within_s=1)
        nodes.heal(a, b)
        await until(lambda: bool(connected(a) and connected(b)), within_s=10)
        async with record_events(a) as events:
            await anyio.sleep(600)
            assert events.of(ConnectionLost) == ()
            nodes.cut(a, b, silent=True)
            await events.wait_for(ConnectionLost, timeout_s=5)

    in_virtual_time(test)


def test_a_device_that_does_not_connect_by_itself_does_when_it_is_needed(tmp_path: Path) -> None:
    async def test() -> None:
        network, discovery, clock = MemoryNetwork(), MemoryDiscovery(), VirtualClock()

        def node(name: str) -> NetworkingCore:
            return memory_node(
                tmp_path, name, network=network, discovery=discovery, settings=DEFAULTS, clock=clock, runner=run_inline
            )

        chosen = ConnectionConfig(transports=("memory",), addresses=("/memory/99",), reconnect_max_s=5.0)
        async with node("b") as b:
            async with node("a") as a:
                await pair(a, b, SystemRandomness())
                await a.configure_connection(b.device_info.id, chosen, auto_connect=False)
                await b.configure_connection(a.device_info.id, ConnectionConfig(), auto_connect=False)
            async with node("a") as a:
                described = a.describe_device(b.device_info.id)
                assert described["auto_connect"] is False
                assert described["connection_config"] == msgspec.structs.asdict(chosen)
                await anyio.sleep(600)
                assert connected(a) == []
                assert a.describe_device(b.device_info.id)["connection_state"] == "disconnected"
                await a.connect(b.device_info.id)
                assert connected(a) == ["b"]

    run_in_virtual_time(test)


def test_a_pairing_that_is_confirmed_in_two_ways_at_once_is_told_once() -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b, _ = nodes
        await a.add_paired_device(b.device_info, pairing_id=uuid.uuid4(), pairing_root=bytes(range(32)), pending=True)
        device = a._registry.get(b.device_info.id).device
        async with record_events(a) as events:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a._connections.confirm, device)
                tasks.start_soon(a._connections.confirm, device)
            assert len(events.of(DeviceConfirmed)) == 1
        assert not a._registry.get(b.device_info.id).device.pending

    in_virtual_time(test, count=3)


def test_a_person_chooses_how_a_device_is_connected() -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        body = {"auto_connect": False, "addresses": ["/memory/7"], "keepalive_interval_s": 5}
        request = ApiRequest(path={"ref": b.device_info.name}, body=body)
        described = await TrustRoutes(a).connection(request)
        assert described["auto_connect"] is False
        assert described["connection_config"]["addresses"] == ("/memory/7",)
        assert described["connection_config"]["keepalive_interval_s"] == 5
        with pytest.raises(InvalidRequestError):
            await TrustRoutes(a).connection(ApiRequest(path=request.path, body={"keepalive_misses": 0}))

    in_virtual_time(test)


def test_the_least_useful_connection_makes_room_and_is_not_made_again_at_once() -> None:
    async def test(nodes: LinkedNodes) -> None:
        hub, *others = nodes
        for other in others:
            await pair(hub, other, SystemRandomness())
        assert len(connected(hub)) == 2
        await anyio.sleep(60)
        assert len(connected(hub)) == 2
        gone = next(node for node in others if node.device_info.name not in connected(hub))
        kept = [node for node in others if node is not gone]
        # One of the two has messages waiting, so that it is the other one that goes.
        await hub.send_message(kept[0].device_info.id, "unheard-of", b"waits")
        await anyio.sleep(1)
        async with record_events(hub) as events:
            await hub.connect(gone.device_info.id)
            lost = await events.wait_for(ConnectionLost)
            assert lost.reason == "it made room for another device"
            assert gone.device_info.name in connected(hub)
            assert len(connected(hub)) == 2
            await anyio.sleep(120)
            assert [event.device_name for event in events.of(ConnectionLost)] == [kept[1].device_info.name]

    in_virtual_time(test, count=4, max_connections=2)


def test_a_new_address_is_tried_while_the_old_one_does_not_answer() -> None:
    async def test(nodes: LinkedNodes) -> None:
        a, b = nodes
        await anyio.sleep(10)
        nodes.cut(a, b, silent=True)
        await until(lambda: not connected(a), within_s=100)
        supervisor = a._connections._supervisors[b.device_info.id]
        await until(lambda: supervisor._dial is not None, within_s=60)
        tried = supervisor._trying
        nodes.discovery._announce(b.identity.peer_id, _announcement("/memory/77"))
        await until(lambda: "/memory/77" in supervisor._trying, within_s=1)
        assert "/memory/77" not in tried

    in_virtual_time(test)


def _announcement(address: str) -> object:
    from sdnet_core.discovery.candidates import Announcement

    return Announcement(addresses=(address,), tags=frozenset())


@pytest.mark.parametrize(
    ("address", "transport"),
    [
        ("/ip4/192.0.2.1/tcp/4001", "tcp"),
        ("/ip4/192.0.2.1/udp/4001/quic-v1", "quic"),
        ("/ip4/192.0.2.1/tcp/4001/ws", "ws"),
        (None, ""),
    ],
)
def test_transports_are_named(address: str | None, transport: str) -> None:
    assert transport_of(address) == transport


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_500_paired_devices_cost_little() -> None:
    async def test() -> None:
        network, discovery, clock = MemoryNetwork(), MemoryDiscovery(), VirtualClock()
        randomness = SystemRandomness()
        gc.collect()
        before_bytes = resident_bytes()

        def node() -> NetworkingCore:
            return memory_node(
                home, "hub", network=network, discovery=discovery, settings=DEFAULTS, clock=clock, runner=run_inline
            )

        async with node() as hub:
            for number in range(500):
                identity = NetworkIdentity.generate(randomness)
                info = identity.device_info(uuid.uuid4(), f"device {number}", "0.1")
                await hub.add_paired_device(
                    info, pairing_id=uuid.uuid4(), pairing_root=randomness.bytes(32), addresses=("/memory/900",)
                )
        began = time.perf_counter()
        async with node() as hub:
            took_s = time.perf_counter() - began
            await anyio.sleep(30)
            assert len(hub.remote_devices()) == 500
            each_bytes = (resident_bytes() - before_bytes) / 500
        assert took_s < 3, f"{took_s:.1f} s"
        assert each_bytes < 1_000_000, f"{each_bytes:,.0f} bytes for each device"

    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        home = Path(folder)
        run_in_virtual_time(test)
