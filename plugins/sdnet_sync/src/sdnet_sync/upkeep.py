"""What is done now and then for all libraries: acknowledging, tidying up, and following revocations."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import anyio
from anyio.abc import TaskGroup

from sdnet_core import PluginContext
from sdnet_core.errors import NetworkingError

from .library import Library
from .maintenance import forget_deletions, prune_log, unacknowledged
from .operations import Role
from .replica import Commit
from .settings import SyncSettings
from .tasks import Tasks
from .transaction import Transaction

__all__ = ["Upkeep"]

logger = logging.getLogger(__name__)

ACKNOWLEDGE_BATCHES = 256
"""Others are told what we have at the latest after so many batches."""


class Upkeep:
    """Keeps the open libraries in good order.

    :param libraries: those that are open.
    :param retry: asks again for what was missing in one.
    :param remove: removes a member from one.
    """

    def __init__(
        self,
        ctx: PluginContext,
        settings: SyncSettings,
        libraries: Mapping[bytes, Library],
        retry: Callable[[bytes], None],
        remove: Callable[[uuid.UUID, uuid.UUID], Awaitable[None]],
    ) -> None:
        self._ctx = ctx
        self._settings = settings
        self._libraries = libraries
        self._retry = retry
        self._remove = remove
        self._last_commit: dict[bytes, float] = {}
        self._tasks = Tasks()

    def start(self, tasks: TaskGroup) -> None:
        """From now on it is done; it lives in ``tasks``."""
        self._tasks.begin(tasks)
        self._tasks.start(self._maintain)
        self._tasks.start(self._watch_revocations)

    def stop(self) -> None:
        """No more of it."""
        self._tasks.end()

    def committed(self, library: bytes, commit: Commit) -> None:
        """A library changed here."""
        self._last_commit[library] = anyio.current_time()
        if unacknowledged(commit.view, self._ctx.local_device.device_id) >= ACKNOWLEDGE_BATCHES:
            self._tasks.start(self._acknowledge, library)

    async def _acknowledge(self, library: bytes) -> None:
        def acknowledge(transaction: Transaction) -> None:
            view = transaction.store.view()
            if unacknowledged(view, transaction.store.device) and not view.loading:
                transaction.acknowledge = True

        opened = self._libraries.get(library)
        try:
            if opened is not None:
                await opened.replica.work(acknowledge)
        except NetworkingError as error:
            logger.warning("others were not told what we have: %s", error)

    async def _watch_revocations(self) -> None:
        async with self._ctx.subscribe(["device-revoked"]) as events:
            async for event in events:
                device_id = getattr(event, "device_id", None)
                for library in list(self._libraries.values()):
                    try:
                        view = library.replica.view
                        member = device_id is not None and view.members.role(device_id.bytes) > Role.NONE
                        if member and library.role is Role.OWNER and device_id is not None:
                            await self._remove(library.id, device_id)
                    except NetworkingError as error:
                        logger.warning("a revoked device could not be removed from a library: %s", error)

    async def _maintain(self) -> None:
        while True:
            await anyio.sleep(self._settings.maintenance_s * self._ctx.randomness.uniform(0.75, 1.25))
            await self.maintain()

    async def maintain(self) -> None:
        """Acknowledge, forget what all members have, ask again for what was missing."""
        ours = self._ctx.local_device.device_id
        for library, opened in list(self._libraries.items()):
            replica = opened.replica
            try:
                idle_s = anyio.current_time() - self._last_commit.get(library, 0.0)
                if unacknowledged(replica.view, ours) and idle_s >= self._settings.acknowledge_after_s:
                    await self._acknowledge(library)
                while await replica.work(partial(prune_log, keep=self._settings.keep_batches)):
                    pass
                after: bytes | None = b""
                while after is not None:
                    after = await replica.work(partial(forget_deletions, after=after))
            except NetworkingError as error:
                logger.warning("a library could not be tidied up: %s", error)
            self._retry(library)
