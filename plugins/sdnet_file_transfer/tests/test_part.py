"""Growing files written past the page cache, and what happens where that does not work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnet_file_transfer import part
from sdnet_file_transfer.part import PAGE_BYTES, PartWriter, page_memory


def writer(path: Path, position: int = 0, *, direct: bool = True) -> PartWriter:
    return PartWriter(os.open(path, os.O_RDWR | os.O_CREAT), position, direct=direct)


def paged(data: bytes) -> memoryview:
    """A copy that begins at a page in memory, with something behind it."""
    memory = page_memory(len(data) + 1)
    memory[: len(data)] = data
    return memoryview(memory)[: len(data)]


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(
            st.sampled_from([1, 17, PAGE_BYTES - 1, PAGE_BYTES, 5 * PAGE_BYTES, 255 * PAGE_BYTES, 1 << 20]),
            st.booleans(),
        )
    ),
    flush_every=st.integers(min_value=1, max_value=5),
    start=st.sampled_from([0, 3, PAGE_BYTES]),
)
def test_the_file_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, bool]], flush_every: int, start: int
) -> None:
    path = tmp_path_factory.mktemp("part") / "file"
    expected = bytearray(os.urandom(start))
    path.write_bytes(expected)
    made = writer(path, start)
    for number, (size, at_page) in enumerate(pieces):
        data = os.urandom(size)
        expected += data
        made.write(paged(data) if at_page else memoryview(data))
        if number % flush_every == 0:
            made.flush()
            assert path.stat().st_size == len(expected)
    made.flush()
    made.close()
    assert path.read_bytes() == expected


def test_at_most_one_mebibyte_waits(tmp_path: Path) -> None:
    made = writer(tmp_path / "x")
    for number in range(1, 8):
        made.write(memoryview(os.urandom((1 << 20) - 7)))
        written = (tmp_path / "x").stat().st_size
        assert number * ((1 << 20) - 7) - written <= 1 << 20
    made.close()


def test_whole_pages_are_written_from_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    written: list[tuple[object, int]] = []

    def watched(descriptor: int, data: memoryview, offset: int) -> int:
        written.append((data.obj, len(data)))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    made = writer(tmp_path / "x")
    if not made.direct:
        pytest.skip("no direct writes on this file system")
    data = [paged(os.urandom(size)) for size in (255 * PAGE_BYTES, 255 * PAGE_BYTES, 3 * PAGE_BYTES + 5)]
    for number, piece in enumerate(data):
        made.write(piece)
        assert [obj for obj, _ in written] == [piece.obj for piece in data[: number + 1]]
        made.flush()
    made.close()
    assert [size for _, size in written] == [255 * PAGE_BYTES, 255 * PAGE_BYTES, 3 * PAGE_BYTES, 5]
    assert (tmp_path / "x").read_bytes() == b"".join(data)


@pytest.mark.parametrize("make", [memoryview, paged])
def test_a_disk_that_refuses_direct_writes_gets_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[bytes], memoryview]
) -> None:
    pwrite = os.pwrite
    refused = 0

    def refusing(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal refused
        if part.fcntl.fcntl(descriptor, part.fcntl.F_GETFL) & part._DIRECT:
            refused += 1
            raise OSError(errno.EINVAL, "not aligned for this disk")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    made = writer(tmp_path / "x")
    if not made.direct:
        pytest.skip("no direct writes on this file system")
    data = os.urandom(3 * 255 * PAGE_BYTES + 5)
    made.write(make(data))
    made.flush()
    made.close()
    assert refused == 1
    assert (tmp_path / "x").read_bytes() == data


@pytest.mark.parametrize("pages", [6, 1000])
def test_after_a_full_disk_the_rest_can_still_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    pwrite = os.pwrite
    full = True

    def filling(descriptor: int, data: memoryview, offset: int) -> int:
        if full and offset >= 2 * PAGE_BYTES:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(descriptor, data[: 2 * PAGE_BYTES], offset)

    monkeypatch.setattr(os, "pwrite", filling)
    made = writer(tmp_path / "x")
    data = memoryview(os.urandom(pages * PAGE_BYTES))
    taken = 0

    def write() -> None:
        nonlocal taken
        while taken < len(data):
            made.write(data[taken : taken + 100_000])
            taken += 100_000
        made.flush()

    with pytest.raises(OSError, match="full"):
        write()
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            made.flush()
    full = False
    made.flush()
    made.close()
    # All that was taken before the call that failed, and perhaps some of what that was given.
    written = (tmp_path / "x").read_bytes()
    assert min(taken, len(data)) <= len(written) <= min(taken + 100_000, len(data))
    assert written == data[: len(written)]


def test_pages_that_a_full_disk_refused_can_be_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    full = True

    def filling(descriptor: int, data: memoryview, offset: int) -> int:
        if full and offset >= 3 * PAGE_BYTES:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(descriptor, data[:PAGE_BYTES], offset)

    monkeypatch.setattr(os, "pwrite", filling)
    made = writer(tmp_path / "x")
    first, second = os.urandom(2 * PAGE_BYTES), os.urandom(4 * PAGE_BYTES + 9)
    made.write(paged(first))
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            made.write(paged(second))
    full = False
    made.write(paged(second))
    made.flush()
    made.close()
    assert (tmp_path / "x").read_bytes() == first + second


def test_an_odd_place_is_written_through_the_cache(tmp_path: Path) -> None:
    made = writer(tmp_path / "x", 5)
    assert not made.direct
    made.close()
