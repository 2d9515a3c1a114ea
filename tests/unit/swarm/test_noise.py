"""The security transport over real sockets: sessions, cancellation, and py-libp2p's own Noise at the other end."""

from __future__ import annotations

import gc
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sdnet_core.swarm.noise import PROTOCOL_ID, NoiseSession, NoiseTransport
from sdnet_core.swarm.noise_core import MAX_PLAINTEXT_BYTES, CipherState, Sealer
from tests.key_pairs import KEY_KINDS, make_key_pair
from tests.sinks import Kept, delivered

# isort: split
from libp2p.abc import ISecureConn, ISecureTransport
from libp2p.connection_types import ConnectionType
from libp2p.crypto import ed25519, x25519
from libp2p.crypto.keys import KeyPair
from libp2p.io.exceptions import ConnectionClosedError, DecryptionFailedException, IncompleteReadError, IOException
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import NoiseFailure, NoiseStateError, PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as STOCK_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as StockTransport

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]

ALICE = ed25519.create_new_key_pair(b"a" * 32)
BOB = ed25519.create_new_key_pair(b"b" * 32)
BOBS_ID = ID.from_pubkey(BOB.public_key)


class OtherConnection(RawConnection):
    """A raw connection that is not exactly TCP as py-libp2p makes it, such as one through a relay."""


@asynccontextmanager
async def raw_pair(kind: type[RawConnection] = RawConnection) -> AsyncIterator[tuple[RawConnection, RawConnection]]:
    """Two ends of a TCP connection on loopback; the first one has opened it."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        dialled = await trio.open_tcp_stream(*listener.socket.getsockname())
        accepted = await listener.accept()
    async with dialled, accepted:
        yield kind(TrioTCPStream(dialled), True), kind(TrioTCPStream(accepted), False)


async def handshake(
    dialler: ISecureTransport, listener: ISecureTransport, pair: tuple[RawConnection, RawConnection]
) -> tuple[Any, Any]:
    sessions: dict[str, ISecureConn] = {}

    async def dial() -> None:
        sessions["dialler"] = await dialler.secure_outbound(pair[0], BOBS_ID)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            sessions["listener"] = await listener.secure_inbound(pair[1])
    return sessions["dialler"], sessions["listener"]


@asynccontextmanager
async def session_pair(
    kind: type[RawConnection] = RawConnection, **options: Any
) -> AsyncIterator[tuple[NoiseSession, NoiseSession]]:
    async with raw_pair(kind) as pair:
        yield await handshake(NoiseTransport(ALICE, **options), NoiseTransport(BOB, **options), pair)


async def read_all(session: ISecureConn, size: int) -> bytes:
    data = bytearray()
    with trio.fail_after(20):
        while len(data) < size:
            piece = await session.read(min(size - len(data), 100_000))
            assert piece
            data += piece
    return bytes(data)


async def read_to_the_end(session: NoiseSession) -> None:
    while await session.deliver(Kept()):
        pass


async def exchange(one: ISecureConn, other: ISecureConn, size: int) -> None:
    """Both send at the same time, and both receive what the other has sent."""
    sent = os.urandom(size), os.urandom(size)

    async def check(session: ISecureConn, expected: bytes) -> None:
        assert await read_all(session, size) == expected

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.write, sent[0])
        nursery.start_soon(other.write, sent[1])
        nursery.start_soon(check, other, sent[0])
        nursery.start_soon(check, one, sent[1])


def stock(identity: KeyPair) -> StockTransport:
    return StockTransport(identity, x25519.create_new_key_pair().private_key)


async def test_a_session_knows_who_is_at_the_other_end() -> None:
    async with session_pair() as (dialler, listener):
        assert dialler.get_local_peer() == ID.from_pubkey(ALICE.public_key) == listener.get_remote_peer()
        assert dialler.get_remote_peer() == BOBS_ID == listener.get_local_peer()
        # The identity key; py-libp2p's own session has the Noise key here.
        assert dialler.get_remote_public_key() == dialler.remote_permanent_pubkey == BOB.public_key
        assert listener.get_remote_public_key() == ALICE.public_key
        assert dialler.get_local_private_key() == ALICE.private_key
        assert dialler.is_initiator
        assert not listener.is_initiator
        remote = dialler.get_remote_address()
        assert remote is not None
        assert remote[0] == "127.0.0.1"
        assert [str(a) for a in dialler.get_transport_addresses()] == [f"/ip4/127.0.0.1/tcp/{remote[1]}"]
        assert dialler.get_connection_type() is ConnectionType.DIRECT
    assert PROTOCOL_ID == STOCK_PROTOCOL_ID


@pytest.mark.parametrize("kind", [RawConnection, OtherConnection])
@pytest.mark.parametrize("size", [1, 65_519, 65_520, 1_000_000])
@pytest.mark.parametrize("aes", [False, True])
async def test_data_goes_both_ways_at_once(kind: type[RawConnection], size: int, aes: bool) -> None:
    async with session_pair(kind, aes=aes) as (dialler, listener):
        await exchange(dialler, listener, size)


@pytest.mark.parametrize("role", ["dialler", "listener"])
@pytest.mark.parametrize("keys", KEY_KINDS)
async def test_py_libp2ps_noise_understands_us_and_we_it(role: str, keys: str) -> None:
    other = make_key_pair(keys)
    async with raw_pair() as pair:
        dialling: tuple[ISecureTransport, ISecureTransport] = (stock(other), NoiseTransport(BOB))
        listening: tuple[ISecureTransport, ISecureTransport] = (NoiseTransport(other), stock(BOB))
        dialler, listener = await handshake(*(dialling if role == "listener" else listening), pair)
        assert dialler.get_remote_peer() == BOBS_ID
        assert listener.get_remote_peer() == ID.from_pubkey(other.public_key)
        await exchange(dialler, listener, 300_000)


async def test_messages_keep_their_borders_and_come_several_at_a_time() -> None:
    async with session_pair() as (dialler, listener):
        messages = [b"a" * 12, os.urandom(MAX_PLAINTEXT_BYTES), b"c", *(bytes([n]) * 30_000 for n in range(9))]
        received: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialler.write_messages, messages)
            calls = 0
            with trio.fail_after(5):
                while len(received) < len(messages):
                    received += await delivered(listener)
                    calls += 1
        assert received == messages
        await dialler.write_messages([b"x", b"y", b"z"])
        assert await delivered(listener) == [b"x", b"y", b"z"]
        await dialler.write_messages([b"x", b"y", b"z"])
        assert await listener.read() == b"x"
        assert await delivered(listener) == [b"y", b"z"]


async def test_a_read_takes_no_more_than_asked_for() -> None:
    async with session_pair() as (dialler, listener):
        await dialler.write(b"0123456789")
        await dialler.write(b"abc")
        assert await listener.read(0) == b""
        assert [await listener.read(n) for n in (1, 3, 100, 2, None)] == [b"0", b"123", b"456789", b"ab", b"c"]


async def test_nothing_to_send_is_not_sent() -> None:
    async with session_pair() as (dialler, listener):
        await dialler.write(b"")
        await dialler.write_messages([])
        await dialler.write_messages([b"", b"after"])
        assert await listener.read() == b"after"
        with pytest.raises(ValueError, match="does not fit"):
            await dialler.write_messages([bytes(MAX_PLAINTEXT_BYTES + 1)])


async def test_cancelled_writes_leave_the_channel_in_step() -> None:
    """Writes into a full socket are cancelled 200 times; what arrives is whole messages in order, and it goes on."""
    async with session_pair() as (dialler, listener):
        cancelled = 0
        received: list[bytes] = []
        for number in range(200):
            message = number.to_bytes(4, "big") * 15_000
            with trio.move_on_after(0.001) as scope:
                await dialler.write_messages([message] * 8)
            cancelled += scope.cancelled_caught
            if number % 20 == 19:
                with trio.move_on_after(0.01):
                    while True:
                        received += await delivered(listener)
        assert cancelled > 100
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialler.write, b"end")
            with trio.fail_after(10):
                while not received or received[-1] != b"end":
                    received += await delivered(listener)
        numbers = [int.from_bytes(message[:4], "big") for message in received[:-1]]
        assert all(message == message[:4] * 15_000 for message in received[:-1])
        assert numbers == sorted(numbers)
        assert len(numbers) > 20
        await exchange(dialler, listener, 100_000)


async def test_a_cancelled_write_on_another_connection_ends_it() -> None:
    """Where nobody knows what was sent, nothing more is."""
    async with session_pair(OtherConnection) as (dialler, listener):
        with trio.move_on_after(0.05) as scope:
            await dialler.write(bytes(50_000_000))
        assert scope.cancelled_caught
        with pytest.raises(ConnectionClosedError, match="broke off"), trio.fail_after(5):
            await dialler.write(b"more")
        with trio.fail_after(5):
            await dialler.close()
            with pytest.raises(IncompleteReadError):
                await read_to_the_end(listener)


async def test_a_cancelled_read_loses_nothing() -> None:
    async with session_pair() as (dialler, listener):
        for number in range(20):
            with trio.move_on_after(0.002) as scope:
                await listener.read()
            assert scope.cancelled_caught
            await dialler.write(bytes([number]))
            assert await listener.read() == bytes([number])


async def test_idle_sessions_keep_no_buffers() -> None:
    dialling, listening = NoiseTransport(ALICE), NoiseTransport(BOB)
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(raw_pair()) for _ in range(20)]
        sessions = [await handshake(dialling, listening, pair) for pair in pairs]
        tracemalloc.start()
        try:
            for dialler, listener in sessions:
                await exchange(dialler, listener, 500_000)
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # One spare buffer of 1 MiB and one of 512 KiB in each transport, not in each of the 40 sessions.
    assert kept < 3_500_000


async def test_an_orderly_end() -> None:
    async with session_pair() as (dialler, listener):
        await dialler.write(b"last words")
        await dialler.close()
        assert await listener.read() == b"last words"
        assert await listener.read() == b""
        assert await delivered(listener) == []
        assert await dialler.read() == b""
        with pytest.raises(ConnectionClosedError):
            await dialler.write(b"x")


async def test_closing_wakes_a_reader() -> None:
    async with session_pair() as (dialler, _listener):
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with trio.fail_after(5):
                    assert await dialler.read() == b""

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await dialler.close()


async def test_a_lost_connection_is_reported_to_writers() -> None:
    async with session_pair() as (dialler, listener):
        await listener.close()
        with pytest.raises(ConnectionClosedError), trio.fail_after(5):
            await dialler.write(bytes(100_000_000))


@pytest.mark.parametrize("cut", [1, 2, 3, 17, 20, 21])
async def test_an_end_in_the_middle_of_a_message_is_no_end(cut: int) -> None:
    async with raw_pair() as pair:
        dialler, listener = await handshake(NoiseTransport(ALICE), NoiseTransport(BOB), pair)
        await dialler.write(b"whole")
        sealed = memoryview(bytearray(23))
        dialler._sealer.seal_into([b"parts"], sealed)
        await pair[0].write(bytes(sealed[:cut]))
        await dialler.close()
        assert await listener.read() == b"whole"
        with pytest.raises(IncompleteReadError), trio.fail_after(5):
            await listener.read()


async def test_forged_messages_are_refused() -> None:
    async with raw_pair() as pair:
        dialler, listener = await handshake(NoiseTransport(ALICE), NoiseTransport(BOB), pair)
        await dialler.write(b"good")
        await pair[0].write(b"\x00\x20" + bytes(32))
        await dialler.write(b"good")
        assert await listener.read() == b"good"
        for _ in range(2):
            with pytest.raises(DecryptionFailedException), trio.fail_after(5):
                await listener.read()


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system cannot be told")
async def test_what_the_system_holds_unsent_is_bounded() -> None:
    for kind in (RawConnection, OtherConnection):
        async with raw_pair(kind) as pair:
            dialler, _ = await handshake(NoiseTransport(ALICE), NoiseTransport(BOB), pair)
            dialler.limit_unsent(40_000)
            tcp = pair[0].stream.stream.socket  # type: ignore[attr-defined]
            held = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert (held == 40_000) is (kind is RawConnection)
            await dialler.close()
            dialler.limit_unsent(50_000)  # harmless


async def test_a_used_up_key_ends_the_session() -> None:
    async with session_pair() as (dialler, _listener):
        dialler._sealer = Sealer(CipherState(bytes(32), 2**64 - 1))
        with pytest.raises(IOException, match="as many messages"):
            await dialler.write(b"x")
        with pytest.raises(ConnectionClosedError):
            await dialler.write(b"x")


async def test_one_reader_and_one_writer_at_a_time() -> None:
    async with session_pair() as (dialler, _listener):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialler.read)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await delivered(dialler)
            nursery.cancel_scope.cancel()


async def test_a_wrong_peer_is_refused() -> None:
    async with raw_pair() as (dialling, listening):
        refused = trio.Event()

        async def listen() -> None:
            # It never learns who dialled: no third message came.
            with pytest.raises(NoiseFailure, match="closed the connection during the handshake"):
                await NoiseTransport(ALICE).secure_inbound(listening)
            refused.set()

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                with pytest.raises(PeerIDMismatchesPubkey):
                    await NoiseTransport(ALICE).secure_outbound(dialling, BOBS_ID)
                await dialling.close()
        assert refused.is_set()


async def test_whoever_answers_may_be_asked_for() -> None:
    async with raw_pair() as (dialling, listening):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(NoiseTransport(BOB).secure_inbound, listening)
            session = await NoiseTransport(ALICE).secure_outbound(dialling, None)
        assert session.get_remote_peer() == BOBS_ID


@pytest.mark.parametrize("junk", [b"\xff\xff", b"\x00\x1f" + bytes(31), b"GET / HTTP/1.1\r\n\r\n"])
async def test_what_is_not_noise_is_refused(junk: bytes) -> None:
    async with raw_pair() as (dialling, listening):
        await dialling.write(junk)
        with pytest.raises(NoiseStateError), trio.fail_after(5):
            await NoiseTransport(BOB).secure_inbound(listening)


async def test_a_handshake_moves_less_than_half_a_kilobyte() -> None:
    class Counting(RawConnection):
        moved = 0

        async def write(self, data: bytes) -> None:
            Counting.moved += len(data)
            await super().write(data)

    async with session_pair(Counting):
        assert Counting.moved < 512


@pytest.mark.parametrize(
    ("dialler", "listener", "agreed"),
    [
        (("/a", "/b"), ("/b", "/a"), "/a"),
        (("/b", "/a"), ("/a",), "/a"),
        (("/a",), ("/b",), None),
        (("/a",), (), None),
        ((), ("/a",), None),
    ],
)
async def test_a_multiplexer_is_agreed_on_as_the_initiator_prefers(
    dialler: tuple[str, ...], listener: tuple[str, ...], agreed: str | None
) -> None:
    async with raw_pair() as pair:
        sessions = await handshake(
            NoiseTransport(ALICE, stream_muxers=dialler), NoiseTransport(BOB, stream_muxers=listener), pair
        )
        assert [session.agreed_muxer for session in sessions] == [agreed, agreed]


async def test_keys_can_be_given() -> None:
    """With the same keys, the bytes of two sessions are the same."""

    class Recording(RawConnection):
        record: list[bytes]

        async def write(self, data: bytes) -> None:
            self.record.append(data)
            await super().write(data)

    async def recorded() -> list[bytes]:
        Recording.record = []
        fixed = {
            "static": X25519PrivateKey.from_private_bytes(b"s" * 32),
            "make_ephemeral": lambda: X25519PrivateKey.from_private_bytes(b"e" * 32),
        }
        async with session_pair(Recording, **fixed) as (dialler, listener):
            await dialler.write(b"hello")
            assert await listener.read() == b"hello"
        return Recording.record

    assert await recorded() == await recorded()
