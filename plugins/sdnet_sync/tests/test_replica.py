"""The one writer of a library, and what is read of its store."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_sync.fingerprints import leaf_of
from sdnet_sync.operations import Membership, Put, Role
from sdnet_sync.replica import Replica
from sdnet_sync.transaction import Transaction

from .replicas import Device


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await anyio.to_thread.run_sync(function, *arguments)


@pytest.mark.anyio
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


def test_a_leaf_is_listed_page_by_page(tmp_path: Path) -> None:
    device = Device(tmp_path, 1)
    store = device.store
    device.write(Membership(device.id, device.identity.public_key, Role.OWNER, "", 0))
    by_leaf: dict[int, list[str]] = {}
    for number in range(30_000):
        by_leaf.setdefault(leaf_of(store.key("note", str(number))), []).append(str(number))
    leaf = max(by_leaf, key=lambda one: len(by_leaf[one]))
    near = [name for one in (leaf - 1, leaf + 1) for name in by_leaf.get(one, ())]
    device.write(*(Put("note", name, {"text": name}) for name in [*by_leaf[leaf], *near]))
    expected = sorted(store.key("note", name) for name in by_leaf[leaf])
    assert len(expected) > 3

    for limit in (1, 2, len(expected), 100):
        listed: list[bytes] = []
        while page := store.leaf_entries(leaf, listed[-1] if listed else b"", limit):
            assert len(page) <= limit
            listed += [key for key, _ in page]
        assert listed == expected
    store.close()
