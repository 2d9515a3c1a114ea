"""Folders between whole nodes in one process: locations, mirrors, and what must never happen to files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sdnet_core import NetworkingCore
from sdnet_core.testing import LinkedNodes
from sdnet_sync import Library, Role
from sdnet_sync.folders.contents import hash_block
from sdnet_sync.folders.entries import Location
from sdnet_sync.folders.folder import Folder

from .nodes import WITHIN_S, eventually, nodes, service, shared

pytestmark = pytest.mark.anyio

QUICK: Mapping[str, Any] = {"plugins": {"sync": {"relay_delay_s": 0.03, "rescan_s": 3600}}}


def write(root: Path, path: str, data: bytes | str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)


def tree(root: Path) -> dict[str, bytes]:
    """All files of a folder, apart from what is ours, by the one form of their names."""
    return {
        unicodedata.normalize("NFC", str(path.relative_to(root))): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] != ".sdnet"
    }


async def same(*roots: Path, within_s: float = WITHIN_S) -> dict[str, bytes]:
    """Wait until folders hold the same files."""

    async def equal() -> bool:
        try:
            first, *others = map(tree, roots)
        except FileNotFoundError:  # something was deleted while we looked
            return False
        return all(other == first for other in others)

    await eventually(equal, within_s=within_s)
    return tree(roots[0])


async def holds(root: Path, wanted: Mapping[str, bytes | str], *, within_s: float = WITHIN_S) -> None:
    expected = {path: data.encode() if isinstance(data, str) else data for path, data in wanted.items()}
    try:
        await eventually(lambda: _is(root, expected), within_s=within_s)
    except TimeoutError:
        found = tree(root)
        differ = sorted(path for path in expected.keys() | found if expected.get(path) != found.get(path))
        sizes = {path: (len(expected.get(path, b"")), len(found.get(path, b""))) for path in differ}
        raise AssertionError(f"{root}: not as wanted, with the sizes wanted and found: {sizes}") from None


async def _is(root: Path, expected: Mapping[str, bytes]) -> bool:
    try:
        return tree(root) == expected
    except FileNotFoundError:  # something was deleted while we looked
        return False


@asynccontextmanager
async def mirrored(
    tmp_path: Path, count: int = 2, *, files: Mapping[str, bytes | str] | None = None, role: Role = Role.WRITER
) -> AsyncIterator[tuple[LinkedNodes, list[Library], list[Path], Location]]:
    """Nodes with a library, each with a folder of one mirror; the first one's holds files already."""
    roots = [tmp_path / f"folder{number}" for number in range(count)]
    for root in roots:
        root.mkdir()
    for path, data in (files or {}).items():
        write(roots[0], path, data)
    async with nodes(count, settings=QUICK) as linked:
        cores = list(linked)
        libraries = await shared(cores[0], *cores[1:], role=role)
        location = await service(cores[0]).folders.mirror(libraries[0], roots[0], name="Photos")
        for core, library, root in zip(cores[1:], libraries[1:], roots[1:], strict=True):
            await eventually(lambda library=library: has_location(library))
            await service(core).folders.mirror(library, root)
        yield linked, libraries, roots, location


async def has_location(library: Library) -> bool:
    return await library.count("sdnet.location") > 0


async def test_a_mirror_has_the_same_files_everywhere(tmp_path: Path) -> None:
    big = os.urandom(700_000)
    files = {"a.txt": "one", "sub/deep/b.txt": "two", "empty": "", "big.bin": big, "copy.bin": big}
    async with mirrored(tmp_path, files=files) as (_, _, (a, b), _):
        await holds(b, files)
        assert (b / "a.txt").stat().st_mtime_ns == (a / "a.txt").stat().st_mtime_ns
        write(b, "sub/from-b.txt", "three")
        await holds(a, {**files, "sub/from-b.txt": "three"})
        (a / "sub/deep/b.txt").write_text("two, changed")
        await holds(b, {**files, "sub/from-b.txt": "three", "sub/deep/b.txt": "two, changed"})
        (a / "copy.bin").unlink()
        (b / "a.txt").rename(b / "sub/renamed.txt")
        del files["copy.bin"], files["a.txt"]
        files |= {"sub/from-b.txt": "three", "sub/deep/b.txt": "two, changed", "sub/renamed.txt": "one"}
        await holds(a, files)
        await holds(b, files)


async def test_edits_of_devices_that_were_apart_are_both_kept(tmp_path: Path) -> None:
    async with mirrored(tmp_path, files={"report.txt": "first"}) as (linked, libraries, (a, b), _):
        await holds(b, {"report.txt": "first"})
        linked.cut(linked[0], linked[1])
        write(a, "report.txt", "by a")
        await eventually(lambda: _published(libraries[0], b"by a"))
        write(b, "report.txt", "by b")
        await eventually(lambda: _published(libraries[1], b"by b"))
        linked.heal(linked[0], linked[1])
        await eventually(lambda: _count(a, 2))
        found = await same(a, b)
        assert found["report.txt"] == b"by b"  # the later one keeps the name
        [name] = set(found) - {"report.txt"}
        assert re.fullmatch(r"report \(conflict \d{4}-\d\d-\d\d node0\)\.txt", name)
        assert found[name] == b"by a"
        await eventually(lambda: _no_conflicts(*libraries))


async def test_an_edit_is_not_lost_to_a_deletion_elsewhere(tmp_path: Path) -> None:
    async with mirrored(tmp_path, files={"report.txt": "first"}) as (linked, libraries, (a, b), _):
        await holds(b, {"report.txt": "first"})
        linked.cut(linked[0], linked[1])
        (a / "report.txt").unlink()
        await eventually(lambda: _published(libraries[0], None))
        write(b, "report.txt", "by b")
        await eventually(lambda: _published(libraries[1], b"by b"))
        linked.heal(linked[0], linked[1])
        await holds(a, {"report.txt": "by b"})
        await holds(b, {"report.txt": "by b"})
        await eventually(lambda: _no_conflicts(*libraries))


async def test_folders_that_hold_the_same_files_already_are_joined_without_copying(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"{number}.txt": f"file {number}" for number in range(20)}
    (tmp_path / "folder1").mkdir()
    for path, data in files.items():
        write(tmp_path / "folder1", path, data)
    write(tmp_path / "folder1", "3.txt", "other")
    async with mirrored_existing(tmp_path, files) as (linked, libraries, (a, b), location):
        await eventually(lambda: _count(a, 21))
        found = await same(a, b)
        assert found["3.txt"] == b"file 3"
        assert [data for path, data in found.items() if "conflict" in path] == [b"other"]
        folder = service(linked[1]).folders.folder(location.id)
        assert folder.fetcher.received_bytes == len("file 3")
        await eventually(lambda: _no_conflicts(*libraries))


async def test_a_folder_that_vanishes_is_no_deletion(tmp_path: Path) -> None:
    async with mirrored(tmp_path, files={"a.txt": "one", "b.txt": "two"}) as (linked, _, (a, b), location):
        await holds(b, {"a.txt": "one", "b.txt": "two"})
        # As after an unmount: the folder is there, and empty.
        b.rename(tmp_path / "unmounted")
        b.mkdir()
        folder = service(linked[1]).folders.folder(location.id)
        await eventually(lambda: _state(folder, "absent"))
        write(a, "c.txt", "three")
        await eventually(lambda: _known(linked[1], location, 3))
        assert tree(b) == {}
        assert set(tree(a)) == {"a.txt", "b.txt", "c.txt"}
        b.rmdir()
        (tmp_path / "unmounted").rename(b)
        await holds(b, {"a.txt": "one", "b.txt": "two", "c.txt": "three"})
        assert set(tree(a)) == {"a.txt", "b.txt", "c.txt"}


async def test_what_is_deleted_or_replaced_can_be_restored(tmp_path: Path) -> None:
    async with mirrored(tmp_path, files={"a.txt": "one", "sub/b.txt": "two"}) as (linked, _, (a, b), location):
        await holds(b, {"a.txt": "one", "sub/b.txt": "two"})
        (a / "sub/b.txt").unlink()
        (a / "sub").rmdir()
        write(a, "a.txt", "one, changed")
        await holds(b, {"a.txt": "one, changed"})
        assert not (b / "sub").exists()
        folders = service(linked[1]).folders
        folder = folders.folder(location.id)
        kept = {item.path: item for item in await folders.trash(folder)}
        assert {path: item.deleted for path, item in kept.items()} == {"sub/b.txt": True, "a.txt": False}
        assert await folders.restore(folder, kept["sub/b.txt"].number) == "sub/b.txt"
        assert await folders.restore(folder, kept["a.txt"].number) == "a (1).txt"
        await holds(a, {"a.txt": "one, changed", "sub/b.txt": "two", "a (1).txt": "one"})


async def test_ignored_files_stay_where_they_are(tmp_path: Path) -> None:
    files = {".sdnetignore": "*.tmp\n/build/\n!keep.tmp\n", "a.txt": "one", "x.tmp": "no", "build/y": "no"}
    async with mirrored(tmp_path, files={**files, "keep.tmp": "yes"}) as (_, _, (a, b), _):
        wanted = {".sdnetignore": files[".sdnetignore"], "a.txt": "one", "keep.tmp": "yes"}
        await holds(b, wanted)
        write(b, "z.tmp", "mine")
        write(b, "b.txt", "two")
        await eventually(lambda: _is_at(a, "b.txt", b"two"))
        assert not (a / "z.tmp").exists()
        # A pattern that is added later touches no file that is there.
        write(a, ".sdnetignore", "*.tmp\n/build/\nb.txt\n")
        await eventually(lambda: _is_at(b, ".sdnetignore", b"*.tmp\n/build/\nb.txt\n"))
        write(a, "b.txt", "two, but only here")
        write(a, "c.txt", "three")
        await eventually(lambda: _is_at(b, "c.txt", b"three"))
        assert (b / "b.txt").read_bytes() == b"two"


async def test_names_that_other_disks_cannot_tell_apart(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9.txt", "cafe\u0301.txt"
    files = {"Readme.md": "one", "README.md": "two", composed: "three", decomposed: "four"}
    async with mirrored(tmp_path, files=files) as (_, _, (a, b), _):
        await eventually(lambda: _count(b, 4))
        found = await same(a, b)
        assert sorted(found.values()) == [b"four", b"one", b"three", b"two"]
        keys = {unicodedata.normalize("NFC", name).casefold() for name in found}
        assert len(keys) == 4
        assert sum("conflict" in name for name in found) == 2
        # Another spelling alone is a change like any other.
        plain = next(name for name in found if name.casefold() == "readme.md")
        (a / plain).rename(a / "ReadMe.md")
        await eventually(lambda: _exists(b / "ReadMe.md"))
        assert await same(a, b) == tree(a)


async def test_links_and_odd_names_are_left_out_and_said(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    write(outside, "secret.txt", "not yours")
    root = tmp_path / "folder0"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file-link").symlink_to(outside / "secret.txt")
    write(root, "con", "reserved elsewhere")
    os.mkfifo(root / "pipe")
    async with mirrored_existing(tmp_path, {"a.txt": "one"}) as (linked, _, (_, b), location):
        await holds(b, {"a.txt": "one"})
        problems = service(linked[0]).folders.folder(location.id).problems
        assert {"link", "file-link", "con", "pipe"} <= problems.keys()


async def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "folder1").mkdir()
    (tmp_path / "folder1" / "sub").symlink_to(outside)
    async with mirrored_existing(tmp_path, {"sub/a.txt": "one", "b.txt": "two"}) as (linked, _, (_, b), location):
        await eventually(lambda: _is_at(b, "b.txt", b"two"))
        folder = service(linked[1]).folders.folder(location.id)
        await eventually(lambda: _has_problem(folder, "sub/a.txt"))
        assert list(outside.iterdir()) == []
        folder.rescan()
        await folder.settled.wait()
        assert "sub/a.txt" in folder.problems  # which reading the folder anew does not hide


async def test_a_reader_receives_and_writes_nothing(tmp_path: Path) -> None:
    async with mirrored(tmp_path, files={"a.txt": "one"}, role=Role.READER) as (linked, _, (a, b), location):
        await holds(b, {"a.txt": "one"})
        write(b, "mine.txt", "only here")
        write(b, "a.txt", "changed by a reader")
        folder = service(linked[1]).folders.folder(location.id)
        await eventually(lambda: _has_problem(folder, "mine.txt"))
        assert tree(a) == {"a.txt": b"one"}


async def test_a_mirror_that_is_taken_out_of_the_library_leaves_all_files(tmp_path: Path) -> None:
    files = {f"{number}.txt": f"file {number}" for number in range(10)}
    async with mirrored(tmp_path, files=files) as (linked, libraries, (a, b), location):
        await holds(b, files)
        await service(linked[0]).folders.remove(libraries[0], location, everywhere=True)
        await eventually(lambda: _known(linked[1], location, 0))
        folder = service(linked[1]).folders.folder(location.id)
        await eventually(lambda: _state(folder, "removed"))
        write(b, "more.txt", "stays here")
        await libraries[0].put("note", "1", {"later": True})
        await eventually(lambda: _has_note(libraries[1]))
        assert tree(a) == {path: data.encode() for path, data in files.items()}
        assert tree(b) == {**tree(a), "more.txt": b"stays here"}
        assert await libraries[0].count("sdnet.file") == 0


async def test_where_the_system_does_not_tell_a_folder_is_read_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdnet_sync.folders.service.MAX_WATCHED", 0)
    monkeypatch.setitem(QUICK["plugins"]["sync"], "poll_s", 0.1)
    async with mirrored(tmp_path, files={"a.txt": "one"}) as (_, _, (a, b), _):
        await holds(b, {"a.txt": "one"})
        write(a, "b.txt", "two")
        await holds(b, {"a.txt": "one", "b.txt": "two"})


@asynccontextmanager
async def mirrored_existing(
    tmp_path: Path, files: Mapping[str, bytes | str]
) -> AsyncIterator[tuple[LinkedNodes, list[Library], list[Path], Location]]:
    """As `mirrored`, for folders that may hold something already."""
    for number in range(2):
        (tmp_path / f"folder{number}").mkdir(exist_ok=True)
    for path, data in files.items():
        write(tmp_path / "folder0", path, data)
    async with nodes(2, settings=QUICK) as linked:
        libraries = await shared(linked[0], linked[1])
        roots = [tmp_path / "folder0", tmp_path / "folder1"]
        location = await service(linked[0]).folders.mirror(libraries[0], roots[0], name="Photos")
        await service(linked[0]).folders.folder(location.id).settled.wait()
        await eventually(lambda: has_location(libraries[1]))
        await service(linked[1]).folders.mirror(libraries[1], roots[1])
        yield linked, libraries, roots, location


async def _published(library: Library, data: bytes | None) -> bool:
    """Whether the library says that there is a file with these contents, or none."""
    async with aclosing(library.query("sdnet.file")) as entries:
        digests = [entry.fields["file"][4] async for entry in entries]
    return digests == [] if data is None else hash_block(data) in digests


async def _count(root: Path, count: int) -> bool:
    return len(tree(root)) == count


async def _is_at(root: Path, path: str, data: bytes) -> bool:
    return tree(root).get(path) == data


async def _exists(path: Path) -> bool:
    return path.name in os.listdir(path.parent)


async def _state(folder: Folder, state: str) -> bool:
    folder.wake()
    return folder.state == state


async def _has_problem(folder: Folder, path: str) -> bool:
    return path in folder.problems


async def _known(core: NetworkingCore, location: Location, count: int) -> bool:
    [library] = service(core).libraries()
    return await library.count("sdnet.file") == count


async def _has_note(library: Library) -> bool:
    return await library.get("note", "1") is not None


async def _no_conflicts(*libraries: Library) -> bool:
    return not any([await library.conflicts() for library in libraries])
