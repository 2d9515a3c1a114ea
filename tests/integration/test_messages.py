"""Messages of any plugin between two nodes: order, priorities, exactly once, answers, failures."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import anyio
import pytest

from sdnet_core import (
    Delivery,
    DeliveryOutcome,
    InboundMessage,
    NetworkingCore,
    PluginContext,
    Priority,
    ProtocolHandler,
    ProtocolSpec,
    RemoteDevice,
    ServiceSpec,
    hookimpl,
)
from sdnet_core.errors import DeviceNotFoundError, InvalidRequestError, ProtocolError, RefusedError, TryLaterError
from sdnet_core.testing import linked_nodes

pytestmark = pytest.mark.anyio


class Ledger(ProtocolHandler):
    """Does its work in transactions, and whatever a test wants before and behind them."""

    protocol_name = "ledger"

    def __init__(self, ctx: PluginContext) -> None:
        self._ctx = ctx
        self.calls: list[tuple[uuid.UUID, bytes]] = []
        self.ends: dict[uuid.UUID, Delivery] = {}
        self.responses: list[bytes] = []
        self.before: Callable[[InboundMessage], None] = lambda message: None
        self.block: anyio.Event | None = None

    async def handle_message(self, device: RemoteDevice, message: InboundMessage) -> bytes | None:
        self.calls.append((message.id, message.data))
        if self.block is not None and message.priority is Priority.LOW:
            await self.block.wait()
        self.before(message)

        def work(db: sqlite3.Connection, new: Sequence[InboundMessage]) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS entry (data BLOB)")
            db.executemany("INSERT INTO entry VALUES (?)", [(one.data,) for one in new])

        await self._ctx.transaction(work, message)
        return message.data.upper()

    async def handle_delivery(self, device: RemoteDevice, delivery: Delivery) -> None:
        self.ends[delivery.message_id] = delivery
        await super().handle_delivery(device, delivery)

    async def handle_response(self, device: RemoteDevice, data: bytes) -> None:
        self.responses.append(data)

    async def entries(self) -> list[bytes]:
        """What the transactions have left."""

        def read(db: sqlite3.Connection, _: Sequence[InboundMessage]) -> list[bytes]:
            db.execute("CREATE TABLE IF NOT EXISTS entry (data BLOB)")
            return [row[0] for row in db.execute("SELECT data FROM entry ORDER BY rowid")]

        return await self._ctx.transaction(read)


class LedgerPlugin:
    name = "ledger"

    @hookimpl
    def sdnet_services(self, ctx: PluginContext) -> Iterable[ServiceSpec]:
        self._handler = Ledger(ctx)
        return [ServiceSpec(name="ledger", api=self._handler)]

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> Iterable[ProtocolSpec]:
        return [ProtocolSpec(protocol_name="ledger", version=1, handler=self._handler, max_message_bytes=200_000)]


def ledger(core: NetworkingCore) -> Ledger:
    return core.get_service(Ledger)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(15):
        while not condition():  # noqa: ASYNC110 - gives no signal
            await anyio.sleep(0.005)


async def test_in_order_answered_and_told() -> None:
    async with linked_nodes(2, plugins=[LedgerPlugin]) as (a, b):
        ids = [await a.send_message(b.device_info.id, "ledger", b"entry %d" % number) for number in range(50)]
        await until(lambda: len(ledger(a).ends) == 50)
        assert await ledger(b).entries() == [b"entry %d" % number for number in range(50)]
        assert [id_ for id_, _ in ledger(b).calls] == ids
        assert ledger(a).responses == [b"ENTRY %d" % number for number in range(50)]
        assert {delivery.outcome for delivery in ledger(a).ends.values()} == {DeliveryOutcome.DELIVERED}


async def test_a_handler_that_is_cut_off_works_again_and_its_transaction_counts_once() -> None:
    async with linked_nodes(2, plugins=[LedgerPlugin]) as nodes:
        a, b = nodes
        for number in range(30):
            await a.send_message(b.device_info.id, "ledger", b"%d" % number)
            if number % 6 == 3:
                await until(lambda number=number: len(ledger(b).calls) > number - 3)  # type: ignore[misc]
                nodes.cut(a, b)
                nodes.heal(a, b)
        await until(lambda: len(ledger(a).ends) == 30)
        assert await ledger(b).entries() == [b"%d" % number for number in range(30)]


async def test_what_failed_is_told_and_those_behind_it_go_on() -> None:
    async with linked_nodes(2, plugins=[LedgerPlugin]) as (a, b):
        errors = {b"broken": ProtocolError("no"), b"refused": RefusedError("no"), b"bug": ZeroDivisionError()}

        def raise_some(message: InboundMessage) -> None:
            if message.data in errors:
                raise errors[message.data]

        ledger(b).before = raise_some
        texts = [b"1", b"broken", b"2", b"refused", b"3", b"bug", b"4"]
        ids = [await a.send_message(b.device_info.id, "ledger", text) for text in texts]
        await until(lambda: len(ledger(a).ends) == len(texts))
        outcomes = [str(ledger(a).ends[id_].outcome) for id_ in ids]
        assert outcomes == ["delivered", "failed", "delivered", "refused", "delivered", "failed", "delivered"]
        assert await ledger(b).entries() == [b"1", b"2", b"3", b"4"]


async def test_what_cannot_be_taken_now_waits_with_all_behind_it() -> None:
    async with linked_nodes(2, plugins=[LedgerPlugin]) as (a, b):
        full = True

        def refuse(message: InboundMessage) -> None:
            if full and message.data == b"1":
                raise TryLaterError("full")

        ledger(b).before = refuse
        for number in range(3):
            await a.send_message(b.device_info.id, "ledger", b"%d" % number)
        await until(lambda: [data for _, data in ledger(b).calls].count(b"1") >= 2)
        assert await ledger(b).entries() == [b"0"]
        waiting = await a.messages.waiting()
        assert [message.data for message in waiting] == [b"1", b"2"]
        assert "full" in waiting[0].reason
        full = False
        await until(lambda: len(ledger(a).ends) == 3)
        assert await ledger(b).entries() == [b"0", b"1", b"2"]


async def test_low_priority_that_is_stuck_holds_up_nothing_else() -> None:
    async with linked_nodes(2, plugins=[LedgerPlugin]) as (a, b):
        ledger(b).block = anyio.Event()
        to = b.device_info.id
        for number in range(20):
            await a.send_message(to, "ledger", b"%d" % number + bytes(100_000), priority=Priority.LOW)
        await until(lambda: bool(ledger(b).calls))
        for number in range(10):
            await a.send_message(to, "ledger", b"urgent %d" % number, priority=Priority.HIGH)
        await until(lambda: len(ledger(a).ends) == 10)
        assert await ledger(b).entries() == [b"urgent %d" % number for number in range(10)]
        ledger(b).block.set()
        await until(lambda: len(ledger(a).ends) == 30)


async def test_a_revoked_device_gets_nothing(tmp_path: Path) -> None:
    async with linked_nodes(2, plugins=[LedgerPlugin], home=tmp_path) as nodes:
        a, b = nodes
        to = b.device_info.id
        nodes.cut(a, b)
        await a.send_message(to, "ledger", b"never")
        await a.revoke_device(to)

        def nothing_waits() -> bool:
            return not a.messages.outbox.messages()

        await until(nothing_waits)
        with pytest.raises(DeviceNotFoundError):
            await a.send_message(to, "ledger", b"never")
        assert await ledger(b).entries() == []


async def test_what_cannot_be_sent_is_refused() -> None:
    async with linked_nodes(2, plugins=[LedgerPlugin]) as (a, b):
        with pytest.raises(InvalidRequestError, match="200,000"):
            await a.send_message(b.device_info.id, "ledger", bytes(200_001))
        with pytest.raises(DeviceNotFoundError):
            await a.send_message(uuid.UUID(int=9), "ledger", b"x")
        with pytest.raises(InvalidRequestError, match="time to live"):
            await a.send_message(b.device_info.id, "ledger", b"x", ttl_s=float("nan"))
