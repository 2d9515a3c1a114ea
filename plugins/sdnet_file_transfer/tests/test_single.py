"""Single transfers over a stream that somebody else has made."""

from __future__ import annotations

import gc
import os
import uuid
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from sdnet_core import PeerStream, PluginContext, ProtocolHandler, ProtocolSpec, hookimpl
from sdnet_core.testing import LinkedNodes, linked_nodes
from sdnet_core.wire import encode
from sdnet_file_transfer import (
    FileTransferPlugin,
    FileTransferService,
    Rates,
    SingleOutcome,
    SingleProgress,
    SingleReceive,
    SingleSend,
    TransferState,
)
from sdnet_file_transfer import receiving as receiving_module
from sdnet_file_transfer.part import page_memory

from .conftest import Tree, read_tree

pytestmark = pytest.mark.anyio

ID = uuid.uuid4()


class PipePlugin:
    """Gives its inbound streams to the test."""

    name = "pipe"
    inbound: anyio.abc.ObjectSendStream[PeerStream] | None = None

    @hookimpl
    def sdnet_protocols(self, ctx: PluginContext) -> list[ProtocolSpec]:
        plugin = self

        class Handler(ProtocolHandler):
            protocol_name = "pipe"

            async def handle_stream(self, stream: PeerStream) -> None:
                assert plugin.inbound is not None
                await plugin.inbound.send(stream)
                await anyio.sleep_forever()

        return [ProtocolSpec(protocol_name="pipe", version=1, handler=Handler())]


class Ends(NamedTuple):
    nodes: LinkedNodes
    sender: PeerStream
    receiver: PeerStream
    target: Path
    seen: list[SingleProgress]
    moves: anyio.Event

    def observe(self, progress: SingleProgress) -> None:
        self.seen.append(progress)
        if progress.state is TransferState.TRANSFERRING and progress.done_bytes:
            self.moves.set()

    def receive(self, **changes: object) -> SingleReceive:
        options = {"purpose": "test", "max_bytes": 1 << 30, "max_items": 100, "observe": self.observe} | changes
        files = self.nodes[1].get_service(FileTransferService)
        return files.receive_single(self.receiver, ID, self.target, **options)  # type: ignore[arg-type]

    def send(self, *paths: Path, transfer_id: uuid.UUID = ID, **changes: object) -> SingleSend:
        options = {"purpose": "test", "observe": self.observe} | changes
        files = self.nodes[0].get_service(FileTransferService)
        return files.send_single(self.sender, transfer_id, paths, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    give, take = anyio.create_memory_object_stream[PeerStream](2)

    class Plugin(PipePlugin):
        inbound = give

    with give, take, anyio.fail_after(60):
        async with linked_nodes(2, plugins=[FileTransferPlugin, Plugin], home=tmp_path / "home") as nodes:
            stream = await nodes[0].open_stream(nodes[1].device_info.id, "pipe")
            await stream.send(b"x")
            inbound = await take.receive()
            await inbound.receive(1)
            yield Ends(nodes, stream, inbound, tmp_path / "target", [], anyio.Event())


async def both(sending: SingleSend, receiving: SingleReceive) -> tuple[SingleOutcome, SingleOutcome]:
    found: list[SingleOutcome] = []

    async def receive() -> None:
        found.append(await receiving.run())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        sent = await sending.run()
    return sent, found[0]


@pytest.fixture
def source(make_tree: Callable[[str, Tree], Path]) -> Path:
    return make_tree("source", {"a.txt": b"hello", "in/b.bin": os.urandom(3 << 20), "empty": None})


async def test_a_folder_crosses_and_nobody_keeps_anything_of_it(tmp_path: Path, source: Path) -> None:
    async with ends(tmp_path) as pair:
        sent, received = await both(pair.send(source), pair.receive())
        assert sent == SingleOutcome(state=TransferState.COMPLETED)
        assert received == SingleOutcome(state=TransferState.COMPLETED, paths=(str(pair.target / "source"),))
        assert read_tree(pair.target / "source") == read_tree(source)
        assert [path.name for path in pair.target.iterdir()] == ["source"]
        for node in pair.nodes:
            assert node.get_service(FileTransferService).transfers() == []
        assert {TransferState.TRANSFERRING, TransferState.VERIFYING} <= {seen.state for seen in pair.seen}


@pytest.mark.parametrize(
    ("changes", "offered"),
    [
        ({"max_bytes": 3 << 20}, {}),
        ({"max_items": 3}, {}),
        ({"purpose": "other"}, {}),
        ({}, {"transfer_id": uuid.uuid4()}),
    ],
)
async def test_what_was_not_agreed_to_is_refused(
    tmp_path: Path, source: Path, changes: dict[str, object], offered: dict[str, uuid.UUID]
) -> None:
    async with ends(tmp_path) as pair:
        sent, received = await both(pair.send(source, **offered), pair.receive(**changes))
        assert (sent.state, sent.by_peer) == (TransferState.REJECTED, True)
        assert sent.reason
        assert received.state is TransferState.FAILED
        assert not pair.target.exists()


@pytest.mark.parametrize("limited", ["up", "down", "device up", "device down"])
async def test_limits_of_bandwidth_hold(tmp_path: Path, source: Path, limited: str) -> None:
    rate = 4 << 20
    async with ends(tmp_path) as pair:
        sends = limited.endswith("up")
        node, other = pair.nodes if sends else reversed(tuple(pair.nodes))
        device_id = other.device_info.id if limited.startswith("device") else None
        rates = Rates(up=rate) if sends else Rates(down=rate)
        await node.get_service(FileTransferService).limit(rates, device_id)
        began = anyio.current_time()
        sent, received = await both(
            pair.send(source, device_id=device_id if sends else None),
            pair.receive(device_id=None if sends else device_id),
        )
        # A quarter of a second's bytes go at once, and the last record goes into debt.
        assert anyio.current_time() - began >= ((3 << 20) - rate * 0.25 - (1 << 20)) / rate
        assert (sent.state, received.state) == (TransferState.COMPLETED, TransferState.COMPLETED)


@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_either_side_cancels_and_nothing_stays(tmp_path: Path, source: Path, who: str) -> None:
    async with ends(tmp_path) as pair:
        link = pair.nodes.link(pair.nodes[0], pair.nodes[1])
        link.bytes_per_s = 1_000_000
        sending, receiving = pair.send(source), pair.receive()

        async def cancel() -> None:
            await pair.moves.wait()
            (sending if who == "sender" else receiving).cancel("Enough.")
            link.bytes_per_s = None

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel)
            sent, received = await both(sending, receiving)
        assert (sent.state, sent.by_peer) == (TransferState.CANCELLED, who == "receiver")
        assert (received.state, received.by_peer) == (TransferState.CANCELLED, who == "sender")
        assert {sent.reason, received.reason} == {"Enough."}
        assert list(pair.target.iterdir()) == []


async def test_a_cut_is_the_end_and_nothing_stays(tmp_path: Path, source: Path) -> None:
    async with ends(tmp_path) as pair:
        pair.nodes.link(pair.nodes[0], pair.nodes[1]).bytes_per_s = 1_000_000

        async def reset() -> None:
            await pair.moves.wait()
            await pair.sender.reset()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reset)
            _, received = await both(pair.send(source), pair.receive())
        assert received.state is TransferState.FAILED
        assert list(pair.target.iterdir()) == []


async def test_garbage_fails_it_and_nothing_stays(tmp_path: Path) -> None:
    for garbage in (b"\x07", b"\x00" + encode({"t": 99}), b"\x01" + bytes(100), bytes(1 << 20)):
        async with ends(tmp_path / str(uuid.uuid4())) as pair:
            async with anyio.create_task_group() as tasks:

                async def talk(pair: Ends = pair, garbage: bytes = garbage) -> None:
                    await pair.sender.send_record(garbage)
                    await pair.sender.send_eof()

                tasks.start_soon(talk)
                received = await pair.receive().run()
            assert received.state is TransferState.FAILED
            assert not pair.target.exists()


async def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    async with ends(tmp_path) as pair:
        left = pair.target / f".sdnet-partial-{ID.hex}"
        (left / "tree").mkdir(parents=True)
        (left / "tree" / "half.txt").write_text("half")
        (pair.target / "other.txt").write_text("mine")
        files = pair.nodes[1].get_service(FileTransferService)
        await files.clear_single(ID, pair.target)
        assert [path.name for path in pair.target.iterdir()] == ["other.txt"]
        await files.clear_single(ID, pair.target / "missing")


async def test_buffers_are_let_go_of_when_a_transfer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[object]] = []

    def watched(size: int) -> object:
        memory = page_memory(size)
        made.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(receiving_module, "page_memory", watched)
    file = tmp_path / "large"
    file.write_bytes(os.urandom(12 << 20))
    gc.disable()
    try:
        async with ends(tmp_path) as pair:
            receiving = pair.receive()
            _, received = await both(pair.send(file), receiving)
            assert received.state is TransferState.COMPLETED
            # Whoever still knows the transfer keeps none but the one that was waited with when it ended.
            assert len(made) >= 2
            assert sum(ref() is not None for ref in made) <= 1
    finally:
        gc.enable()
    assert (tmp_path / "target" / "large").read_bytes() == file.read_bytes()
