"""Records are the same whether they are read at once or ahead, and whoever stops leaves nothing behind."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnet_file_transfer import messages as m
from sdnet_file_transfer.compression import Packer, unpack
from sdnet_file_transfer.filling import Filling
from sdnet_file_transfer.source import SourceReader, scan

pytestmark = pytest.mark.anyio

NEEDS_NO_WAIT = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="this system does not tell what it has")


class Threads:
    """Runs what a thread would; counts."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        self.calls += 1
        await anyio.lowlevel.checkpoint()
        return function(*args)


def all_the_room() -> int:
    return m.MAX_RECORD_BYTES


async def read_all(
    paths: list[Path], threads: Threads, packer: Packer | None = None, room: Callable[[], int] = all_the_room
) -> dict[str, bytes]:
    """All contents, as the records have them."""
    manifest = scan(paths)
    reader = SourceReader(manifest, {})
    contents = {item.path[-1]: b"" for item in manifest.items if not item.directory}
    async with anyio.create_task_group() as tasks:
        filling = Filling(reader, packer, run_blocking=threads, room=room, spawn=tasks.start_soon)
        while (full := await filling.next()) is not None:
            record = bytes(full.record)
            assert len(record) <= m.MAX_RECORD_BYTES
            for chunk in m.segments(unpack(record) if record[0] == m.PACKED else record):
                name = manifest.items[chunk.item].path[-1]
                assert chunk.offset == len(contents[name])
                contents[name] += bytes(chunk.data)
            filling.sent(full)
    reader.close()
    assert not reader.failed
    return contents


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0, 1, 4096, 70_000, 1 << 20, (1 << 20) + 1, (5 << 20) + 7]), min_size=1, max_size=6))
async def test_everything_is_read_in_order(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("src")
    files = {f"file-{number}": os.urandom(size) for number, size in enumerate(sizes)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert await read_all([folder], Threads()) == files


@NEEDS_NO_WAIT
async def test_a_large_file_in_memory_needs_a_thread_for_its_ends_only(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(data := os.urandom(12 << 20))
    threads = Threads()
    assert await read_all([file], threads) == {"file": data}
    assert threads.calls <= 4


@pytest.mark.parametrize("answer", [BlockingIOError(11, "would block"), OSError(95, "not supported"), 1000])
async def test_what_is_not_in_memory_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: OSError | int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(data := os.urandom(12 << 20))
    read = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if not flags:
            return read(descriptor, buffers, offset)
        if isinstance(answer, OSError):
            raise answer
        return answer  # some of it

    monkeypatch.setattr(os, "preadv", preadv)
    threads = Threads()
    assert await read_all([file], threads) == {"file": data}
    assert threads.calls >= 5


async def test_what_is_worth_compressing_is(tmp_path: Path) -> None:
    text = b"".join(b"line %d of a text\n" % number for number in range(300_000))
    noise = os.urandom(6 << 20)
    (tmp_path / "a").write_bytes(noise)
    (tmp_path / "b").write_bytes(text)
    (tmp_path / "c").write_bytes(noise)
    packed: list[bool] = []

    class Noted(Packer):
        def pack(self, record: memoryview) -> bytes | None:
            result = super().pack(record)
            packed.append(result is not None)
            return result

    found = await read_all([tmp_path], Threads(), Noted())
    assert found == {"a": noise, "b": text, "c": noise}
    assert sum(packed) >= 4


async def test_records_follow_the_room_there_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(data := os.urandom(4 << 20))
    rooms = [1 << 20, 16 * 1024, 300_000]
    turn = iter(rooms * 1000)
    assert await read_all([file], Threads(), room=lambda: next(turn)) == {"file": data}


@NEEDS_NO_WAIT
async def test_a_file_that_changes_meanwhile_is_noticed_at_its_end(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(8 << 20))
    reader = SourceReader(scan([file]), {})
    async with anyio.create_task_group() as tasks:
        filling = Filling(reader, None, run_blocking=Threads(), room=all_the_room, spawn=tasks.start_soon)
        for _ in range(3):
            full = await filling.next()
            assert full is not None
            filling.sent(full)
        with file.open("r+b") as handle:
            handle.seek(7 << 20)
            handle.write(b"changed")
        os.utime(file)
        records = []
        while (full := await filling.next()) is not None:
            records.append(bytes(full.record))
            filling.sent(full)
    assert [left.reason for left in reader.failed] == ["changed while it was sent"]
    assert [chunk.failure for chunk in m.segments(records[-1])] == ["changed while it was sent"]
    reader.close()
