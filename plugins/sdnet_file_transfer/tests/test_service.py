"""Transfers between two whole nodes that are linked in memory."""

import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup, TaskStatus

from sdnet_core import NetworkingCore
from sdnet_core.errors import ConflictError, DeviceNotFoundError, InvalidRequestError, NotFoundError
from sdnet_core.events import DeviceRemoved
from sdnet_core.testing import LinkedNodes, MemoryDiscovery, MemoryNetwork, linked_nodes, memory_node, pair
from sdnet_file_transfer import FileTransferPlugin, FileTransferService, Transfer, TransferEvent, TransferState

pytestmark = pytest.mark.anyio

FileSizeLimit = Callable[[int], AbstractContextManager[None]]
Tree = dict[str, bytes | None]
MakeTree = Callable[[str, Tree], Path]
ReadTree = Callable[[Path], Tree]


@asynccontextmanager
async def two(home: Path, **options: Any) -> AsyncIterator[LinkedNodes]:
    with anyio.fail_after(60):
        async with linked_nodes(2, plugins=[FileTransferPlugin], home=home, **options) as nodes:
            yield nodes


def service(core: NetworkingCore) -> FileTransferService:
    return core.get_service(FileTransferService)


def downloads(core: NetworkingCore) -> Path:
    return core.config.downloads_dir


async def finish(core: NetworkingCore, transfer_id: uuid.UUID) -> Transfer:
    async for transfer in service(core).watch(transfer_id):
        if transfer.state.terminal:
            return transfer
    raise AssertionError("the watch ended before the transfer")


async def until(condition: Callable[[], Any], *, timeout_s: float = 20.0) -> None:
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a node, which tells nobody
            await anyio.sleep(0.005)


def state(core: NetworkingCore, transfer_id: uuid.UUID) -> TransferState | None:
    """Where a transfer is; None if the node does not know it yet."""
    return next((one.state for one in service(core).transfers() if one.id == transfer_id), None)


async def send(a: NetworkingCore, b: NetworkingCore, *paths: Path, **options: Any) -> Transfer:
    transfer = await service(a).send(b.device_info.id, paths, **options)
    return await finish(a, transfer.id)


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def received(core: NetworkingCore) -> list[Transfer]:
    return [transfer for transfer in service(core).transfers() if transfer.direction == "receive"]


async def test_a_folder_arrives_as_it_is(tmp_path: Path, make_tree: MakeTree, tree: ReadTree) -> None:
    contents: Tree = {
        "empty": None,
        "a/b/c.txt": b"deep",
        "zero": b"",
        "naïve 日本語.txt": "ü".encode(),
        "big.bin": os.urandom(5_000_000),
        "run.sh": b"#!/bin/sh\n",
    }
    root = make_tree("src/stuff", contents)
    (root / "run.sh").chmod(0o755)
    os.utime(root / "empty", ns=(10**18, 10**18))
    os.symlink("/etc/passwd", root / "link")
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        done = await send(a, b, root)
        assert done.state is TransferState.COMPLETED
        assert (done.done_bytes, done.total_bytes, done.done_items, done.items) == (5_000_016, 5_000_016, 5, 5)
        assert [(Path(problem.path).name, problem.expected) for problem in done.problems] == [("link", True)]
        await until(lambda: received(b) and received(b)[0].state.terminal)
        place = downloads(b)
        (root / "link").unlink()
        assert tree(place / "stuff") == tree(root)
        assert os.listdir(place) == ["stuff"]
        assert os.access(place / "stuff/run.sh", os.X_OK)
        assert not os.access(place / "stuff/zero", os.X_OK)
        assert (place / "stuff/empty").stat().st_mtime_ns == 10**18
        assert (place / "stuff/big.bin").stat().st_mtime_ns == (root / "big.bin").stat().st_mtime_ns
        [arrived] = received(b)
        assert arrived.state is TransferState.COMPLETED
        assert arrived.paths == (str(place / "stuff"),)
        assert arrived.id == done.id


async def test_many_small_files_arrive(tmp_path: Path, make_tree: MakeTree, tree: ReadTree) -> None:
    contents: Tree = {f"{number % 50}/{number}.txt": str(number).encode() * (number % 20) for number in range(5000)}
    root = make_tree("many", contents)
    async with two(tmp_path / "home") as (a, b):
        done = await send(a, b, root)
        assert (done.state, done.items) == (TransferState.COMPLETED, 5000)
        assert tree(downloads(b) / "many") == tree(root)


async def test_several_files_and_names_that_are_taken(tmp_path: Path, make_tree: MakeTree) -> None:
    root = make_tree("src", {"a.txt": b"1", "b.txt": b"2", "sub/a.txt": b"3"})
    async with two(tmp_path / "home") as (a, b):
        downloads(b).mkdir(parents=True)
        (downloads(b) / "a.txt").write_bytes(b"mine")
        done = await send(a, b, root / "a.txt", root / "b.txt", root / "sub" / "a.txt")
        assert (done.state, done.name) == (TransferState.COMPLETED, "3 items")
        found = {path.name: path.read_bytes() for path in downloads(b).iterdir()}
        assert found == {"a.txt": b"mine", "a (1).txt": b"1", "b.txt": b"2", "a (1) (1).txt": b"3"}


async def test_several_transfers_at_once_and_both_ways(tmp_path: Path, make_tree: MakeTree) -> None:
    root = make_tree("src", {f"{number}.bin": os.urandom(2_000_000) for number in range(6)})
    async with two(tmp_path / "home") as (a, b):
        started = []
        for number in range(6):
            here, there = (a, b) if number % 2 else (b, a)
            transfer = await service(here).send(there.device_info.id, [root / f"{number}.bin"])
            started.append((here, there, number, transfer.id))
        for here, there, number, transfer_id in started:
            assert (await finish(here, transfer_id)).state is TransferState.COMPLETED
            name = f"{number}.bin"
            assert (downloads(there) / name).read_bytes() == (root / name).read_bytes()


async def test_what_cannot_be_sent_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    async with two(tmp_path / "home") as (a, b):
        (tmp_path / "x").write_text("x")
        device = b.device_info.id
        with pytest.raises(InvalidRequestError, match="missing"):
            await service(a).send(device, [tmp_path / "missing"])
        with pytest.raises(InvalidRequestError, match="absolute"):
            await service(a).send(device, ["x"])
        with pytest.raises(InvalidRequestError):
            await service(a).send(device, [])
        with pytest.raises(DeviceNotFoundError):
            await service(a).send(uuid.uuid4(), [tmp_path / "x"])
        with pytest.raises(NotFoundError):
            service(a).get(uuid.uuid4())
        assert service(a).transfers() == []


async def test_a_device_that_takes_no_files_says_so(tmp_path: Path, make_tree: MakeTree) -> None:
    root = make_tree("src", {"a": b"1"})
    settings = {"plugins": {"file_transfer": {"accept": "never"}}}
    async with two(tmp_path / "home", settings=settings) as (a, b):
        done = await send(a, b, root / "a")
        assert done.state is TransferState.REJECTED
        assert "not asked about" in done.reason
        assert not downloads(b).exists()


class TestGrants:
    async def test_a_grant_lets_one_transfer_in(self, tmp_path: Path, make_tree: MakeTree) -> None:
        root = make_tree("src", {"a": b"123"})
        settings = {"plugins": {"file_transfer": {"accept": "never"}}}
        async with two(tmp_path / "home", settings=settings) as (a, b):
            granted = uuid.uuid4()
            place = tmp_path / "elsewhere"
            waiting = await service(b).grant(a.device_info.id, granted, place, 3)
            assert waiting.state is TransferState.WAITING
            done = await send(a, b, root / "a", purpose="spacedrop", grant_id=granted)
            assert (done.state, done.id) == (TransferState.COMPLETED, granted)
            assert (await finish(b, granted)).paths == (str(place / "a"),)
            assert (place / "a").read_bytes() == b"123"

    @pytest.mark.parametrize("case", ["none", "larger", "late", "purpose"])
    async def test_what_was_not_granted_is_refused(self, tmp_path: Path, make_tree: MakeTree, case: str) -> None:
        root = make_tree("src", {"a": b"1234"})
        async with two(tmp_path / "home") as (a, b):
            granted, other = uuid.uuid4(), uuid.uuid4()
            now = a.clock.now()
            place = tmp_path / "elsewhere"
            await service(b).grant(
                a.device_info.id, granted, place, 3 if case == "larger" else 4, now - 1 if case == "late" else now + 60
            )
            purpose = "other" if case == "purpose" else "spacedrop"
            grant_id = other if case == "none" else granted
            done = await send(a, b, root / "a", purpose=purpose, grant_id=grant_id)
            assert done.state is TransferState.REJECTED
            assert not place.exists()

    async def test_a_grant_is_for_one_device(self, tmp_path: Path, make_tree: MakeTree) -> None:
        root = make_tree("src", {"a": b"1"})
        with anyio.fail_after(30):
            async with linked_nodes(3, plugins=[FileTransferPlugin], home=tmp_path / "home") as (a, b, c):
                granted = uuid.uuid4()
                await service(b).grant(a.device_info.id, granted, tmp_path / "elsewhere")
                done = await send(c, b, root / "a", purpose="spacedrop", grant_id=granted)
                assert done.state is TransferState.REJECTED
                with pytest.raises(ConflictError):
                    await service(b).grant(a.device_info.id, granted, tmp_path)
                await service(b).cancel(granted)
                done = await send(a, b, root / "a", purpose="spacedrop", grant_id=granted)
                assert done.state is TransferState.CANCELLED


BIG = 24 << 20
RATE = 96 << 20


def parts(core: NetworkingCore) -> list[int]:
    """Sizes of the part files at a receiver."""
    return [path.stat().st_size for path in downloads(core).glob(".sdnet-partial-*/part-*")]


def slow_down(nodes: "LinkedNodes | Restartable", bytes_per_s: float | None = RATE) -> None:
    a, b = nodes
    nodes.network.link(a.identity.peer_id, b.identity.peer_id).bytes_per_s = bytes_per_s


async def half_sent(nodes: "LinkedNodes | Restartable", *paths: Path) -> uuid.UUID:
    """Begin to send, and wait until a part has arrived."""
    a, b = nodes
    slow_down(nodes)
    transfer = await service(a).send(b.device_info.id, paths)
    await until(lambda: any(size >= 6 << 20 for size in parts(b)))
    return transfer.id


@pytest.fixture
def big(make_tree: MakeTree) -> Path:
    return make_tree("src", {"big": os.urandom(BIG)}) / "big"


@pytest.mark.parametrize("silent", [False, True])
async def test_a_cut_link_delays_a_transfer_and_no_more(tmp_path: Path, big: Path, silent: bool) -> None:
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        transfer_id = await half_sent(nodes, big)
        nodes.cut(a, b, silent=silent)
        if not silent:
            await until(lambda: state(a, transfer_id) is TransferState.WAITING)
            await until(lambda: state(b, transfer_id) is TransferState.WAITING)
            assert 0 < max(parts(b)) < BIG
        nodes.heal(a, b)
        assert (await finish(a, transfer_id)).state is TransferState.COMPLETED
        assert same(downloads(b) / "big", big)
        await until(lambda: os.listdir(downloads(b)) == ["big"])


async def test_what_has_arrived_does_not_come_again(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        transfer_id = await half_sent(nodes, big)
        nodes.cut(a, b)
        await until(lambda: state(b, transfer_id) is TransferState.WAITING)
        held = max(parts(b))
        slow_down(nodes, 8 << 20)
        nodes.heal(a, b)
        await until(lambda: state(b, transfer_id) is TransferState.TRANSFERRING)
        assert service(b).get(transfer_id).done_bytes >= held
        slow_down(nodes, None)
        done = await finish(a, transfer_id)
        assert done.state is TransferState.COMPLETED
        assert same(downloads(b) / "big", big)


class Restartable:
    """Two linked nodes, each of which can be stopped and started again."""

    def __init__(self, home: Path, tasks: TaskGroup) -> None:
        self.home = home
        self.network, self.discovery = MemoryNetwork(), MemoryDiscovery()
        self.nodes: dict[int, NetworkingCore] = {}
        self._tasks = tasks
        self._stops: dict[int, tuple[anyio.Event, anyio.Event]] = {}

    def __iter__(self) -> Iterator[NetworkingCore]:
        return iter((self.nodes[0], self.nodes[1]))

    async def start(self, index: int) -> NetworkingCore:
        node = memory_node(
            self.home,
            f"node{index}",
            network=self.network,
            discovery=self.discovery,
            plugins=[FileTransferPlugin],
        )
        stop, stopped = self._stops[index] = (anyio.Event(), anyio.Event())

        async def run(*, task_status: TaskStatus[None]) -> None:
            async with node:
                task_status.started()
                await stop.wait()
            stopped.set()

        await self._tasks.start(run)
        self.nodes[index] = node
        return node

    async def stop(self, index: int) -> None:
        stop, stopped = self._stops[index]
        stop.set()
        await stopped.wait()


@asynccontextmanager
async def restartable(home: Path) -> AsyncIterator[Restartable]:
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            nodes = Restartable(home, tasks)
            first = await nodes.start(0)
            await pair(first, await nodes.start(1), first.randomness)
            yield nodes
            await nodes.stop(0)
            await nodes.stop(1)


@pytest.mark.parametrize("restarted", [0, 1])
async def test_a_transfer_survives_a_restart_of_either_node(tmp_path: Path, big: Path, restarted: int) -> None:
    async with restartable(tmp_path / "home") as nodes:
        transfer_id = await half_sent(nodes, big)
        await nodes.stop(restarted)
        await until(lambda: service(nodes.nodes[1 - restarted]).get(transfer_id).state is TransferState.WAITING)
        held = max(parts(nodes.nodes[1]))
        assert 6 << 20 <= held < BIG
        slow_down(nodes, None)
        await nodes.start(restarted)
        a, b = nodes
        assert (await finish(a, transfer_id)).state is TransferState.COMPLETED
        assert same(downloads(b) / "big", big)
        await until(lambda: os.listdir(downloads(b)) == ["big"])


async def test_the_sender_cancels_and_what_has_arrived_is_of_use_later(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        transfer_id = await half_sent(nodes, big)
        cancelled = await service(a).cancel(transfer_id)
        assert cancelled.state is TransferState.CANCELLED
        await until(lambda: state(b, transfer_id) is TransferState.CANCELLED)
        over = service(b).get(transfer_id)
        assert (over.state, over.resumable) == (TransferState.CANCELLED, True)
        assert "node0" in over.reason
        held = max(parts(b))
        assert held >= 6 << 20
        with pytest.raises(ConflictError):
            await service(a).cancel(transfer_id)

        again = await service(a).send(b.device_info.id, [big])
        await until(lambda: state(b, again.id) is TransferState.TRANSFERRING)
        assert service(b).get(again.id).done_bytes >= held
        assert (await finish(a, again.id)).state is TransferState.COMPLETED
        assert same(downloads(b) / "big", big)
        await until(lambda: os.listdir(downloads(b)) == ["big"])


async def test_the_receiver_cancels_and_nothing_is_left(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        transfer_id = await half_sent(nodes, big)
        cancelled = await service(b).cancel(transfer_id)
        assert cancelled.state is TransferState.CANCELLED
        done = await finish(a, transfer_id)
        assert (done.state, done.reason) == (TransferState.CANCELLED, "node1 cancelled it.")
        assert os.listdir(downloads(b)) == []


async def test_a_transfer_to_a_device_that_is_away_waits_and_can_be_cancelled(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        nodes.cut(a, b)
        await until(lambda: not a.remote_device(b.device_info.id).connected)
        first = await service(a).send(b.device_info.id, [big])
        second = await service(a).send(b.device_info.id, [big])
        await until(lambda: state(a, first.id) is TransferState.WAITING)
        assert "away" in service(a).get(first.id).reason
        assert (await service(a).cancel(first.id)).state is TransferState.CANCELLED
        nodes.heal(a, b)
        assert (await finish(a, second.id)).state is TransferState.COMPLETED
        assert [transfer.id for transfer in received(b)] == [second.id]


async def test_what_a_receiver_kept_can_be_thrown_away(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        transfer_id = await half_sent(nodes, big)
        nodes.cut(a, b)
        await until(lambda: state(b, transfer_id) is TransferState.WAITING)
        await service(b).cancel(transfer_id)
        assert os.listdir(downloads(b)) == []
        nodes.heal(a, b)
        assert (await finish(a, transfer_id)).state is TransferState.CANCELLED


async def test_a_device_that_is_removed_gets_nothing_more(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        transfer_id = await half_sent(nodes, big)
        b.events.publish(DeviceRemoved(device_id=a.device_info.id, device_name="node0", reason="revoked"))
        over = await finish(b, transfer_id)
        assert over.reason == "The device is no longer paired."
        await until(lambda: os.listdir(downloads(b)) == [])


async def test_files_that_change_or_vanish_are_said_and_the_others_arrive(
    tmp_path: Path, make_tree: MakeTree, tree: ReadTree
) -> None:
    root = make_tree("src", {"a": os.urandom(8 << 20), "b": b"2", "c": b"3", "d": b"4"})
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        slow_down(nodes, 16 << 20)
        transfer = await service(a).send(b.device_info.id, [root])
        await until(lambda: received(b) and received(b)[0].state is TransferState.TRANSFERRING)
        (root / "b").unlink()
        (root / "c").write_bytes(b"other")
        done = await finish(a, transfer.id)
        assert done.state is TransferState.FAILED
        assert done.reason.startswith("2 of 4 files did not get there")
        assert {Path(problem.path).name for problem in done.problems} == {"b", "c"}
        over = await finish(b, transfer.id)
        assert over.state is TransferState.FAILED
        assert "2 of 4" in over.reason
        assert set(tree(downloads(b) / "src")) == {"a", "d"}
        assert os.listdir(downloads(b)) == ["src"]


async def test_a_disk_that_takes_no_more_is_said_on_both_sides(
    tmp_path: Path, big: Path, file_size_limit: FileSizeLimit
) -> None:
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        with file_size_limit(10 << 20):
            transfer = await service(a).send(b.device_info.id, [big])
            done = await finish(a, transfer.id)
            over = await finish(b, transfer.id)
        assert (done.state, over.state) == (TransferState.FAILED, TransferState.FAILED)
        assert "could not write" in done.reason
        assert "larger than" in over.reason
        assert over.resumable
        assert (await send(a, b, big)).state is TransferState.COMPLETED
        assert same(downloads(b) / "big", big)
        await until(lambda: os.listdir(downloads(b)) == ["big"])


async def test_a_transfer_without_room_is_refused_before_a_byte_is_sent(tmp_path: Path, big: Path) -> None:
    settings = {"plugins": {"file_transfer": {"min_free_bytes": 1 << 60}}}
    async with two(tmp_path / "home", settings=settings) as (a, b):
        done = await send(a, b, big)
        assert done.state is TransferState.REJECTED
        assert "room" in done.reason
        await until(lambda: os.listdir(downloads(b)) == [])


async def test_a_folder_for_downloads_that_cannot_be_used_is_said(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path / "home") as (a, b):
        downloads(b).parent.mkdir(parents=True, exist_ok=True)
        downloads(b).write_text("a file")
        done = await send(a, b, big)
        assert done.state is TransferState.FAILED
        assert "cannot use its folder" in done.reason


async def test_events_tell_what_happens(tmp_path: Path, big: Path) -> None:
    async with two(tmp_path / "home") as nodes:
        a, b = nodes
        slow_down(nodes, 48 << 20)
        async with a.events.subscribe() as events:
            done = await send(a, b, big)
            kinds: list[str] = []
            while not kinds or kinds[-1] != "transfer-completed":
                event = await events.receive()
                if isinstance(event, TransferEvent):
                    kinds.append(event.kind)
                    assert event.transfer_id == done.id
                    json.dumps(event.to_dict())
        assert kinds[0] == "transfer-started"
        assert "transfer-progress" in kinds


async def test_transfers_are_remembered(tmp_path: Path, make_tree: MakeTree) -> None:
    root = make_tree("src", {"a": b"1"})
    async with restartable(tmp_path / "home") as nodes:
        a, b = nodes
        done = await send(a, b, root / "a")
        await until(lambda: received(b) and received(b)[0].state.terminal)
        await nodes.stop(0)
        again = await nodes.start(0)
        assert service(again).get(done.id) == done
        assert service(again).find(str(done.id)[:6]) == done
