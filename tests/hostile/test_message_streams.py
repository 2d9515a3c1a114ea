"""A paired device that does not keep to the protocol, on raw streams to a real node."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkingCore, PeerStream, Priority
from sdnet_core.devices.delivery import AnyAnswer, Batch, Done, Item, Settled, Stale, Verdict, max_frame_bytes
from sdnet_core.events import PluginFailed
from sdnet_core.testing import linked_nodes
from sdnet_core.wire import Message, MessageStream, encode, encode_frame, encode_varint
from sdnet_messaging import MessagingService
from sdnet_messaging.messages import MAX_MESSAGE_BYTES, Answer, Outcome, Ping, Pong, Text
from sdnet_messaging.plugin import MessagingPlugin

pytestmark = pytest.mark.anyio

two_nodes = partial(linked_nodes, 2, plugins=[MessagingPlugin])

MAX_FRAME_BYTES = max_frame_bytes(MAX_MESSAGE_BYTES)


def service(core: NetworkingCore) -> MessagingService:
    return core.get_service(MessagingService)


def batch(number: int, *, id_: bytes | None = None, below: int | None = None, words: str = "hello") -> Batch:
    content = encode(Text(sent_ms=0, text=words))
    item = Item(number=number, id=number.to_bytes(16, "big") if id_ is None else id_, data=content)
    return Batch(priority=Priority.NORMAL, below=number if below is None else below, items=(item,))


async def connect(a: NetworkingCore, b: NetworkingCore) -> tuple[PeerStream, MessageStream]:
    stream = await a.open_stream(b.device_info.id, "messaging", suffix="/messages")
    return stream, stream.messages(max_bytes=MAX_FRAME_BYTES)


async def ask(messages: MessageStream, message: Message) -> AnyAnswer:
    await messages.send(message)
    with anyio.fail_after(10):
        answer: AnyAnswer = await messages.receive(AnyAnswer)
    return answer


async def test_a_message_that_comes_again_is_acknowledged_and_not_delivered_again() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        async with stream:
            for _ in range(3):
                assert await ask(messages, batch(1)) == Done(up_to=1)
            assert await ask(messages, batch(2, below=1)) == Done(up_to=2)
            # Also what comes again behind others.
            assert await ask(messages, batch(1)) == Done(up_to=1)
        assert len(await service(b).inbox()) == 2


async def test_a_new_stream_ends_the_one_before_and_repeats_are_known() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        assert await ask(messages, batch(1)) == Done(up_to=1)
        other, others = await connect(a, b)
        async with other:
            assert await ask(others, batch(1)) == Done(up_to=1)
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)), anyio.fail_after(10):
                await stream.receive()
        assert len(await service(b).inbox()) == 1


async def test_a_message_that_comes_again_after_a_restart_is_not_delivered_again(tmp_path: Path) -> None:
    async with two_nodes(home=tmp_path) as (a, b):
        stream, messages = await connect(a, b)
        async with stream:
            assert await ask(messages, batch(5, below=2)) == Done(up_to=5)
        to = b.device_info.id
    async with two_nodes(home=tmp_path, paired=False) as (a, b):
        await a.connect(to)
        stream, messages = await connect(a, b)
        async with stream:
            assert await ask(messages, batch(5, below=2)) == Done(up_to=5)
            assert await ask(messages, batch(1)) == Stale(next_number=6)
        assert len(await service(b).inbox()) == 1


async def test_a_number_that_another_message_had_is_answered_with_a_free_one() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        async with stream:
            assert await ask(messages, batch(7)) == Done(up_to=7)
            assert await ask(messages, batch(7, id_=bytes(16))) == Stale(next_number=8)
        stream, messages = await connect(a, b)
        async with stream:
            assert await ask(messages, batch(3, id_=bytes(16))) == Stale(next_number=8)
        stream, messages = await connect(a, b)
        async with stream:
            # Known under its id whatever its number is.
            assert await ask(messages, batch(9, id_=(7).to_bytes(16, "big"), below=7)) == Done(up_to=9)
        assert len(await service(b).inbox()) == 1


async def test_a_deleted_message_does_not_come_back() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        async with stream:
            await ask(messages, batch(1))
            [message] = await service(b).inbox()
            await service(b).delete(message.id)
            assert await ask(messages, batch(1)) == Done(up_to=1)
        assert await service(b).inbox() == []


async def test_what_is_no_message_is_answered_so_and_those_beside_it_are_delivered() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        good = encode(Text(sent_ms=0, text="good"))
        items = tuple(
            Item(number=number, id=number.to_bytes(16, "big"), data=data)
            for number, data in enumerate((good, b"\x83\x18\x63\x00\x00", good), 1)
        )
        async with stream:
            answer = await ask(messages, Batch(priority=Priority.NORMAL, below=1, items=items))
            invalid = encode(Answer(outcome=Outcome.INVALID, response=None))
            assert answer == Settled(number=2, verdict=Verdict.DELIVERED, response=invalid)
            assert await messages.receive(AnyAnswer) == Done(up_to=3)
        assert [message.text for message in await service(b).inbox()] == ["good", "good"]


def raw(*value: object) -> bytes:
    return encode_frame(encode(list(value)))


ITEM = [16, 1, bytes(16), b"x"]
GARBAGE = {
    "random": os.urandom(500),
    "zeros": bytes(500),
    "a length without end": b"\xff" * 12,
    "an announced gigabyte": encode_varint(1 << 30),
    "too long by one": encode_varint(MAX_FRAME_BYTES + 1) + bytes(100),
    "not an array": encode_frame(b"\x01"),
    "deep": encode_frame(b"\x81" * 1000 + b"\x01"),
    "a tag": encode_frame(b"\xc1\x01"),
    "an answer nobody asked for": raw(2, 1),
    "no messages": raw(1, 1, 1, []),
    "a priority that is none": raw(1, 7, 1, [ITEM]),
    "below the limit": raw(1, 1, 2, [ITEM]),
    "not ascending": raw(1, 1, 1, [ITEM, ITEM]),
    "too far ahead": raw(1, 1, 1, [[16, 1 + 4096, bytes(16), b"x"]]),
    "number zero": raw(1, 1, 1, [[16, 0, bytes(16), b"x"]]),
    "a short id": raw(1, 1, 1, [[16, 1, bytes(15), b"x"]]),
    "more fields": raw(1, 1, 1, [ITEM], 5),
    "too long a message": raw(1, 1, 1, [[16, 1, bytes(16), bytes(MAX_MESSAGE_BYTES + 1)]]),
    "cut off": raw(1, 1, 1, [ITEM])[:-1],
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_ends_the_stream_and_nothing_else(name: str) -> None:
    async with two_nodes() as (a, b), b.subscribe_events([PluginFailed.kind]) as failures:
        before = await a.open_stream(b.device_info.id, "messaging")
        stream, _ = await connect(a, b)
        async with before:
            await stream.send(GARBAGE[name])
            await stream.send_eof()
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)), anyio.fail_after(10):
                await stream.receive()
            # The other streams, the service and the plugin's state are as before.
            requests = before.messages()
            await requests.send(Ping(nonce=5))
            assert await requests.receive(Pong) == Pong(nonce=5)
        await service(a).send_text(b.device_info.id, "fine")
        assert [message.text for message in await service(b).inbox()] == ["fine"]
        with anyio.move_on_after(0) as looked:
            await failures.receive()
        assert looked.cancelled_caught, "the plugin counts as failed"


async def test_a_device_that_never_reads_its_answers_is_held_back() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        sent = 0
        with anyio.move_on_after(0.5):
            while True:
                await messages.send(batch(sent + 1, words="x" * 20_000))
                sent += 1
        await stream.reset()
        await service(b).send_text(a.device_info.id, "still here")
        assert [message.text for message in await service(a).inbox()] == ["still here"]


async def test_an_orderly_end_waits_for_what_is_under_way() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        for number in range(1, 11):
            await messages.send(batch(number, below=1))
        await stream.send_eof()
        last = 0
        while last < 10:
            done: Done = await messages.receive(AnyAnswer)
            last = done.up_to
        assert await messages.receive_bytes_or_end() is None
        await stream.aclose()
