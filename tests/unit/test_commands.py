import uuid
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sdnet_core.commands import Command, CommandChannel, SendMessage
from sdnet_core.errors import NotRunningError, RefusedError

pytestmark = pytest.mark.anyio


def message(text: str) -> SendMessage:
    return SendMessage(uuid.UUID(int=1), "echo", text.encode())


async def test_commands_are_carried_out_one_after_the_other_in_order() -> None:
    channel = CommandChannel()
    running, done = 0, []

    async def carry_out(command: Command) -> Any:
        nonlocal running
        running += 1
        assert running == 1
        await anyio.lowlevel.checkpoint()
        running -= 1
        assert isinstance(command, SendMessage)
        done.append(command.data)
        return command.data

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run, carry_out)
        assert await channel.call(message("a")) == b"a"
        async with anyio.create_task_group() as callers:
            for text in "bcdef":
                callers.start_soon(channel.call, message(text))
        tasks.cancel_scope.cancel()
    assert sorted(done) == [b"a", b"b", b"c", b"d", b"e", b"f"]


async def test_an_error_goes_to_its_caller_and_the_channel_goes_on() -> None:
    channel = CommandChannel()

    async def carry_out(command: Command) -> Any:
        assert isinstance(command, SendMessage)
        if command.data == b"bad":
            raise RefusedError("no")
        return "fine"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run, carry_out)
        with pytest.raises(RefusedError):
            await channel.call(message("bad"))
        assert await channel.call(message("good")) == "fine"
        tasks.cancel_scope.cancel()


async def test_nobody_waits_for_a_stopped_node() -> None:
    channel = CommandChannel(capacity=2)
    refused = []

    async def never(command: Command) -> Any:
        await anyio.sleep_forever()

    async def caller() -> None:
        with pytest.raises(NotRunningError):
            await channel.call(message("x"))
        refused.append(1)

    async with anyio.create_task_group() as callers:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.run, never)
            for _ in range(6):
                callers.start_soon(caller)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert len(refused) == 6
    with pytest.raises(NotRunningError):
        await channel.call(message("late"))
