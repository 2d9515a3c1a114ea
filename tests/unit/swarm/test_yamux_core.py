"""The multiplexer's core without I/O: random interleavings against a model, garbage, who is sent first, windows."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.swarm.abc import ReceiveBuffer
from sdnet_core.swarm.noise_core import MAX_PLAINTEXT_BYTES
from sdnet_core.swarm.yamux_core import YamuxCore
from sdnet_core.swarm.yamux_frames import (
    GO_AWAY_PROTOCOL_ERROR,
    INITIAL_WINDOW,
    MAX_PAYLOAD_BYTES,
    MAX_WINDOW,
    NOISE_PLAINTEXT_BYTES,
)
from sdnet_core.swarm.yamux_window import StreamCore
from tests.sinks import Sealed

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
HEADER = struct.Struct("!BBHII")
MIB = 1024 * 1024


@dataclass(eq=False)
class Side:
    """One end of a connection, and what the other end has sent that has not arrived yet."""

    core: YamuxCore[StreamCore]
    wire: bytearray = field(default_factory=bytearray)
    accepted: list[StreamCore] = field(default_factory=list)
    noise: Sealed = field(default_factory=Sealed)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(initiator: bool, clock: Callable[[], float], **options: int) -> Side:
    core: YamuxCore[StreamCore] = YamuxCore(initiator, lambda number: StreamCore(core, number), clock, **options)
    side = Side(core)
    core.on_inbound = side.accepted.append
    return side


def output(core: YamuxCore[StreamCore], max_bytes: int = MAX_PAYLOAD_BYTES) -> bytes:
    pieces = core.next_output(max_bytes)
    assert all(0 < len(piece) <= 65_519 for piece in pieces)
    return b"".join(pieces)


def frames(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    at = 0
    while at < len(data):
        version, kind, flags, stream_id, length = HEADER.unpack_from(data, at)
        assert version == 0
        yield kind, flags, stream_id, length
        at += HEADER.size + (length if kind == DATA else 0)
    assert at == len(data)


@dataclass(eq=False)
class Channel:
    """What the model knows of one direction of one stream."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    finished: bool = False


class Model:
    """Two ends, driven at random; each direction of each stream is a pipe, and nothing else."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.sides = [make(True, self.clock), make(False, self.clock)]
        self.streams: list[dict[int, StreamCore]] = [{}, {}]
        self.channels: dict[tuple[int, int], Channel] = {}
        self.buffers: dict[tuple[int, int], ReceiveBuffer] = {}
        self.reset: set[int] = set()

    def step(self) -> None:
        self.clock.now += self.random.random() * 0.01
        side = self.random.randrange(2)
        action = self.random.choices(
            [self.open, self.put, self.take, self.finish, self.abort, self.send, self.deliver],
            [2, 12, 12, 2, 1, 10, 14],
        )[0]
        action(side)
        self.check()

    def open(self, side: int) -> None:
        if len(self.streams[side]) < 12:
            stream = self.sides[side].core.open()
            self.streams[side][stream.stream_id] = stream
            for end in range(2):
                self.channels[end, stream.stream_id] = Channel()

    def some_stream(self, side: int) -> StreamCore | None:
        streams = list(self.streams[side].values())
        return self.random.choice(streams) if streams else None

    def put(self, side: int) -> None:
        stream = self.some_stream(side)
        if stream is None or stream.is_closed or self.channels[side, stream.stream_id].finished:
            return
        size = min(stream.room, self.random.choice([1, 100, 5000, 9000, 70_000, 300_000]))
        if size:
            data = self.random.randbytes(size)
            stream.put(data)
            self.channels[side, stream.stream_id].sent += data

    def take(self, side: int) -> None:
        stream = self.some_stream(side)
        if stream is not None:
            self.take_from(side, stream)

    def take_from(self, side: int, stream: StreamCore) -> int:
        """Read some; from the stream itself, unless there is a buffer that everything goes into."""
        buffer = self.buffers.pop((side, stream.stream_id), None)
        if buffer is None and self.random.randrange(2):
            data = stream.take(self.random.choice([None, 1, 1000, 65536]))
        else:
            buffer = buffer or ReceiveBuffer(memoryview(bytearray(self.random.choice([1, 1000, 65536, 400_000]))))
            stream.fill(buffer)
            data = bytes(buffer.memory[: buffer.end])
            if buffer.room:
                buffer.end = 0
                self.buffers[side, stream.stream_id] = buffer
        self.channels[1 - side, stream.stream_id].received += data
        return len(data)

    def finish(self, side: int) -> None:
        stream = self.some_stream(side)
        if stream is not None and not stream.is_closed:
            stream.finish()
            self.channels[side, stream.stream_id].finished = True

    def abort(self, side: int) -> None:
        stream = self.some_stream(side)
        if stream is not None and not stream.is_closed:
            stream.abort()
            self.reset.add(stream.stream_id)

    def send(self, side: int) -> None:
        self.sides[1 - side].wire += output(self.sides[side].core, self.random.choice([1, 20_000, MAX_PAYLOAD_BYTES]))

    def deliver(self, side: int) -> None:
        here = self.sides[side]
        size = self.random.choice([1, 13, 500, 65_519, 10 * MIB])
        data, here.wire = bytes(here.wire[:size]), here.wire[size:]
        if self.random.randrange(2):
            here.core.receive(data)
        else:
            size = self.random.choice([100, 5000, MAX_PLAINTEXT_BYTES])
            here.noise.deliver([data[at : at + size] for at in range(0, len(data), size)], here.core)
        for stream in here.accepted:
            self.streams[side][stream.stream_id] = stream
        here.accepted.clear()

    def check(self) -> None:
        for side, streams in zip(self.sides, self.streams, strict=True):
            core = side.core
            assert core.failure is None
            assert core.queued_bytes == sum(stream.pending_bytes for stream in streams.values())
            assert core.unread_bytes == sum(stream.unread_bytes for stream in streams.values())
            assert core.growth_budget >= 0
            assert all(stream.recv_window >= 0 <= stream.send_window for stream in streams.values())
        for channel in self.channels.values():
            assert channel.sent.startswith(channel.received)

    def settle(self) -> None:
        """Deliver and read everything."""
        idle = rounds = 0
        while idle < 3:
            rounds += 1
            assert rounds < 10_000, "The two ends go on sending each other something."
            before = sum(len(channel.received) for channel in self.channels.values())
            moved = 0
            for side in range(2):
                self.sides[1 - side].wire += output(self.sides[side].core)
                moved += len(self.sides[side].wire)
                while self.sides[side].wire:
                    self.deliver(side)
                for stream in self.streams[side].values():
                    while self.take_from(side, stream):
                        pass
            idle = 0 if moved or sum(len(c.received) for c in self.channels.values()) > before else idle + 1

    def finish_everything(self) -> None:
        self.settle()
        self.check()
        for (side, stream_id), channel in self.channels.items():
            if stream_id in self.reset:
                continue
            assert channel.received == channel.sent
            assert self.streams[1 - side][stream_id]._fin_received == channel.finished
        for side in range(2):
            for stream in self.streams[side].values():
                stream.finish()
                stream.close_read()
        self.settle()
        for side_ in self.sides:
            assert side_.core.streams == {}
            assert side_.core.queued_bytes == side_.core.unread_bytes == side_.core.unacknowledged == 0
            assert side_.core.growth_budget == make(True, self.clock).core.growth_budget


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 400))
def test_random_interleavings_are_pipes(seed: int, steps: int) -> None:
    model = Model(seed)
    for _ in range(steps):
        model.step()
    model.finish_everything()


FRAME = st.builds(
    lambda version, kind, flags, stream_id, length, body: HEADER.pack(version, kind, flags, stream_id, length) + body,
    st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1]),
    st.sampled_from([0, 0, 1, 1, 2, 3, 4]),
    st.one_of(st.sampled_from([0, SYN, ACK, FIN, RST, SYN | FIN, FIN | RST]), st.integers(0, 0xFFFF)),
    st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 9), st.sampled_from([INITIAL_WINDOW, INITIAL_WINDOW + 1, 2**32 - 1])),
    st.binary(max_size=9),
)


@given(wire=st.one_of(st.binary(max_size=400), st.lists(FRAME, max_size=30).map(b"".join)), seed=st.integers(0, 999))
def test_garbage_ends_the_connection_or_nothing_whatever_pieces_it_comes_in(wire: bytes, seed: int) -> None:
    results = []
    pieces = random.Random(seed)
    for whole in (True, False):
        side = make(False, Clock())
        ours = side.core.open()
        ours.put(b"data")
        at = 0
        while at < len(wire):
            size = len(wire) if whole else pieces.randint(1, 20)
            side.core.receive(wire[at : at + size])
            at += size
        sent = bytearray()
        while side.core.has_output:
            sent += output(side.core)
        results.append((side.core.failure, bytes(sent), [stream.take() for stream in side.accepted if whole]))
    assert results[0][:2] == results[1][:2]
    failure, sent, _ = results[0]
    if failure is not None and "protocol" in failure:
        assert sent == HEADER.pack(0, GO_AWAY, 0, 0, GO_AWAY_PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "wire",
    [
        HEADER.pack(0, DATA, 0, 0, 5) + b"hello",
        HEADER.pack(0, PING, 0x100, 0, 0),
        HEADER.pack(0, WINDOW_UPDATE, 0, 0, 1),
    ],
    ids=["data-without-stream", "unknown-flag", "window-without-stream"],
)
def test_what_breaks_the_protocol_is_answered_by_going_away(wire: bytes) -> None:
    core = make(False, Clock()).core
    core.receive(wire)
    assert "broke the multiplexer's protocol" in (core.failure or "")
    assert list(frames(output(core))) == [(GO_AWAY, 0, 0, GO_AWAY_PROTOCOL_ERROR)]


def test_going_away_for_an_error_ends_the_connection() -> None:
    core = make(False, Clock()).core
    core.receive(HEADER.pack(0, GO_AWAY, 0, 0, 2))
    assert core.failure == "The peer gave the connection up as broken."


def filled(core: YamuxCore[StreamCore], number: int) -> list[StreamCore]:
    """Streams with all that they can take waiting to be sent."""
    streams = [core.open() for _ in range(number)]
    for stream in streams:
        stream.put(bytes(stream.room))
    return streams


def test_a_small_message_goes_before_everything_that_waits() -> None:
    core = make(True, Clock()).core
    filled(core, 3)
    output(core)
    ping = core.open()
    ping.put(b"ping")
    assert list(frames(output(core)))[:2] == [(WINDOW_UPDATE, SYN, ping.stream_id, 0), (DATA, 0, ping.stream_id, 4)]


def test_bulk_streams_take_turns() -> None:
    core = make(True, Clock()).core
    streams = filled(core, 4)
    order = [stream_id for kind, _, stream_id, _ in frames(output(core) + output(core)) if kind == DATA]
    assert order == [stream.stream_id for stream in streams] * 2


def test_a_large_frame_takes_no_more_noise_messages_than_it_must() -> None:
    core = make(True, Clock()).core
    filled(core, 1)
    assert next(frames(output(core, 1)))[:2] == (WINDOW_UPDATE, SYN)
    sizes = [len(piece) for piece in core.next_output()]
    assert sum(sizes) == INITIAL_WINDOW + HEADER.size
    assert sizes == [HEADER.size, *[NOISE_PLAINTEXT_BYTES] * 4, sizes[-1]]


def test_a_writer_goes_on_in_large_pieces() -> None:
    woken = 0

    class Recording(StreamCore):
        def writable(self) -> None:
            nonlocal woken
            woken += 1

    core: YamuxCore[StreamCore] = YamuxCore(True, lambda number: Recording(core, number), Clock())
    stream = core.open()
    stream.credit(4 * MIB)
    stream.put(bytes(stream.room))
    woken = 0
    while stream.pending_bytes > MAX_PAYLOAD_BYTES // 2:
        assert (stream.room_for(MIB), woken) == (0, 0)
        assert stream.room_for(stream.room) == stream.room  # what fits whole need not wait
        core.next_output(60_000)
    assert woken == 1
    assert stream.room_for(MIB) == stream.room >= MAX_PAYLOAD_BYTES // 2


def test_a_stream_of_small_messages_does_not_starve_a_bulk_one() -> None:
    core = make(True, Clock()).core
    (bulk,) = filled(core, 1)
    small = core.open()
    sent_by_bulk = 0
    for _ in range(20):
        small.put(bytes(1000))
        sent_by_bulk += sum(
            length for kind, _, number, length in frames(output(core)) if number == bulk.stream_id and kind == DATA
        )
    assert sent_by_bulk == INITIAL_WINDOW


def test_many_small_messages_share_a_frame() -> None:
    core = make(True, Clock()).core
    stream = core.open()
    for _ in range(100):
        stream.put(b"x" * 50)
    assert [length for kind, _, _, length in frames(output(core)) if kind == DATA] == [5000]


def transfer(rtt_s: float, bytes_per_s: float, total: int, *, budget: int = 32 * MIB) -> tuple[StreamCore, float]:
    """Send over a line with a delay and a speed, in virtual time; returns the receiving stream and how long it took."""
    clock = Clock()
    a, b = make(True, clock), make(False, clock)
    for side in (a, b):
        side.core.measure_rtt()
    b.core.growth_budget = budget
    stream = a.core.open()
    flying: list[tuple[float, Side, bytes]] = []
    free_at = clock.now
    left, got, began = total, 0, clock.now
    while got < total:
        if left and stream.room:
            size = min(left, stream.room)
            stream.put(bytes(size))
            left -= size
        if data := output(b.core):
            flying.append((clock.now + rtt_s / 2, a, data))
        if free_at <= clock.now and (data := output(a.core)):
            free_at = clock.now + len(data) / bytes_per_s
            flying.append((free_at + rtt_s / 2, b, data))
        times = [at for at, _, _ in flying] + ([free_at] if free_at > clock.now else [])
        clock.now = max(clock.now, min(times))
        for item in [one for one in flying if one[0] <= clock.now]:
            flying.remove(item)
            item[1].core.receive(item[2])
        while b.accepted and (data := b.accepted[0].take()):
            got += len(data)
    return b.accepted[0], clock.now - began


@pytest.mark.parametrize(("rtt_s", "mib_per_s"), [(0.1, 50), (0.02, 400), (0.3, 20)])
def test_windows_grow_to_what_fits_the_line(rtt_s: float, mib_per_s: float) -> None:
    _, took_s = transfer(rtt_s, mib_per_s * MIB, int(mib_per_s * MIB * 4))
    assert took_s < 4 + 20 * rtt_s
    assert 4 * mib_per_s * MIB / INITIAL_WINDOW * rtt_s > 3 * took_s  # with the first window it would take much longer


def test_windows_stay_small_where_a_round_trip_takes_no_time() -> None:
    stream, _ = transfer(0.0001, 400 * MIB, 200 * MIB)
    # The round trip is measured with what else is on the line, but never with a whole window of it.
    assert stream._target_window <= 5 * MIB


def test_windows_have_a_bound_and_so_have_those_of_a_connection() -> None:
    stream, _ = transfer(1.0, 1000 * MIB, 300 * MIB)
    assert stream._target_window == MAX_WINDOW
    assert stream.core.growth_budget == 32 * MIB - (MAX_WINDOW - INITIAL_WINDOW)
    poor, _ = transfer(1.0, 1000 * MIB, 300 * MIB, budget=MIB)
    assert poor._target_window == INITIAL_WINDOW + MIB
    assert poor.core.growth_budget == 0


@pytest.mark.parametrize("read", [0, 100_000])
def test_a_writer_whose_window_is_used_up_learns_that_nobody_reads_any_more(read: int) -> None:
    a, b = make(True, Clock()), make(False, Clock())
    stream = a.core.open()
    while stream.room:
        stream.put(bytes(stream.room))
        b.core.receive(output(a.core))
    (theirs,) = b.accepted
    theirs.take(read)
    a.core.receive(output(b.core))
    assert stream.send_window == 0
    theirs.finish()
    theirs.close_read()
    a.core.receive(output(b.core))
    assert stream.room
    stream.put(b"more")
    b.core.receive(output(a.core))
    a.core.receive(output(b.core))
    assert stream._broken is not None
    assert a.core.streams == b.core.streams == {}


def test_what_lies_unread_in_all_streams_is_bounded() -> None:
    side = make(False, Clock(), max_inbound_streams=1000)
    body = bytes(INITIAL_WINDOW)
    for number in range(1, 601, 2):
        side.core.receive(HEADER.pack(0, DATA, SYN, number, len(body)) + body)
    held = sum(stream.unread_bytes for stream in side.accepted)
    assert held == side.core.unread_bytes <= 40 * MIB
    resets = [number for kind, flags, number, _ in frames(output(side.core)) if flags == RST]
    assert len(resets) == 300 - len([stream for stream in side.accepted if not stream.is_closed])
    assert len(resets) >= 100
    # Reading makes room again.
    while side.accepted[0].take():
        pass
    side.core.receive(HEADER.pack(0, DATA, SYN, 601, 4) + b"more")
    assert side.accepted[-1].take() == b"more"


def test_a_large_message_with_a_small_part_is_not_kept_for_it() -> None:
    side = make(False, Clock())
    ignored = HEADER.pack(0, DATA, 0, 99, 60_000) + bytes(60_000)
    side.core.receive(HEADER.pack(0, DATA, SYN, 1, 5000) + bytes(5000) + ignored)
    (chunk,) = side.accepted[0]._chunks
    assert isinstance(chunk, bytes)
    assert len(chunk) == 5000
