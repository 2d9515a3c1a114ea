"""Contents of files for other plugins: served by one node, fetched by another."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from blake3 import blake3

from sdnet_core import RemoteDevice
from sdnet_core.errors import ConflictError, ConnectionFailedError, InvalidRequestError, NotFoundError, RefusedError
from sdnet_core.testing import LinkedNodes, linked_nodes
from sdnet_file_transfer import (
    ContentChangedError,
    ContentService,
    FileTransferPlugin,
    RemoteContent,
    open_beneath,
)

pytestmark = pytest.mark.anyio

DATA = os.urandom(5 * 1024 * 1024 + 17)


class Folder:
    """Serves the files of a folder by their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.open = True

    async def open_content(self, device: RemoteDevice, key: bytes) -> int:
        self.asked.append(device.name)
        if not self.open:
            raise RefusedError("Not for you.")
        return open_beneath(self.root, key.decode().split("/"))


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[tuple[LinkedNodes, Folder, RemoteContent]]:
    root = tmp_path / "served"
    (root / "sub").mkdir(parents=True)
    (root / "big").write_bytes(DATA)
    (root / "sub/empty").write_bytes(b"")
    os.symlink("/etc/passwd", root / "link")
    os.symlink("/etc", root / "folder")
    with anyio.fail_after(60):
        async with linked_nodes(2, plugins=[FileTransferPlugin], home=tmp_path / "home") as nodes:
            a, b = nodes
            folder = Folder(root)
            with b.get_service(ContentService).serve("test", folder):
                async with a.get_service(ContentService).connect(b.device_info.id, "test") as remote:
                    yield nodes, folder, remote


async def test_a_whole_file(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, folder, remote):
        seen: list[tuple[int, int]] = []
        fetched = await remote.fetch(b"big", tmp_path / "got", progress=lambda done, size: seen.append((done, size)))
        assert (tmp_path / "got").read_bytes() == DATA
        assert (fetched.size, fetched.received, fetched.digest) == (len(DATA), len(DATA), blake3(DATA).digest())
        assert seen[-1] == (len(DATA), len(DATA))
        assert seen == sorted(seen)
        await remote.fetch(b"sub/empty", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == b""
        assert folder.asked == ["node0", "node0"]


async def test_ranges_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _folder, remote):
        got: list[tuple[int, bytes]] = []
        wanted = [(3_000_000, 2_000_000), (10, 5), (len(DATA) - 3, 1000), (len(DATA) + 9, 9)]
        fetched = await remote.ranges(b"big", wanted, lambda offset, piece: got.append((offset, bytes(piece))))
        assert fetched.received == 2_000_000 + 5 + 3
        assert got[0][0] == 3_000_000
        assert b"".join(piece for _, piece in got) == DATA[3_000_000:5_000_000] + DATA[10:15] + DATA[-3:]


async def test_only_what_is_missing_comes_again(tmp_path: Path) -> None:
    digest = blake3(DATA).digest()
    async with served(tmp_path) as (_, _folder, remote):
        (tmp_path / "got").write_bytes(DATA[:4_000_000])
        fetched = await remote.fetch(b"big", tmp_path / "got", digest=digest)
        assert fetched.received == len(DATA) - 4_000_000
        assert (tmp_path / "got").read_bytes() == DATA
        (tmp_path / "got").write_bytes(b"something else")
        assert (await remote.fetch(b"big", tmp_path / "got", digest=digest)).received == len(DATA)
        assert (tmp_path / "got").read_bytes() == DATA


async def test_what_is_refused_missing_or_wrong_is_said_and_the_stream_goes_on(tmp_path: Path) -> None:
    async with served(tmp_path) as (nodes, folder, remote):
        for key in (b"missing", b"../served/big", b"link", b"folder/passwd", b"sub", b"", b"/etc/passwd", b"a\0b"):
            with pytest.raises(NotFoundError):
                await remote.fetch(key, tmp_path / "got")
        folder.open = False
        with pytest.raises(RefusedError, match="Not for you"):
            await remote.fetch(b"big", tmp_path / "got")
        folder.open = True
        with pytest.raises(ContentChangedError):
            await remote.fetch(b"big", tmp_path / "got", digest=bytes(32))
        assert (tmp_path / "got").read_bytes() == b""
        with pytest.raises(InvalidRequestError):
            await remote.ranges(b"big", [], lambda offset, piece: None)
        with pytest.raises(ConflictError), nodes[1].get_service(ContentService).serve("test", folder):
            pass
        async with nodes[0].get_service(ContentService).connect(nodes[1].device_info.id, "nobody") as other:
            with pytest.raises(NotFoundError):
                await other.fetch(b"big", tmp_path / "got")
        assert (await remote.fetch(b"big", tmp_path / "got")).received == len(DATA)


async def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    async with served(tmp_path) as (nodes, folder, remote):
        a, b = nodes
        nodes.network.link(a.identity.peer_id, b.identity.peer_id).bytes_per_s = 8 << 20

        def change(done: int, size: int) -> None:
            os.truncate(folder.root / "big", 3 << 20)

        with pytest.raises(ContentChangedError):
            await remote.fetch(b"big", tmp_path / "got", progress=change)
        assert (tmp_path / "got").read_bytes() == b""


async def test_a_lost_connection_is_an_error_and_the_next_call_goes_on(tmp_path: Path) -> None:
    digest = blake3(DATA).digest()
    async with served(tmp_path) as (nodes, _folder, remote):
        a, b = nodes
        nodes.network.link(a.identity.peer_id, b.identity.peer_id).bytes_per_s = 8 << 20
        cut = False

        def cut_once(done: int, size: int) -> None:
            nonlocal cut
            if not cut and done > 2 << 20:
                cut = True
                anyio.from_thread.run_sync(nodes.cut, a, b)

        with pytest.raises(ConnectionFailedError):
            await remote.fetch(b"big", tmp_path / "got", digest=digest, progress=cut_once)
        held = (tmp_path / "got").stat().st_size
        assert held > 2 << 20
        nodes.heal(a, b)
        await a.connect(b.device_info.id)
        fetched = await remote.fetch(b"big", tmp_path / "got", digest=digest)
        assert fetched.received == len(DATA) - held
        assert (tmp_path / "got").read_bytes() == DATA
