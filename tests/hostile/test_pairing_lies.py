"""A pairing between whole nodes while discovery lies, and while somebody changes what is said on the way."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from sdnet_core import Candidate, NetworkingCore, PeerStream, load_config
from sdnet_core.discovery.source import CandidateSink, DiscoverySource
from sdnet_core.errors import ConflictError
from sdnet_core.swarm.abc import SwarmStream
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm
from sdnet_core.testing import MemoryDiscovery, linked_nodes
from sdnet_pairing import PairingLimits, PairingService, PairingStatus, SessionState
from sdnet_pairing import plugin as real

pytestmark = pytest.mark.anyio

LONG = bool(os.environ.get("SDNET_LONG_TESTS"))
DEADLINE_S = 60.0


class PairingPlugin(real.PairingPlugin):
    """The plugin with short waits."""

    limits = PairingLimits(step_timeout_s=0.5, search_timeout_s=60.0, retry_pause_s=0.02, expiry_check_s=0.02)


def pairing(node: NetworkingCore) -> PairingService:
    return node.get_service(PairingService)


async def ended(service: PairingService, status: PairingStatus) -> PairingStatus:
    with anyio.fail_after(DEADLINE_S):
        async for now in service.watch(str(status.id)):
            if now.state.ended:
                return now
    raise AssertionError("the session was lost")


# Lies about who is where


Lie = Callable[[Candidate, Candidate], Iterable[Candidate | None]]
"""Given the truth about the device that shows the code, and about the attacker: what is told, before the truth."""


def _tags(candidate: Candidate, *tags: bytes) -> Candidate:
    return Candidate(candidate.peer_id, candidate.addresses, "liar", frozenset(tags))


def _at(candidate: Candidate, addresses: Sequence[str]) -> Candidate:
    return Candidate(candidate.peer_id, tuple(addresses), "liar", candidate.tags)


LIES: dict[str, Lie] = {
    "drops it": lambda truth, evil: [None],
    "tells an old tag": lambda truth, evil: [_tags(truth, bytes(16), b"\1" * 16)],
    "tells a cut tag": lambda truth, evil: [_tags(truth, *(tag[:n] for tag in truth.tags for n in (1, 8, 15)))],
    "tells a longer tag": lambda truth, evil: [_tags(truth, *(tag + b"\0" for tag in truth.tags))],
    "tells an old address": lambda truth, evil: [_at(truth, ["/memory/99999"])],
    "tells no address": lambda truth, evil: [_at(truth, [])],
    "tells the attacker's address": lambda truth, evil: [_at(truth, evil.addresses)],
    "gives the attacker the tag": lambda truth, evil: [_tags(evil, *truth.tags)],
    "swaps the two": lambda truth, evil: [
        _tags(evil, *truth.tags),
        _tags(truth, *evil.tags),
        _at(evil, truth.addresses),
    ],
    "tells of a thousand others": lambda truth, evil: [
        Candidate(peer, evil.addresses, "liar", truth.tags) for peer in _peers(1000)
    ],
}


def _peers(count: int) -> list[str]:
    from sdnet_core import peer_id_from_public_key

    return [peer_id_from_public_key(number.to_bytes(32, "little")) for number in range(100, 100 + count)]


class Liar(DiscoverySource):
    """Tells what a test wants, and the truth in the end."""

    name: ClassVar[str] = "liar"

    def __init__(self) -> None:
        self.sink: CandidateSink | None = None

    async def run(self, sink: CandidateSink) -> None:
        self.sink = sink
        sink.ready()
        await anyio.sleep_forever()


@asynccontextmanager
async def three(home: Path) -> AsyncIterator[tuple[NetworkingCore, NetworkingCore, NetworkingCore, Liar]]:
    """The device that shows a code, the one that hears lies only, and the attacker, on one network."""
    network, discovery, liar = MemoryNetwork(), MemoryDiscovery(), Liar()

    def node(name: str, lied_to: bool = False) -> NetworkingCore:
        overrides = {"node": {"name": name, "listen": ("/memory/0",), "downloads": str(home / name)}}
        return NetworkingCore(
            load_config(name, environ={"SDNET_HOME": str(home)}, overrides=overrides),
            plugins=[PairingPlugin],
            swarm=lambda identity: MemorySwarm(network, identity.peer_id),
            sources=lambda identity: (liar if lied_to else discovery.source(identity.peer_id),),
        )

    async with node("shows") as shows, node("joins", lied_to=True) as joins, node("attacker") as attacker:
        yield shows, joins, attacker, liar


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_source_delays_but_never_mis_pairs(lie: str, tmp_path: Path) -> None:
    async with three(tmp_path) as (shows, joins, attacker, liar):
        shown = await pairing(shows).start_pairing_as_initiator(auto_accept=True)
        evil = await pairing(attacker).start_pairing_as_initiator(auto_accept=True)
        truth, other = (
            next(c for c in seer.discovery.peers() if c.peer_id == seen.identity.peer_id)
            for seer, seen in ((attacker, shows), (shows, attacker))
        )
        assert liar.sink is not None
        joining = await pairing(joins).start_pairing_as_joiner(shown.words)
        for told in LIES[lie](truth, other):
            if told is None:
                liar.sink.lost(truth.peer_id)
            else:
                liar.sink.found(told, fresh=True)
        with anyio.move_on_after(0.3):
            await ended(pairing(joins), joining)
        assert not joins.remote_devices() or joins.remote_devices()[0].peer_id == shows.identity.peer_id
        liar.sink.found(Candidate(truth.peer_id, truth.addresses, "liar", truth.tags), fresh=True)
        end = await ended(pairing(joins), joining)
        assert end.state is SessionState.COMPLETED, end
        assert [device.peer_id for device in joins.remote_devices()] == [shows.identity.peer_id]
        assert attacker.remote_devices() == ()
        assert pairing(attacker).get_session(str(evil.status.id)).state is SessionState.WAITING_FOR_CONNECTION


# Somebody in the middle


class Garbled(SwarmStream):
    """A stream on which one bit is turned over, in one direction.

    :param at: the bit of all that goes that way.
    """

    def __init__(self, inner: SwarmStream, outbound: bool, at: int) -> None:
        self._inner = inner
        self._outbound = outbound
        self._at = at
        self._passed = 0
        self.hit = False

    def _garble(self, data: bytes) -> bytes:
        place = self._at // 8 - self._passed
        self._passed += len(data)
        if not 0 <= place < len(data):
            return data
        self.hit = True
        return data[:place] + bytes([data[place] ^ 1 << self._at % 8]) + data[place + 1 :]

    @property
    def peer_id(self) -> str:
        return self._inner.peer_id

    @property
    def protocol(self) -> str:
        return self._inner.protocol

    @property
    def generation(self) -> int:
        return self._inner.generation

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._inner.receive(max_bytes)
        return data if self._outbound else self._garble(data)

    async def send(self, item: bytes) -> None:
        await self._inner.send(self._garble(item) if self._outbound else item)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def reset(self) -> None:
        await self._inner.reset()


async def _conversation_bytes(outbound: bool) -> int:
    """How much goes each way in a pairing."""
    total = 0

    class Counted(Garbled):
        def _garble(self, data: bytes) -> bytes:
            nonlocal total
            total += len(data)
            return data

    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        _intercept(b, lambda stream: Counted(stream, outbound, 0))
        shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
        await ended(pairing(b), await pairing(b).start_pairing_as_joiner(shown.words))
        await ended(pairing(a), shown.status)
    return total


def _intercept(node: NetworkingCore, wrap: Callable[[SwarmStream], SwarmStream]) -> None:
    opened = type(node).open_stranger_stream

    async def garbled(*args: Any, **kwargs: Any) -> PeerStream:
        return PeerStream(wrap(await opened(node, *args, **kwargs)), None)

    node.open_stranger_stream = garbled  # type: ignore[method-assign]


@pytest.mark.parametrize("outbound", [True, False], ids=["from the joiner", "from the initiator"])
async def test_a_bit_turned_over_in_any_frame_never_pairs_the_two_differently(outbound: bool) -> None:
    size = await _conversation_bytes(outbound)
    assert size > 400
    # A prime step walks through all frames and all bits of a byte; the long form takes a bit of every byte.
    step = 8 + 1 if LONG else 331
    async with linked_nodes(2, plugins=[PairingPlugin], paired=False) as (a, b):
        hits = 0
        for at in range(0, size * 8, step):
            streams: list[Garbled] = []

            def once(stream: SwarmStream, at: int = at, streams: list[Garbled] = streams) -> SwarmStream:
                streams.append(Garbled(stream, outbound, at if not streams else 1 << 60))
                return streams[-1]

            _intercept(b, once)
            shown = await pairing(a).start_pairing_as_initiator(auto_accept=True)
            joining = await pairing(b).start_pairing_as_joiner(shown.words, timeout_s=5)
            joined = await ended(pairing(b), joining)
            hits += streams[0].hit
            left = pairing(a).get_session(str(shown.status.id))
            if not left.state.ended and joined.state is not SessionState.COMPLETED:
                with contextlib.suppress(ConflictError):  # it is about to end by itself
                    pairing(a).cancel(str(shown.status.id))
            showed = await ended(pairing(a), shown.status)
            held = [
                {(state.device.pairing_id, state.device.pairing_root) for state in node._registry.devices()}
                for node in (a, b)
            ]
            # Whoever counts the pairing as final: the other one holds the very same.
            if joined.state is SessionState.COMPLETED:
                assert held[0] == held[1], at
            elif showed.state is SessionState.COMPLETED:
                assert showed.pending, at
            for node in (a, b):
                for device in node.remote_devices():
                    await node.forget_device(device.device_id)
        assert hits > 0
