"""One library on this device: its store, the one writer that changes it, and who hears of changes."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import anyio

from sdnet_core import Runner
from sdnet_core.errors import NetworkingError, NotRunningError

from .apply import Applied, apply_batches
from .operations import Operation, SignedBatch
from .standing import View
from .store import Store
from .transaction import Changed, Transaction

__all__ = ["Commit", "Replica"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_JOBS = 64
MAX_JOINED_BYTES = 2 << 20
"""Work that waits is committed together up to this size."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What one transaction did.

    :param changes: entries; empty if nobody wanted to know.
    :param many: whether there were too many to tell one by one.
    """

    view: View
    changes: Sequence[Changed]
    many: bool = False


@dataclass(eq=False, slots=True)
class _Job(Generic[T]):
    size: int
    operations: Sequence[Operation] = ()
    batches: Sequence[SignedBatch] | None = None
    work: Callable[[Transaction], T] | None = None
    done: anyio.Event = field(default_factory=anyio.Event)
    result: T | None = None
    error: BaseException | None = None


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Let the garbage collector rest meanwhile, if it is at work.

    A transaction makes tens of thousands of objects, all without cycles, and lets go of them at its end. The collector
    would look through them, and all others of the process, again and again: a third of the time of a transaction.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Replica:
    """The library's only way to its store. `open` it, then `run` its writer.

    :param make: opens the store; blocks.
    :ivar listeners: called after every commit, from the event loop.
    :ivar wants_changes: whether commits are to say which entries changed.
    """

    def __init__(self, make: Callable[[], Store], runner: Runner) -> None:
        self._make = make
        self._runner = runner
        self._opened: Store | None = None
        self._queue: deque[_Job[Any]] = deque()
        self._filled = anyio.Event()
        self._room = anyio.Event()
        self._closed = False
        self.listeners: list[Callable[[Commit], None]] = []
        self.wants_changes: Callable[[], bool] = lambda: False
        self.view: View

    @property
    def store(self) -> Store:
        """The store, for reading in worker threads.

        :raises NotRunningError: it is not open.
        """
        if self._opened is None:
            raise NotRunningError("Sync is not running.")
        return self._opened

    async def open(self) -> None:
        """Open the store.

        :raises StorageError: it cannot be opened or is damaged.
        """
        self._opened = await self._runner(self._make)
        self.view = self.store.view()

    async def close(self) -> None:
        """Close the store; what waits fails."""
        self._closed = True
        for job in self._queue:
            job.error = NotRunningError("Sync is not running.")
            job.done.set()
        self._queue.clear()
        store, self._opened = self._opened, None
        if store is not None:
            await self._runner(store.close)

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """Run a reading function of the store in a worker thread."""
        return await self._runner(function, *args)

    async def write(self, operations: Sequence[Operation], size: int) -> None:
        """Add operations of our own, all in one batch, durable when this returns.

        :param size: at least how many bytes they take.
        :raises ConflictError: a value that must be unique is taken.
        :raises RefusedError: our role does not allow it.
        :raises StorageError: it could not be stored.
        """
        await self._submit(_Job[None](size, operations=operations))

    async def write_all(self, portions: Sequence[tuple[Sequence[Operation], int]]) -> None:
        """Add several portions of operations, in their order, each as `write`; one that fails stops no other."""
        jobs = [_Job[None](size, operations=operations) for operations, size in portions]
        await self._submit_all(jobs)

    async def apply(self, batches: Sequence[SignedBatch]) -> Applied:
        """Take batches of others.

        :raises StorageError: they could not be stored.
        """
        size = sum(len(batch.body) for batch in batches)
        return cast(Applied, await self._submit(_Job[Applied](size, batches=batches)))

    async def work(self, function: Callable[[Transaction], T]) -> T:
        """Do something else in a transaction of its own; if it raises, nothing of it stays."""
        return cast(T, await self._submit(_Job[T](0, work=function)))

    async def _submit(self, job: _Job[T]) -> T | None:
        await self._submit_all([job])
        return job.result

    async def _submit_all(self, jobs: Sequence[_Job[T]]) -> None:
        while len(self._queue) >= MAX_JOBS * 4 and not self._closed:
            await self._room.wait()
        if self._closed:
            raise NotRunningError("Sync is not running.")
        self._queue += jobs
        self._filled.set()
        try:
            for job in jobs:
                await job.done.wait()
        except BaseException:
            for job in jobs:
                if job in self._queue:
                    self._queue.remove(job)
            raise
        for job in jobs:
            if job.error is not None:
                raise job.error

    async def run(self) -> None:
        """Write what is asked for, until cancelled."""
        while True:
            await self._filled.wait()
            self._filled = anyio.Event()
            while self._queue:
                jobs = self._take()
                room, self._room = self._room, anyio.Event()
                room.set()
                await self._commit(jobs)

    def _take(self) -> list[_Job[Any]]:
        jobs = [self._queue.popleft()]
        size = jobs[0].size
        if jobs[0].work is not None:
            return jobs
        while self._queue and len(jobs) < MAX_JOBS and self._queue[0].work is None:
            size += self._queue[0].size
            if size > MAX_JOINED_BYTES:
                break
            jobs.append(self._queue.popleft())
        return jobs

    async def _commit(self, jobs: list[_Job[Any]]) -> None:
        commit: Commit | None = None
        with anyio.CancelScope(shield=True):
            try:
                commit = await self._runner(self._transact, jobs, self.wants_changes())
            except NetworkingError as error:
                for job in jobs:
                    job.error = job.error or error
            except Exception as error:
                logger.exception("a transaction on a library failed")
                for job in jobs:
                    job.error = job.error or error
            # After a failure, too: what was read into memory anew is what counts.
            if self._opened is not None:
                self.view = self._opened.view()
        for job in jobs:
            job.done.set()
        if commit is not None:
            for listener in list(self.listeners):
                try:
                    listener(commit)
                except Exception:
                    logger.exception("a listener to a library raised")

    def _transact(self, jobs: list[_Job[Any]], wants_changes: bool) -> Commit:
        store = self.store
        with _without_collecting(), store.changing():
            transaction = Transaction(store)
            for job in jobs:
                if job.work is not None:
                    job.result = job.work(transaction)
                elif job.batches is not None:
                    transaction.end_batch()
                    job.result = apply_batches(transaction, job.batches)
                else:
                    try:
                        transaction.add(job.operations, job.size)
                    except NetworkingError as error:
                        job.error = error  # nothing of it was done; the others go on
            changes = transaction.finish(changes=wants_changes)
        return Commit(store.view(), changes)
