"""Devices that find each other through nodes, on networks in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.discovery import meeting
from sdnet_core.discovery.candidates import CandidateStream, Discovery
from sdnet_core.discovery.dht import DhtDiscovery
from sdnet_core.discovery.dht_client import DhtClient
from sdnet_core.discovery.dht_messages import MAX_QUESTION_BYTES, PROTOCOL, AnyAnswer, AnyQuestion, Found, StoreRecord
from sdnet_core.discovery.dht_messages import Stored as StoredAnswer
from sdnet_core.discovery.dht_records import Record
from sdnet_core.discovery.dht_server import DhtServer
from sdnet_core.discovery.kademlia import Contact
from sdnet_core.discovery.points import MeetingPoint
from sdnet_core.discovery.search import Acquaintance, WayState
from sdnet_core.discovery.source import Candidate
from sdnet_core.identity import NetworkIdentity
from sdnet_core.swarm.abc import SwarmStream
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm
from sdnet_core.wire import MessageStream

pytestmark = pytest.mark.anyio
CLOCK, RANDOMNESS = SystemClock(), SystemRandomness()
SECRET = b"s" * 32


@dataclass
class PublicNode:
    swarm: MemorySwarm
    server: DhtServer
    scope: anyio.CancelScope

    @property
    def point(self) -> MeetingPoint:
        return MeetingPoint(self.swarm.peer_id, self.swarm.addresses)

    @property
    def contact(self) -> Contact:
        return Contact(self.swarm.peer_id, self.swarm.addresses)


class World:
    """A network with nodes and devices."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.stack = AsyncExitStack()

    async def swarm(self, seed: bytes | None = None) -> MemorySwarm:
        identity = NetworkIdentity.generate(RANDOMNESS) if seed is None else NetworkIdentity(seed)
        swarm = MemorySwarm(self.network, identity.peer_id)
        await self.stack.enter_async_context(swarm.run())
        await swarm.listen(["/memory/0"])
        return swarm

    async def node(self, *start: PublicNode) -> PublicNode:
        swarm = await self.swarm()
        client = DhtClient(swarm, CLOCK)
        server = DhtServer(
            swarm, CLOCK, client, announced=lambda: swarm.addresses, start=[node.contact for node in start]
        )
        return PublicNode(swarm, server, await self.background(server.run))

    async def background(self, function: Callable[[], object]) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        group = anyio.create_task_group()
        await self.stack.enter_async_context(group)

        async def run() -> None:
            with scope:
                await function()  # type: ignore[misc]

        self.stack.callback(scope.cancel)
        group.start_soon(run)
        return scope

    async def device(
        self,
        *points: MeetingPoint,
        swarm: MemorySwarm | None = None,
        acquaintances: Callable[[], Sequence[Acquaintance]] = lambda: (),
    ) -> tuple[Discovery, DhtDiscovery]:
        swarm = swarm or await self.swarm()
        source = DhtDiscovery(
            swarm, CLOCK, RANDOMNESS, points=lambda: points, acquaintances=acquaintances, networks=lambda: ()
        )
        discovery = Discovery([source], CLOCK, peer_id=swarm.peer_id, networks=lambda: ())
        await self.stack.enter_async_context(discovery.run())
        discovery.set_addresses(swarm.addresses)
        return discovery, source


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    with anyio.fail_after(60):
        async with made.stack:
            yield made


@asynccontextmanager
async def seeking(discovery: Discovery, secret: bytes = SECRET) -> AsyncIterator[CandidateStream]:
    async with discovery.subscribe(record=secret) as stream:
        yield stream


async def first(discovery: Discovery, secret: bytes = SECRET) -> Candidate:
    async with seeking(discovery, secret) as stream:
        return await stream.receive()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
        await anyio.sleep(0.01)


async def test_a_device_with_the_secret_is_found(world: World) -> None:
    node = await world.node()
    alice, source = await world.device(node.point)
    bob, _ = await world.device(node.point)
    alice.advertise(b"tag", record=SECRET)
    found = await first(bob)
    assert found.source == "dht"
    assert found.tags == {b"tag"}
    assert found.addresses
    assert bob.ways()[0].state is WayState.LOOKING
    assert source.meeting.reached == (node.swarm.peer_id,)


async def test_whoever_looks_first_finds_too(world: World) -> None:
    node = await world.node()
    alice, _ = await world.device(node.point)
    bob, _ = await world.device(node.point)
    async with seeking(bob) as stream:
        await until(lambda: node.server.counts["lookups"] > 0)
        alice.advertise(b"tag", record=SECRET)
        assert (await stream.receive()).tags == {b"tag"}


async def test_what_is_withdrawn_is_found_no_more(world: World) -> None:
    node = await world.node()
    alice, _ = await world.device(node.point)
    token = alice.advertise(b"tag", record=SECRET)
    await until(lambda: node.server.counts["stored"] == 1)
    alice.withdraw(token)
    await until(lambda: node.server.counts["stored"] == 2)
    bob, _ = await world.device(node.point)
    asked = node.server.counts["lookups"]
    async with seeking(bob) as stream:
        await until(lambda: node.server.counts["lookups"] >= asked + 2)
        with anyio.move_on_after(0.1):
            pytest.fail(f"found {await stream.receive()}")


async def test_acquaintances_find_each_other_as_long_as_they_are_wanted(world: World) -> None:
    node = await world.node()
    one, two = await world.swarm(), await world.swarm()
    wanted = [True]
    ours, theirs = b"a" * 32, b"b" * 32
    alice, _ = await world.device(
        node.point, swarm=one, acquaintances=lambda: [Acquaintance(two.peer_id, ours, theirs, wanted[0])]
    )
    bob, _ = await world.device(
        node.point, swarm=two, acquaintances=lambda: [Acquaintance(one.peer_id, theirs, ours, False)]
    )
    async with alice.subscribe() as stream:
        assert (await stream.receive()).peer_id == two.peer_id
    assert bob.known(one.peer_id) == ()


async def test_a_node_that_comes_back_empty_is_told_again(world: World) -> None:
    node = await world.node()
    alice, source = await world.device(node.point)
    bob, _ = await world.device(node.point)
    alice.advertise(b"tag", record=SECRET)
    await until(lambda: node.server.counts["stored"] == 1)
    node.scope.cancel()
    address = node.swarm.addresses[0]
    world.network.crash(node.swarm.peer_id)
    await until(lambda: not source.meeting.reached)
    assert alice.ways()[0].state is not WayState.LOOKING
    again = MemorySwarm(world.network, node.swarm.peer_id)
    await world.stack.enter_async_context(again.run())
    await again.listen([address])
    server = DhtServer(again, CLOCK, DhtClient(again, CLOCK), announced=lambda: again.addresses)
    await world.background(server.run)
    assert (await first(bob)).tags == {b"tag"}


async def test_without_a_meeting_point_nothing_is_tried(world: World) -> None:
    alice, _ = await world.device()
    await until(lambda: alice.ways()[0].state is WayState.OFF)


async def test_a_meeting_point_that_is_away_is_said_to_be(world: World) -> None:
    peer_id = NetworkIdentity.generate(RANDOMNESS).peer_id
    alice, _ = await world.device(MeetingPoint(peer_id, ("/memory/999",)))
    await until(lambda: alice.ways()[0].state is WayState.UNREACHABLE)
    assert "No meeting point answers" in alice.ways()[0].detail


async def test_devices_find_each_other_through_different_nodes(world: World) -> None:
    nodes = [await world.node()]
    for _ in range(11):
        nodes.append(await world.node(nodes[0]))
    await until(lambda: len(nodes[0].server.table) == 11)
    alice, _ = await world.device(nodes[3].point)
    bob, _ = await world.device(nodes[8].point)
    await until(lambda: len(nodes[3].server.table) > 0 and len(nodes[8].server.table) > 0)
    alice.advertise(b"tag", record=SECRET)
    assert (await first(bob)).tags == {b"tag"}


class Liar:
    """A node that lies: it answers with what the test has put into its hands."""

    def __init__(self, swarm: MemorySwarm) -> None:
        self.kept: list[Record] = []
        self.mode = "drop"
        self.asked = 0
        self._swarm = swarm
        swarm.set_stream_handler(PROTOCOL, self._serve)

    @property
    def point(self) -> MeetingPoint:
        return MeetingPoint(self._swarm.peer_id, self._swarm.addresses)

    async def _serve(self, stream: SwarmStream) -> None:
        if self.mode == "silent":
            await anyio.sleep_forever()
        messages = MessageStream(stream, max_bytes=MAX_QUESTION_BYTES)
        question: AnyQuestion = await messages.receive(AnyQuestion)
        await messages.send(self._answer(question))

    def _answer(self, question: AnyQuestion) -> AnyAnswer:
        self.asked += 1
        if isinstance(question, StoreRecord):
            self.kept.append(question.record)
            return StoredAnswer()
        record: Record | None = None
        match self.mode:
            case "stale" if self.kept:
                record = self.kept[0]
            case "swapped":
                record = next((r for r in reversed(self.kept) if r.key != getattr(question, "target", b"")), None)
            case "truncated" if self.kept:
                whole = self.kept[-1]
                record = Record(
                    public_key=whole.public_key,
                    sequence=whole.sequence + 1000,
                    expires_at=whole.expires_at,
                    value=whole.value[:-7],
                    signature=whole.signature,
                )
        return Found(closer=(), record=record)


@pytest.mark.parametrize("mode", ["drop", "stale", "swapped", "truncated"])
async def test_a_lying_node_delays_and_no_more(world: World, mode: str) -> None:
    """With an honest node beside it everything is found; by itself it never makes anybody believe a thing."""
    liar = Liar(await world.swarm())
    liar.mode = mode
    honest = await world.node()
    alice, _ = await world.device(liar.point, honest.point)
    carol, _ = await world.device(liar.point)
    bob, _ = await world.device(liar.point, honest.point)
    carol.advertise(b"of carol", record=b"c" * 32)
    old = alice.advertise(b"old", record=SECRET)
    await until(lambda: honest.server.counts["stored"] >= 1 and len(liar.kept) >= 2)
    alice.advertise(b"new", record=SECRET)
    alice.withdraw(old)
    await until(lambda: honest.server.counts["stored"] >= 2)
    async with seeking(bob) as stream:
        found = await stream.receive()
        while found.tags != {b"new"}:
            assert found.tags <= {b"old", b"new"}
            found = await stream.receive()
    dave, _ = await world.device(liar.point)
    asked = liar.asked
    async with seeking(dave) as stream:
        await until(lambda: liar.asked >= asked + 3)
        with anyio.move_on_after(0.1):
            found = await stream.receive()
            assert mode == "stale"
            assert found.tags == {b"old"}


async def test_a_meeting_point_that_falls_silent_is_said_to_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "PATIENCE_S", 0.1)
    liar = Liar(await world.swarm())
    alice, source = await world.device(liar.point)
    await until(lambda: bool(source.meeting.reached))
    liar.mode = "silent"
    source.refresh()
    await until(lambda: alice.ways()[0].state is WayState.UNREACHABLE)
    assert "takes connections, but does not answer" in alice.ways()[0].detail


async def test_malformed_questions_are_refused(world: World) -> None:
    node = await world.node()
    swarm = await world.swarm()
    await swarm.dial(node.swarm.peer_id, node.swarm.addresses)
    for data in (b"", b"\xff" * 100, b"\xa1at\x18\x63"):
        stream = await swarm.open_stream(node.swarm.peer_id, [PROTOCOL])
        messages = MessageStream(stream, max_bytes=65536)
        await messages.send_bytes(data)
        await messages.receive(AnyAnswer)
        await stream.aclose()
    assert node.server.counts["refused-invalid"] == 3
