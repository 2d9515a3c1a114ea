"""The outbox and a plugin's database on a disk that is really full."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Any

import anyio
import pytest

from sdnet_core import NetworkingCore
from sdnet_core.errors import StorageError
from sdnet_core.testing import linked_nodes
from sdnet_messaging import MessagingService
from sdnet_messaging.plugin import MessagingPlugin

pytestmark = pytest.mark.anyio

QUICK = {"plugins": {"messaging": {"away_wait_s": 0.05, "ack_timeout_s": 0.3}}}


@pytest.fixture
def small_disk(small_disks: Any, tmp_path: Path) -> Path:
    """A file system of 4 MiB."""
    disk: Path = small_disks.mount(tmp_path / "disk", 4 << 20)
    return disk


async def put_for_ever(core: NetworkingCore, to: uuid.UUID) -> None:
    # SQLite may have some room left in files that are there already.
    for _ in range(200):
        await core.send_message(to, "messaging", bytes(8192), ttl_s=0.2)


async def test_a_full_disk_is_said_and_what_was_accepted_is_delivered(small_disks: Any, small_disk: Path) -> None:
    async with linked_nodes(2, plugins=[MessagingPlugin], home=small_disk, settings=QUICK) as nodes:
        a, b = nodes
        sender, receiver = a.get_service(MessagingService), b.get_service(MessagingService)
        to = b.device_info.id
        await sender.send_text(to, "0")
        nodes.cut(a, b)
        accepted = [(await sender.send_text(to, "1")).state]
        ballast = await anyio.to_thread.run_sync(small_disks.fill, small_disk)
        with pytest.raises(StorageError, match="no room"):
            await put_for_ever(a, to)
        assert accepted == ["queued"]
        await anyio.to_thread.run_sync(ballast.unlink)
        with anyio.fail_after(10):
            while True:
                try:
                    await sender.send_text(to, "2")
                    break
                except StorageError:
                    await anyio.sleep(0.1)
        nodes.heal(a, b)
        with anyio.fail_after(20):
            while [message.text for message in await receiver.inbox()] != ["0", "1", "2"]:  # noqa: ASYNC110
                await anyio.sleep(0.05)


async def test_a_receiver_whose_disk_is_full_makes_the_sender_wait(small_disks: Any, small_disk: Path) -> None:
    async with linked_nodes(2, plugins=[MessagingPlugin], home=small_disk, settings=QUICK) as (a, b):
        sender, receiver = a.get_service(MessagingService), b.get_service(MessagingService)
        to = b.device_info.id
        await sender.send_text(to, "0")
        sizes = [60_000] * 40
        ballast = await anyio.to_thread.run_sync(small_disks.fill, small_disk)
        with contextlib.suppress(StorageError):
            for number, size in enumerate(sizes):
                await sender.send_text(to, f"{number:05}" + "x" * size, ttl_s=60)
        before = len(await receiver.inbox())
        await anyio.to_thread.run_sync(ballast.unlink)
        with anyio.fail_after(40):
            while await sender.outbox():  # noqa: ASYNC110
                await anyio.sleep(0.05)
        texts = [message.text[:5] for message in await receiver.inbox()]
        assert len(texts) >= before
        assert len(texts) == len(set(texts))
        assert texts[1:] == sorted(texts[1:])
