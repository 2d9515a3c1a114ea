"""A link that ends begins nothing more."""

from __future__ import annotations

from typing import Any, cast

import anyio
import pytest

from sdnet_sync.link import Link, LinkHost
from sdnet_sync.machine import ReadSnapshot

pytestmark = pytest.mark.anyio


class _Silent:
    """A stream and its messages: nothing ever comes."""

    async def receive_bytes_or_end(self) -> bytes | None:
        await anyio.sleep_forever()
        return None


class _Host:
    """Counts what is begun."""

    def __init__(self) -> None:
        self.begun = 0

    def replica(self, library: bytes) -> Any:
        self.begun += 1
        raise AssertionError("a command was begun")


async def test_a_link_that_ends_begins_nothing_more() -> None:
    host, silent = _Host(), cast(Any, _Silent())
    link = Link(cast(LinkHost, host), silent, silent, cast(Any, None), bytes(16))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            ended = anyio.Event()

            async def run() -> None:
                await link.run()
                ended.set()

            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            link.close()
            # At every step of its end, as commits of the library come whenever they do.
            for _ in range(50):
                link.do([ReadSnapshot(bytes(16), first=True)])
                await anyio.lowlevel.checkpoint()
            await ended.wait()
    assert host.begun == 0
