"""Folders that are shared with one device: what it sees, gets, and does not."""

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
from sdnet_core.events import DeviceRemoved
from sdnet_core.testing import LinkedNodes, linked_nodes
from sdnet_file_transfer import FileTransferPlugin, FileTransferService, Transfer, TransferState
from sdnet_file_transfer import fetch_messages as f

pytestmark = pytest.mark.anyio

Tree = dict[str, bytes | None]
MakeTree = Callable[[str, Tree], Path]
ReadTree = Callable[[Path], Tree]
BIG = os.urandom(24 << 20)


def service(core: NetworkingCore) -> FileTransferService:
    return core.get_service(FileTransferService)


async def finish(core: NetworkingCore, transfer_id: uuid.UUID) -> Transfer:
    async for transfer in service(core).watch(transfer_id):
        last = transfer
    assert last.state.terminal
    return last


async def get(a: NetworkingCore, b: NetworkingCore, path: str, to: Path | None = None) -> Transfer:
    transfer = await service(a).shared.get(b.device_info.id, path.split("/"), to)
    return await finish(a, transfer.id)


async def until(condition: Callable[[], Any], *, timeout_s: float = 30.0) -> None:
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a node, which tells nobody
            await anyio.sleep(0.005)


async def breaks_off(a: NetworkingCore, b: NetworkingCore, record: bytes) -> None:
    """Check that a node ends the stream when it gets this."""
    stream = await a.open_stream(b.device_info.id, f.PROTOCOL_NAME)
    try:
        await stream.send_record(record)
        answer = await stream.receive_record()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return
    finally:
        await stream.aclose()
    raise AssertionError(f"it answered {answer!r}")


@asynccontextmanager
async def shared(tmp_path: Path, root: Path, count: int = 2) -> AsyncIterator[LinkedNodes]:
    """Nodes of which the second shares a folder with the first as ``stuff``."""
    with anyio.fail_after(60):
        async with linked_nodes(count, plugins=[FileTransferPlugin], home=tmp_path / "home") as nodes:
            a, b = nodes[0], nodes[1]
            await service(b).shared.share(root, [a.device_info.id], name="stuff")
            yield nodes


@pytest.fixture
def root(make_tree: MakeTree) -> Path:
    root = make_tree("root", {"a/b.txt": b"deep", "empty": None, "run.sh": b"#!/bin/sh\n", "z": b""})
    (root / "run.sh").chmod(0o755)
    os.symlink("/etc/passwd", root / "link")
    os.symlink("/etc", root / "a/etc")
    return root


async def test_nothing_is_shared_by_default(tmp_path: Path, root: Path) -> None:
    with anyio.fail_after(60):
        async with linked_nodes(2, plugins=[FileTransferPlugin], home=tmp_path / "home") as (a, b):
            assert await service(a).shared.list(b.device_info.id) == []
            with pytest.raises(NotFoundError):
                await service(a).shared.list(b.device_info.id, ["etc"])
            assert (await get(a, b, "etc/passwd")).state is TransferState.FAILED
            assert not a.config.downloads_dir.exists() or os.listdir(a.config.downloads_dir) == []


async def test_a_device_lists_and_gets_what_is_shared_with_it(tmp_path: Path, root: Path, tree: ReadTree) -> None:
    async with shared(tmp_path, root) as (a, b):
        device = b.device_info.id
        assert [entry.name for entry in await service(a).shared.list(device)] == ["stuff"]
        listed = await service(a).shared.list(device, ["stuff"])
        assert [(entry.name, entry.directory, entry.size) for entry in listed] == [
            ("a", True, 0),
            ("empty", True, 0),
            ("run.sh", False, 10),
            ("z", False, 0),
        ]
        assert [entry.name for entry in await service(a).shared.list(device, ["stuff", "a"])] == ["b.txt"]
        done = await get(a, b, "stuff")
        assert (done.state, done.direction, done.origin) == (TransferState.COMPLETED, "receive", "stuff")
        place = a.config.downloads_dir / "stuff"
        assert done.paths == (str(place),)
        assert tree(place) == {"a": None, "a/b.txt": b"deep", "empty": None, "run.sh": b"#!/bin/sh\n", "z": b""}
        assert os.access(place / "run.sh", os.X_OK)
        assert (place / "a/b.txt").stat().st_mtime_ns == (root / "a/b.txt").stat().st_mtime_ns
        done = await get(a, b, "stuff/a/b.txt", tmp_path / "chosen")
        assert (tmp_path / "chosen/b.txt").read_bytes() == b"deep"
        await until(lambda: all(one.state is TransferState.COMPLETED for one in service(b).transfers()))
        assert {one.purpose for one in service(b).transfers()} == {"get"}


@pytest.mark.parametrize("path", ["stuff/link", "stuff/a/etc", "stuff/a/etc/passwd", "stuff/missing", "other/x"])
async def test_links_and_what_is_not_there_are_not_given(tmp_path: Path, root: Path, path: str) -> None:
    async with shared(tmp_path, root) as (a, b):
        done = await get(a, b, path)
        assert done.state is TransferState.FAILED
        assert done.reason.startswith("node1: ")
        try:
            assert await service(a).shared.list(b.device_info.id, path.split("/")) == []
        except NotFoundError:
            pass
        assert not a.config.downloads_dir.exists() or os.listdir(a.config.downloads_dir) == []


@pytest.mark.parametrize(
    "path", [("..", "secret"), ("stuff", "..", "secret"), ("stuff", "a/../../secret"), ("stuff", ".")]
)
async def test_a_path_that_leads_out_is_refused_by_the_other_side(
    tmp_path: Path, root: Path, path: tuple[str, ...]
) -> None:
    (tmp_path / "secret").write_text("secret")
    async with shared(tmp_path, root) as (a, b):
        with pytest.raises(InvalidRequestError):
            await service(a).shared.get(b.device_info.id, path)
        for message in (f.FetchList(path=path, after=""), f.FetchItems(transfer_id=bytes(16), path=path)):
            await breaks_off(a, b, f.encode_fetch(message))
        assert [entry.name for entry in await service(a).shared.list(b.device_info.id)] == ["stuff"]


async def test_a_share_is_for_one_device_and_can_be_taken_back(tmp_path: Path, root: Path) -> None:
    async with shared(tmp_path, root, 3) as (a, b, c):
        assert await service(c).shared.list(b.device_info.id) == []
        assert (await get(c, b, "stuff/z")).state is TransferState.FAILED
        await service(b).shared.share(root, [c.device_info.id], name="stuff")
        assert (await get(c, b, "stuff/z")).state is TransferState.COMPLETED
        left = await service(b).shared.unshare("stuff", [a.device_info.id])
        assert left.devices == (c.device_info.id,)
        assert (await get(a, b, "stuff/z")).state is TransferState.FAILED
        await service(b).shared.unshare("stuff")
        assert service(b).shared.shares() == []
        with pytest.raises(NotFoundError):
            await service(c).shared.list(b.device_info.id, ["stuff"])


async def test_a_device_that_is_removed_loses_what_was_shared_with_it(tmp_path: Path, root: Path) -> None:
    async with shared(tmp_path, root) as (a, b):
        b.events.publish(DeviceRemoved(device_id=a.device_info.id, device_name="node0", reason="revoked"))
        await until(lambda: service(b).shared.shares() == [])


async def test_what_cannot_be_shared_is_said(tmp_path: Path, root: Path) -> None:
    async with shared(tmp_path, root) as (a, b):
        shares, device = service(b).shared, a.device_info.id
        with pytest.raises(InvalidRequestError, match="not a folder"):
            await shares.share(root / "z", [device])
        with pytest.raises(InvalidRequestError, match="absolute"):
            await shares.share("stuff", [device])
        with pytest.raises(InvalidRequestError):
            await shares.share(root, [device], name="a/b")
        with pytest.raises(InvalidRequestError):
            await shares.share(root, [])
        with pytest.raises(ConflictError):
            await shares.share(tmp_path, [device], name="stuff")
        with pytest.raises(NotFoundError):
            await shares.unshare("nothing")


async def test_about_a_verified_device_a_person_is_asked(tmp_path: Path, root: Path) -> None:
    async with shared(tmp_path, root) as (a, b):
        await b.set_trust(a.device_info.id, Trust.VERIFIED)
        for allow in (True, False):
            transfer = await service(a).shared.get(b.device_info.id, ["stuff", "z"])
            await until(b.approvals.pending)
            [question] = b.approvals.pending()
            (b.approvals.approve if allow else b.approvals.deny)(str(question.id))
            done = await finish(a, transfer.id)
            assert done.state is (TransferState.COMPLETED if allow else TransferState.REJECTED)


async def test_a_large_folder_is_listed_whole(tmp_path: Path, make_tree: MakeTree) -> None:
    root = make_tree("many", {f"{number:04}": b"" for number in range(2500)})
    async with shared(tmp_path, root) as (a, b):
        listed = await service(a).shared.list(b.device_info.id, ["stuff"])
        assert [entry.name for entry in listed] == sorted(os.listdir(root))


async def test_it_goes_on_after_a_lost_connection_from_what_has_arrived(tmp_path: Path, make_tree: MakeTree) -> None:
    root = make_tree("root", {"big": BIG})
    async with shared(tmp_path, root) as nodes:
        a, b = nodes
        link = nodes.network.link(a.identity.peer_id, b.identity.peer_id)
        link.bytes_per_s = 96 << 20
        transfer = await service(a).shared.get(b.device_info.id, ["stuff", "big"])
        place = a.config.downloads_dir

        def part() -> int:
            return max((path.stat().st_size for path in place.glob(".sdnet-partial-*/part-*")), default=0)

        await until(lambda: part() >= 8 << 20)
        nodes.cut(a, b)
        await until(lambda: service(a).get(transfer.id).state is TransferState.WAITING)
        held = part()
        link.bytes_per_s = 8 << 20
        nodes.heal(a, b)
        await until(lambda: service(a).get(transfer.id).state is TransferState.TRANSFERRING)
        assert service(a).get(transfer.id).done_bytes >= held
        link.bytes_per_s = None
        assert (await finish(a, transfer.id)).state is TransferState.COMPLETED
        assert (place / "big").read_bytes() == BIG
        await until(lambda: service(b).get(transfer.id).state is TransferState.COMPLETED)
        await until(lambda: os.listdir(place) == ["big"])


@pytest.mark.parametrize("who", [0, 1])
async def test_either_side_cancels(tmp_path: Path, make_tree: MakeTree, who: int) -> None:
    root = make_tree("root", {"big": BIG})
    async with shared(tmp_path, root) as nodes:
        a, b = nodes
        nodes.network.link(a.identity.peer_id, b.identity.peer_id).bytes_per_s = 8 << 20
        transfer = await service(a).shared.get(b.device_info.id, ["stuff", "big"])
        await until(lambda: service(a).get(transfer.id).state is TransferState.TRANSFERRING)
        await service(nodes[who]).cancel(transfer.id)
        for node in nodes:
            await until(lambda node=node: service(node).get(transfer.id).state is TransferState.CANCELLED)  # type: ignore[misc]


async def test_nonsense_is_an_error_for_whoever_sends_it(tmp_path: Path, root: Path) -> None:
    async with shared(tmp_path, root) as (a, b):
        for record in (b"\0nonsense", b"\1", f.encode_fetch(f.FetchListing(entries=(), more=False))):
            await breaks_off(a, b, record)
        assert (await get(a, b, "stuff/z")).state is TransferState.COMPLETED


async def test_names_that_are_composed_in_another_way_are_found(tmp_path: Path, make_tree: MakeTree) -> None:
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    root = make_tree("root", {f"{decomposed}/{decomposed}.txt": b"1"})
    async with shared(tmp_path, root) as (a, b):
        listed = await service(a).shared.list(b.device_info.id, ["stuff", composed])
        assert [entry.name for entry in listed] == [f"{composed}.txt"]
        assert (await get(a, b, f"stuff/{composed}")).state is TransferState.COMPLETED
        assert (a.config.downloads_dir / composed / f"{composed}.txt").read_bytes() == b"1"
