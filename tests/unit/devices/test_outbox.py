"""The outbox by itself: what is in it, what it refuses, what a restart leaves of it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from sdnet_core.clock import SystemRandomness, run_in_thread
from sdnet_core.devices.delivery import Delivery, DeliveryOutcome, Priority
from sdnet_core.devices.lanes import Lane, OutboxLimits
from sdnet_core.devices.outbox import Outbox
from sdnet_core.devices.outbox_store import Sealer
from sdnet_core.errors import ConflictError, InvalidRequestError, NotFoundError, RefusedError, StorageError

pytestmark = pytest.mark.anyio

PHONE, TABLET = uuid.UUID(int=1), uuid.UUID(int=2)
SECRET = b"the-cake-is-in-the-oven"


class HandClock:
    def __init__(self) -> None:
        self.wall = 1000.0
        self.steady = 50.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady


def seal(data: bytes, context: str) -> bytes:
    return context.encode() + b"\x00" + data[::-1]


def unseal(data: bytes, context: str) -> bytes:
    bound, _, reverse = data.partition(b"\x00")
    if bound != context.encode():
        raise StorageError("sealed for something else")
    return reverse[::-1]


class Opened:
    def __init__(self, outbox: Outbox, ended: list[tuple[uuid.UUID, DeliveryOutcome]]) -> None:
        self.outbox = outbox
        self.ended = ended

    async def put(
        self,
        data: bytes = b"x",
        device_id: uuid.UUID = PHONE,
        *,
        priority: Priority = Priority.NORMAL,
        ttl_s: float | None = None,
    ) -> uuid.UUID:
        message = self.outbox.put(device_id, "test", data, priority=priority, ttl_s=ttl_s)
        await self.outbox.wait_stored(message)
        return message.id

    async def datas(self, device_id: uuid.UUID = PHONE) -> list[bytes | None]:
        return await self.outbox.payloads(self.outbox.messages(device_id=device_id))


@asynccontextmanager
async def opened(
    home: Path,
    clock: HandClock | None = None,
    *,
    limits: OutboxLimits | None = None,
    devices: Sequence[uuid.UUID] = (PHONE, TABLET),
) -> AsyncIterator[Opened]:
    ended: list[tuple[uuid.UUID, DeliveryOutcome]] = []

    async def settled(lane: Lane, deliveries: Sequence[Delivery]) -> None:
        ended.extend((delivery.message_id, delivery.outcome) for delivery in deliveries)

    outbox = Outbox(
        home / "outbox.sqlite3",
        Sealer(seal, unseal),
        clock=clock or HandClock(),
        randomness=SystemRandomness(),
        runner=run_in_thread,
        settled=settled,
        limits=limits,
    )
    await outbox.open(devices)
    async with anyio.create_task_group() as tasks:
        await tasks.start(outbox.run)
        yield Opened(outbox, ended)
        tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await outbox.close()


async def test_what_waits_is_there_after_a_restart_in_its_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as box:
        await box.put(b"low", priority=Priority.LOW)
        await box.put(b"1")
        await box.put(b"high", priority=Priority.HIGH)
        await box.put(b"2")
        await box.put(b"for the tablet", TABLET)
        before = await box.datas()
        assert before == [b"high", b"1", b"2", b"low"]
        numbers = [message.number for message in box.outbox.messages(device_id=PHONE)]
    async with opened(tmp_path) as box:
        assert await box.datas() == before
        assert await box.datas(TABLET) == [b"for the tablet"]
        again = box.outbox.messages(device_id=PHONE)
        assert [message.number for message in again] == numbers
        assert all(message.tried for message in again), "it may have been sent before the restart"
        message = box.outbox.put(PHONE, "test", b"3")
        await box.outbox.wait_stored(message)
        assert message.number > max(numbers)


async def test_a_number_is_not_used_again_when_its_message_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path) as box:
        message = box.outbox.put(PHONE, "test", b"x")
        await box.outbox.wait_stored(message)
        await box.outbox.settle([message], DeliveryOutcome.DELIVERED)
        assert box.ended == [(message.id, DeliveryOutcome.DELIVERED)]
    async with opened(tmp_path) as box:
        assert box.outbox.messages() == []
        assert box.outbox.put(PHONE, "test", b"y").number > message.number


async def test_bounds_for_one_device_and_for_all(tmp_path: Path) -> None:
    limits = OutboxLimits(messages_per_device=3, bytes_per_device=100, messages=5, bytes=150)
    async with opened(tmp_path, limits=limits) as box:
        first = await box.put()
        for _ in range(2):
            await box.put()
        with pytest.raises(RefusedError, match="3 messages with 3 bytes for it"):
            await box.put()
        with pytest.raises(RefusedError, match="full"):
            await box.put(bytes(101), TABLET)
        await box.put(bytes(100), TABLET)
        await box.outbox.cancel(first)
        with pytest.raises(RefusedError, match="3 messages with 102 bytes for 2 devices"):
            await box.put(bytes(60))
        await box.put(bytes(40))


async def test_a_message_is_put_once_under_one_id(tmp_path: Path) -> None:
    id_ = uuid.UUID(int=77)
    async with opened(tmp_path) as box:
        first = box.outbox.put(PHONE, "test", b"x", message_id=id_)
        assert box.outbox.put(PHONE, "test", b"x", message_id=id_) is first
        with pytest.raises(ConflictError):
            box.outbox.put(TABLET, "test", b"x", message_id=id_)
        await box.outbox.wait_stored(first)
    async with opened(tmp_path) as box:
        assert box.outbox.put(PHONE, "test", b"x", message_id=id_).tried
        assert len(box.outbox.messages()) == 1


async def test_cancelled_is_gone_for_good(tmp_path: Path) -> None:
    async with opened(tmp_path) as box:
        ids = [await box.put(b"%d" % number) for number in range(3)]
        assert await box.outbox.cancel(ids[1]) is True
        with pytest.raises(NotFoundError):
            await box.outbox.cancel(ids[1])
        assert box.ended == []
    async with opened(tmp_path) as box:
        assert await box.datas() == [b"0", b"2"]
        assert await box.outbox.cancel(ids[0]) is False


@pytest.mark.parametrize(("step_s", "left"), [(0.0, True), (59.0, True), (61.0, False), (-5000.0, True)])
async def test_time_to_live_over_a_restart(tmp_path: Path, step_s: float, left: bool) -> None:
    clock = HandClock()
    async with opened(tmp_path, clock) as box:
        await box.put(b"x", ttl_s=60)
        with pytest.raises(InvalidRequestError):
            await box.put(ttl_s=0)
    later = HandClock()
    later.wall += step_s
    async with opened(tmp_path, later) as box:
        assert bool(box.outbox.messages()) is left
        # A clock that was set back gives it no more than it had.
        later.steady += 61
        assert box.outbox.messages() == []


async def test_it_is_told_that_a_message_expired(tmp_path: Path) -> None:
    clock = HandClock()
    async with opened(tmp_path, clock) as box:
        kept = await box.put(ttl_s=1000)
        short = await box.put(ttl_s=0.2)
        clock.steady += 1
        with anyio.fail_after(5):
            while not box.ended:  # noqa: ASYNC110 - gives no signal
                await anyio.sleep(0.01)
        assert box.ended == [(short, DeliveryOutcome.EXPIRED)]
        assert [message.id for message in box.outbox.messages()] == [kept]


async def test_what_waits_for_devices_that_are_gone_is_dropped(tmp_path: Path) -> None:
    async with opened(tmp_path) as box:
        await box.put(b"1")
        await box.put(b"2", TABLET)
        await box.outbox.remove_device(PHONE)
        assert await box.datas() == []
        assert len(box.outbox.messages()) == 1
    async with opened(tmp_path, devices=[PHONE]) as box:
        assert box.outbox.messages() == []


async def test_new_numbers_keep_order_and_ids(tmp_path: Path) -> None:
    async with opened(tmp_path) as box:
        ids = [await box.put(b"%d" % number) for number in range(4)]
        [lane] = {message.lane for message in box.outbox.messages()}
        await box.outbox.cancel(ids[2])
        await box.outbox.renumber(lane, 500)
        await box.put(b"4")
        assert list(lane.queue) == [500, 501, 502, 503]
    async with opened(tmp_path) as box:
        messages = box.outbox.messages()
        assert [message.number for message in messages] == [500, 501, 502, 503]
        assert [message.id for message in messages][:3] == [ids[0], ids[1], ids[3]]
        assert await box.datas() == [b"0", b"1", b"3", b"4"]


async def test_a_payload_moved_to_another_message_does_not_open(tmp_path: Path) -> None:
    import sqlite3

    async with opened(tmp_path) as box:
        await box.put(b"good")
        await box.put(b"bad")
    db = sqlite3.connect(tmp_path / "outbox.sqlite3")
    db.execute("UPDATE message SET sealed = (SELECT sealed FROM message WHERE number = 1)")
    db.commit()
    db.close()
    async with opened(tmp_path) as box:
        assert await box.datas() == [b"good", None]
