"""Buffers that are used again: nobody finds in one what is another's, and none is lost."""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.session import buffers
from sdnet_core.session.buffers import Incoming, sealing_buffer
from sdnet_core.session.channel import MAX_RECORD_BYTES, SealedStream
from sdnet_core.session.preamble import read_preamble
from sdnet_core.swarm.abc import ReceiveBuffer, SwarmStream
from sdnet_core.swarm.yamux_core import YamuxCore
from sdnet_core.swarm.yamux_frames import DATA, HEADER, SYN, WINDOW_UPDATE
from sdnet_core.swarm.yamux_window import StreamCore
from tests.sinks import Sealed

MakePair = Callable[..., Any]
LARGE = buffers.LARGE_BYTES


@pytest.fixture
def lender(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has no buffers of other tests."""
    lender = buffers._Lender()
    monkeypatch.setattr(buffers, "_lender", lender)
    return lender


class Below(SwarmStream):
    """A stream of the multiplexer; what the other side sends is given by the test.

    :ivar on_empty: called when somebody would wait for more.
    """

    def __init__(self) -> None:
        streams: list[StreamCore] = []
        self.core: YamuxCore[StreamCore] = YamuxCore(False, lambda number: StreamCore(self.core, number), lambda: 0.0)
        self.core.on_inbound = streams.append
        self.core.receive(HEADER.pack(0, WINDOW_UPDATE, SYN, 1, 0))
        (self.stream,) = streams
        self.noise = Sealed()
        self.was_reset = False

        self.on_empty: Callable[[], object] = _nothing

    def come(self, data: bytes, *, placed: bool = False) -> None:
        """Data comes in, in one frame."""
        header = HEADER.pack(0, DATA, 0, 1, len(data))
        if placed:
            self.noise.deliver([header, data], self.core)
        else:
            self.core.receive(header + data)

    peer_id = protocol = ""
    generation = 1

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while not (data := self.stream.take(max_bytes)):
            await self._wait()
        return data

    async def receive_into(self, buffer: ReceiveBuffer, end: int) -> None:
        self.stream.fill(buffer)
        while buffer.end < end:
            await self._wait()

    async def _wait(self) -> None:
        self.on_empty()
        if self.stream._read_closed:
            raise anyio.ClosedResourceError
        await anyio.lowlevel.checkpoint()

    async def send(self, item: bytes) -> None:
        raise NotImplementedError

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.stream.close_read()

    async def reset(self) -> None:
        self.stream.abort()
        self.stream.close_read()


async def receive_until_empty(incoming: Incoming, below: Below, size: int) -> bytes | None:
    """The next bytes, or None if they are not all here: receiving is cancelled then."""
    with anyio.CancelScope() as scope:
        below.on_empty = scope.cancel
        while (data := incoming.take(size)) is None:
            await incoming.receive(below, size)
        taken = bytes(data)
        incoming.used()
        return taken
    return None


def _nothing() -> None:
    pass


@pytest.mark.anyio
@given(
    sizes=st.lists(st.one_of(st.integers(1, 20), st.integers(60, 130)), max_size=20),
    cuts=st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=6),
    begun=st.integers(0, 100),
    kept=st.booleans(),
)
async def test_any_cutting_and_any_cancelling_gives_the_same_records(
    sizes: list[int], cuts: list[tuple[int, bool]], begun: int, kept: bool
) -> None:
    """Each piece comes when the receiver waits, which is cancelled then. Large is what has 64 bytes here."""
    data = bytes(number * 7 % 251 for number in range(sum(sizes)))
    at = min(begun, len(data))
    below, incoming = Below(), Incoming()
    incoming.feed(data[:at])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "LARGE_BYTES", 64)
        patch.setattr(buffers, "_INCOMING_BYTES", 330)
        patch.setattr(buffers, "_MAX_INCOMING", kept)
        patch.setattr(buffers, "_lender", lender := buffers._Lender())
        received: list[bytes] = []
        turn = 0
        for size in sizes:
            while (record := await receive_until_empty(incoming, below, size)) is None:
                assert at < len(data)
                length, placed = cuts[turn % len(cuts)]
                below.come(data[at : at + length], placed=placed)
                at, turn = at + length, turn + 1
            received.append(record)
        incoming.close()
        assert lender.lent == 0
    assert [len(record) for record in received] == sizes
    assert b"".join(received) == data
    assert below.core.unread_bytes == 0


@pytest.mark.anyio
@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
async def test_a_buffer_that_was_given_back_is_not_written_to_by_the_stream_before(
    lender: Any, placed: bool, dropped: bool
) -> None:
    first, second = Below(), Below()

    async def receive_a_part() -> memoryview:
        incoming = Incoming()
        first.come(b"1" * 110_000)
        await incoming.receive(first, 70_000)
        assert bytes(incoming.take(70_000) or b"") == b"1" * 70_000
        assert incoming._buffer is not None
        assert lender.lent == 1
        memory = incoming._buffer.memory
        if not dropped:
            incoming.close()
        return memory

    memory = await receive_a_part()
    gc.collect()
    assert lender.lent == 0

    other = Incoming()
    second.come(b"2" * 50_000)
    assert await receive_until_empty(other, second, 100_000) is None
    assert other._buffer is not None
    assert other._buffer.memory is memory  # the very same, which is what could go wrong
    first.come(b"1" * 60_000, placed=placed)
    first.come(b"1" * 60_000, placed=placed)
    second.come(b"2" * 50_000, placed=placed)
    assert await receive_until_empty(other, second, 100_000) == b"2" * 100_000
    assert first.stream.unread_bytes == 120_000  # bounded by the window


@pytest.mark.anyio
async def test_a_receiver_that_is_still_there_when_it_is_closed_borrows_nothing(lender: Any) -> None:
    """A task that was woken by data goes on after another one has closed the stream."""
    below, incoming = Below(), Incoming()
    for _ in range(2):
        below.come(b"x" * 100_000)
        assert await receive_until_empty(incoming, below, 100_000)
    below.come(b"x" * 50_000)
    assert await receive_until_empty(incoming, below, 100_000) is None
    assert await receive_until_empty(incoming, below, 40_000)
    incoming.close()
    below.stream.close_read()
    for size in (4, 100_000, buffers._INCOMING_BYTES):
        with pytest.raises(anyio.ClosedResourceError):
            await incoming.receive(below, size)
    assert lender.lent == 0


async def sealed_by(pair: Any, items: list[bytes]) -> bytes:
    """What the initiator writes."""
    tape = type(pair.initiator_tape)(pair.initiator.peer_id)
    stream = pair.initiator.open_stream(tape)
    for item in items:
        await stream.send_record(item)
    await stream.send_eof()
    return bytes(tape.written)


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["close", "reset", "failed", "cut off", "ended", "dropped"])
async def test_so_many_buffers_are_lent_and_all_come_back(make_pair: MakePair, lender: Any, end: str) -> None:
    pair = make_pair()
    streams: list[SealedStream] = []
    tapes: list[Any] = []
    wires: list[bytes] = []
    items = [b"a" * LARGE, b"b" * 2 * LARGE, b"c", b"d" * LARGE]
    for number in range(buffers._MAX_INCOMING + 2):
        wires.append(await sealed_by(pair, items))
        tapes.append(type(pair.initiator_tape)(pair.responder.peer_id, [wires[-1][:LARGE]]))
        streams.append(pair.responder.accept(tapes[-1], await read_preamble(tapes[-1])))
        await begin(streams[-1], tapes[-1])
        assert lender.lent == min(number + 1, buffers._MAX_INCOMING)
    for stream, tape, wire in zip(streams, tapes, wires, strict=True):
        more = bytearray(wire[LARGE:])
        if end == "failed":
            more[-1000] ^= 1
        elif end == "cut off":
            del more[-1000:]
        tape.chunks.append(bytes(more))
        assert [await stream.receive_record() for _ in range(3)] == items[:3]
    assert lender.lent == buffers._MAX_INCOMING
    while streams:
        stream, tape = streams.pop(), tapes.pop()
        if end == "close":
            await stream.aclose()
        elif end == "reset":
            await stream.reset()
        elif end == "ended":
            assert await stream.receive_record() == items[3]
            with pytest.raises(anyio.EndOfStream):
                await stream.receive_record()
        elif end != "dropped":
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive_record()
            assert tape.was_reset
        if end != "dropped":
            assert lender.lent == min(len(streams), buffers._MAX_INCOMING)
    del stream
    gc.collect()
    assert lender.lent == 0


async def begin(stream: SealedStream, tape: Any) -> None:
    """Receive what there is of a record, and no more."""
    receive = tape.receive
    with anyio.CancelScope() as scope:

        async def receive_or_cancel(max_bytes: int = 65536) -> bytes:
            if not tape.chunks:
                scope.cancel()
                await anyio.sleep_forever()
            return bytes(await receive(max_bytes))

        tape.receive = receive_or_cancel
        await stream.receive_record()
    assert scope.cancelled_caught
    tape.receive = receive


@pytest.mark.anyio
async def test_many_small_records_that_are_here_let_other_tasks_run(make_pair: MakePair) -> None:
    pair = make_pair()
    large, small = bytes(MAX_RECORD_BYTES), [b"x"] * 5000
    tape = type(pair.initiator_tape)(pair.responder.peer_id, [await sealed_by(pair, [large, *small])])
    stream = pair.responder.accept(tape, await read_preamble(tape))
    assert await stream.receive_record() == large
    await stream.receive_record()  # which brings in all the others
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        for _ in small[1:]:
            await stream.receive_record()
        tasks.cancel_scope.cancel()
    assert turns >= 10


@pytest.fixture
def no_sealing_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_lent", deque(maxlen=buffers._MAX_LENT))


def restrict(view: memoryview, how: int) -> memoryview:
    """What the streams below keep of a record."""
    return [view, view[1000:], view[5:][:100][50:], view.toreadonly(), view.toreadonly()[7:90]][how]


@given(st.lists(st.one_of(st.tuples(st.integers(0, 4), st.booleans()), st.integers(0, 20)), max_size=40))
def test_what_is_still_looked_at_is_not_given_out_again(steps: list[tuple[int, bool] | int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "_lent", deque(maxlen=buffers._MAX_LENT))
        held: list[tuple[memoryview, int]] = []
        for number, step in enumerate(steps):
            if isinstance(step, int):
                if held:
                    del held[step % len(held)]
                continue
            how, whole = step
            size = buffers._MAX_RECORD_BYTES if whole else LARGE
            view = sealing_buffer(size)
            assert len(view) == size
            view[:] = bytes([number]) * size
            held.append((restrict(view, how), number))
            del view
            for kept, mark in held:
                assert kept[0] == kept[len(kept) // 2] == kept[-1] == mark
        assert len(buffers._lent) <= buffers._MAX_LENT


@pytest.mark.usefixtures("no_sealing_buffers")
def test_a_buffer_is_given_out_again_when_no_view_of_it_is_left() -> None:
    view = sealing_buffer(LARGE)
    first = id(view.obj)
    part = view[10:][:20].toreadonly()
    del view
    other = sealing_buffer(LARGE)
    assert id(other.obj) != first
    del part, other
    assert {id(sealing_buffer(LARGE).obj) for _ in range(10)} <= {id(buffer) for buffer in buffers._lent}
    assert len(buffers._lent) == 2


@pytest.fixture
def often_interrupted() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("no_sealing_buffers", "often_interrupted")
def test_nodes_in_several_threads_have_no_buffer_in_common(lender: Any) -> None:
    wrong: list[object] = []

    def use(mark: int) -> None:
        try:
            for _ in range(3000):
                view = sealing_buffer(100)
                view[0] = mark
                memory = lender.lend()
                if memory is not None:
                    memory[0] = mark
                    if memory[0] != mark:
                        wrong.append(mark)
                    lender.take_back(memory)
                if view[0] != mark:
                    wrong.append(mark)
        except Exception as exc:
            wrong.append(exc)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert lender.lent == 0
