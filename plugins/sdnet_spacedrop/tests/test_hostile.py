"""A paired device that does not keep to the protocol."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from sdnet_core import PeerStream
from sdnet_core.errors import ConflictError, ConnectionFailedError, SerializationError
from sdnet_core.wire import MessageStream, encode, encode_frame
from sdnet_file_transfer import FileTransferService, Transfer
from sdnet_spacedrop import SpacedropOffered, incoming, mover
from sdnet_spacedrop import messages as m
from sdnet_spacedrop.machine import ReceiverMachine

from .conftest import Pair, configure, run_pair

pytestmark = pytest.mark.anyio

MakeFile = Callable[..., Path]
ITEM = m.SpacedropItem("photo.jpg", False, 10, 1)


def offer(**changes: object) -> m.SpacedropRequest:
    request = m.SpacedropRequest(
        transfer_id=uuid.uuid4().bytes,
        sender_name="Anna",
        message="",
        items=(ITEM,),
        more_items=0,
        item_count=1,
        total_bytes=10,
        answer_timeout_ms=60_000,
    )
    return msgspec.structs.replace(request, **changes)


def drop_id(request: m.SpacedropRequest) -> str:
    return str(uuid.UUID(bytes=request.transfer_id))


def answer_to(request: m.SpacedropRequest, code: str = "") -> m.SpacedropResponse:
    return m.SpacedropResponse(transfer_id=request.transfer_id, accepted=not code, code=code, reason="")


async def hear(messages: MessageStream) -> m.SenderMessage:
    message: m.SenderMessage = await messages.receive(m.SenderMessage)
    return message


@asynccontextmanager
async def talk(pair: Pair) -> AsyncIterator[tuple[PeerStream, MessageStream]]:
    """Speak to the receiver below the sender's own service."""
    stream = await pair.sender.core.open_stream(pair.receiver.core.device_info.id, m.PROTOCOL_NAME)
    try:
        with anyio.fail_after(10):
            yield stream, stream.messages(max_bytes=m.MAX_MESSAGE_BYTES)
    finally:
        await stream.aclose()


async def transfer(pair: Pair, paths: list[Path], transfer_id: uuid.UUID, purpose: str = "spacedrop") -> Transfer:
    """Push files through the file transfer protocol without asking anybody, and wait for the end."""
    files = pair.sender.core.get_service(FileTransferService)
    with anyio.fail_after(30):
        while True:
            try:
                await files.send(pair.receiver.core.device_info.id, paths, purpose=purpose, grant_id=transfer_id)
                break
            except ConflictError:  # an attempt before is told to be over a moment before it is stored
                await anyio.sleep(0.01)
        async for status in files.watch(transfer_id):
            last = status
    return last


@pytest.mark.parametrize(
    "change",
    [
        {"item_count": 1 << 60},
        {"total_bytes": 1 << 80},
        {"items": [["x", False, 0, 1]] * 10_000},
        {"message": "x" * 20_000},
        {"t": 3},
        {"t": 99},
    ],
)
async def test_an_offer_out_of_bounds_is_dropped_and_the_node_goes_on(home: Path, change: dict[str, object]) -> None:
    async with run_pair(home) as pair:
        values = msgspec.to_builtins(offer(), builtin_types=(bytes,)) | change
        async with talk(pair) as (stream, messages):
            await stream.send(encode_frame(encode(values)))
            with pytest.raises(ConnectionFailedError):
                await hear(messages)
        assert pair.receiver.drops.drops() == []
        good = offer()
        async with talk(pair) as (_, messages):
            await messages.send(good)
            assert isinstance(await hear(messages), m.SpacedropAsked)


@pytest.mark.parametrize("data", [b"\xff" * 100, b"\x00", b"\x05hello", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"])
async def test_garbage_is_dropped(home: Path, data: bytes) -> None:
    async with run_pair(home) as pair:
        async with talk(pair) as (stream, messages):
            await stream.send(data)
            with pytest.raises((ConnectionFailedError, SerializationError)):
                await hear(messages)
        assert pair.receiver.drops.drops() == []


async def test_texts_cannot_control_a_terminal(home: Path) -> None:
    evil = "\x1b]0;owned\x07\u202egpj.exe\x9b2J\r\n"
    request = offer(sender_name=evil, message=f"{evil}second line", items=(msgspec.structs.replace(ITEM, name=evil),))
    async with run_pair(home) as pair, pair.receiver.core.events.subscribe([SpacedropOffered.kind]) as events:
        async with talk(pair) as (_, messages):
            await messages.send(request)
            await hear(messages)
            (shown,) = pair.receiver.drops.pending()
            event = await events.receive()
            assert isinstance(event, SpacedropOffered)
            for text in (shown.sender_name, shown.items[0].name, *event.names, event.sender_name):
                assert text.isprintable()
            for text in (shown.message, event.message):
                assert text.replace("\n", "").isprintable()
                assert text.endswith("\nsecond line")
            # Who it comes from is what pairing proved, whatever the sender calls itself.
            assert shown.device_name == event.device_name == "node0"


async def test_what_is_not_about_a_known_drop_changes_nothing(home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        drop = await pair.send(make_file())
        await pair.receiver.offered()
        async with talk(pair) as (_, messages):
            await messages.send(m.SpacedropCancel(transfer_id=uuid.uuid4().bytes, reason="?"))
            with pytest.raises(ConnectionFailedError):
                await hear(messages)
        async with talk(pair) as (_, messages):
            await messages.send(m.SpacedropResponse(transfer_id=uuid.uuid4().bytes, accepted=True, code="", reason=""))
            with pytest.raises(ConnectionFailedError):
                await hear(messages)
        assert [entry.state for entry in pair.receiver.drops.drops()] == ["asking"]
        await pair.receiver.drops.accept(drop.id)
        await pair.sender.until(drop, "completed")


async def test_an_answer_to_another_offer_ends_the_conversation(home: Path, make_file: MakeFile) -> None:
    """The receiver lies: it answers an id that was not asked about."""
    async with run_pair(home) as pair:
        real = ReceiverMachine.answer

        def lie(self: ReceiverMachine) -> m.SpacedropResponse:
            return msgspec.structs.replace(real(self), transfer_id=b"x" * 16)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ReceiverMachine, "answer", lie)
            drop = await pair.send(make_file())
            await pair.receiver.offered()
            await pair.receiver.drops.accept(drop.id)
            assert "another drop" in (await pair.sender.until(drop, "failed")).reason
        await pair.receiver.until(drop, "cancelled")
        assert pair.receiver.received() == {}


async def test_a_changed_offer_under_the_same_id_is_refused(home: Path) -> None:
    request = offer()
    async with run_pair(home) as pair, talk(pair) as (_, first):
        await first.send(request)
        await hear(first)
        async with talk(pair) as (_, second):
            await second.send(msgspec.structs.replace(request, message="something else"))
            with pytest.raises(ConnectionFailedError):
                await hear(second)
        (kept,) = pair.receiver.drops.pending()
        assert kept.message == ""


async def test_an_id_of_our_own_is_not_taken_over(home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        own = await pair.receiver.drops.send(pair.sender.core.device_info.id, [make_file()])
        await pair.sender.offered()
        async with talk(pair) as (_, messages):
            await messages.send(offer(transfer_id=uuid.UUID(own.id).bytes))
            answer = await hear(messages)
            assert isinstance(answer, m.SpacedropResponse)
            assert (answer.accepted, answer.code) == (False, m.Refusal.FAILED)
        assert pair.receiver.drops.get(own.id).state == "asking"


async def test_offers_that_wait_are_bounded_per_device(home: Path) -> None:
    async with run_pair(home) as pair, anyio.create_task_group() as tasks:
        answers: list[object] = []

        async def ask() -> None:
            async with talk(pair) as (_, messages):
                await messages.send(offer())
                answers.append(await hear(messages))
                if isinstance(answers[-1], m.SpacedropAsked):
                    await anyio.sleep_forever()

        for _ in range(incoming.MAX_PENDING_PER_DEVICE):
            tasks.start_soon(ask)
        await pair.receiver.offered(incoming.MAX_PENDING_PER_DEVICE)
        async with talk(pair) as (_, messages):
            await messages.send(offer())
            refused = await hear(messages)
            assert isinstance(refused, m.SpacedropResponse)
            assert (refused.accepted, refused.code) == (False, m.Refusal.BUSY)
        assert len(pair.receiver.drops.pending()) == incoming.MAX_PENDING_PER_DEVICE
        tasks.cancel_scope.cancel()


async def test_offers_made_and_taken_back_in_a_row_are_bounded(home: Path) -> None:
    async with run_pair(home) as pair:
        refused = 0
        for _ in range(incoming.MAX_OFFERS_PER_MINUTE + 5):
            request = offer()
            async with talk(pair) as (_, messages):
                await messages.send(request)
                if isinstance(await hear(messages), m.SpacedropResponse):
                    refused += 1
                    continue
                await messages.send(m.SpacedropCancel(transfer_id=request.transfer_id, reason=""))
                await pair.receiver.until(drop_id(request), "cancelled")
        assert refused == 5
        assert await pair.receiver.core.plugin_storage("spacedrop").list("drops") == []


async def test_files_that_were_not_granted_do_not_come_in(home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        ended = await transfer(pair, [make_file()], uuid.uuid4())
        assert ended.state == "rejected"
        assert not pair.receiver.downloads.exists()


async def test_files_do_not_come_in_while_the_person_is_asked_nor_after_a_rejection(
    home: Path, make_file: MakeFile
) -> None:
    async with run_pair(home) as pair:
        request = offer(items=(msgspec.structs.replace(ITEM, size=400_000),), total_bytes=400_000)
        granted = uuid.UUID(bytes=request.transfer_id)
        async with talk(pair) as (_, messages):
            await messages.send(request)
            await hear(messages)
            assert (await transfer(pair, [make_file()], granted)).state == "rejected"
            await pair.receiver.drops.reject(str(granted))
            assert await hear(messages) == answer_to(request, m.Refusal.REJECTED)
        assert (await transfer(pair, [make_file()], granted)).state == "rejected"
        assert not pair.receiver.downloads.exists()


async def test_more_bytes_or_files_than_offered_do_not_come_in(home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        request = offer()
        granted = uuid.UUID(bytes=request.transfer_id)
        async with talk(pair) as (_, messages):
            await messages.send(request)
            await pair.receiver.offered()
            await pair.receiver.drops.accept(str(granted))
            await hear(messages)
            assert await hear(messages) == answer_to(request)
        ended = await transfer(pair, [make_file()], granted)
        assert (ended.state, pair.receiver.received()) == ("rejected", {})
        small, empty = make_file("small", 0), make_file("empty", 0)
        small.write_bytes(b"1234567890")
        empty.write_bytes(b"")
        ended = await transfer(pair, [small, empty], granted)
        assert (ended.state, pair.receiver.received()) == ("rejected", {})
        assert (await transfer(pair, [small], granted)).state == "completed"


async def test_a_grant_is_for_one_purpose_only(home: Path, make_file: MakeFile) -> None:
    async with run_pair(home) as pair:
        request = offer(items=(msgspec.structs.replace(ITEM, size=400_000),), total_bytes=400_000)
        granted = uuid.UUID(bytes=request.transfer_id)
        async with talk(pair) as (_, messages):
            await messages.send(request)
            await pair.receiver.offered()
            await pair.receiver.drops.accept(str(granted))
        assert (await transfer(pair, [make_file()], granted, purpose="send")).state == "rejected"
        assert pair.receiver.received() == {}


async def test_an_accepted_drop_that_comes_too_late_is_refused(
    home: Path, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "GRANT_S", -1.0)
    async with run_pair(home) as pair:
        drop = await pair.send(make_file())
        await pair.receiver.offered()
        await pair.receiver.drops.accept(drop.id)
        assert "too late" in (await pair.sender.until(drop, "failed")).reason
        await pair.receiver.until(drop, "cancelled", "failed")
        assert pair.receiver.received() == {}


async def test_unasked_acceptance_is_off_by_default(home: Path) -> None:
    configure(home, "node0", "")
    async with run_pair(home) as pair, talk(pair) as (_, messages):
        await messages.send(offer())
        assert isinstance(await hear(messages), m.SpacedropAsked)
        with anyio.move_on_after(0.2):
            await hear(messages)
            raise AssertionError("it was answered without a person")
