from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from blake3 import blake3

from sdnet_core.errors import StorageError
from sdnet_file_transfer import messages as m
from sdnet_file_transfer.landing import MARK_BYTES, Landing, MismatchError
from sdnet_file_transfer.layout import Layout
from sdnet_file_transfer.staging import DiskFullError, explained, remove_staging, staging_name

FileSizeLimit = Callable[[int], AbstractContextManager[None]]
Tree = dict[str, bytes | None]
MTIME = 1_600_000_000_123_456_789
STAGING = staging_name("00")
STEP = 1 << 20


def file(path: str, data: bytes, *, executable: bool = False) -> m.Item:
    return m.Item(tuple(path.split("/")), False, len(data), MTIME, executable)


def folder(path: str) -> m.Item:
    return m.Item(tuple(path.split("/")), True, 0, MTIME, False)


def digest(data: bytes) -> bytes:
    return blake3(data).digest()


def whole(item: int, data: bytes) -> m.FileChunk:
    return m.FileChunk(item, 0, memoryview(data), digest(data), None)


def pieces(item: int, data: bytes, start: int = 0, end: int | None = None) -> Iterator[m.FileChunk]:
    """Cut a file as a sender would; up to ``end`` only if it is given."""
    for offset in range(start, len(data) if end is None else end, STEP):
        part = data[offset : offset + STEP]
        last = offset + len(part) == len(data)
        yield m.FileChunk(item, offset, memoryview(part), digest(data) if last else None, None)


def failed(item: int) -> m.FileChunk:
    return m.FileChunk(item, 0, memoryview(b""), None, "vanished")


def landing(place: Path, *items: m.Item) -> tuple[Landing, list[m.ItemResume]]:
    made = Landing(place, STAGING, Layout(items))
    return made, made.verify()


def write(made: Landing, chunks: Iterable[m.FileChunk]) -> None:
    for chunk in chunks:
        made.write(chunk)


def record(chunk: m.FileChunk) -> memoryview:
    flags = 0 if chunk.digest is None else int(m.SegmentFlag.LAST)
    header = m.SEGMENT_HEADER.pack(flags, chunk.item, chunk.offset, len(chunk.data))
    return memoryview(bytes([m.DATA]) + header + bytes(chunk.data) + (chunk.digest or b""))


def write_hashed(made: Landing, chunks: Iterable[m.FileChunk]) -> None:
    """Write the first piece; hash the others, then write them too."""
    first, *rest = chunks
    made.write(first)
    for chunk in rest:
        made.hash_at_once(record(chunk))
    write(made, rest)


def visible(place: Path) -> list[str]:
    return sorted(name for name in os.listdir(place) if name != STAGING)


def test_a_folder_with_all_that_is_in_it(tmp_path: Path, tree: Callable[[Path], Tree]) -> None:
    items = [folder("d"), folder("d/empty"), file("d/run", b"#!", executable=True), folder("d/e"), file("d/e/ü", b"")]
    made, resume = landing(tmp_path, *items)
    assert resume == []
    made.write(whole(2, b"#!"))
    assert visible(tmp_path) == []
    made.write(whole(4, b""))
    made.finish()
    made.discard()
    assert tree(tmp_path) == {"d": None, "d/empty": None, "d/run": b"#!", "d/e": None, "d/e/ü": b""}
    for path in ("d", "d/empty", "d/run", "d/e/ü"):
        assert (tmp_path / path).stat().st_mtime_ns == MTIME
    assert os.access(tmp_path / "d/run", os.X_OK)
    assert not os.access(tmp_path / "d/e/ü", os.X_OK)
    assert made.landed_names == ["d"]


def test_a_large_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    data = os.urandom(9 * STEP + 5)
    made, _ = landing(tmp_path, file("big.bin", data, executable=True))
    chunks = list(pieces(0, data))
    for chunk in chunks[:-1]:
        made.write(chunk)
        assert visible(tmp_path) == []
    made.write(chunks[-1])
    assert (tmp_path / "big.bin").read_bytes() == data
    assert (tmp_path / "big.bin").stat().st_mtime_ns == MTIME
    assert os.access(tmp_path / "big.bin", os.X_OK)
    made.finish()
    made.discard()
    assert os.listdir(tmp_path) == ["big.bin"]


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    (tmp_path / "d").mkdir()
    os.symlink("/etc", tmp_path / "link")
    items = [file("a.txt", b"new"), folder("d"), file("d/x", b"y"), file("link", b"z")]
    made, _ = landing(tmp_path, *items)
    for index, data in ((0, b"new"), (2, b"y"), (3, b"z")):
        made.write(whole(index, data))
    made.finish()
    assert made.landed_names == ["d (1)", "a (1).txt", "link (1)"] or sorted(made.landed_names) == [
        "a (1).txt",
        "d (1)",
        "link (1)",
    ]
    assert (tmp_path / "a.txt").read_text() == "mine"
    assert list((tmp_path / "d").iterdir()) == []
    assert (tmp_path / "d (1)/x").read_bytes() == b"y"
    made.discard()


@pytest.mark.parametrize("size", [3, 3 * STEP])
def test_a_file_with_another_hash_is_never_shown(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    made, _ = landing(tmp_path, file("x", data))
    chunks = list(pieces(0, data))
    chunks[-1] = chunks[-1]._replace(digest=digest(b"other"))
    write(made, chunks[:-1])
    with pytest.raises(MismatchError):
        made.write(chunks[-1])
    assert visible(tmp_path) == []
    made.discard()
    assert os.listdir(tmp_path) == []


def test_after_a_cut_all_that_was_written_counts(tmp_path: Path) -> None:
    data = os.urandom(7 * STEP)
    item = file("x", data)
    made, _ = landing(tmp_path, item)
    write(made, pieces(0, data, 0, 5 * STEP))
    made.close()
    made, resume = landing(tmp_path, item)
    assert resume == [m.ItemResume(0, 5 * STEP, digest(data[: 5 * STEP]), False)]
    assert made.done_bytes == 5 * STEP
    write(made, pieces(0, data, 5 * STEP))
    made.finish()
    made.discard()
    assert (tmp_path / "x").read_bytes() == data
    assert made.done_bytes == len(data)


def crash(made: Landing) -> None:
    """What a killed process leaves: what was flushed."""
    made.flush()
    assert made._file is not None
    made._file.close()
    made._current = None
    made._open_files.close()


def test_after_a_crash_what_the_journal_names_counts(tmp_path: Path) -> None:
    data = os.urandom(7 * STEP)
    item = file("x", data)
    made, _ = landing(tmp_path, item)
    write(made, pieces(0, data, 0, 6 * STEP))
    crash(made)
    made, resume = landing(tmp_path, item)
    assert resume == [m.ItemResume(0, MARK_BYTES, digest(data[:MARK_BYTES]), False)]
    made.close()


def test_bytes_that_the_disk_lost_do_not_count(tmp_path: Path) -> None:
    data = os.urandom(10 * STEP)
    item = file("x", data)
    made, _ = landing(tmp_path, item)
    write(made, pieces(0, data, 0, 9 * STEP))
    made.close()
    (part,) = (tmp_path / STAGING).glob("part-*")
    with part.open("r+b") as handle:
        handle.seek(MARK_BYTES + 17)
        handle.write(b"XXX")
    made, resume = landing(tmp_path, item)
    assert resume == [m.ItemResume(0, MARK_BYTES, digest(data[:MARK_BYTES]), False)]
    write(made, pieces(0, data, MARK_BYTES, 9 * STEP))
    made.close()
    made, resume = landing(tmp_path, item)
    assert resume[0].length == 9 * STEP
    made.close()


def test_a_torn_journal_is_read_up_to_the_tear(tmp_path: Path) -> None:
    items = [folder("d"), file("d/a", b"1"), file("d/b", b"2")]
    made, _ = landing(tmp_path, *items)
    made.write(whole(1, b"1"))
    made.write(whole(2, b"2"))
    made.flush()
    made.close()
    journal = tmp_path / STAGING / "journal"
    os.truncate(journal, journal.stat().st_size - 3)
    made, resume = landing(tmp_path, *items)
    assert resume == [m.ItemResume(1, 1, digest(b"1"), False)]
    made.write(whole(2, b"2"))
    made.write(m.FileChunk(1, 1, memoryview(b""), digest(b"1"), None))
    made.finish()
    made.discard()
    assert (tmp_path / "d/b").read_bytes() == b"2"


def test_a_finished_file_is_read_back_before_it_counts(tmp_path: Path) -> None:
    items = [folder("d"), file("d/a", b"1"), file("d/b", b"2"), file("d/c", b"3")]
    made, _ = landing(tmp_path, *items)
    made.write(whole(1, b"1"))
    made.write(whole(2, b"2"))
    made.flush()
    made.close()
    (tmp_path / STAGING / "tree/d/a").write_bytes(b"X")
    made, resume = landing(tmp_path, *items)
    assert [held.item for held in resume] == [2]
    made.close()


def test_a_sender_with_other_contents_starts_anew(tmp_path: Path) -> None:
    data, other = os.urandom(6 * STEP), os.urandom(6 * STEP)
    items = [file("x", data), file("small", b"old")]
    made, _ = landing(tmp_path, folder("d"), *items)
    made.close()
    made, _ = landing(tmp_path, *items)
    write(made, pieces(0, data, 0, 5 * STEP))
    made.close()
    made, resume = landing(tmp_path, *items)
    assert resume[0].length == 5 * STEP
    write(made, pieces(0, other))
    assert made.done_bytes == len(other)
    made.write(whole(1, b"new"))
    made.finish()
    assert (tmp_path / "x").read_bytes() == other
    assert made.done_bytes == len(other) + 3
    made.discard()


def test_a_held_whole_file_that_differs_is_replaced(tmp_path: Path) -> None:
    items = [folder("d"), file("d/a", b"1"), file("d/b", b"2")]
    made, _ = landing(tmp_path, *items)
    made.write(whole(1, b"1"))
    made.flush()
    made.close()
    made, resume = landing(tmp_path, *items)
    assert len(resume) == 1
    made.write(whole(1, b"9"))
    made.write(whole(2, b"2"))
    made.finish()
    assert (made.done_bytes, made.done_items) == (2, 2)
    assert (tmp_path / "d/a").read_bytes() == b"9"
    made.discard()


def test_what_does_not_belong_to_the_transfer_is_removed(tmp_path: Path, tree: Callable[[Path], Tree]) -> None:
    made, _ = landing(tmp_path, folder("old"), file("old/a", b"1"), folder("d"), file("d/a", b"1"))
    made.write(whole(1, b"1"))
    made.write(m.FileChunk(3, 0, memoryview(b""), None, None))
    made.close()
    os.symlink("/etc", tmp_path / STAGING / "tree" / "link")
    items = [folder("d"), file("d/b", b"2")]
    made, resume = landing(tmp_path, *items)
    assert resume == []
    assert tree(tmp_path / STAGING / "tree") == {"d": None}
    assert not list((tmp_path / STAGING).glob("part-*"))
    made.discard()
    assert Path("/etc").is_dir()


def test_what_landed_before_a_crash_does_not_come_twice(tmp_path: Path) -> None:
    data = os.urandom(9 * STEP)
    items = [file("x", data), file("y", b"1"), file("z", b"2")]
    made, _ = landing(tmp_path, *items)
    write(made, pieces(0, data))
    made.write(failed(1))
    made.finish()
    assert visible(tmp_path) == ["x"]
    made.flush()
    made._open_files.close()
    made, resume = landing(tmp_path, *items)
    assert resume == [m.ItemResume(0, len(data), digest(data), True)]
    made.write(whole(1, b"1"))
    made.write(whole(2, b"2"))
    made.finish()
    made.discard()
    assert sorted(os.listdir(tmp_path)) == ["x", "y", "z"]


def test_an_earlier_attempt_is_adopted(tmp_path: Path) -> None:
    data = os.urandom(3 * STEP)
    item = file("x", data)
    made, _ = landing(tmp_path, item)
    write(made, pieces(0, data, 0, 2 * STEP))
    made.close()
    again = Landing(tmp_path, staging_name("01"), Layout([item]), adopt=STAGING)
    assert again.verify()[0].length == 2 * STEP
    again.discard()
    assert os.listdir(tmp_path) == []


def test_a_fresh_start_uses_nothing(tmp_path: Path) -> None:
    item = file("x", b"12")
    made, _ = landing(tmp_path, folder("d"), item)
    made.write(whole(1, b"12"))
    made.close()
    made = Landing(tmp_path, STAGING, Layout([item]), fresh=True)
    assert made.verify() == []
    made.discard()


def test_files_that_failed_are_left_out(tmp_path: Path, tree: Callable[[Path], Tree]) -> None:
    data = os.urandom(2 * STEP)
    items = [folder("d"), file("d/a", b"1"), file("d/b", data), file("c", b"3")]
    made, _ = landing(tmp_path, *items)
    made.write(whole(1, b"1"))
    write(made, pieces(2, data, 0, STEP))
    made.write(failed(2))
    made.write(failed(3))
    made.finish()
    made.discard()
    assert tree(tmp_path) == {"d": None, "d/a": b"1"}
    assert (made.failed, made.done_items, made.done_bytes) == (2, 1, 1)


def test_many_files_at_the_top_are_shown_as_they_come(tmp_path: Path) -> None:
    items = [file(f"f{number}", b"x") for number in range(600)]
    made, _ = landing(tmp_path, *items)
    for index in range(600):
        made.write(whole(index, b"x"))
    assert len(visible(tmp_path)) == 512
    made.finish()
    made.discard()
    assert len(os.listdir(tmp_path)) == 600


def test_a_folder_swapped_for_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = tmp_path / "place"
    items = [folder("d"), file("d/a", b"1"), folder("d/e"), file("d/e/b", b"2")]
    made, _ = landing(place, *items)
    made.close()
    made = Landing(place, STAGING, Layout(items))
    made.verify()
    (place / STAGING / "tree/d/e").rmdir()
    os.symlink(outside, place / STAGING / "tree/d/e")
    made._folders.close()
    with pytest.raises(StorageError):
        made.write(whole(3, b"2"))
    assert list(outside.iterdir()) == []
    made.discard()


def test_a_private_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = tmp_path / "place"
    place.mkdir()
    os.symlink(outside, place / STAGING)
    with pytest.raises(StorageError):
        Landing(place, STAGING, Layout([file("a", b"1")]))
    made = Landing(place, STAGING, Layout([file("a", b"1")]), fresh=True)
    made.discard()
    assert list(outside.iterdir()) == []


def test_the_private_folder_is_private(tmp_path: Path) -> None:
    os.mkdir(tmp_path / STAGING, 0o777)
    made, _ = landing(tmp_path, file("a", b"1"))
    assert stat.S_IMODE((tmp_path / STAGING).stat().st_mode) == 0o700
    made.discard()


@pytest.mark.parametrize("write_them", [write, write_hashed])
def test_a_disk_that_takes_no_more_is_said_and_nothing_is_lost(
    tmp_path: Path, file_size_limit: FileSizeLimit, write_them: Callable[[Landing, Iterable[m.FileChunk]], None]
) -> None:
    data = os.urandom(6 * STEP)
    item = file("x", data)
    made, _ = landing(tmp_path, item)
    with file_size_limit(3 * STEP + 100), pytest.raises(StorageError, match="larger than"):
        write_them(made, pieces(0, data))
    made.close()
    made, resume = landing(tmp_path, item)
    assert resume[0].length == 3 * STEP
    write_them(made, pieces(0, data, 3 * STEP))
    made.finish()
    made.discard()
    assert (tmp_path / "x").read_bytes() == data


def test_what_is_hashed_before_it_is_written_counts_when_it_is(tmp_path: Path) -> None:
    data, other = os.urandom(3 * MARK_BYTES + 10), os.urandom(2 * STEP)
    items = [file("x", data), file("y", other)]
    made, _ = landing(tmp_path, *items)
    chunks = list(pieces(0, data))
    write(made, chunks[:1])
    for chunk in chunks[1:]:
        made.hash_at_once(record(chunk))
    write(made, chunks[1 : MARK_BYTES // STEP + 1])
    crash(made)  # what the journal has is right, however far the hashing was ahead
    made, resume = landing(tmp_path, *items)
    assert [(held.length, held.digest) for held in resume] == [(MARK_BYTES, digest(data[:MARK_BYTES]))]
    write_hashed(made, pieces(0, data, MARK_BYTES))
    write_hashed(made, pieces(1, other))
    made.finish()
    made.discard()
    assert (tmp_path / "x").read_bytes() == data
    assert (tmp_path / "y").read_bytes() == other


@pytest.mark.parametrize("wrong", ["another item", "a gap", "several", "its end", "a failure", "short", "control"])
def test_only_the_next_bytes_of_the_file_that_comes_are_hashed_ahead(tmp_path: Path, wrong: str) -> None:
    data = os.urandom(4 * STEP)
    made, _ = landing(tmp_path, file("x", data), file("y", data))
    chunks = list(pieces(0, data))
    write(made, chunks[:1])
    right = bytes(record(chunks[1]))
    bad: dict[str, bytes | memoryview] = {
        "another item": record(next(pieces(1, data, STEP))),
        "a gap": record(chunks[2]),
        "several": right + right[1:],
        "its end": record(chunks[3]),
        "a failure": record(failed(0)),
        "short": right[: 1 + m.SEGMENT_HEADER.size],
        "control": b"\0" + right[1:],
    }
    made.hash_at_once(memoryview(bad[wrong]))
    write(made, chunks[1:])
    made.finish()
    assert (tmp_path / "x").read_bytes() == data
    made.discard()


def test_a_full_disk_is_said() -> None:
    with pytest.raises(DiskFullError, match="full"), explained(Path("/x"), "written"), open("/dev/full", "wb") as full:
        full.write(b"x" * 100_000)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file"):
        Landing(tmp_path / "file" / "sub", STAGING, Layout([file("a", b"1")]))


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    items = [folder("d")] + [folder(f"d/{number}") for number in range(50)]
    items += [file(f"d/{number}/x", b"1") for number in range(50)] + [file("big", bytes(STEP * 2))]
    made, _ = landing(tmp_path, *items)
    for index in range(51, 101):
        made.write(whole(index, b"1"))
    write(made, pieces(101, bytes(STEP * 2), 0, STEP))
    made.close()
    made, _ = landing(tmp_path, *items)
    made.discard()
    remove_staging(tmp_path, STAGING)
    assert len(os.listdir("/proc/self/fd")) == before
