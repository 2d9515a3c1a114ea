"""The record layer: what one end seals the other opens, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core.errors import EncryptionError, NetworkingError, ProtocolError
from sdnet_core.session.channel import MAX_RECORD_BYTES, SealedStream
from sdnet_core.session.epoch import SessionLimits
from sdnet_core.session.keys import Suite
from sdnet_core.session.preamble import PREAMBLE_BYTES, read_preamble

pytestmark = pytest.mark.anyio

MakePair = Callable[..., Any]
OVERHEAD = 4 + 16


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes into pieces of the given sizes, over and over."""
    pieces, at = [], 0
    while at < len(data):
        size = places[len(pieces) % len(places)]
        pieces.append(data[at : at + size])
        at += size
    return pieces


async def record(pair: Any, *items: bytes, end: bool = True, protocol: str = "/sdnet/test/1") -> bytes:
    """What the initiator writes for these records."""
    stream = pair.initiator.open_stream(new := type(pair.initiator_tape)(pair.initiator.peer_id, protocol=protocol))
    for item in items:
        await stream.send_record(item)
    if end:
        await stream.send_eof()
    return bytes(new.written)


async def accept(pair: Any, wire: bytes, sizes: list[int] | None = None, **more: Any) -> SealedStream:
    """Give the responder those bytes as an inbound stream."""
    chunks = cut_at(wire, sizes or [len(wire) or 1])
    tape = type(pair.initiator_tape)(pair.responder.peer_id, chunks, **more)
    sealed: SealedStream = pair.responder.accept(tape, await read_preamble(tape))
    return sealed


async def read_all(stream: SealedStream, max_bytes: int = 65536) -> bytes:
    data = b""
    while True:
        try:
            data += await stream.receive(max_bytes)
        except anyio.EndOfStream:
            return data


@pytest.mark.parametrize("suite", list(Suite))
async def test_there_and_back(make_pair: MakePair, tape: Any, suite: Suite) -> None:
    pair = make_pair(suite=suite)
    out_tape = tape(pair.initiator.peer_id)
    ours = pair.initiator.open_stream(out_tape)
    await ours.send(b"question")
    await ours.send_eof()
    in_tape = tape(pair.responder.peer_id, [out_tape.written])
    theirs = pair.responder.accept(in_tape, await read_preamble(in_tape))
    assert await read_all(theirs) == b"question"
    await theirs.send(b"answer")
    await theirs.aclose()
    out_tape.chunks.append(in_tape.written)
    assert await read_all(ours) == b"answer"
    assert b"question" not in out_tape.written
    assert in_tape.was_closed
    assert (ours.peer_id, ours.protocol, ours.generation) == (pair.initiator.peer_id, "/sdnet/test/1", 1)


async def test_a_stream_s_bytes_are_as_specified(make_pair: MakePair) -> None:
    pair = make_pair()
    wire = await record(pair, b"hello")
    keys = pair.initiator.keys
    cipher = Suite.AES_256_GCM.cipher(keys.stream_key(keys.role, keys.role, "/sdnet/test/1", 1))
    context = keys.epoch_id + (1).to_bytes(8, "big")
    assert wire[:16] == context
    at = 16
    for counter, (header, plain) in enumerate([(b"\0\0\0\x10", b""), (b"\1\0\0\x15", b"hello"), (b"\2\0\0\x10", b"")]):
        if counter:
            assert wire[at : at + 4] == header
            at += 4
        sealed = wire[at : at + len(plain) + 16]
        assert cipher.decrypt(counter.to_bytes(12, "big"), memoryview(sealed), context + header) == plain
        at += len(sealed)
    assert at == len(wire)


@given(
    items=st.lists(st.binary(min_size=1, max_size=200), max_size=6),
    sizes=st.lists(st.integers(1, 80), min_size=1, max_size=5),
    max_bytes=st.integers(1, 100),
)
async def test_any_cutting_gives_the_same_bytes(
    make_pair: MakePair, items: list[bytes], sizes: list[int], max_bytes: int
) -> None:
    pair = make_pair()
    stream = await accept(pair, await record(pair, *items), sizes)
    assert await read_all(stream, max_bytes) == b"".join(items)
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()


@given(
    items=st.lists(st.binary(min_size=1, max_size=200), max_size=6),
    sizes=st.lists(st.integers(1, 80), min_size=1, max_size=5),
)
async def test_records_stay_whole(make_pair: MakePair, items: list[bytes], sizes: list[int]) -> None:
    pair = make_pair()
    stream = await accept(pair, await record(pair, *items), sizes)
    assert [await stream.receive_record() for _ in items] == items
    with pytest.raises(anyio.EndOfStream):
        await stream.receive_record()


async def receive_into(stream: SealedStream, buffer: bytearray) -> bytes:
    buffer[:] = bytes(len(buffer))
    return bytes(memoryview(buffer)[: await stream.receive_record_into(memoryview(buffer))])


async def test_records_are_received_into_a_buffer(make_pair: MakePair) -> None:
    pair = make_pair()
    items = [b"x", os.urandom(MAX_RECORD_BYTES), b"y" * 100_000, b"rest", b"z"]
    stream = await accept(pair, await record(pair, *items))
    buffer = bytearray(MAX_RECORD_BYTES + 1)
    with pytest.raises(ValueError, match="1048576"):
        await stream.receive_record_into(memoryview(buffer)[2:])
    received = [await receive_into(stream, buffer) for _ in range(3)]
    begun = await stream.receive(1)
    received.append(begun + await receive_into(stream, buffer))
    received.append(await stream.receive_record())
    assert received == items
    for _ in range(2):
        with pytest.raises(anyio.EndOfStream):
            await receive_into(stream, buffer)


@given(st.data(), st.sampled_from([None, bytearray(MAX_RECORD_BYTES)]))
async def test_a_changed_byte_is_never_delivered(
    make_pair: MakePair, data: st.DataObject, buffer: bytearray | None
) -> None:
    pair = make_pair()
    items = [b"one", b"two" * 50, b"three"]
    wire = bytearray(await record(pair, *items))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    received: list[bytes] = []
    with pytest.raises((NetworkingError, anyio.BrokenResourceError)) as caught:  # noqa: PT012 - either place may notice
        stream = await accept(pair, bytes(wire), data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=3)))
        while True:
            received.append(await (receive_into(stream, buffer) if buffer else stream.receive_record()))
    assert received == items[: len(received)]
    if isinstance(caught.value, anyio.BrokenResourceError):
        assert isinstance(caught.value.__cause__, NetworkingError)


@given(st.data())
async def test_a_cut_stream_never_looks_whole(make_pair: MakePair, data: st.DataObject) -> None:
    pair = make_pair()
    items = [b"one", b"two", b"three"]
    wire = await record(pair, *items)
    stream = await accept(pair, wire[: data.draw(st.integers(PREAMBLE_BYTES, len(wire) - 1))])
    received: list[bytes] = []
    with pytest.raises(anyio.BrokenResourceError) as caught:  # noqa: PT012 - the cut may be anywhere
        while True:
            received.append(await stream.receive_record())
    assert received == items[: len(received)]
    assert isinstance(caught.value.__cause__, ProtocolError)
    with pytest.raises(anyio.BrokenResourceError):
        await stream.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await stream.send(b"x")


@given(order=st.permutations(range(4)), doubled=st.integers(0, 3))
async def test_records_neither_move_nor_repeat(make_pair: MakePair, order: list[int], doubled: int) -> None:
    pair = make_pair()
    wire = await record(pair, b"0", b"1", b"2", b"3", end=False)
    size = OVERHEAD + 1
    records = [wire[PREAMBLE_BYTES + n * size : PREAMBLE_BYTES + (n + 1) * size] for n in range(4)]
    played = [records[n] for n in order]
    played.insert(doubled, played[doubled])
    stream = await accept(pair, wire[:PREAMBLE_BYTES] + b"".join(played))
    received = []
    with pytest.raises(anyio.BrokenResourceError) as caught:  # noqa: PT012 - as far as the order is right
        while True:
            received.append(await stream.receive_record())
    assert received == [b"0", b"1", b"2", b"3"][: len(received)]
    assert len(received) <= 4
    assert isinstance(caught.value.__cause__, EncryptionError)


async def test_records_of_another_stream_do_not_open(make_pair: MakePair) -> None:
    pair = make_pair()
    one, two = await record(pair, b"one"), await record(pair, b"two")
    stream = await accept(pair, one[:PREAMBLE_BYTES] + two[PREAMBLE_BYTES:])
    with pytest.raises(anyio.BrokenResourceError):
        await stream.receive()


async def test_records_of_another_session_do_not_open(make_pair: MakePair) -> None:
    pair, other = make_pair(), make_pair(key=b"K" * 32)
    one, two = await record(pair, b"one"), await record(other, b"two")
    stream = await accept(pair, one[:PREAMBLE_BYTES] + two[PREAMBLE_BYTES:])
    with pytest.raises(anyio.BrokenResourceError):
        await stream.receive()


async def test_our_own_records_do_not_open_as_the_other_side_s(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    out_tape = tape(pair.initiator.peer_id)
    stream = pair.initiator.open_stream(out_tape)
    await stream.send(b"hello")
    out_tape.chunks.append(out_tape.written[PREAMBLE_BYTES:])
    with pytest.raises(anyio.BrokenResourceError):
        await stream.receive()
    assert out_tape.was_reset


async def test_a_stream_does_not_open_for_another_protocol(make_pair: MakePair) -> None:
    pair = make_pair()
    wire = await record(pair, b"hello")
    with pytest.raises(NetworkingError):
        await accept(pair, wire, protocol="/sdnet/other/1")


@pytest.mark.parametrize(
    "record_bytes",
    [
        b"\1\0\0\x10" + bytes(16),  # empty data
        b"\1\0\0\0",
        b"\2\0\0\x11" + bytes(17),
        b"\0\0\0\x10" + bytes(16),  # a second opening
        b"\3\0\0\x11" + bytes(17),
        b"\1\x10\0\x11",  # one byte more than a record may have
        b"\xff\xff\xff\xff",
    ],
)
async def test_what_is_not_a_record_ends_the_stream(make_pair: MakePair, record_bytes: bytes) -> None:
    pair = make_pair()
    stream = await accept(pair, await _opening(pair) + record_bytes)
    with pytest.raises(anyio.BrokenResourceError) as caught:
        await stream.receive()
    assert isinstance(caught.value.__cause__, ProtocolError)


async def _opening(pair: Any) -> bytes:
    return (await record(pair, b"x"))[:PREAMBLE_BYTES]


async def test_large_sends_are_cut_into_records(make_pair: MakePair) -> None:
    pair = make_pair()
    data = bytes(range(256)) * 8192 + b"tail"  # 2 MiB and 4 bytes
    tape = type(pair.initiator_tape)(pair.initiator.peer_id)
    stream = pair.initiator.open_stream(tape)
    await stream.send(memoryview(data))
    await stream.send_eof()
    assert len(tape.written) == PREAMBLE_BYTES + len(data) + 4 * OVERHEAD
    theirs = await accept(pair, tape.written, [70_000])
    records = [await theirs.receive_record() for _ in range(3)]
    assert [len(item) for item in records] == [MAX_RECORD_BYTES, MAX_RECORD_BYTES, 4]
    assert b"".join(records) == data


@pytest.mark.parametrize("size", [0, MAX_RECORD_BYTES + 1])
async def test_a_record_has_bounds(make_pair: MakePair, size: int) -> None:
    pair = make_pair()
    stream = pair.initiator.open_stream(pair.initiator_tape)
    with pytest.raises(ValueError, match="record"):
        await stream.send_record(bytes(size))


async def test_an_empty_send_sends_nothing(make_pair: MakePair) -> None:
    pair = make_pair()
    stream = pair.initiator.open_stream(pair.initiator_tape)
    await stream.send(b"")
    assert pair.initiator_tape.written == b""


async def test_the_first_record_goes_out_with_the_opening(make_pair: MakePair) -> None:
    pair = make_pair()
    stream = pair.initiator.open_stream(pair.initiator_tape)
    await stream.send(b"x")
    assert [len(item) for item in pair.initiator_tape.sent] == [PREAMBLE_BYTES + OVERHEAD + 1]


async def test_whoever_receives_first_announces_the_stream(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    out_tape = tape(pair.initiator.peer_id)
    ours = pair.initiator.open_stream(out_tape)
    with pytest.raises(anyio.BrokenResourceError):
        await ours.receive()  # the tape ends at once
    assert len(out_tape.written) == PREAMBLE_BYTES
    await accept(pair, out_tape.written)


async def test_nothing_is_sent_behind_the_end(make_pair: MakePair) -> None:
    pair = make_pair()
    stream = pair.initiator.open_stream(pair.initiator_tape)
    await stream.send_eof()
    await stream.send_eof()
    assert pair.initiator_tape.ended
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send(b"x")
    assert len(pair.initiator_tape.written) == PREAMBLE_BYTES + OVERHEAD


async def test_leaving_a_block_by_an_exception_does_not_look_like_an_end(make_pair: MakePair) -> None:
    pair = make_pair()
    with pytest.raises(RuntimeError):  # noqa: PT012 - leaving the block is what is tested
        async with pair.initiator.open_stream(pair.initiator_tape) as stream:
            await stream.send(b"half of it")
            raise RuntimeError
    assert pair.initiator_tape.was_reset
    theirs = await accept(pair, pair.initiator_tape.written)
    assert await theirs.receive() == b"half of it"
    with pytest.raises(anyio.BrokenResourceError):
        await theirs.receive()


async def test_leaving_a_block_ends_in_order(make_pair: MakePair) -> None:
    pair = make_pair()
    async with pair.initiator.open_stream(pair.initiator_tape) as stream:
        await stream.send(b"all of it")
    assert await read_all(await accept(pair, pair.initiator_tape.written)) == b"all of it"
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()


class Stuck:
    """Makes a tape's `send` wait in the middle."""

    def __init__(self, tape: Any) -> None:
        self.entered = anyio.Event()
        self.release = anyio.Event()
        self._send = tape.send
        tape.send = self.send

    async def send(self, item: bytes) -> None:
        self.entered.set()
        await self.release.wait()
        await self._send(item)


async def test_a_cancelled_send_breaks_the_stream(make_pair: MakePair) -> None:
    pair = make_pair()
    stream = pair.initiator.open_stream(pair.initiator_tape)
    stuck = Stuck(pair.initiator_tape)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.send, b"x")
        await stuck.entered.wait()
        tasks.cancel_scope.cancel()
    assert pair.initiator_tape.was_reset
    stuck.release.set()
    with pytest.raises(anyio.BrokenResourceError, match="interrupted"):
        await stream.send(b"y")


async def test_a_send_that_waits_for_another_is_cancelled_without_harm(make_pair: MakePair) -> None:
    pair = make_pair()
    stream = pair.initiator.open_stream(pair.initiator_tape)
    stuck = Stuck(pair.initiator_tape)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.send, b"one")
        await stuck.entered.wait()
        with anyio.move_on_after(0.01) as scope:
            await stream.send(b"two")
        assert scope.cancelled_caught
        stuck.release.set()
    await stream.send(b"three")
    await stream.send_eof()
    assert await read_all(await accept(pair, pair.initiator_tape.written)) == b"onethree"


async def test_a_cancelled_receive_loses_nothing(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    wire = await record(pair, b"one" * 100)
    in_tape = tape(pair.responder.peer_id, [wire[:100]])
    theirs = pair.responder.accept(in_tape, await read_preamble(in_tape))
    receive, more = in_tape.receive, anyio.Event()

    async def wait_for_more(max_bytes: int = 65536) -> bytes:
        if not in_tape.chunks:
            await more.wait()
        return bytes(await receive(max_bytes))

    in_tape.receive = wait_for_more
    with anyio.move_on_after(0.01) as scope:
        await theirs.receive()
    assert scope.cancelled_caught
    in_tape.chunks.append(wire[100:])
    more.set()
    assert await read_all(theirs) == b"one" * 100


async def test_many_tasks_may_send(make_pair: MakePair) -> None:
    pair = make_pair()
    stream = pair.initiator.open_stream(pair.initiator_tape)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(stream.send_record, bytes([number]) * 100)
    await stream.send_eof()
    theirs = await accept(pair, pair.initiator_tape.written)
    received = {await theirs.receive_record() for _ in range(20)}
    assert received == {bytes([number]) * 100 for number in range(20)}


async def test_only_one_task_receives(make_pair: MakePair, tape: Any) -> None:
    pair = make_pair()
    in_tape = tape(pair.responder.peer_id, [await record(pair, b"x")])
    theirs = pair.responder.accept(in_tape, await read_preamble(in_tape))

    async def wait_for_ever(max_bytes: int = 65536) -> bytes:
        await anyio.sleep_forever()
        return b""

    in_tape.chunks.clear()
    in_tape.receive = wait_for_ever
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(theirs.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await theirs.receive()
        tasks.cancel_scope.cancel()


async def test_reading_asks_for_no_more_than_there_is_room_for(make_pair: MakePair) -> None:
    pair = make_pair()
    wire = await record(pair, bytes(MAX_RECORD_BYTES))
    in_tape = type(pair.initiator_tape)(pair.responder.peer_id, [wire])
    theirs = pair.responder.accept(in_tape, await read_preamble(in_tape))
    assert in_tape.largest_request == PREAMBLE_BYTES
    assert len(await theirs.receive_record()) == MAX_RECORD_BYTES
    # A large record is received into a buffer with room for two and a half: what comes behind it is taken along.
    assert in_tape.largest_request <= 5 * MAX_RECORD_BYTES // 2


async def test_keys_that_have_expired_protect_nothing(make_pair: MakePair) -> None:
    pair = make_pair()
    wire = await record(pair, b"x")
    stream, theirs = pair.initiator.open_stream(pair.initiator_tape), await accept(pair, wire)
    pair.clock.time += 24 * 3600
    with pytest.raises(anyio.BrokenResourceError, match="expired"):
        await stream.send(b"x")
    assert pair.initiator_tape.was_reset
    assert pair.initiator_tape.written == b""
    with pytest.raises(anyio.BrokenResourceError, match="expired"):
        await theirs.receive()


@pytest.mark.parametrize(
    "limits", [SessionLimits(max_records=4), SessionLimits(max_bytes=20)], ids=["records", "bytes"]
)
async def test_keys_protect_so_much_and_no_more(make_pair: MakePair, limits: SessionLimits) -> None:
    pair = make_pair(limits=limits)
    stream = pair.initiator.open_stream(pair.initiator_tape)
    for _ in range(2):
        await stream.send(bytes(8))
    assert pair.initiator.epoch.half_used
    with pytest.raises(anyio.BrokenResourceError, match="as much as they may"):  # noqa: PT012 - whichever comes first
        for _ in range(2):
            await stream.send(bytes(8))


@given(st.binary(min_size=0, max_size=200))
async def test_garbage_behind_the_opening_raises_what_is_documented(make_pair: MakePair, garbage: bytes) -> None:
    pair = make_pair()
    stream = await accept(pair, await _opening(pair) + garbage)
    with pytest.raises(anyio.BrokenResourceError):
        await stream.receive()
