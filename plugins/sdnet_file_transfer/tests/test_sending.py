"""The sending end, with a stream that the test holds in its hands."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_file_transfer import messages as m
from sdnet_file_transfer.machine import ReceiverMachine
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
