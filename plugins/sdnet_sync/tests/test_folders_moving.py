"""How much a mirror moves, along which way, and what it does when that is cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdnet_sync import IndexerProgress, LocationUpdate
from sdnet_sync.folders.contents import read_contents
from sdnet_sync.folders.folder import Folder
from sdnet_sync.folders.index import Index
from sdnet_sync.folders.scan import Ignore, scan_all, scan_some
from sdnet_sync.folders.tree import Tree

from .nodes import eventually, nodes, service, shared
from .test_folders import has_location, holds, mirrored, write

pytestmark = pytest.mark.anyio


async def test_only_changed_blocks_move_and_renames_move_nothing(tmp_path: Path) -> None:
    big = bytearray(os.urandom(8 << 20))
    async with mirrored(tmp_path, files={"big.bin": bytes(big)}) as (linked, _, (a, b), location):
        await holds(b, {"big.bin": bytes(big)})
        fetcher = service(linked[1]).folders.folder(location.id).fetcher
        before = fetcher.received_bytes
        big[5_000_000] ^= 1
        with (a / "big.bin").open("r+b") as file:
            file.seek(5_000_000)
            file.write(big[5_000_000:5_000_001])
        await holds(b, {"big.bin": bytes(big)})
        assert 0 < fetcher.received_bytes - before < 200_000
        before = fetcher.received_bytes
        (a / "other").mkdir()
        (a / "big.bin").rename(a / "other" / "renamed.bin")
        await holds(b, {"other/renamed.bin": bytes(big)})
        (b / "other").rename(b / "folder")
        await holds(a, {"folder/renamed.bin": bytes(big)})
        # What was deleted can come back without being sent again.
        (a / "folder" / "renamed.bin").unlink()
        await holds(b, {})
        write(a, "again.bin", bytes(big))
        await holds(b, {"again.bin": bytes(big)})
        assert fetcher.received_bytes == before


async def test_many_files_with_the_same_contents(tmp_path: Path) -> None:
    big = os.urandom(200_000)
    files = {f"{number}/empty": b"" for number in range(40)} | {f"{number}/same": b"same" for number in range(40)}
    files |= {f"{number}/big": big for number in range(12)}
    async with mirrored(tmp_path, files=files) as (linked, _, (_, b), location):
        await holds(b, files)
        fetcher = service(linked[1]).folders.folder(location.id).fetcher
        assert fetcher.received_bytes < 2 * len(big)
        assert service(linked[1]).folders.folder(location.id).problems == {}


async def test_contents_go_through_a_member_in_between(tmp_path: Path) -> None:
    async with mirrored(tmp_path, 3) as (linked, _, (a, b, c), _):
        linked.cut(linked[0], linked[2])
        big = os.urandom(400_000)
        write(a, "small.txt", "one")
        write(a, "big.bin", big)
        await holds(c, {"small.txt": "one", "big.bin": big})
        await holds(b, {"small.txt": "one", "big.bin": big})


async def test_what_is_no_longer_in_the_library_is_no_longer_waited_for(tmp_path: Path) -> None:
    roots = [tmp_path / "folder0", tmp_path / "folder1"]
    for root in roots:
        root.mkdir()
    write(roots[0], "a.txt", "first")
    async with nodes(3) as linked:
        libraries = await shared(*linked)
        location = await service(linked[0]).folders.mirror(libraries[0], roots[0], name="Photos")
        await eventually(lambda: has_location(libraries[1]))
        await service(linked[1]).folders.mirror(libraries[1], roots[1])
        await holds(roots[1], {"a.txt": "first"})
        folder = service(linked[1]).folders.folder(location.id)
        # The third tells of what it has not got itself.
        linked.cut(linked[0], linked[1])
        write(roots[0], "a.txt", "second")
        await eventually(lambda: _wants(folder, 1))
        write(roots[0], "a.txt", "first")
        await eventually(lambda: _wants(folder, 0))
        await folder.settled.wait()
        linked.heal(linked[0], linked[1])
        await holds(roots[1], {"a.txt": "first"})


async def test_a_cut_in_the_middle_is_gone_on_from(tmp_path: Path) -> None:
    big = os.urandom(40 << 20)
    async with mirrored(tmp_path, files={"a.txt": "one"}) as (linked, _, (a, b), location):
        await holds(b, {"a.txt": "one"})
        folder = service(linked[1]).folders.folder(location.id)
        before = folder.fetcher.received_bytes
        write(a, "big.bin", big)
        await eventually(lambda: _received(folder, before + (10 << 20)))
        linked.cut(linked[0], linked[1])
        assert not (b / "big.bin").exists()  # what is not whole is never seen
        linked.heal(linked[0], linked[1])
        await holds(b, {"a.txt": "one", "big.bin": big})
        assert folder.fetcher.received_bytes - before < len(big) + (16 << 20)
        await folder.settled.wait()
        assert os.listdir(b / ".sdnet" / "parts") == []


async def test_others_hear_of_changes_and_of_how_far_it_is(tmp_path: Path) -> None:
    root = tmp_path / "films"
    for number in range(30):
        write(root, f"{number}.mkv", f"film {number}")
    async with nodes(2) as linked:
        [la, _] = await shared(linked[0], linked[1])
        async with linked[1].events.subscribe(["location-update", "indexer-progress"]) as events:
            folders = service(linked[0]).folders
            location = await folders.add_location(la, root)
            sequences, paths, phases = [], set(), []
            while len(paths) < 30 or "done" not in phases:
                event = await events.receive()
                if isinstance(event, LocationUpdate):
                    assert event.device_id == linked[0].device_info.id
                    sequences.append(event.sequence)
                    paths |= {path for path, what in event.changes if what == "written"}
                elif isinstance(event, IndexerProgress):
                    phases.append(event.phase)
            (root / "3.mkv").unlink()
            while True:
                event = await events.receive()
                if isinstance(event, LocationUpdate) and event.changes == (("3.mkv", "deleted"),):
                    break
            assert event.sequence > sequences[0] > 0
            assert event.location_id == location.id


async def _wants(folder: Folder, count: int) -> bool:
    return folder.fetcher.count == count


async def _received(folder: Folder, size: int) -> bool:
    return folder.fetcher.received_bytes >= size


def test_a_scan_takes_up_where_the_last_one_ended(tmp_path: Path) -> None:
    from sdnet_sync.folders.entries import FileInfo, Mode
    from sdnet_sync.folders.index import Row
    from sdnet_sync.folders.tree import DiskFile

    root = tmp_path / "root"
    for number in range(10):
        write(root, f"sub/{number}.txt", f"file {number}")
    tree, index = Tree(root), Index(tmp_path / "index.sqlite3")
    scan = scan_all(tree, index, Mode.INDEX, Ignore(), stopped=lambda: False)
    assert len(scan.changed) == 10
    rows = []
    for found in scan.changed[:6]:
        with tree.open(found.local) as descriptor:
            contents, status = read_contents(descriptor)
        info = FileInfo(found.path, contents.size, status.st_mtime_ns, 0, contents.digest)
        rows.append(Row(found.key, found.local, info, DiskFile.of(status)))
    index.change(rows)
    index.close()
    index = Index(tmp_path / "index.sqlite3")
    scan = scan_all(tree, index, Mode.INDEX, Ignore(), stopped=lambda: False)
    assert len(scan.changed) == 4
    (root / "sub/0.txt").unlink()
    (root / "sub/1.txt").write_text("changed")
    scan = scan_some(tree, index, Mode.INDEX, Ignore(), ["sub/0.txt", "sub/1.txt", "none"])
    assert [found.path for found in scan.changed] == ["sub/1.txt"]
    assert [row.info.path for row in scan.missing] == ["sub/0.txt"]
    assert len(scan_all(tree, index, Mode.INDEX, Ignore(), stopped=lambda: True).missing) == 0
    # A damaged index is made anew: it only saves work.
    index.close()
    (tmp_path / "index.sqlite3").write_bytes(b"not a database" * 1000)
    index = Index(tmp_path / "index.sqlite3")
    assert len(scan_all(tree, index, Mode.INDEX, Ignore(), stopped=lambda: False).changed) == 9
    index.close()
    tree.close()


def test_versions_are_kept_by_number_and_age(tmp_path: Path) -> None:
    from sdnet_sync.folders.keeping import bring_back, expire

    root = tmp_path / "root"
    root.mkdir()
    tree, index = Tree(root), Index(tmp_path / "index.sqlite3")
    tree.mark("0123456789abcdef")
    for number in range(8):
        write(root, "a.txt", f"version {number}")
        place = tree.kept_place("a.txt", deleted=number == 7, batch=str(number))
        disk = tree.disk_file("a.txt")
        assert disk is not None
        tree.retire("a.txt", expected=disk, keep=place)
        index.keep([(place, "a.txt", bytes(32), 9, float(number), number == 7)])
    expire(tree, index, 0.0, 3)
    assert [kept.at for kept in index.kept()] == [7.0, 6.0, 5.0, 4.0]
    expire(tree, index, 6.0, 3)
    assert [kept.at for kept in index.kept()] == [7.0, 6.0]
    assert len([path for path in root.rglob("a.txt")]) == 2
    kept = index.kept()[0]
    assert bring_back(tree, index, kept) == "a.txt"
    assert (root / "a.txt").read_text() == "version 7"
    assert bring_back(tree, index, index.kept()[0]) == "a (1).txt"
    assert index.kept() == []
    index.close()
    tree.close()
