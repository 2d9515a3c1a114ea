"""The multiplexer against a hand-driven peer: what it sends, what it takes, what it refuses."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from sdnet_core.swarm.noise import NoiseSession
from sdnet_core.swarm.yamux import Yamux, YamuxStream
from sdnet_core.swarm.yamux_frames import MAX_PAYLOAD_BYTES

# isort: split
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)

pytestmark = [pytest.mark.anyio, pytest.mark.libp2p]

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
HEADER = struct.Struct("!BBHII")
WINDOW = 256 * 1024


class SecuredPipe:
    """What the multiplexer needs of a secured connection, over a pipe in memory."""

    def __init__(self, stream: trio.StapledStream, initiator: bool) -> None:
        self.stream = stream
        self.is_initiator = initiator

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await self.stream.aclose()


class RawPeer:
    """Speaks frames."""

    def __init__(self, stream: trio.StapledStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def send(self, kind: int, flags: int, stream_id: int, length: int, payload: bytes = b"") -> None:
        await self._stream.send_all(HEADER.pack(0, kind, flags, stream_id, length) + payload)

    async def send_raw(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def frame(self, *, pings: bool = False) -> tuple[int, int, int, int, bytes]:
        """The next frame; pings of the other side, which come at any time, are answered and left out by default."""
        while True:
            _, kind, flags, stream_id, length = HEADER.unpack(await self._exactly(HEADER.size))
            if (kind, flags) == (PING, SYN) and not pings:
                await self.send(PING, ACK, 0, length)
                continue
            return kind, flags, stream_id, length, await self._exactly(length) if kind == DATA else b""

    async def ended(self) -> bool:
        return not self._buffer and await self._stream.receive_some() == b""

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = await self._stream.receive_some()
            if not piece:
                raise EOFError
            self._buffer += bytes(piece)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


@asynccontextmanager
async def raw(**options: Any) -> AsyncIterator[tuple[Yamux, RawPeer]]:
    """Our side accepts; the peer is driven by hand."""
    ours, theirs = trio.testing.memory_stream_pair()
    conn = Yamux(SecuredPipe(ours, False), "peer", **options)  # type: ignore[arg-type]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.start)
            await conn.event_started.wait()
            yield conn, RawPeer(theirs)
            await conn.close()


@asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[tuple[Yamux, Yamux]]:
    ours, theirs = trio.testing.memory_stream_pair()
    a = Yamux(SecuredPipe(ours, True), "b", **options)  # type: ignore[arg-type]
    b = Yamux(SecuredPipe(theirs, False), "a", **options)  # type: ignore[arg-type]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for conn in (a, b):
                nursery.start_soon(conn.start)
                await conn.event_started.wait()
            yield a, b
            await a.close()
            await b.close()


async def rest(stream: YamuxStream) -> tuple[bytes, type[MuxedStreamError]]:
    """Read until the end, and say which end it was."""
    data = bytearray()
    while True:
        try:
            data += await stream.read()
        except MuxedStreamError as exc:
            return bytes(data), type(exc)


async def both(a: Yamux, b: Yamux) -> tuple[YamuxStream, YamuxStream]:
    ours = await a.open_stream()
    return ours, await b.accept_stream()


async def opened(conn: Yamux, peer: RawPeer, stream_id: int = 1) -> YamuxStream:
    await peer.send(WINDOW_UPDATE, SYN, stream_id, 0)
    stream = await conn.accept_stream()
    assert await peer.frame() == (WINDOW_UPDATE, ACK, stream_id, 0, b"")
    return stream


async def test_frames_on_the_wire() -> None:
    async with raw() as (conn, peer):
        stream = await conn.open_stream()
        await stream.write(b"hello")
        await stream.close()
        assert await peer.frame() == (WINDOW_UPDATE, SYN, 2, 0, b"")
        assert await peer.frame() == (DATA, 0, 2, 5, b"hello")
        assert await peer.frame() == (WINDOW_UPDATE, FIN, 2, 0, b"")
        await peer.send(DATA, ACK, 2, 2, b"yo")
        assert await stream.read() == b"yo"
        await peer.send(DATA, FIN, 2, 3, b"end")
        assert await stream.read(2) == b"en"
        assert await stream.read() == b"d"
        with pytest.raises(MuxedStreamEOF):
            await stream.read()
        assert conn.streams == {}


async def test_frames_in_pieces_of_any_size() -> None:
    async with raw() as (conn, peer):
        stream = await opened(conn, peer)
        wire = HEADER.pack(0, DATA, 0, 1, 5) + b"hello" + HEADER.pack(0, DATA, FIN, 1, 3) + b"end"
        for byte in wire:
            await peer.send_raw(bytes([byte]))
        assert await rest(stream) == (b"helloend", MuxedStreamEOF)


async def test_what_is_sent_at_a_time_follows_the_line_and_the_system_holds_no_more() -> None:
    class Told(NoiseSession):
        def __init__(self) -> None:  # no connection is needed
            self.is_initiator = True
            self.limits: list[int] = []

        def limit_unsent(self, max_bytes: int) -> None:
            self.limits.append(max_bytes)

    session = Told()
    conn = Yamux(session, "peer")  # type: ignore[arg-type]
    for _ in range(10):
        conn._adapt_batches(slow=True)
    assert session.limits == [32_768, 16_384]
    for _ in range(10):
        conn._adapt_batches(slow=False)
    assert session.limits[2:] == [*(1 << power for power in range(15, 20)), MAX_PAYLOAD_BYTES]


async def test_a_writer_waits_for_the_window_as_long_as_it_takes() -> None:
    async with raw() as (conn, peer):
        stream = await conn.open_stream()
        await peer.frame()
        written = trio.Event()

        async def write() -> None:
            await stream.write(bytes(WINDOW + 10))
            written.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            received = 0
            while received < WINDOW:
                received += (await peer.frame())[3]
            assert received == WINDOW
            await trio.testing.wait_all_tasks_blocked()
            assert not written.is_set()
            await peer.send(WINDOW_UPDATE, 0, stream.stream_id, 10)
            assert (await peer.frame())[3] == 10
            await written.wait()


async def test_reading_gives_credit() -> None:
    async with raw() as (conn, peer):
        stream = await opened(conn, peer)
        for _ in range(2):
            await peer.send(DATA, 0, 1, WINDOW // 4, bytes(WINDOW // 4))
        got = 0
        while got < WINDOW // 2:
            got += len(await stream.read())
        kind, flags, stream_id, increment, _ = await peer.frame()
        assert (kind, flags, stream_id) == (WINDOW_UPDATE, 0, 1)
        assert increment >= WINDOW // 2


async def test_a_window_overrun_resets_the_stream_and_keeps_nothing() -> None:
    async with raw() as (conn, peer):
        stream = await opened(conn, peer)
        other = await opened(conn, peer, 3)
        for _ in range(4):
            await peer.send(DATA, 0, 1, WINDOW // 4, bytes(WINDOW // 4))
        await peer.send(DATA, 0, 1, 1000, bytes(1000))
        assert await peer.frame() == (WINDOW_UPDATE, RST, 1, 0, b"")
        with pytest.raises(MuxedStreamReset, match="window"):
            await stream.read()
        await peer.send(DATA, 0, 3, 2, b"ok")
        assert await other.read() == b"ok"


async def test_small_frames_cost_no_more_than_their_bytes() -> None:
    async with raw() as (conn, peer):
        stream = await opened(conn, peer)
        await peer.send_raw((HEADER.pack(0, DATA, 0, 1, 1) + b"x") * 20_000)
        await peer.send(PING, SYN, 0, 7)
        assert await peer.frame() == (PING, ACK, 0, 7, b"")
        assert len(stream._chunks) < 10
        got = 0
        while got < 20_000:
            got += len(await stream.read())


async def test_cancelled_writers_leave_whole_frames() -> None:
    async with pair() as (a, b):
        for _ in range(200):
            ours, theirs = await both(a, b)
            with trio.move_on_after(0.001) as scope:
                await ours.write(bytes(5_000_000))
            assert scope.cancelled_caught
            await ours.reset()
            data, end = await rest(theirs)
            assert not any(data)
            assert end is MuxedStreamReset
        ours, theirs = await both(a, b)
        await ours.write(b"alive")
        assert await theirs.read() == b"alive"


async def test_cancelled_readers_lose_nothing() -> None:
    async with pair() as (a, b):
        ours, theirs = await both(a, b)
        data = bytes(range(256)) * 400
        received = bytearray()

        async def write() -> None:
            for start in range(0, len(data), 777):
                await ours.write(data[start : start + 777])
            await ours.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            done = False
            while not done:
                with trio.CancelScope() as scope:
                    nursery.start_soon(_cancel_soon, scope)
                    try:
                        received += await theirs.read(100)
                    except MuxedStreamEOF:
                        done = True
        assert bytes(received) == data


async def _cancel_soon(scope: trio.CancelScope) -> None:
    await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_both_directions_at_once_do_not_block_each_other() -> None:
    async with pair() as (a, b):
        ours, theirs = await both(a, b)
        size = 8 * 1024 * 1024

        async def pour(stream: YamuxStream) -> None:
            for _ in range(8):
                await stream.write(bytes(size // 8))
            await stream.close()

        async def drain(stream: YamuxStream) -> None:
            data, end = await rest(stream)
            assert (len(data), end) == (size, MuxedStreamEOF)

        async with trio.open_nursery() as nursery:
            for stream in (ours, theirs):
                nursery.start_soon(pour, stream)
                nursery.start_soon(drain, stream)


async def test_ping_and_go_away() -> None:
    async with raw() as (conn, peer):
        await peer.send(PING, SYN, 0, 42)
        assert await peer.frame() == (PING, ACK, 0, 42, b"")
        stream = await opened(conn, peer)
        await peer.send(GO_AWAY, 0, 0, 0)
        await peer.send(DATA, 0, 1, 4, b"last")
        assert await stream.read() == b"last"
        with pytest.raises(MuxedStreamError):
            await conn.open_stream()


async def test_closing_says_good_bye_after_what_was_written() -> None:
    async with raw() as (conn, peer):
        stream = await opened(conn, peer)
        await stream.write(b"bye")
        await conn.close()
        assert sorted([(await peer.frame())[0], (await peer.frame())[0]]) == [DATA, GO_AWAY]
        assert await peer.ended()
        with pytest.raises(MuxedConnUnavailable):
            await conn.accept_stream()
        with pytest.raises(MuxedStreamError):
            await conn.open_stream()


async def test_a_lost_connection_is_no_orderly_end() -> None:
    async with pair() as (a, b):
        ours, theirs = await both(a, b)
        finished, finished_there = await both(a, b)
        await ours.write(b"data")
        await finished.write(b"all")
        await finished.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await a.close()
        assert await theirs.read() == b"data"
        with pytest.raises(MuxedStreamReset):
            await theirs.read()
        with pytest.raises(MuxedStreamReset):
            await theirs.write(b"x")
        assert await finished_there.read() == b"all"
        with pytest.raises(MuxedStreamEOF):
            await finished_there.read()


async def test_data_for_a_stream_nobody_reads_resets_it() -> None:
    async with raw() as (conn, peer):
        stream = await opened(conn, peer)
        stream.finish()
        stream.close_read()
        with pytest.raises(MuxedStreamClosed):
            await stream.read()
        assert await peer.frame() == (WINDOW_UPDATE, FIN, 1, 0, b"")
        await peer.send(DATA, 0, 1, 1, b"x")
        assert await peer.frame() == (WINDOW_UPDATE, RST, 1, 0, b"")
        assert conn.streams == {}


async def test_streams_above_the_cap_are_reset() -> None:
    async with raw(max_inbound_streams=3) as (conn, peer):
        for stream_id in (1, 3, 5):
            await opened(conn, peer, stream_id)
        await peer.send(WINDOW_UPDATE, SYN, 7, 0)
        assert await peer.frame() == (WINDOW_UPDATE, RST, 7, 0, b"")
        # Our own streams are not counted against the peer, and a finished one makes room.
        await conn.open_stream()
        await peer.frame()
        await peer.send(WINDOW_UPDATE, RST, 3, 0)
        await opened(conn, peer, 9)


async def test_10000_streams_leave_nothing_behind() -> None:
    async with raw(max_inbound_streams=16) as (conn, peer):
        refused = 0
        for start in range(1, 20_001, 2000):
            ids = range(start, start + 2000, 2)
            await peer.send_raw(b"".join(HEADER.pack(0, WINDOW_UPDATE, SYN, i, 0) for i in ids))
            for _ in ids:
                kind, flags, *_ = await peer.frame()
                assert kind == WINDOW_UPDATE
                refused += flags == RST
        assert refused == 10_000 - 16
        assert len(conn.streams) == 16


async def test_a_stream_can_be_opened_when_another_one_was_given_up() -> None:
    """A peer that agrees to nothing and says nothing holds nobody up who gives up what he waited for."""
    async with raw() as (conn, peer):
        waiting = [await conn.open_stream() for _ in range(256)]
        opened: list[YamuxStream] = []

        async def open_one_more() -> None:
            opened.append(await conn.open_stream())

        async def learn_that_it_leaves() -> None:
            with pytest.raises(MuxedStreamError, match="no more streams"):
                await conn.open_stream()

        async with trio.open_nursery() as openers:
            openers.start_soon(open_one_more)
            await trio.testing.wait_all_tasks_blocked()
            assert opened == []
            await waiting[0].reset()
        assert len(opened) == 1
        async with trio.open_nursery() as openers:
            openers.start_soon(learn_that_it_leaves)
            await trio.testing.wait_all_tasks_blocked()
            await peer.send(GO_AWAY, 0, 0, 0)


async def test_a_peer_that_does_not_read_answers_is_cut_off() -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()  # holds nothing: what is not read blocks the writer
    conn = Yamux(SecuredPipe(ours, False), "peer")  # type: ignore[arg-type]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.start)
            await conn.event_started.wait()
            with trio.move_on_after(5):
                await RawPeer(theirs).send_raw(HEADER.pack(0, PING, SYN, 0, 1) * 10_000)
                await conn.event_closed.wait()
    assert conn.failure == "The peer does not read what it made us answer."


@pytest.mark.parametrize(
    "wire",
    [
        HEADER.pack(1, PING, SYN, 0, 0),
        HEADER.pack(0, 4, 0, 0, 0),
        HEADER.pack(0, WINDOW_UPDATE, SYN, 2, 0),
        HEADER.pack(0, WINDOW_UPDATE, SYN, 0, 0),
        HEADER.pack(0, WINDOW_UPDATE, SYN, 1, 0) * 2,
    ],
    ids=["version", "kind", "our-id", "id-zero", "id-twice"],
)
async def test_broken_rules_end_the_connection(wire: bytes) -> None:
    async with raw() as (conn, peer):
        await peer.send_raw(wire)
        with trio.fail_after(2):
            await conn.event_closed.wait()
        assert "protocol" in (conn.failure or "")


async def test_the_growth_of_windows_is_shared_and_given_back() -> None:
    async with pair() as (a, b):
        budget = b.core.growth_budget
        for _ in range(3):
            ours, theirs = await both(a, b)

            async def pour(stream: YamuxStream = ours) -> None:
                await stream.write(bytes(20_000_000))
                await stream.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(pour)
                assert (await rest(theirs))[1] is MuxedStreamEOF
            assert b.core.growth_budget <= budget
            await theirs.close()
            assert b.core.growth_budget == budget


async def test_on_close_is_called_once_the_connection_is_lost() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    conn = Yamux(SecuredPipe(ours, False), "peer")  # type: ignore[arg-type]
    called: list[str | None] = []

    async def on_close() -> None:
        called.append(conn.failure)

    conn.on_close = on_close
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.start)
            await conn.event_started.wait()
            await theirs.aclose()
    assert called == ["The peer closed the connection."]
