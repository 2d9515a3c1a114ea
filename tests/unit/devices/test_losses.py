"""Two devices are connected again after every kind of loss, whoever of the two it befell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup

from sdnet_core import NetworkingCore, PluginContext, ProtocolHandler, ProtocolSpec, RemoteDevice, hookimpl
from sdnet_core.devices.records import ConnectionConfig
from sdnet_core.devices.registry import Connected
from sdnet_core.events import ConnectionFailed
from sdnet_core.session import PROTOCOL_ID, Session
from sdnet_core.swarm.abc import AddressesChanged, SwarmStream
from sdnet_core.swarm.memory import MemorySwarm
from sdnet_core.testing import MemoryNetwork, memory_node, pair, record_events, run_in_virtual_time, run_inline
from sdnet_core.testing.nodes import MemoryDiscovery
from sdnet_core.testing.simulation.node import SeededRandomness, SimulatedClock

SETTINGS = {"connections": {"reconnect_min_s": 0.5, "reconnect_max_s": 60.0}}
AWAY_S = 600.0


class _Echo(ProtocolHandler):
    protocol_name = "echo"

    async def handle_request(self, device: RemoteDevice, data: bytes) -> bytes:
        return data


class EchoPlugin:
    name = "echo"

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> list[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="echo", version=1, handler=_Echo())]


class Two:
    """Two paired devices, each a process of its own as far as the other one can tell."""

    def __init__(self, home: Path, tasks: TaskGroup) -> None:
        self.network, self.discovery = MemoryNetwork(), MemoryDiscovery()
        self.clocks = {name: SimulatedClock() for name in "ab"}
        self._home, self._tasks = home, tasks
        self._nodes: dict[str, NetworkingCore] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._ended: dict[str, anyio.Event] = {}
        self._randomness = {name: SeededRandomness(name) for name in "ab"}

    @property
    def a(self) -> NetworkingCore:
        return self._nodes["a"]

    @property
    def b(self) -> NetworkingCore:
        return self._nodes["b"]

    async def start(self, name: str) -> None:
        ready, scope, ended = anyio.Event(), anyio.CancelScope(), anyio.Event()
        self._scopes[name], self._ended[name] = scope, ended

        async def live() -> None:
            with scope:
                async with memory_node(
                    self._home,
                    name,
                    network=self.network,
                    discovery=self.discovery,
                    plugins=[EchoPlugin],
                    settings=SETTINGS,
                    clock=self.clocks[name],
                    randomness=self._randomness[name],
                    runner=run_inline,
                ) as self._nodes[name]:
                    ready.set()
                    await anyio.sleep_forever()
            ended.set()

        self._tasks.start_soon(live)
        await ready.wait()

    async def stop(self, name: str) -> None:
        self._scopes[name].cancel()
        await self._ended[name].wait()

    async def crash(self, name: str, *, silent: bool) -> None:
        """End it so that nothing of how it ends reaches the other one."""
        peer_id = self._nodes[name].identity.peer_id
        self.network.crash(peer_id, silent=silent)
        self.discovery.forget(peer_id)
        await self.stop(name)

    def cut(self, *, silent: bool) -> None:
        self.network.cut(self.a.identity.peer_id, self.b.identity.peer_id, silent=silent)

    def heal(self) -> None:
        self.network.heal(self.a.identity.peer_id, self.b.identity.peer_id)

    def session(self, name: str = "a") -> Session | None:
        node, other = (self.a, self.b) if name == "a" else (self.b, self.a)
        state = node._registry.get(other.device_info.id)
        return state.live.session if isinstance(state, Connected) else None

    @property
    def connected(self) -> bool:
        """Whether both are, and in the same session."""
        one, other = self.session("a"), self.session("b")
        return one is not None and other is not None and one.keys.epoch_id == other.keys.epoch_id


async def until(condition: Callable[[], bool], *, within_s: float) -> float:
    """Wait until something holds; gives how long it took, in seconds."""
    began = anyio.current_time()
    with anyio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - virtual time costs nothing
            await anyio.sleep(0.05)
    return anyio.current_time() - began


async def cable_unplugged(two: Two) -> None:
    two.cut(silent=False)
    await anyio.sleep(AWAY_S)
    two.heal()


async def packets_dropped(two: Two) -> None:
    two.cut(silent=True)
    await anyio.sleep(AWAY_S)
    two.heal()


async def peer_crashed(two: Two) -> None:
    await two.crash("b", silent=False)
    await anyio.sleep(AWAY_S)
    await two.start("b")


async def peer_without_power(two: Two) -> None:
    await two.crash("b", silent=True)
    await anyio.sleep(AWAY_S)
    await two.start("b")


async def peer_back_before_it_was_missed(two: Two) -> None:
    await two.crash("b", silent=True)
    await two.start("b")


async def peer_restarted(two: Two) -> None:
    await two.stop("b")
    await anyio.sleep(AWAY_S)
    await two.start("b")


async def restarted_ourselves(two: Two) -> None:
    await two.stop("a")
    await anyio.sleep(AWAY_S)
    await two.start("a")


async def crashed_ourselves(two: Two) -> None:
    await two.crash("a", silent=True)
    await two.start("a")


async def slept(two: Two) -> None:
    two.cut(silent=True)  # for the one that is awake, which has the time to notice
    await anyio.sleep(AWAY_S)
    two.clocks["a"].slept_s += AWAY_S
    two.heal()


async def slept_longer_than_keys_live(two: Two) -> None:
    two.cut(silent=True)
    await anyio.sleep(AWAY_S)
    two.clocks["a"].slept_s += 25 * 3600
    two.heal()


async def other_address(two: Two) -> None:
    """The device that is dialled moves; the other one learns of its new address only by discovery."""
    await two.b.configure_connection(two.a.device_info.id, ConnectionConfig(), auto_connect=False)
    swarm = two.b._swarm
    assert isinstance(swarm, MemorySwarm)
    (old,) = swarm.addresses
    del two.network.listeners[old]
    swarm._addresses = ()
    two.cut(silent=False)
    two.heal()
    await anyio.sleep(AWAY_S)
    assert not two.connected
    await swarm.listen(["/memory/0"])
    assert swarm.addresses != (old,)
    swarm._events.put(AddressesChanged(swarm.addresses))


async def handshake_fails(two: Two, answer: Callable[[SwarmStream], Awaitable[None]]) -> None:
    """The connection breaks, and for a while no handshake comes to its end, whoever begins it."""
    swarms = two.a._swarm, two.b._swarm
    kept = [swarm._handlers[PROTOCOL_ID] for swarm in swarms]  # type: ignore[attr-defined]
    for swarm in swarms:
        swarm.set_stream_handler(PROTOCOL_ID, answer)
    async with record_events(two.a) as events:
        two.cut(silent=False)
        two.heal()
        await anyio.sleep(AWAY_S)
        assert len(events.of(ConnectionFailed)) > 5
    for swarm, handler in zip(swarms, kept, strict=True):
        swarm.set_stream_handler(PROTOCOL_ID, handler)


async def handshake_broken_off(two: Two) -> None:
    await handshake_fails(two, SwarmStream.reset)


async def handshake_answered_with_nonsense(two: Two) -> None:
    async def nonsense(stream: SwarmStream) -> None:
        await stream.receive()
        await stream.send(bytes(500))

    await handshake_fails(two, nonsense)


async def handshake_not_answered(two: Two) -> None:
    async def silence(stream: SwarmStream) -> None:
        await anyio.sleep_forever()

    await handshake_fails(two, silence)


async def link_too_slow_for_a_handshake(two: Two) -> None:
    link = two.network.link(two.a.identity.peer_id, two.b.identity.peer_id)
    link.delay_s = 30.0
    two.cut(silent=False)
    two.heal()
    await anyio.sleep(AWAY_S)
    assert not two.connected
    link.delay_s = 0.0


async def broken_protocol(two: Two) -> None:
    session = two.session()
    assert session is not None
    await session.control_stream.send_record(b"nonsense")


LOSSES: list[Callable[[Two], Awaitable[None]]] = [
    cable_unplugged,
    packets_dropped,
    peer_crashed,
    peer_without_power,
    peer_back_before_it_was_missed,
    peer_restarted,
    restarted_ourselves,
    crashed_ourselves,
    slept,
    slept_longer_than_keys_live,
    other_address,
    handshake_broken_off,
    handshake_answered_with_nonsense,
    handshake_not_answered,
    link_too_slow_for_a_handshake,
    broken_protocol,
]


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_a_lost_connection_is_made_again(tmp_path: Path, lose: Callable[[Two], Awaitable[None]]) -> None:
    async def test() -> None:
        async with anyio.create_task_group() as tasks:
            two = Two(tmp_path, tasks)
            await two.start("a")
            await two.start("b")
            await pair(two.a, two.b, SeededRandomness("pair"))
            await until(lambda: two.connected, within_s=10)
            await anyio.sleep(60)
            before = two.session()
            assert before is not None
            await lose(two)
            await until(lambda: two.connected and two.session() is not before, within_s=60)
            for node, other in ((two.a, two.b), (two.b, two.a)):
                assert await node.request(other.device_info.id, "echo", b"there") == b"there"
            # And it stays.
            after = two.session()
            await anyio.sleep(AWAY_S)
            assert two.connected
            assert two.session() is after
            tasks.cancel_scope.cancel()

    run_in_virtual_time(test)
