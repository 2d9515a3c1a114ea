"""What is over begins nothing more, whatever still comes in."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from sdnet_core import PluginContext, RemoteDevice, SecureStorage
from sdnet_sync.catalog import Catalog, LibraryRecord
from sdnet_sync.library import Library
from sdnet_sync.link import Link
from sdnet_sync.messages import Goodbye
from sdnet_sync.operations import Role
from sdnet_sync.sharing import Sharing
from sdnet_sync.tasks import Tasks

pytestmark = pytest.mark.anyio

LIBRARY, DEVICE = bytes(16), uuid.UUID(int=7)


async def test_none_begins_while_the_others_end() -> None:
    begun, tasks = 0, Tasks()

    async def work() -> None:
        nonlocal begun
        begun += 1
        await anyio.sleep_forever()

    async def slow_to_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                    assert not tasks.start(work)

    assert not tasks.start(work)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            tasks.begin(group)
            assert tasks.start(work)
            assert tasks.start(slow_to_end)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel()
            assert not tasks.start(work)
    tasks.end()
    assert not tasks.start(work)
    assert begun == 1


class _Storage:
    """Counts what is to be stored."""

    def __init__(self) -> None:
        self.stored = 0

    async def store(self, name: str, data: bytes) -> None:
        self.stored += 1
        await anyio.sleep_forever()


class _Library:
    """A library in which the other device is an owner."""

    library, id, name = LIBRARY, uuid.UUID(bytes=LIBRARY), "Recipes"
    replica = SimpleNamespace(view=SimpleNamespace(members=SimpleNamespace(role=lambda device: Role.OWNER)))


class _Context:
    """A node without devices."""

    def devices(self) -> list[RemoteDevice]:
        return []

    def subscribe(self, kinds: Any) -> Any:
        return self

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        await anyio.sleep_forever()


@pytest.mark.parametrize("state", ["active", "leaving"])
async def test_a_goodbye_or_news_at_the_end_begins_nothing(state: str) -> None:
    storage = _Storage()
    catalog = Catalog(cast(SecureStorage, storage))
    catalog.records[LIBRARY] = LibraryRecord(
        id=LIBRARY,
        name="Recipes",
        state=state,
        secret=bytes(32),
        row_key=bytes(32),
        founder=DEVICE.bytes,
        founder_key=bytes(32),
        source=b"",
        role=Role.WRITER,
    )

    async def connected(device: RemoteDevice) -> None: ...

    sharing = Sharing(cast(PluginContext, _Context()), catalog, connected, relay_delay_s=0)
    sharing.libraries[LIBRARY] = cast(Library, _Library())
    link = SimpleNamespace(machine=SimpleNamespace(in_step=lambda library: True), close=lambda: None)
    sharing.linker.links[DEVICE] = cast(Link, link)
    device = cast(RemoteDevice, SimpleNamespace(device_id=DEVICE, name="bob"))

    def come_in() -> None:
        sharing.delivered(device, Goodbye(library=LIBRARY, reason="removed"))
        sharing.moved(LIBRARY)

    async def slow_to_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(20):
                    come_in()
                    await anyio.lowlevel.checkpoint()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            sharing.start(group)
            come_in()
            group.start_soon(slow_to_end)
            await anyio.wait_all_tasks_blocked()
            before = storage.stored
            assert before > 0
            group.cancel_scope.cancel()
            come_in()
    sharing.stop()
    come_in()
    assert storage.stored == before
