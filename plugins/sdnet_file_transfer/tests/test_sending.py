"""The sending end, with a stream that the test holds in its hands."""

import os
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from blake3 import blake3

from sdnet_core.errors import ConnectionFailedError
from sdnet_file_transfer import messages as m
from sdnet_file_transfer.machine import Acknowledged, Offered, ReceiverMachine, SentAll
from sdnet_file_transfer.sending import Cancelled, Sending
from sdnet_file_transfer.source import scan

pytestmark = pytest.mark.anyio

Tree = dict[str, bytes | None]
MakeTree = Callable[[str, Tree], Path]


class Stream:
    """Accepts every offer; a function is called after so many data records, and the end of the sender is answered."""

    def __init__(self, records: int, then: Callable[[], None]) -> None:
        self.sent: list[bytes] = []
        self._left = records
        self._then = then
        self._machine = ReceiverMachine()
        self._answers: list[bytes] = []
        self._changed = anyio.Event()
        self._ended = False

    async def send_record(self, data: bytes | bytearray | memoryview) -> None:
        await anyio.lowlevel.checkpoint()
        record = bytes(data)
        self.sent.append(record)
        if record[0] == m.DATA:
            self._left -= 1
            if not self._left:
                self._then()
        elif len(self.sent) == 1:
            self._machine.receive(record)
            self._answers += self._machine.accept([])
            self._tell()

    async def receive_record(self) -> bytes:
        while not self._answers:
            if self._ended:
                raise anyio.EndOfStream
            await self._changed.wait()
        return self._answers.pop(0)

    async def receive_record_into(self, buffer: memoryview) -> int:
        record = await self.receive_record()
        buffer[: len(record)] = record
        return len(record)

    async def send_eof(self) -> None:
        self._ended = True
        self._tell()

    async def aclose(self) -> None:
        await self.send_eof()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


class Asking(Stream):
    """Answers an offer when the test says so, with what it holds already."""

    def __init__(self) -> None:
        super().__init__(0, lambda: None)
        self.received: dict[int, bytes] = {}
        self.offered = anyio.Event()

    async def send_record(self, data: bytes | bytearray | memoryview) -> None:
        await anyio.lowlevel.checkpoint()
        record = bytes(data)
        if record[0] == m.DATA:
            for chunk in self._machine.chunks(memoryview(record)):
                self.received[chunk.item] = self.received.get(chunk.item, b"") + bytes(chunk.data)
            return
        event = self._machine.receive(record)
        if isinstance(event, Offered):
            self.offered.set()
        elif isinstance(event, SentAll):
            self._answers.append(self._machine.acknowledge(0))
            self._tell()

    def accept(self, *resume: m.ItemResume) -> None:
        self._answers += self._machine.accept(resume)
        self._tell()


async def run_blocking(function: Callable[..., Any], *args: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return function(*args)


@pytest.mark.parametrize("records", range(1, 13))
async def test_the_receiver_is_told_of_a_cancel_at_any_record(make_tree: MakeTree, records: int) -> None:
    file = make_tree("src", {"big": os.urandom(16 << 20)}) / "big"

    def cancel() -> None:
        sending.cancel("enough")

    stream = Stream(records, cancel)
    sending = Sending(
        stream, uuid.uuid4(), "send", scan([file]), run_blocking=run_blocking, observe=lambda state, bytes_, items: None
    )
    with anyio.fail_after(30):
        assert isinstance(await sending.run(), Cancelled)
    assert m.decode_control(stream.sent[-1]) == m.TransferCancel(reason="enough")


async def send_to(stream: Asking, file: Path, answer: Callable[[], None]) -> None:
    sending = Sending(
        stream, uuid.uuid4(), "send", scan([file]), run_blocking=run_blocking, observe=lambda state, bytes_, items: None
    )
    before = len(os.listdir("/proc/self/fd"))

    async def decide() -> None:
        await stream.offered.wait()
        await anyio.wait_all_tasks_blocked()
        answer()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(decide)
            assert await sending.run() == Acknowledged(failed=0)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_goes_first_is_read_while_the_receiver_decides(make_tree: MakeTree) -> None:
    files: Tree = {str(number): os.urandom(1000) for number in range(100)}
    root = make_tree("src", files)

    def answer() -> None:
        for file in root.iterdir():
            file.unlink()
        stream.accept()

    stream = Asking()
    await send_to(stream, root, answer)
    assert set(stream.received.values()) == set(files.values())


async def test_each_part_of_a_long_offer_leaves_before_the_next_one_is_made(make_tree: MakeTree) -> None:
    root = make_tree("src", {str(number): b"" for number in range(5 * m.BATCH_ITEMS)})
    seen: list[int] = []

    class Counting(Asking):
        async def send_record(self, data: bytes | bytearray | memoryview) -> None:
            """Goes on without giving others a turn, as a stream with room does."""
            self.sent.append(bytes(data))
            if isinstance(self._machine.receive(data), Offered):
                self.offered.set()

    stream = Counting()
    sending = Sending(
        stream, uuid.uuid4(), "send", scan([root]), run_blocking=run_blocking, observe=lambda state, bytes_, items: None
    )

    async def look() -> None:
        while not stream.offered.is_set():
            seen.append(len(stream.sent))
            await anyio.lowlevel.checkpoint()
        sending.abandon()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            with pytest.raises(ConnectionFailedError):
                await sending.run()
    seen.append(len(stream.sent))
    assert seen[-1] > 4
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 2, "the scheduler's order is random"


@pytest.mark.parametrize("held", [0, 1, 5_000_000, 15_999_999, 16_000_000])
async def test_what_was_read_counts_only_if_the_receiver_holds_nothing(make_tree: MakeTree, held: int) -> None:
    data = os.urandom(16_000_000)
    file = make_tree("src", {"big": data}) / "big"
    stream = Asking()

    def answer() -> None:
        stream.accept(m.ItemResume(0, held, blake3(data[:held]).digest(), False))

    await send_to(stream, file, answer)
    assert stream.received[0] == data[held:]
