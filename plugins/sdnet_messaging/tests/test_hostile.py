"""A paired device that does not keep to the protocol, on raw streams to a real node."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from sdnet_core import NetworkingCore, PeerStream
from sdnet_core.events import PluginFailed
from sdnet_core.wire import Message, MessageStream, encode_frame, encode_varint
from sdnet_messaging.machine import WINDOW
from sdnet_messaging.messages import MAX_MESSAGE_BYTES, Ack, Outcome, Ping, Pong, Reply, Text

from .nodes import service, two_nodes

pytestmark = pytest.mark.anyio

FAR = 1 << 40
"""Numbers that the node's own messages do not reach."""


def text(sequence: int, *, token: bytes = bytes(16), below: int | None = None, words: str = "hello") -> Text:
    return Text(sequence=sequence, token=token, below=sequence if below is None else below, sent_ms=0, text=words)


async def connect(a: NetworkingCore, b: NetworkingCore) -> tuple[PeerStream, MessageStream]:
    stream = await a.open_stream(b.device_info.id, "messaging")
    return stream, stream.messages(max_bytes=MAX_MESSAGE_BYTES)


async def ask(messages: MessageStream, message: Message) -> Reply:
    await messages.send(message)
    with anyio.fail_after(10):
        reply: Reply = await messages.receive(Reply)
    return reply


async def outcome(messages: MessageStream, message: Message) -> Outcome:
    reply = await ask(messages, message)
    assert isinstance(reply, Ack)
    return reply.outcome


async def test_a_message_that_comes_again_is_acknowledged_and_not_delivered_again() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        again, others = await connect(a, b)
        async with stream, again:
            assert await outcome(messages, text(1)) is Outcome.DELIVERED
            assert await outcome(messages, text(1)) is Outcome.DUPLICATE
            assert await outcome(others, text(1)) is Outcome.DUPLICATE
            # Twice at the same time: one delivery, and both hear of it.
            async with anyio.create_task_group() as tasks:
                for on in (messages, others):
                    tasks.start_soon(outcome, on, text(2))
        assert len(await service(b).inbox()) == 2


async def test_a_message_that_comes_again_after_a_restart_is_not_delivered_again(tmp_path: Path) -> None:
    async with two_nodes(home=tmp_path) as (a, b):
        stream, messages = await connect(a, b)
        async with stream:
            assert await outcome(messages, text(5, below=2)) is Outcome.DELIVERED
        to = b.device_info.id
    async with two_nodes(home=tmp_path, paired=False) as (a, b):
        await a.connect(to)
        stream, messages = await connect(a, b)
        async with stream:
            assert await outcome(messages, text(5, below=2)) is Outcome.DUPLICATE
            assert await outcome(messages, text(1, below=1)) is Outcome.STALE
        assert len(await service(b).inbox()) == 1


async def test_a_number_that_another_message_had_is_answered_with_a_free_one() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        async with stream:
            assert await outcome(messages, text(7)) is Outcome.DELIVERED
            for wrong in (text(7, token=bytes([1] * 16)), text(3)):
                reply = await ask(messages, wrong)
                assert reply == Ack(sequence=wrong.sequence, outcome=Outcome.STALE, next_sequence=8)
            assert await outcome(messages, text(7 + WINDOW, below=7)) is Outcome.BUSY
        assert len(await service(b).inbox()) == 1


async def test_a_deleted_message_does_not_come_back() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        async with stream:
            await outcome(messages, text(1))
            [message] = await service(b).inbox()
            await service(b).delete(message.id)
            assert await outcome(messages, text(1)) is Outcome.DUPLICATE
        assert await service(b).inbox() == []


GARBAGE = {
    "random": os.urandom(500),
    "zeros": bytes(500),
    "a length without end": b"\xff" * 12,
    "an announced gigabyte": encode_varint(1 << 30),
    "too long by one": encode_varint(MAX_MESSAGE_BYTES + 1) + bytes(100),
    "not a map": encode_frame(b"\x01"),
    "deep": encode_frame(b"\x81" * 1000 + b"\x01"),
    "a tag": encode_frame(b"\xc1\x01"),
    "an answer nobody asked for": encode_frame(b"\xa2\x61t\x02enonce\x01"),
    "cut off": encode_frame(b"\xa2\x61t")[:-1],
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_ends_the_stream_and_nothing_else(name: str) -> None:
    async with two_nodes() as (a, b), b.subscribe_events([PluginFailed.kind]) as failures:
        before, messages = await connect(a, b)
        stream, _ = await connect(a, b)
        async with before:
            await stream.send(GARBAGE[name])
            await stream.send_eof()
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)), anyio.fail_after(10):
                await stream.receive()
            # The other streams, the service and the plugin's state are as before.
            assert await ask(messages, Ping(nonce=5)) == Pong(nonce=5)
        await service(a).send_text(b.device_info.id, "fine")
        assert [message.text for message in await service(b).inbox()] == ["fine"]
        with anyio.move_on_after(0) as looked:
            await failures.receive()
        assert looked.cancelled_caught, "the plugin counts as failed"


async def test_a_device_that_never_reads_its_acknowledgements_is_held_back() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        sent = 0
        with anyio.move_on_after(0.5):
            while True:
                await messages.send(text(sent + 1, token=sent.to_bytes(16, "big"), words="x" * 20_000))
                sent += 1
        await stream.reset()
        assert sent < 4096
        await service(b).send_text(a.device_info.id, "still here")
        assert [message.text for message in await service(a).inbox()] == ["still here"]


async def test_an_orderly_end_waits_for_what_is_under_way() -> None:
    async with two_nodes() as (a, b):
        stream, messages = await connect(a, b)
        for number in range(1, 11):
            await messages.send(text(number, below=1))
        await stream.send_eof()
        acks: list[Ack] = [await messages.receive(Reply) for _ in range(10)]
        assert {ack.sequence for ack in acks} == set(range(1, 11))
        assert await messages.receive_bytes_or_end() is None
        await stream.aclose()
