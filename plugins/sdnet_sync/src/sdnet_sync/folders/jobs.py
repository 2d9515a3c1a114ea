"""Jobs that get files of libraries onto this device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from sdnet_core import PluginContext, RemoteDevice
from sdnet_core.errors import NetworkingError, NotFoundError, NotRunningError, RefusedError

from ..library import Library
from ..tasks import Tasks
from .browsing import file_at, files_below, split_place
from .entries import FileInfo
from .getting import Getting
from .serving import Source

__all__ = ["Jobs"]

logger = logging.getLogger(__name__)

MAX_JOBS = 32


class Holders(Protocol):
    """Who may have contents."""

    def own(self, library: bytes) -> Sequence[Source]:
        """Folders of this device in a library."""

    def members(self, library: bytes) -> list[RemoteDevice]:
        """The connected members of a library."""


class Jobs:
    """All jobs of this device; finished ones are remembered for a while."""

    def __init__(self, ctx: PluginContext, holders: Holders) -> None:
        self._ctx = ctx
        self._holders = holders
        self._jobs: dict[str, tuple[Getting, anyio.CancelScope]] = {}
        self._tasks = Tasks()

    def start(self, tasks: TaskGroup) -> None:
        """From now on jobs can be begun; they live in ``tasks``."""
        self._tasks.begin(tasks)

    def stop(self) -> None:
        """No more jobs."""
        self._tasks.end()

    async def get(self, library: Library, place: str, target: Path) -> Getting:
        """Get a file, or a folder with all that is in it. Run what this gives in a task of its own.

        :param place: ``location/path``.
        :param target: the folder into which it goes.
        :raises NotFoundError: there is nothing at the place.
        """
        location, path = await split_place(library, place)
        info = await file_at(library, location, path) if path else None
        files: list[FileInfo] = [info] if info is not None else []
        if info is None:
            files = [found async for found in files_below(library, location, path)]
        if not files:
            raise NotFoundError(f"There is nothing at {place}.")
        folder, _, _ = path.rpartition("/")
        base = f"{folder}/" if folder else ""
        if info is None and not path:
            target = target / location.name
        files.sort(key=lambda found: found.path)
        return Getting(self._ctx, library.library, files, base, target)

    async def run(self, getting: Getting) -> None:
        """Do it.

        :raises ConnectionFailedError: nothing of it can be had now.
        """
        library = getting.library
        await getting.run(self._holders.own(library), self._holders.members(library))

    def begin(self, getting: Getting) -> str:
        """Begin to get files; `job` says how far it is.

        :returns: the job's name.
        :raises RefusedError: too many jobs are going on.
        """
        if not self._tasks.running:
            raise NotRunningError("Sync is not running.")
        for name, (job, _) in list(self._jobs.items()):
            if len(self._jobs) >= MAX_JOBS and job.finished.is_set():
                del self._jobs[name]
        if len(self._jobs) >= MAX_JOBS:
            raise RefusedError("Too many files are being fetched already; try again later.")
        name, scope = self._ctx.randomness.bytes(8).hex(), anyio.CancelScope()
        self._jobs[name] = getting, scope

        async def work() -> None:
            try:
                with scope:
                    await self.run(getting)
                if scope.cancelled_caught:
                    getting.error = "It was cancelled."
            except NetworkingError as error:
                getting.error = str(error)
            except Exception:
                logger.exception("getting files failed")
                getting.error = "It failed unexpectedly; see the log."
            finally:
                getting.finished.set()

        self._tasks.start(work)
        return name

    def job(self, name: str) -> Getting:
        """A job that was begun.

        :raises NotFoundError: there is none.
        """
        try:
            return self._jobs[name][0]
        except KeyError:
            raise NotFoundError("There is no such job (any more).") from None

    def cancel(self, name: str) -> None:
        """End a job; what has come stays.

        :raises NotFoundError: there is none.
        """
        self.job(name)
        self._jobs[name][1].cancel()
