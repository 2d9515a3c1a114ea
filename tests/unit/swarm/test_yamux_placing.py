"""What is received into a buffer, past all copies: the same bytes, windows and ends as what is read."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.swarm.abc import ReceiveBuffer
from sdnet_core.swarm.noise import NoiseSession
from sdnet_core.swarm.noise_core import MAX_PLAINTEXT_BYTES, NoiseError
from sdnet_core.swarm.yamux import Yamux, YamuxStream
from sdnet_core.swarm.yamux_core import YamuxCore
from sdnet_core.swarm.yamux_frames import INITIAL_WINDOW
from sdnet_core.swarm.yamux_window import StreamCore
from tests.sinks import Sealed

# isort: split
from libp2p.io.exceptions import DecryptionFailedException
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
HEADER = struct.Struct("!BBHII")
MESSAGE = MAX_PLAINTEXT_BYTES

trio_only = [pytest.mark.anyio, pytest.mark.libp2p]


def buffer_of(size: int) -> ReceiveBuffer:
    return ReceiveBuffer(memoryview(bytearray(size)))


def content(buffer: ReceiveBuffer) -> bytes:
    return bytes(buffer.memory[: buffer.end])


def frame(flags: int, payload: bytes, stream_id: int = 1) -> bytes:
    return HEADER.pack(0, DATA, flags, stream_id, len(payload)) + payload


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


class Core(YamuxCore[StreamCore]):
    """The accepting side of a connection, with streams that the peer has opened.

    :ivar count: how many bytes went straight to their place.
    """

    def __init__(self, streams: int = 1) -> None:
        super().__init__(False, lambda number: StreamCore(self, number), lambda: 0.0)
        self.count = 0
        self.noise = Sealed()
        for number in range(streams):
            self.receive(HEADER.pack(0, WINDOW_UPDATE, SYN, 2 * number + 1, 0))
        self.opened = list(self.streams.values())
        self.sent()

    def placed(self, size: int) -> None:
        self.count += size
        super().placed(size)

    def sent(self) -> list[tuple[int, ...]]:
        """The headers of what is sent, all of them without payload, and no pings."""
        data = b"".join(self.next_output())
        return [header for header in HEADER.iter_unpack(data) if header[1] != PING]

    def deliver(self, *messages: bytes) -> None:
        self.noise.deliver(messages, self)


@given(
    payloads=st.lists(st.tuples(st.booleans(), st.integers(0, 400)), max_size=12),
    messages=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    pieces=st.lists(st.integers(1, 600), min_size=1, max_size=4),
    plain=st.lists(st.booleans(), min_size=1, max_size=4),
    room=st.integers(1, 500),
    turns=st.lists(st.integers(0, 3), min_size=1, max_size=6),
)
def test_any_cutting_gives_what_was_sent(
    payloads: list[tuple[bool, int]],
    messages: list[int],
    pieces: list[int],
    plain: list[bool],
    room: int,
    turns: list[int],
) -> None:
    """Two streams in turn, one of them received into a buffer that is emptied now and then, the other read."""
    core = Core(2)
    into, read = core.opened
    buffer, got, got_by_reading = buffer_of(room), bytearray(), bytearray()

    def take(how: int) -> None:
        if how & 1:
            got.extend(content(buffer))
            buffer.end = 0
            into.fill(buffer)
        if how & 2:
            got_by_reading.extend(read.take())

    sent = [pattern(sum(size for other, size in payloads if other is which)) for which in (False, True)]
    starts = [0, 0]
    wire = b""
    for other, size in payloads:
        start = starts[other]
        wire += frame(0, sent[other][start : start + size], 3 if other else 1)
        starts[other] += size
    wire += frame(FIN, b"", 1) + frame(FIN, b"", 3)
    at = turn = 0
    while at < len(wire):
        piece = wire[at : at + pieces[turn % len(pieces)]]
        if plain[turn % len(plain)]:
            core.receive(piece)
        else:
            size = messages[turn % len(messages)]
            core.deliver(*(piece[start : start + size] for start in range(0, len(piece), size)))
        take(turns[turn % len(turns)])
        assert core.unread_bytes == into.unread_bytes + read.unread_bytes
        at, turn = at + len(piece), turn + 1
    for _ in range(len(wire) + 2):
        take(3)
    assert (bytes(got), bytes(got_by_reading)) == (sent[0], sent[1])
    assert core.failure is None
    assert core.unread_bytes == 0


def test_whole_messages_go_straight_to_their_place() -> None:
    core = Core()
    (stream,) = core.opened
    buffer = buffer_of(3 * MESSAGE)
    stream.fill(buffer)
    data = pattern(2 * MESSAGE + 1000)
    wire = frame(0, data)
    core.deliver(wire[:12], wire[12 : 12 + MESSAGE], wire[12 + MESSAGE : 12 + 2 * MESSAGE], wire[12 + 2 * MESSAGE :])
    assert content(buffer) == data
    assert core.count == len(data)
    # A message with more in it than the payload, and one for which there is no room, are cut.
    core.deliver(frame(0, b"more")[:12], b"more" + HEADER.pack(0, DATA, 0, 1, MESSAGE), pattern(MESSAGE))
    assert core.count == len(data)
    assert content(buffer) == (data + b"more" + pattern(MESSAGE))[: len(buffer.memory)]
    left = len(data) + 4 + MESSAGE - len(buffer.memory)
    assert core.unread_bytes == left
    assert stream.take() == pattern(MESSAGE)[-left:]


def test_what_lies_there_comes_first() -> None:
    core = Core()
    (stream,) = core.opened
    core.receive(frame(0, b"a" * 5000) + frame(0, b"b" * 5000))
    assert stream.take(3000) == b"a" * 3000
    buffer = buffer_of(6000)
    stream.fill(buffer)
    assert stream.place(1) is None  # before what does not fit yet
    core.receive(frame(0, b"c" * 10))
    assert content(buffer) == b"a" * 2000 + b"b" * 4000
    buffer.end = 0
    stream.fill(buffer)
    assert content(buffer) == b"b" * 1000 + b"c" * 10
    assert core.unread_bytes == 0


@pytest.mark.parametrize("straight", [False, True])
def test_a_sender_never_waits_for_a_receiver_that_keeps_up(straight: bool) -> None:
    core = Core()
    (stream,) = core.opened
    buffer, granted, sent = buffer_of(INITIAL_WINDOW), INITIAL_WINDOW, 0
    while sent < 10 * INITIAL_WINDOW:
        if not buffer.room:
            buffer.end = 0
        stream.fill(buffer)
        size = min(MESSAGE, granted - sent, buffer.room)
        assert size, "no window is left"
        if straight:
            core.deliver(HEADER.pack(0, DATA, 0, 1, size), bytes(size))
        else:
            core.receive(frame(0, bytes(size)))
        sent += size
        granted += sum(length for _, kind, flags, _, length in core.sent() if (kind, flags) == (WINDOW_UPDATE, 0))
        assert stream.recv_window == granted - sent <= INITIAL_WINDOW
    assert core.count == (sent if straight else 0)


@pytest.mark.parametrize("straight", [False, True])
def test_a_sender_is_held_to_its_window(straight: bool) -> None:
    """There is room for more than the window, but it is full when nothing has been granted for it."""
    core = Core()
    (stream,) = core.opened
    buffer = buffer_of(4 * INITIAL_WINDOW)
    stream.fill(buffer)
    size = stream.recv_window + 1
    before = content(buffer)
    if straight:
        core.deliver(HEADER.pack(0, DATA, 0, 1, size), *[bytes(50_000)] * (size // 50_000), bytes(size % 50_000))
    else:
        core.receive(frame(0, bytes(size)))
    assert (0, WINDOW_UPDATE, RST, 1, 0) in core.sent()
    assert content(buffer) == before
    assert stream.is_closed
    assert core.failure is None
    assert core.count == 0
    core.receive(HEADER.pack(0, WINDOW_UPDATE, SYN, 3, 0) + frame(0, b"ok", 3))
    assert core.streams[3].take() == b"ok"


def test_a_receiver_that_takes_nothing_holds_the_sender_up() -> None:
    core = Core()
    (stream,) = core.opened
    buffer = buffer_of(1000)
    stream.fill(buffer)
    core.receive(frame(0, bytes(INITIAL_WINDOW)))
    assert core.sent() == []
    assert stream.recv_window == 0
    assert core.unread_bytes == INITIAL_WINDOW - 1000


@pytest.mark.parametrize("end", ["close_read", "abort", "fin", "reset by the peer", "connection"])
def test_nothing_is_placed_after_the_end(end: str) -> None:
    core = Core()
    (stream,) = core.opened
    buffer = buffer_of(10_000)
    stream.fill(buffer)
    core.deliver(frame(0, bytes(3000))[:12], b"x" * 1000)  # in the middle of a payload
    assert content(buffer) == b"x" * 1000
    if end == "close_read":
        stream.close_read()
    elif end == "abort":
        stream.abort()
    elif end == "connection":
        core.fail("lost")
    else:
        core.deliver(b"x" * 2000, HEADER.pack(0, WINDOW_UPDATE, FIN if end == "fin" else RST, 1, 0))
        core.deliver(HEADER.pack(0, DATA, 0, 1, 2000))
    before = content(buffer)
    core.deliver(b"y" * 2000)
    core.deliver(HEADER.pack(0, DATA, 0, 1, 100), b"y" * 100)
    assert content(buffer) == before == b"x" * len(before)
    assert core.unread_bytes == 0
    assert core.failure == ("lost" if end == "connection" else None)


def test_a_frame_that_ends_the_stream_is_received_whole() -> None:
    core = Core()
    (stream,) = core.opened
    buffer = buffer_of(10_000)
    stream.fill(buffer)
    core.deliver(frame(FIN, b"")[:4] + struct.pack("!II", 1, 3000), b"x" * 1000, b"x" * 2000)
    assert content(buffer) == b"x" * 3000
    assert core.count == 3000
    assert stream._fin_received


def test_a_forged_message_that_was_to_be_placed_is_refused_and_so_are_those_behind_it() -> None:
    core = Core()
    (stream,) = core.opened
    buffer = buffer_of(10_000)
    stream.fill(buffer)
    data = pattern(4000)
    wire = core.noise.seal([frame(0, data)[:12], data[:1000], data[1000:2000], data[2000:3000]])
    wire[-1500] ^= 1
    good = core.noise.seal([data[3000:]])
    for more in (wire, good, b""):
        with pytest.raises(NoiseError):
            core.noise.open(more, core)
    assert core.count == 1000
    assert content(buffer) == data[:1000]


class Messages(NoiseSession):
    """A secured connection whose incoming messages a test seals; what is sent is forgotten."""

    def __init__(self) -> None:  # without a connection below
        self.is_initiator = False
        self.noise = Sealed()
        self._wires, self._incoming = trio.open_memory_channel[bytes](1000)

    def come(self, *messages: bytes, forged: bool = False) -> None:
        wire = self.noise.seal(messages)
        wire[-1] ^= forged
        self._wires.send_nowait(bytes(wire))

    def end(self) -> None:
        self._wires.close()

    async def deliver(self, sink: Any) -> bool:
        try:
            return self.noise.open(await self._incoming.receive(), sink)
        except trio.EndOfChannel:
            return False
        except NoiseError as exc:
            raise DecryptionFailedException(str(exc)) from exc

    async def write_messages(self, plaintexts: Any) -> None:
        await trio.lowlevel.checkpoint()

    def limit_unsent(self, max_bytes: int) -> None:
        pass

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def accepted() -> AsyncIterator[tuple[Yamux, Messages, YamuxStream]]:
    session = Messages()
    conn = Yamux(session, "peer")  # type: ignore[arg-type]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.start)
            session.come(HEADER.pack(0, WINDOW_UPDATE, SYN, 1, 0))
            yield conn, session, await conn.accept_stream()
            await conn.close()


class TestReaders:
    pytestmark = trio_only

    async def test_a_reader_is_woken_when_it_has_what_it_wants(self) -> None:
        async with accepted() as (_, session, stream):
            data, buffer, wants = pattern(200_000), buffer_of(250_000), 100_000
            done = trio.Event()

            async def read() -> None:
                await stream.read_into(buffer, wants)
                done.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                session.come(HEADER.pack(0, DATA, 0, 1, len(data)), data[:60_000])
                await trio.testing.wait_all_tasks_blocked()
                assert not done.is_set()
                session.come(data[60_000:100_000])
                await done.wait()
            session.come(data[100_000:150_000])
            await trio.testing.wait_all_tasks_blocked()
            assert content(buffer) == data[:150_000]  # what comes later goes into it too
            await stream.read_into(buffer, 150_000)
            async with trio.open_nursery() as nursery:
                wants = 150_001
                done = trio.Event()
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                assert not done.is_set()
                session.come(data[150_000:])
                await done.wait()
            assert content(buffer) == data

    async def test_a_cancelled_reader_loses_nothing(self) -> None:
        async with accepted() as (_, session, stream):
            data = pattern(180_000)
            wire = frame(0, data)
            buffer = buffer_of(100_000)
            got = b""
            session.come(wire[:12])
            starts = iter(range(12, len(wire), 7_000))
            while len(got) < len(data):
                want = min(50_000, len(data) - len(got))
                while buffer.end < want:
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(stream.read_into, buffer, want)
                            await trio.testing.wait_all_tasks_blocked()
                            scope.cancel()
                    start = next(starts, None)
                    if start is not None:
                        session.come(wire[start : start + 7_000])
                        await trio.testing.wait_all_tasks_blocked()
                got += content(buffer)
                buffer.end = 0
            assert got == data

    @pytest.mark.parametrize(
        ("end", "error"),
        [
            ("fin", MuxedStreamEOF),
            ("reset by the peer", MuxedStreamReset),
            ("close_read", MuxedStreamClosed),
            ("abort", MuxedStreamReset),
            ("connection", MuxedStreamReset),
            ("forged", MuxedStreamReset),
            ("protocol", MuxedStreamReset),
            ("detached", MuxedStreamClosed),
        ],
    )
    async def test_a_reader_learns_of_the_end(self, end: str, error: type[MuxedStreamError]) -> None:
        async with accepted() as (conn, session, stream):
            buffer = buffer_of(1 << 20)
            data = pattern(2000)
            ended = trio.Event()

            async def read() -> None:
                with pytest.raises(error):
                    await stream.read_into(buffer, 100_000)
                ended.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                session.come(frame(0, data)[:12], data)
                if end == "forged":
                    session.come(HEADER.pack(0, DATA, 0, 1, 1000), bytes(1000), forged=True)
                elif end == "protocol":
                    session.come(HEADER.pack(1, DATA, 0, 1, 1000))
                elif end == "connection":
                    session.end()
                elif end in ("fin", "reset by the peer"):
                    session.come(HEADER.pack(0, WINDOW_UPDATE, FIN if end == "fin" else RST, 1, 0))
                else:
                    await trio.testing.wait_all_tasks_blocked()
                    assert not ended.is_set()
                    if end == "detached":
                        buffer.memory, buffer.end = memoryview(bytearray()), 0
                        session.come(frame(0, data)[:12], data)
                        await trio.testing.wait_all_tasks_blocked()
                        assert conn.failure is None
                        assert stream.unread_bytes == len(data)
                    if end == "abort":
                        stream.abort()
                    else:
                        stream.close_read()
                await ended.wait()
            assert content(buffer) == (b"" if end == "detached" else data)
            assert (conn.failure is not None) is (end in ("connection", "forged", "protocol"))
            assert conn.core.unread_bytes == 0
            with pytest.raises(error):
                await stream.read_into(buffer_of(100), 100)

    async def test_what_was_received_before_an_end_can_still_be_taken(self) -> None:
        async with accepted() as (_, session, stream):
            session.come(frame(0, pattern(2000)), HEADER.pack(0, WINDOW_UPDATE, RST, 1, 0))
            await trio.testing.wait_all_tasks_blocked()
            buffer = buffer_of(5000)
            await stream.read_into(buffer, 2000)
            assert content(buffer) == pattern(2000)
            with pytest.raises(MuxedStreamReset):
                await stream.read_into(buffer, 2001)
