"""What a hostile peer can send to `/sdnet/session/1` and to sealed streams, and what it costs us."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.clock import SystemClock, SystemRandomness
from sdnet_core.errors import AuthenticationFailedError, NetworkingError, NetworkTimeoutError, ProtocolError
from sdnet_core.identity import NetworkIdentity
from sdnet_core.session import (
    PROTOCOL_ID,
    ControlChannel,
    ControlSettings,
    EndReason,
    PeerSecret,
    Preamble,
    RefusalReason,
    Session,
    SessionRefusedError,
    SessionTable,
    Suite,
    initiate,
    read_preamble,
    respond,
)
from sdnet_core.session.control import Ping
from sdnet_core.swarm.abc import SwarmStream
from sdnet_core.swarm.memory import MemoryNetwork, MemorySwarm
from sdnet_core.wire import encode, encode_frame

pytestmark = pytest.mark.anyio

US = NetworkIdentity(hashlib.sha256(b"us").digest())
PEER = NetworkIdentity(hashlib.sha256(b"peer").digest())
STRANGER = NetworkIdentity(hashlib.sha256(b"stranger").digest())
PAIRING, ROOT = b"p" * 16, b"r" * 32
OF_PEER = PeerSecret(PAIRING, ROOT, PEER.peer_id)
OF_US = PeerSecret(PAIRING, ROOT, US.peer_id)
SUITES = tuple(Suite)


@asynccontextmanager
async def connected(remote: NetworkIdentity = PEER) -> AsyncIterator[tuple[MemorySwarm, MemorySwarm]]:
    """Our swarm and a peer's, connected."""
    network = MemoryNetwork()
    ours, theirs = MemorySwarm(network, US.peer_id), MemorySwarm(network, remote.peer_id)
    async with ours.run(), theirs.run():
        await ours.listen(["/memory/0"])
        await theirs.dial(US.peer_id, ours.addresses)
        yield ours, theirs


async def open_to_us(ours: MemorySwarm, theirs: MemorySwarm, protocol: str) -> tuple[SwarmStream, SwarmStream]:
    """Have the peer open a stream: its end, ours."""
    ends: list[SwarmStream] = []
    arrived = anyio.Event()

    async def hold(stream: SwarmStream) -> None:
        ends.append(stream)
        arrived.set()
        await anyio.sleep_forever()

    ours.set_stream_handler(protocol, hold)
    stream = await theirs.open_stream(US.peer_id, [protocol])
    await arrived.wait()
    return stream, ends[0]


async def take(stream: SwarmStream, **more: Any) -> tuple[Session, PeerSecret]:
    def resolve(pairing_id: bytes) -> PeerSecret | None:
        return OF_PEER if pairing_id == PAIRING else None

    return await respond(stream, US, resolve, SUITES, SystemClock(), SystemRandomness(), **more)


async def sessions(ours: MemorySwarm, theirs: MemorySwarm) -> tuple[Session, Session]:
    """A session with the peer: our end, its end."""
    dialled, taken = await open_to_us(ours, theirs, PROTOCOL_ID)
    made: list[Session] = []

    async def answer() -> None:
        made.append((await take(taken))[0])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        session = await initiate(dialled, PEER, OF_US, SUITES, SystemClock(), SystemRandomness())
    return made[0], session


@given(garbage=st.binary(max_size=400), framed=st.booleans(), end=st.booleans())
async def test_garbage_instead_of_a_handshake(garbage: bytes, framed: bool, end: bool) -> None:
    async with connected() as (ours, theirs):
        stream, taken = await open_to_us(ours, theirs, PROTOCOL_ID)
        await stream.send(encode_frame(garbage) if framed else garbage)
        if end:
            await stream.send_eof()
        with pytest.raises(NetworkingError):
            await take(taken, timeout_s=0.01)


@given(garbage=st.binary(min_size=1, max_size=400))
async def test_garbage_instead_of_an_answer(garbage: bytes) -> None:
    async with connected() as (ours, theirs):
        theirs_end, our_end = await open_to_us(ours, theirs, PROTOCOL_ID)
        await theirs_end.send(encode_frame(garbage))
        with pytest.raises(NetworkingError):
            await initiate(our_end, US, OF_PEER, SUITES, SystemClock(), SystemRandomness(), timeout_s=1)


async def test_a_handshake_byte_by_byte_has_no_more_time_than_another() -> None:
    async with connected() as (ours, theirs), anyio.create_task_group() as tasks:
        stream, taken = await open_to_us(ours, theirs, PROTOCOL_ID)

        async def trickle() -> None:
            with pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):  # noqa: PT012 - some time
                await stream.send(b"\xf0\x01")  # 240 bytes will follow
                while True:
                    await stream.send(b"\0")
                    await anyio.sleep(0.005)

        tasks.start_soon(trickle)
        with pytest.raises(NetworkTimeoutError):
            await take(taken, timeout_s=0.1)


async def test_a_stranger_who_knows_the_pairing_s_name_learns_nothing() -> None:
    async def ask(secret: PeerSecret) -> RefusalReason:
        async with connected(STRANGER) as (ours, theirs), anyio.create_task_group() as tasks:
            stream, taken = await open_to_us(ours, theirs, PROTOCOL_ID)

            async def refuse() -> None:
                with pytest.raises(SessionRefusedError):
                    await take(taken, admit=lambda _: False)

            tasks.start_soon(refuse)
            with pytest.raises(SessionRefusedError) as caught:
                await initiate(stream, STRANGER, secret, SUITES, SystemClock(), SystemRandomness())
            return caught.value.reason

    known = await ask(PeerSecret(PAIRING, b"x" * 32, US.peer_id))
    unknown = await ask(PeerSecret(b"q" * 16, b"x" * 32, US.peer_id))
    assert known is unknown is RefusalReason.NOT_PAIRED


async def test_a_paired_peer_cannot_open_a_stream_without_a_session() -> None:
    async with connected() as (ours, theirs):
        mine, _ = await sessions(ours, theirs)
        table = SessionTable()
        table.add(mine)
        stream, taken = await open_to_us(ours, theirs, "/sdnet/test/1")
        await stream.send(bytes(32))
        preamble = await read_preamble(taken)
        assert table.find(taken.peer_id, preamble.epoch_id) is None
        with pytest.raises(ProtocolError):
            mine.accept(taken, preamble)


async def test_a_recorded_stream_played_again_is_refused() -> None:
    async with connected() as (ours, theirs):
        mine, its = await sessions(ours, theirs)
        stream, taken = await open_to_us(ours, theirs, "/sdnet/test/1")
        recorded: list[bytes] = []
        send = stream.send

        async def record(item: bytes) -> None:
            recorded.append(bytes(item))
            await send(item)

        stream.send = record  # type: ignore[method-assign]
        await its.open_stream(stream).send(b"pay 100")
        assert await mine.accept(taken, await read_preamble(taken)).receive() == b"pay 100"
        again, taken_again = await open_to_us(ours, theirs, "/sdnet/test/1")
        await again.send(b"".join(recorded))
        with pytest.raises(ProtocolError):
            mine.accept(taken_again, await read_preamble(taken_again))
        elsewhere, taken_elsewhere = await open_to_us(ours, theirs, "/sdnet/other/1")
        await elsewhere.send(b"".join(recorded))
        with pytest.raises(AuthenticationFailedError):
            mine.accept(taken_elsewhere, await read_preamble(taken_elsewhere))


async def test_announced_records_cost_little_memory_before_they_come() -> None:
    async with connected() as (ours, theirs):
        mine, its = await sessions(ours, theirs)
        stream, taken = await open_to_us(ours, theirs, "/sdnet/test/1")
        sealed = its.open_stream(stream)
        await sealed.send(b"x")
        receiving = mine.accept(taken, await read_preamble(taken))
        await receiving.receive()
        await stream.send(b"\1\xff\xff\xff")  # 16 MiB, more than a record may have
        tracemalloc.start()
        try:
            with pytest.raises(anyio.BrokenResourceError):
                await receiving.receive()
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


async def test_far_stream_numbers_do_not_shut_out_near_ones() -> None:
    async with connected() as (ours, theirs):
        mine, its = await sessions(ours, theirs)
        for number in (2**64 - 1, 2**32, 2**63):
            stream, taken = await open_to_us(ours, theirs, "/sdnet/test/1")
            await stream.send(Preamble(its.keys.epoch_id, number, bytes(16)).encode())
            with pytest.raises(AuthenticationFailedError):
                mine.accept(taken, await read_preamble(taken))
        stream, taken = await open_to_us(ours, theirs, "/sdnet/test/1")
        await its.open_stream(stream).send(b"still served")
        assert await mine.accept(taken, await read_preamble(taken)).receive() == b"still served"


async def test_a_peer_that_asks_and_never_reads_is_cut_and_costs_little() -> None:
    settings = ControlSettings(keepalive_interval_s=0.1, goodbye_timeout_s=0.1)
    async with connected() as (ours, theirs):
        mine, its = await sessions(ours, theirs)
        control = ControlChannel(mine, SystemClock(), SystemRandomness(), settings)
        most = 0

        async def flood() -> None:
            nonlocal most
            with pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):  # noqa: PT012 - some time
                while True:
                    await its.control_stream.send_record(encode(Ping(number=1)))
                    most = max(most, len(control._queue))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            with anyio.fail_after(10):
                end = await control.run()
        assert end.reason is EndReason.STALE
        assert most <= 64
        assert mine.closed
