"""What the session tests share: clocks and randomness that stand still, paired devices, streams open to a test."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import pytest

from sdnet_core.clock import Clock, SystemClock, SystemRandomness
from sdnet_core.identity import NetworkIdentity
from sdnet_core.session.connect import initiate, respond
from sdnet_core.session.epoch import SessionLimits
from sdnet_core.session.keys import PeerSecret, Role, Suite, derive_session_keys
from sdnet_core.session.session import Session
from sdnet_core.swarm.abc import SwarmStream
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm


class ManualClock:
    """Both clocks stand still until a test moves them."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return 1_700_000_000.0 + self.time

    def monotonic(self) -> float:
        return self.time


class SeededRandomness:
    """Random bytes that a seed decides."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._count = 0

    def bytes(self, length: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(self._seed + self._count.to_bytes(8, "big")).digest(length)

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


class Tape(SwarmStream):
    """One side of a stream: keeps what is sent, and receives the chunks it was given, then an end.

    :param peer_id: at the other end.
    :param chunks: what `receive` gives, one after the other.
    """

    def __init__(self, peer_id: str, chunks: Iterable[bytes] = (), protocol: str = "/sdnet/test/1") -> None:
        self._peer_id = peer_id
        self._protocol = protocol
        self.chunks = list(chunks)
        self.sent: list[bytes] = []
        self.ended = self.was_closed = self.was_reset = False
        self.largest_request = 0

    @property
    def written(self) -> bytes:
        return b"".join(self.sent)

    @property
    def peer_id(self) -> str:
        return self._peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def generation(self) -> int:
        return 1

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        self.largest_request = max(self.largest_request, max_bytes)
        if self.was_reset or self.was_closed:
            raise anyio.ClosedResourceError
        if not self.chunks:
            raise anyio.EndOfStream
        chunk = self.chunks.pop(0)
        if len(chunk) > max_bytes:
            self.chunks.insert(0, chunk[max_bytes:])
        return chunk[:max_bytes]

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self.was_reset or self.was_closed:
            raise anyio.ClosedResourceError
        self.sent.append(bytes(item))

    async def send_eof(self) -> None:
        self.ended = True

    async def aclose(self) -> None:
        self.was_closed = True

    async def reset(self) -> None:
        self.was_reset = True


@dataclass
class Pair:
    """Two ends of one session, made without a handshake."""

    clock: ManualClock
    initiator: Session
    responder: Session
    initiator_tape: Tape
    responder_tape: Tape


MakePair = Callable[..., Pair]
ALICE = NetworkIdentity(hashlib.sha256(b"alice").digest())
BOB = NetworkIdentity(hashlib.sha256(b"bob").digest())


@pytest.fixture
def alice() -> NetworkIdentity:
    return ALICE


@pytest.fixture
def bob() -> NetworkIdentity:
    return BOB


@pytest.fixture
def alices_secret() -> PeerSecret:
    """What Alice keeps of her pairing with Bob."""
    return PeerSecret(b"p" * 16, b"r" * 32, BOB.peer_id)


@pytest.fixture
def bobs_secret() -> PeerSecret:
    """What Bob keeps of it."""
    return PeerSecret(b"p" * 16, b"r" * 32, ALICE.peer_id)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def randomness() -> Callable[[str], SeededRandomness]:
    return SeededRandomness


@pytest.fixture
def tape() -> type[Tape]:
    return Tape


@pytest.fixture(scope="session")
def make_pair() -> MakePair:
    """Make the two ends of a session: ``make_pair(key=…, suite=…, limits=…)``."""

    def make(key: bytes = b"k" * 32, suite: Suite = Suite.AES_256_GCM, limits: SessionLimits | None = None) -> Pair:
        clock = ManualClock()
        limits = limits or SessionLimits()
        tapes = {Role.INITIATOR: Tape(BOB.peer_id), Role.RESPONDER: Tape(ALICE.peer_id)}
        ends = {
            role: Session(
                local.peer_id,
                remote.peer_id,
                b"p" * 16,
                derive_session_keys(
                    key, b"h" * 32, role=role, suite=suite, created_at=clock.now(), lifetime_s=limits.lifetime_s
                ),
                tapes[role],
                clock,
                limits=limits,
            )
            for role, local, remote in ((Role.INITIATOR, ALICE, BOB), (Role.RESPONDER, BOB, ALICE))
        }
        return Pair(clock, ends[Role.INITIATOR], ends[Role.RESPONDER], tapes[Role.INITIATOR], tapes[Role.RESPONDER])

    return make


class Linked:
    """Two swarms in memory with a connection between them, Alice's and Bob's."""

    def __init__(self, network: MemoryNetwork, alice: MemorySwarm, bob: MemorySwarm) -> None:
        self.network = network
        self.alice = alice
        self.bob = bob

    async def open(self, opener: NetworkIdentity, protocol: str) -> tuple[SwarmStream, SwarmStream]:
        """Open a stream: the opener's end and the other one, which stays open until the swarm stops."""
        local, remote = (self.alice, self.bob) if opener is ALICE else (self.bob, self.alice)
        ends: list[SwarmStream] = []
        arrived = anyio.Event()

        async def hold(stream: SwarmStream) -> None:
            ends.append(stream)
            arrived.set()
            await anyio.sleep_forever()

        remote.set_stream_handler(protocol, hold)
        ours = await local.open_stream(remote.peer_id, [protocol])
        await arrived.wait()
        return ours, ends[0]

    async def sessions(
        self, limits: SessionLimits | None = None, clock: Clock | None = None
    ) -> tuple[Session, Session]:
        """Alice dials Bob: her session and his, made by the handshake."""
        ours, theirs = await self.open(ALICE, "/sdnet/session/1")
        made: dict[str, Session] = {}
        clock, randomness, suites = clock or SystemClock(), SystemRandomness(), tuple(Suite)

        async def answer() -> None:
            secret = PeerSecret(b"p" * 16, b"r" * 32, ALICE.peer_id)
            made["bob"], _ = await respond(theirs, BOB, lambda _: secret, suites, clock, randomness, limits=limits)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            secret = PeerSecret(b"p" * 16, b"r" * 32, BOB.peer_id)
            made["alice"] = await initiate(ours, ALICE, secret, suites, clock, randomness, limits=limits)
        return made["alice"], made["bob"]


@pytest.fixture
async def linked(anyio_backend: str) -> AsyncIterator[Linked]:
    """Alice and Bob, connected."""
    network = MemoryNetwork()
    one, two = MemorySwarm(network, ALICE.peer_id), MemorySwarm(network, BOB.peer_id)
    async with one.run(), two.run():
        await two.listen(["/memory/0"])
        await one.dial(BOB.peer_id, two.addresses)
        yield Linked(network, one, two)
