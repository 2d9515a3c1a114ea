"""Two nodes talk to each other."""

from __future__ import annotations

import shutil
import uuid
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from sdnet_core import Priority
from sdnet_core.errors import (
    ConflictError,
    ConnectionFailedError,
    DeviceNotFoundError,
    InvalidRequestError,
    NetworkingError,
    NetworkTimeoutError,
    NotFoundError,
    ProtocolError,
    RefusedError,
)
from sdnet_core.testing import linked_nodes
from sdnet_messaging import (
    ActionChosen,
    Choice,
    DataReceived,
    MessageUndelivered,
    NotificationReceived,
    TextReceived,
    store,
)
from sdnet_messaging.plugin import MessagingPlugin

from .nodes import eventually, service, two_nodes

pytestmark = pytest.mark.anyio

CANARY = "the-cake-is-in-the-oven"


def files_with_the_canary(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def inbox_files(home: Path, node: str) -> list[Path]:
    found = [path for path in home.rglob("plugin.sqlite3*") if node in path.parts]
    assert found, "the inbox is not where the test looks"
    return found


def outbox_files(home: Path) -> list[Path]:
    found = list(home.rglob("outbox.sqlite3*"))
    assert found, "the outbox is not where the test looks"
    return found


async def test_a_text_arrives_and_lies_in_the_inbox() -> None:
    async with two_nodes() as (a, b), b.subscribe_events([TextReceived.kind]) as events:
        text = "Grüße, 妈妈 👩‍👩‍👧 \u202e \x1b[31m\nzweite Zeile"
        receipt = await service(a).send_text(b.device_info.id, text, priority=Priority.HIGH)
        assert (receipt.device_name, receipt.state, receipt.reason) == (b.device_info.name, "delivered", "")
        assert receipt.rtt_s is not None
        assert receipt.delivered_at is not None
        assert 0 < receipt.rtt_s < 10
        [message] = await service(b).inbox()
        assert (message.text, message.id, message.kind) == (text, receipt.id, "text")
        assert (message.device_id, message.device_name) == (a.device_info.id, a.device_info.name)
        assert (message.read, message.priority) == (False, "high")
        assert abs(message.received_at - receipt.delivered_at) < 10
        event = await events.receive()
        assert isinstance(event, TextReceived)
        assert (event.text, event.message_id, event.number) == (text, receipt.id, message.number)
        assert CANARY not in repr(message)
        assert await service(a).inbox() == []


async def test_a_notification_with_actions_arrives() -> None:
    async with two_nodes() as (a, b), b.subscribe_events([NotificationReceived.kind]) as events:
        actions = (Choice(id="open", label="Open"), Choice(id="no", label="Not now"))
        await service(a).send_notification(b.device_info.id, "Doorbell", "Somebody is there.", actions=actions)
        [message] = await service(b).inbox()
        assert (message.kind, message.title, message.text) == ("notification", "Doorbell", "Somebody is there.")
        assert message.actions == actions
        event = await events.receive()
        assert isinstance(event, NotificationReceived)
        assert event.title == "Doorbell"


async def test_many_at_once_arrive_once_and_those_sent_after_each_other_in_order() -> None:
    async with two_nodes() as (a, b):
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(service(a).send_text, b.device_info.id, f"crowd {number}")
        for number in range(5):
            await service(a).send_text(b.device_info.id, f"row {number}")
        texts = [message.text for message in await service(b).inbox()]
        assert sorted(texts[:100]) == sorted(f"crowd {number}" for number in range(100))
        assert texts[100:] == [f"row {number}" for number in range(5)]


async def test_both_sides_send_at_once() -> None:
    async with two_nodes() as (a, b):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(service(a).send_text, b.device_info.id, f"to b {number}")
                tasks.start_soon(service(b).send_text, a.device_info.id, f"to a {number}")
        assert len(await service(a).inbox()) == len(await service(b).inbox()) == 20


async def test_what_cannot_be_sent_is_refused_with_a_reason() -> None:
    async with two_nodes() as (a, b):
        messaging, to = service(a), b.device_info.id
        await messaging.send_text(to, "x" * 65536)
        for text, reason in [("", "no text"), ("é" * 32769, "65,538 bytes; at most 65,536"), ("\ud800", "Unicode")]:
            with pytest.raises(InvalidRequestError, match=reason):
                await messaging.send_text(to, text)
        with pytest.raises(InvalidRequestError, match="title"):
            await messaging.send_notification(to, "")
        with pytest.raises(InvalidRequestError, match="same id"):
            await messaging.send_notification(to, "T", actions=[Choice(id="a", label="A"), Choice(id="a", label="B")])
        with pytest.raises(InvalidRequestError, match="at most"):
            await messaging.send_data(to, "p", bytes(256 * 1024 + 1))
        with pytest.raises(InvalidRequestError, match="name"):
            await messaging.send_data(to, "No Name", b"")
        with pytest.raises(DeviceNotFoundError):
            await messaging.send_text(uuid.UUID(int=1), "hello")
        assert len(await service(b).inbox()) == 1


async def test_ping_measures_the_round_trip() -> None:
    async with two_nodes() as (a, b):
        assert 0 < await service(a).ping(b.device_info.id) < 5


async def test_a_text_to_a_device_that_is_away_is_queued_and_delivered_when_it_is_back() -> None:
    async with two_nodes() as nodes:
        a, b = nodes
        to = b.device_info.id
        nodes.cut(a, b)
        receipts = [await service(a).send_text(to, f"{n}") for n in range(3)]
        receipts.append(await service(a).send_text(to, "urgent", priority=Priority.HIGH))
        assert {(receipt.state, receipt.delivered_at) for receipt in receipts} == {("queued", None)}
        waiting = await service(a).outbox()
        assert [(m.text, m.kind, m.priority, m.state) for m in waiting] == [
            ("urgent", "text", "high", "waiting"),
            *((f"{n}", "text", "normal", "waiting") for n in range(3)),
        ]
        nodes.heal(a, b)

        async def all_came() -> bool:
            return len(await service(b).inbox()) == 4

        await eventually(all_came)
        messages = await service(b).inbox()
        assert [m.text for m in messages if m.priority == "normal"] == ["0", "1", "2"]
        assert {m.id for m in messages} == {receipt.id for receipt in receipts}

        async def outbox_is_empty() -> bool:
            return not await service(a).outbox()

        await eventually(outbox_is_empty)


async def test_now_fails_instead_of_queueing() -> None:
    async with two_nodes() as nodes:
        a, b = nodes
        nodes.cut(a, b)
        with pytest.raises(ConnectionFailedError, match=f"{b.device_info.name} .*was not sent"):
            await service(a).send_text(b.device_info.id, "hello", now=True)
        assert await service(a).outbox() == []
        nodes.heal(a, b)
        await a.connect(b.device_info.id)
        await service(a).send_text(b.device_info.id, "hello again", now=True)
        assert [message.text for message in await service(b).inbox()] == ["hello again"]


async def test_what_is_cancelled_or_too_old_is_not_delivered() -> None:
    async with two_nodes() as nodes:
        a, b = nodes
        to = b.device_info.id
        nodes.cut(a, b)
        cancelled = await service(a).send_text(to, "cancelled")
        async with a.subscribe_events([MessageUndelivered.kind]) as events:
            await service(a).send_text(to, "too old", ttl_s=2.0)  # a busy disk takes a while
            await service(a).send_text(to, "good", ttl_s=600)
            assert await service(a).cancel(cancelled.id) is True
            with pytest.raises(NotFoundError):
                await service(a).cancel(cancelled.id)
            event = await events.receive()
            assert isinstance(event, MessageUndelivered)
            assert event.outcome == "expired"
        nodes.heal(a, b)

        async def good_came() -> bool:
            return [m.text for m in await service(b).inbox()] == ["good"]

        await eventually(good_came)


async def test_the_outbox_outlives_a_restart(tmp_path: Path) -> None:
    async with two_nodes(home=tmp_path) as nodes:
        a, b = nodes
        to = b.device_info.id
        nodes.cut(a, b)
        for number in range(5):
            await service(a).send_text(to, f"{CANARY} {number}")
        assert files_with_the_canary(tmp_path) == []
        assert {path.stat().st_mode & 0o777 for path in outbox_files(tmp_path)} == {0o600}
    async with two_nodes(home=tmp_path, paired=False) as (a, b):

        async def all_came() -> bool:
            return [m.text for m in await service(b).inbox()] == [f"{CANARY} {n}" for n in range(5)]

        await eventually(all_came)


async def test_a_cable_pulled_in_the_middle_loses_and_doubles_nothing() -> None:
    async with two_nodes() as nodes:
        a, b = nodes
        await service(a).send_text(b.device_info.id, "before")
        nodes.cut(a, b, silent=True)
        receipt = await service(a).send_text(b.device_info.id, "held")
        assert receipt.state == "queued"
        with pytest.raises(NetworkTimeoutError, match="not known"):
            await service(a).send_text(b.device_info.id, "gone", now=True)
        nodes.heal(a, b)

        async def works_again() -> bool:
            try:
                await service(a).send_text(b.device_info.id, "after", now=True)
            except NetworkingError:
                return False
            return True

        await eventually(works_again, within_s=20)

        async def held_came() -> bool:
            return "held" in [m.text for m in await service(b).inbox()]

        await eventually(held_came)
        texts = [message.text for message in await service(b).inbox()]
        assert texts[:2] == ["before", "held"]
        assert "after" in texts
        assert texts.count("gone") <= 1


async def test_connections_cut_while_messages_flow_lose_nothing_and_deliver_nothing_twice() -> None:
    async with two_nodes() as nodes:
        a, b = nodes

        async def send(number: int) -> None:
            await service(a).send_text(b.device_info.id, f"message {number}")

        async with b.subscribe_events([TextReceived.kind]) as events:
            for burst in range(5):
                async with anyio.create_task_group() as tasks:
                    for number in range(20):
                        tasks.start_soon(send, burst * 20 + number)
                    await events.receive()
                    nodes.cut(a, b)
                    nodes.heal(a, b)
                await a.connect(b.device_info.id)

        async def all_came() -> bool:
            return len(await service(b).inbox()) >= 100

        await eventually(all_came)
        texts = [message.text for message in await service(b).inbox()]
        assert sorted(texts) == sorted(f"message {number}" for number in range(100))


async def test_the_chosen_action_comes_back_once() -> None:
    async with two_nodes() as (a, b), a.subscribe_events([ActionChosen.kind]) as events:
        actions = (Choice(id="open", label="Open it"), Choice(id="no", label="Not now"))
        sent = await service(a).send_notification(b.device_info.id, "Doorbell", actions=actions)
        assert await service(a).wait_choice(sent.id, timeout_s=0.01) is None
        [notification] = await service(b).inbox()
        for wrong in ("shut", ""):
            with pytest.raises(InvalidRequestError, match="open, no"):
                await service(b).choose(notification.id, wrong)
        with pytest.raises(NotFoundError):
            await service(b).choose(uuid.UUID(int=5), "open")
        receipt = await service(b).choose(notification.id, "open")
        assert receipt.state == "delivered"
        with pytest.raises(ConflictError, match="'open' was chosen"):
            await service(b).choose(notification.id, "no")
        [notification] = await service(b).inbox()
        assert (notification.chosen, notification.read) == ("open", True)
        choice = await service(a).wait_choice(sent.id, timeout_s=5)
        assert choice is not None
        assert (choice.kind, choice.chosen, choice.text, choice.title) == ("choice", "open", "Open it", "Doorbell")
        assert (choice.reply_to, choice.device_id) == (sent.id, b.device_info.id)
        assert [m.id for m in await service(a).inbox()] == [choice.id]
        event = await events.receive()
        assert isinstance(event, ActionChosen)
        assert (event.notification_id, event.action) == (sent.id, "open")


async def test_the_inbox_outlives_a_restart_and_nothing_old_is_new_again(tmp_path: Path) -> None:
    async with two_nodes(home=tmp_path) as (a, b):
        receipt = await service(a).send_text(b.device_info.id, "before")
        await service(b).mark_read([receipt.id])
        to = b.device_info.id
    async with two_nodes(home=tmp_path, paired=False) as (a, b):
        await a.connect(to)
        await service(a).send_text(to, "after")
        messages = await service(b).inbox()
        assert [(message.text, message.read) for message in messages] == [("before", True), ("after", False)]
        assert messages[0].number < messages[1].number


async def test_what_was_acknowledged_is_there_after_a_crash(tmp_path: Path) -> None:
    async with two_nodes(home=tmp_path / "running") as (a, b):
        for number in range(3):
            await service(a).send_text(b.device_info.id, f"{CANARY} {number}")
        # What a process that is killed now leaves behind.
        shutil.copytree(tmp_path / "running", tmp_path / "crashed", ignore=shutil.ignore_patterns("*.sock"))
    async with two_nodes(home=tmp_path / "crashed", paired=False) as (_, b):
        assert [message.text for message in await service(b).inbox()] == [f"{CANARY} {n}" for n in range(3)]


async def test_no_text_lies_on_the_disk_in_clear(tmp_path: Path) -> None:
    async with two_nodes(home=tmp_path) as (a, b):
        await service(a).send_text(b.device_info.id, CANARY)
        await service(a).send_notification(b.device_info.id, CANARY, CANARY)
        assert files_with_the_canary(tmp_path) == []
        assert {path.stat().st_mode & 0o777 for path in inbox_files(tmp_path, "node1")} == {0o600}
    assert files_with_the_canary(tmp_path) == []


async def test_no_text_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with two_nodes() as nodes:
        a, b = nodes
        await service(a).send_text(b.device_info.id, CANARY)
        with pytest.raises(ProtocolError):
            await service(a).send_data(b.device_info.id, "nobody", CANARY.encode())
        nodes.cut(a, b)
        await service(a).send_text(b.device_info.id, CANARY)
    assert CANARY not in caplog.text


async def test_a_sender_restored_from_an_old_backup_loses_no_message(tmp_path: Path) -> None:
    async with two_nodes(home=tmp_path) as (a, b):
        for number in range(3):
            await service(a).send_text(b.device_info.id, f"first {number}")
        to = b.device_info.id
    for path in outbox_files(tmp_path / "node0"):
        path.unlink()
    async with two_nodes(home=tmp_path, paired=False) as (a, b):
        await a.connect(to)
        for number in range(3):
            await service(a).send_text(to, f"second {number}")
        texts = [message.text for message in await service(b).inbox()]
        assert texts == [*(f"first {n}" for n in range(3)), *(f"second {n}" for n in range(3))]


async def test_a_full_inbox_makes_senders_wait_and_what_was_read_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_MESSAGES_PER_DEVICE", 3)
    async with two_nodes() as (a, b):
        receipts = [await service(a).send_text(b.device_info.id, f"{n}") for n in range(3)]
        with pytest.raises(RefusedError, match="full"):
            await service(a).send_text(b.device_info.id, "not now", now=True)
        waiting = await service(a).send_text(b.device_info.id, "3")
        assert waiting.state == "queued"
        assert "full" in waiting.reason
        [queued] = await service(a).outbox()
        assert "full" in queued.reason
        await service(b).mark_read([receipts[1].id])

        async def it_came() -> bool:
            return [message.text for message in await service(b).inbox()] == ["0", "2", "3"]

        await eventually(it_came)
        await service(b).delete(receipts[0].id)
        assert (await service(a).send_text(b.device_info.id, "4")).state == "delivered"
        assert [message.text for message in await service(b).inbox()] == ["2", "3", "4"]


async def test_reading_listing_and_deleting() -> None:
    async with two_nodes() as (a, b):
        receipts = [await service(a).send_text(b.device_info.id, f"{n}") for n in range(5)]
        messages = await service(b).inbox()
        inbox = service(b).inbox
        assert [m.text for m in await inbox(messages[2].number)] == ["3", "4"]
        assert [m.text for m in await inbox(0, limit=2)] == ["0", "1"]
        assert [m.text for m in await inbox(limit=2)] == ["3", "4"]
        assert await service(b).mark_read_up_to(messages[1].number) == 2
        assert await service(b).mark_read([receipts[0].id, receipts[4].id]) == 1
        assert [m.text for m in await inbox(unread_only=True)] == ["2", "3"]
        await service(b).delete(receipts[2].id)
        with pytest.raises(NotFoundError):
            await service(b).delete(receipts[2].id)
        assert [m.text for m in await inbox()] == ["0", "1", "3", "4"]


@pytest.mark.parametrize("with_the_past", [False, True])
async def test_a_slow_listener_misses_nothing(with_the_past: bool) -> None:
    async with two_nodes() as (a, b):
        await service(a).send_text(b.device_info.id, "old")
        heard: list[str] = []

        async def listen() -> None:
            async with aclosing(service(b).listen(0 if with_the_past else None)) as messages:
                async for message in messages:
                    heard.append(message.text)
                    await anyio.sleep(0.001)

        async def probe_is_heard() -> bool:
            await service(a).send_text(b.device_info.id, "probe")
            return "probe" in heard

        async def last_is_heard() -> bool:
            return heard[-1] == "29"

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await eventually(probe_is_heard)
            for number in range(30):
                await service(a).send_text(b.device_info.id, f"{number}")
            await eventually(last_is_heard)
            tasks.cancel_scope.cancel()
        assert ("old" in heard) is with_the_past
        assert [text for text in heard if text not in ("old", "probe")] == [f"{number}" for number in range(30)]


async def test_data_go_to_a_named_protocol_and_the_response_comes_back() -> None:
    async with two_nodes() as (a, b):
        got: list[DataReceived] = []

        async def handle(data: DataReceived) -> bytes | None:
            got.append(data)
            return None if not data.payload else data.payload[::-1]

        to = b.device_info.id
        with service(b).on_data("mirror", handle):
            answer = await service(a).send_data(to, "mirror", b"\x00abc", version=3, metadata={"unit": "bytes"})
            assert answer == b"cba\x00"
            assert await service(a).send_data(to, "mirror", b"") is None
            assert await service(a).send_data(to, "mirror", bytes(256 * 1024)) == bytes(256 * 1024)
        first = got[0]
        assert (first.device.device_id, first.version, dict(first.metadata)) == (
            a.device_info.id,
            3,
            {"unit": "bytes"},
        )
        assert len({data.id for data in got}) == 3
        with pytest.raises(ProtocolError, match="takes data for mirror"):
            await service(a).send_data(to, "mirror", b"x")
        assert await service(b).inbox() == []


async def test_a_handler_that_fails_is_told_without_its_words_and_the_node_goes_on() -> None:
    async with two_nodes() as (a, b):

        async def fail(data: DataReceived) -> bytes | None:
            raise ValueError(CANARY)

        with service(b).on_data("broken", fail), pytest.raises(ProtocolError, match="failed") as caught:
            await service(a).send_data(b.device_info.id, "broken", b"x")
        assert CANARY not in str(caught.value)
        await service(a).send_text(b.device_info.id, "still here")
        assert [m.text for m in await service(b).inbox()] == ["still here"]


async def test_a_slow_handler_holds_up_nobody_and_a_late_answer_is_an_error() -> None:
    async with two_nodes() as (a, b):
        called = anyio.Event()

        async def never(data: DataReceived) -> bytes | None:
            called.set()
            await anyio.sleep_forever()
            return None

        with service(b).on_data("slow", never):
            async with anyio.create_task_group() as tasks:

                async def ask() -> None:
                    with pytest.raises(NetworkTimeoutError):
                        await service(a).send_data(b.device_info.id, "slow", b"x", timeout_s=1)

                tasks.start_soon(ask)
                await called.wait()
                for number in range(10):
                    await service(a).send_text(b.device_info.id, f"{number}")
        assert len(await service(b).inbox()) == 10


async def test_a_stranger_cannot_send() -> None:
    async with linked_nodes(2, plugins=[MessagingPlugin], paired=False) as (a, b):
        with pytest.raises(DeviceNotFoundError):
            await service(a).send_text(b.device_info.id, "hello")
        stream = await a.open_stranger_stream(b.identity.peer_id, b.addresses, "messaging")
        await stream.send(b"\x00" * 64)
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)), anyio.fail_after(10):
            await stream.receive()
        assert await service(b).inbox() == []
