"""The one writer of a library, with its real store."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_sync.replica import Replica
from sdnet_sync.transaction import Transaction

from .replicas import Device

pytestmark = pytest.mark.anyio


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await anyio.to_thread.run_sync(function, *arguments)


@pytest.mark.parametrize("collecting", [True, False])
async def test_the_collector_is_left_as_it_was(tmp_path: Path, collecting: bool) -> None:
    device = Device(tmp_path, 1)
    replica = Replica(lambda: device.store, _in_thread)
    during: list[bool] = []

    def work(transaction: Transaction) -> None:
        during.append(gc.isenabled())

    def fail(transaction: Transaction) -> None:
        raise ZeroDivisionError

    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with anyio.fail_after(60):
            await replica.open()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(replica.run)
                await replica.work(work)
                assert gc.isenabled() is collecting
                with pytest.raises(ZeroDivisionError):
                    await replica.work(fail)
                assert gc.isenabled() is collecting
                tasks.cancel_scope.cancel()
            await replica.close()
    finally:
        (gc.enable if before else gc.disable)()
    assert during == [False]
