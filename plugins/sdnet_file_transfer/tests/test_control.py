"""What people do with transfers: pause and resume, order, limits, questions, history."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_core import NetworkingCore, Trust
from sdnet_core.errors import ConflictError, InvalidRequestError, NotFoundError
from sdnet_core.testing import LinkedNodes, linked_nodes
from sdnet_file_transfer import FileTransferPlugin, FileTransferService, Transfer, TransferState
from sdnet_file_transfer.limits import Bucket, Rates
from sdnet_file_transfer.slots import Slots

pytestmark = pytest.mark.anyio

BIG = os.urandom(24 << 20)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(BIG)
    return path


@asynccontextmanager
async def two(tmp_path: Path, **settings: Any) -> AsyncIterator[LinkedNodes]:
    options = {"settings": {"plugins": {"file_transfer": settings}}} if settings else {}
    with anyio.fail_after(90):
        async with linked_nodes(2, plugins=[FileTransferPlugin], home=tmp_path / "home", **options) as nodes:
            yield nodes


def service(core: NetworkingCore) -> FileTransferService:
    return core.get_service(FileTransferService)


async def finish(core: NetworkingCore, transfer_id: uuid.UUID) -> Transfer:
    async for transfer in service(core).watch(transfer_id):
        last = transfer
    assert last.state.terminal
    return last


async def until(condition: Callable[[], Any], *, timeout_s: float = 30.0) -> None:
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a node, which tells nobody
            await anyio.sleep(0.005)


def slow_down(nodes: LinkedNodes, bytes_per_s: float | None) -> None:
    a, b = nodes
    nodes.network.link(a.identity.peer_id, b.identity.peer_id).bytes_per_s = bytes_per_s


async def half_sent(nodes: LinkedNodes, path: Path) -> uuid.UUID:
    a, b = nodes
    slow_down(nodes, 32 << 20)
    transfer = await service(a).send(b.device_info.id, [path])
    parts = b.config.downloads_dir.glob
    await until(lambda: any(one.stat().st_size >= 6 << 20 for one in parts(".sdnet-partial-*/part-*")))
    return transfer.id


@pytest.mark.parametrize("who", [0, 1])
async def test_either_side_pauses_and_resumes(tmp_path: Path, big: Path, who: int) -> None:
    async with two(tmp_path) as nodes:
        transfer_id = await half_sent(nodes, big)
        here, there = nodes[who], nodes[1 - who]
        assert (await service(here).pause(transfer_id)).state is TransferState.PAUSED
        await until(lambda: service(there).get(transfer_id).state is TransferState.WAITING)
        await until(lambda: "paused it" in service(there).get(transfer_id).reason)
        held = sum(one.stat().st_size for one in nodes[1].config.downloads_dir.glob(".sdnet-partial-*/part-*"))
        assert 6 << 20 <= held < len(BIG)
        assert service(here).get(transfer_id).state is TransferState.PAUSED
        with pytest.raises(ConflictError):
            await service(there).resume(transfer_id)
        slow_down(nodes, None)
        await service(here).resume(transfer_id)
        assert (await finish(nodes[0], transfer_id)).state is TransferState.COMPLETED
        assert (nodes[1].config.downloads_dir / "big").read_bytes() == BIG
        await until(lambda: os.listdir(nodes[1].config.downloads_dir) == ["big"])
        with pytest.raises(ConflictError):
            await service(here).pause(transfer_id)


async def test_a_paused_transfer_does_not_go_on_by_itself_and_can_be_cancelled(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path) as nodes:
        a, b = nodes
        transfer_id = await half_sent(nodes, big)
        await service(a).pause(transfer_id)
        await until(lambda: service(b).get(transfer_id).state is TransferState.WAITING)
        nodes.cut(a, b)
        await until(lambda: not a.remote_device(b.device_info.id).connected)
        nodes.heal(a, b)
        await a.connect(b.device_info.id)
        other = await service(a).send(b.device_info.id, [Path(__file__)])
        assert (await finish(a, other.id)).state is TransferState.COMPLETED
        assert service(a).get(transfer_id).state is TransferState.PAUSED
        assert (await service(a).cancel(transfer_id)).state is TransferState.CANCELLED
        with pytest.raises(ConflictError):
            await service(a).resume(transfer_id)


async def test_a_transfer_that_is_cancelled_while_the_connection_is_lost_is_not_tried_again(
    tmp_path: Path, big: Path
) -> None:
    async with two(tmp_path) as nodes:
        a, b = nodes
        transfer_id = await half_sent(nodes, big)
        seen: list[TransferState] = []

        async def watch() -> None:
            async for transfer in service(a).watch(transfer_id):
                seen.append(transfer.state)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await until(lambda: seen)
            nodes.cut(a, b)
            assert (await service(a).cancel(transfer_id)).state is TransferState.CANCELLED
        assert seen[-1] is TransferState.CANCELLED
        assert TransferState.WAITING not in seen


async def test_nothing_waits_for_a_device_that_must_be_paired_anew(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path) as nodes:
        a, b = nodes
        await b.revoke_device(a.device_info.id)
        await until(lambda: a.remote_device(b.device_info.id).trust is Trust.EXPIRED)
        transfer = await service(a).send(b.device_info.id, [big])
        over = await finish(a, transfer.id)
        assert over.state is TransferState.FAILED
        assert over.reason == "The device is no longer paired."


async def test_what_is_asked_for_can_be_paused_by_either_side(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path) as nodes:
        a, b = nodes
        root = tmp_path / "root"
        root.mkdir()
        os.rename(big, root / "big")
        await service(b).shared.share(root, [a.device_info.id])
        slow_down(nodes, 32 << 20)
        transfer = await service(a).shared.get(b.device_info.id, ["root", "big"])
        for here, there in ((a, b), (b, a)):
            await until(lambda: service(a).get(transfer.id).state is TransferState.TRANSFERRING)
            assert (await service(here).pause(transfer.id)).state is TransferState.PAUSED
            await until(lambda there=there: service(there).get(transfer.id).state is TransferState.WAITING)  # type: ignore[misc]
            await service(here).resume(transfer.id)
        slow_down(nodes, None)
        assert (await finish(a, transfer.id)).state is TransferState.COMPLETED
        assert (a.config.downloads_dir / "big").read_bytes() == BIG


async def test_the_more_important_one_goes_first(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path, max_active=1) as nodes:
        a, b = nodes
        first = await half_sent(nodes, big)
        ids = {}
        for name, priority in (("low", -1), ("normal", 0), ("high", 1), ("also high", 1)):
            path = tmp_path / name
            path.write_text(name)
            transfer = await service(a).send(b.device_info.id, [path], priority=priority)
            ids[name] = transfer.id
        assert {service(a).get(one).state for one in ids.values()} == {TransferState.QUEUED}
        slow_down(nodes, None)
        for transfer_id in (first, *ids.values()):
            assert (await finish(a, transfer_id)).state is TransferState.COMPLETED
        ended = sorted(ids, key=lambda name: service(a).get(ids[name]).ended_at or 0)
        assert ended == ["high", "also high", "normal", "low"]


class TestSlots:
    async def test_one_that_gives_up_waiting_takes_nothing(self) -> None:
        slots = Slots(1)
        order: list[str] = []

        async def work(name: str, priority: int) -> None:
            async with slots.hold(priority):
                order.append(name)

        async with anyio.create_task_group() as tasks:
            async with slots.hold(0):
                with anyio.move_on_after(0.01):
                    await work("impatient", 5)
                tasks.start_soon(work, "low", 0)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(work, "high", 1)
                await anyio.wait_all_tasks_blocked()
        assert order == ["high", "low"]


class TestBucket:
    async def test_it_lets_through_what_the_rate_allows(self) -> None:
        began = anyio.current_time()
        bucket = Bucket(anyio.current_time, 1000)
        passed = 0
        while passed < 600:
            await bucket.take(50)
            passed += 50
        # A quarter of a second's bytes at once, and one piece into debt.
        assert anyio.current_time() - began >= (600 - 250 - 50) / 1000 - 0.01

    async def test_a_change_reaches_those_who_wait(self) -> None:
        bucket = Bucket(anyio.current_time, 1024)
        await bucket.take(1 << 20)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bucket.take, 1)
                await anyio.wait_all_tasks_blocked()
                bucket.set_rate(None)

    async def test_those_who_wait_have_the_same_share(self) -> None:
        bucket = Bucket(anyio.current_time, 2_000_000)
        passed = {"a": 0, "b": 0, "c": 0}

        async def run(name: str) -> None:
            while sum(passed.values()) < 1_500_000:
                await bucket.take(10_000)
                passed[name] += 10_000

        async with anyio.create_task_group() as tasks:
            for name in passed:
                tasks.start_soon(run, name)
        assert max(passed.values()) - min(passed.values()) <= 0.2 * max(passed.values())


async def test_limits_hold_and_change_while_files_move(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path) as nodes:
        a, b = nodes
        with pytest.raises(InvalidRequestError):
            await service(a).limit(Rates(up=5))
        await service(a).limit(Rates(up=2 << 20), b.device_info.id)
        began = anyio.current_time()
        transfer = await service(a).send(b.device_info.id, [big])
        parts = b.config.downloads_dir.glob
        await until(lambda: any(one.stat().st_size >= 4 << 20 for one in parts(".sdnet-partial-*/part-*")))
        # A quarter of a second's bytes and a record of 1 MiB may be ahead of the rate.
        assert anyio.current_time() - began >= (4.0 - 0.5 - 1.0) / 2.0
        await service(a).limit(Rates(), b.device_info.id)
        assert service(a).limits().devices == {}
        await service(b).limit(Rates(down=64 << 20))
        assert (await finish(a, transfer.id)).state is TransferState.COMPLETED
        assert (b.config.downloads_dir / "big").read_bytes() == BIG


async def test_a_limited_transfer_is_cancelled_at_once(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path) as nodes:
        a, b = nodes
        await service(a).limit(Rates(up=2048))
        transfer = await service(a).send(b.device_info.id, [big])
        await until(lambda: service(b).transfers() and service(b).transfers()[0].state is TransferState.TRANSFERRING)
        assert (await service(a).cancel(transfer.id)).state is TransferState.CANCELLED


@pytest.mark.parametrize("case", ["accept", "reject", "verified"])
async def test_a_person_is_asked(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello")
    settings = {} if case == "verified" else {"accept": "ask"}
    async with two(tmp_path, **settings) as (a, b):
        if case == "verified":
            await b.set_trust(a.device_info.id, Trust.VERIFIED)
            await a.connect(b.device_info.id)
        transfer = await service(a).send(b.device_info.id, [path])
        await until(lambda: any(one.state is TransferState.ASKING for one in service(b).transfers()))
        asked = service(b).get(transfer.id)
        assert (asked.name, asked.items, asked.total_bytes) == ("a.txt", 1, 5)
        assert not b.config.downloads_dir.exists() or os.listdir(b.config.downloads_dir) == []
        service(b).answer(transfer.id, case != "reject")
        done = await finish(a, transfer.id)
        if case == "reject":
            assert (done.state, done.reason) == (TransferState.REJECTED, "It was rejected.")
            assert service(b).get(transfer.id).state is TransferState.REJECTED
        else:
            assert done.state is TransferState.COMPLETED
            assert (b.config.downloads_dir / "a.txt").read_text() == "hello"
        with pytest.raises(ConflictError):
            service(b).answer(transfer.id, True)


async def test_the_history_is_pruned_and_can_be_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello")
    async with two(tmp_path, history_entries=3) as (a, b):
        ids = []
        for _ in range(5):
            transfer = await service(a).send(b.device_info.id, [path])
            await finish(a, transfer.id)
            ids.append(transfer.id)
        await service(a)._store.tidy()
        assert [one.id for one in service(a).transfers()] == ids[:1:-1]
        assert await service(a).forget_history() == 3
        assert service(a).transfers() == []
        with pytest.raises(NotFoundError):
            service(a).get(ids[-1])
