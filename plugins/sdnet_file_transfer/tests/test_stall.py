"""A stream on which nothing moves any more is given up; one on which something moves is not. In virtual time."""

import os
from collections.abc import Awaitable, Callable

import anyio
import pytest

from sdnet_core.errors import NetworkTimeoutError
from sdnet_core.testing import run_in_virtual_time
from sdnet_file_transfer.conversation import STALL_S, Conversation


class Stream:
    """Takes a record in ``send_s`` seconds and gives one in ``receive_s``."""

    def __init__(self, *, send_s: float = 0.0, receive_s: float = 0.0) -> None:
        self.send_s, self.receive_s = send_s, receive_s

    async def send_record(self, data: bytes | bytearray | memoryview) -> None:
        await anyio.sleep(self.send_s)

    async def receive_record(self) -> bytes:
        await anyio.sleep(self.receive_s)
        return b"record"

    async def receive_record_into(self, buffer: memoryview) -> int:
        record = await self.receive_record()
        buffer[: len(record)] = record
        return len(record)

    async def send_eof(self) -> None:
        raise AssertionError

    async def aclose(self) -> None:
        raise AssertionError


class Ends(Conversation):
    """Runs tasks as both ends do, and says when and how it ended."""

    async def run(self, *functions: Callable[[], Awaitable[None]]) -> tuple[float, Exception | None]:
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            self.scope = tasks.cancel_scope
            tasks.start_soon(self._guard, self._watch)
            for function in functions:
                tasks.start_soon(self._guard, function)
        return anyio.current_time() - began, self._error

    async def send_for_ever(self) -> None:
        while True:
            await self._send(b"x")

    async def receive_for_ever(self) -> None:
        while True:
            await self._receive()

    async def receive_into_for_ever(self) -> None:
        buffer = memoryview(bytearray(os.urandom(16)))
        while True:
            await self._receive_into(buffer)

    async def stop(self) -> None:
        await anyio.sleep(200 * STALL_S)
        self.scope.cancel()


@pytest.mark.parametrize("task", ["receive_for_ever", "receive_into_for_ever", "send_for_ever"])
def test_what_does_not_move_is_given_up_in_time(task: str) -> None:
    async def stalled() -> None:
        ends = Ends(Stream(send_s=1e9, receive_s=1e9))
        took_s, error = await ends.run(getattr(ends, task))
        assert isinstance(error, NetworkTimeoutError)
        assert error.detail.endswith("taking data." if task == "send_for_ever" else "answering.")
        assert took_s == pytest.approx(STALL_S)

    run_in_virtual_time(stalled)


def test_it_counts_from_the_last_time_that_something_moved() -> None:
    async def stalled() -> None:
        stream = Stream(send_s=0.9 * STALL_S)
        ends = Ends(stream)

        async def stall() -> None:
            await anyio.sleep(10 * STALL_S)
            stream.send_s = 1e9

        took_s, error = await ends.run(ends.send_for_ever, stall)
        assert isinstance(error, NetworkTimeoutError)
        assert took_s == pytest.approx(12 * 0.9 * STALL_S + STALL_S)

    run_in_virtual_time(stalled)


@pytest.mark.parametrize("streams", [{"send_s": 0.9 * STALL_S, "receive_s": 1e9}, {"receive_s": 0.9 * STALL_S}])
def test_a_slow_one_is_not_given_up(streams: dict[str, float]) -> None:
    async def slow() -> None:
        ends = Ends(Stream(**{"send_s": 5.0} | streams))
        took_s, error = await ends.run(ends.send_for_ever, ends.receive_for_ever, ends.stop)
        assert error is None
        assert took_s == pytest.approx(200 * STALL_S)

    run_in_virtual_time(slow)


def test_those_that_wait_for_their_turn_to_send_are_not_stalled() -> None:
    async def several() -> None:
        ends = Ends(Stream())
        turn = anyio.Lock()

        class Slow(Stream):
            async def send_record(self, data: bytes | bytearray | memoryview) -> None:
                async with turn:
                    await anyio.sleep(0.6 * STALL_S)

        ends._stream = Slow()
        took_s, error = await ends.run(*[ends.send_for_ever] * 4, ends.stop)
        assert error is None
        assert took_s == pytest.approx(200 * STALL_S)

    run_in_virtual_time(several)
