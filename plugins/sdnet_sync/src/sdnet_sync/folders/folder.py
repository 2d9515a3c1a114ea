"""One folder of this device: reads it, writes what changed into the library, and the other way round.

One task owns it: nothing is scanned, placed or published at the same time as something else. Beside it run a watcher,
which says what may have changed, and the fetcher, which gets contents.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from sdnet_core.errors import NetworkingError, StorageError

from ..library import Library
from ..operations import Role
from ..replica import Commit
from ..tasks import Tasks
from .applying import Applier, Done, Place, make_plan
from .attachments import FolderRecord
from .entries import FILE_KIND, LOCATION_KIND, FileInfo, Mode, effective, file_id, key_of, location_of
from .events import progress_event
from .fetcher import Fetcher
from .host import FolderHost
from .index import Index
from .indexing import Indexing
from .keeping import expire
from .publish import settle
from .scan import Ignore, scan_all, scan_some
from .tree import Tree
from .watcher import watch_folder

__all__ = ["Folder"]

logger = logging.getLogger(__name__)

PLACED_TOGETHER = 512
PLANNED_TOGETHER = 2000
MAX_DIRTY = 100_000
MAX_ATTEMPTS = 4
ABSENT_POLL_S = 2.0
RETRY_S = 5.0
BLOCKED_S = 10.0
ANNOUNCE_S = 5.0
PROGRESS_S = 0.5


class Folder:
    """A folder that belongs to a location.

    :param record: which folder, and of what.
    :ivar state: ``starting``, ``indexing``, ``fetching``, ``ready``, ``absent``, ``paused`` or ``removed``.
    :ivar problems: what is left out or cannot be done, by path.
    """

    def __init__(self, host: FolderHost, record: FolderRecord, library: Library, data_dir: Path) -> None:
        self.host = host
        self.record = record
        self.library = library
        self.device: bytes = host.ctx.local_device.device_id
        self.index: Index
        self._index_path = data_dir / f"folder-{record.location}.sqlite3"
        self._tree: Tree | None = None
        self.state = "starting"
        self.problems: dict[str, str] = {}
        self.done_s = 0.0
        self._wake = anyio.Event()
        self.settled = anyio.Event()
        """Set while there is nothing to do."""
        self._local: set[str] = set()
        self._local_all = True
        self._remote: set[str] = set()
        self._remote_all = record.mode is Mode.MIRROR
        self._ready: deque[bytes] = deque()
        self.room = anyio.Event()
        self._attempts: Counter[str] = Counter()
        self._told_at = 0.0
        self._stopping = False
        self._tasks = Tasks()
        self._totals: tuple[int, int] | None = None
        self._announced_at, self._announcing = float("-inf"), False
        self._in_library: bool | None = None
        self.fetcher = Fetcher(self)
        self._indexing = Indexing(self)

    @property
    def tree(self) -> Tree:
        """The open folder.

        :raises StorageError: it is not there.
        """
        if self._tree is None:
            raise StorageError(f"{self.record.path} is not there.")
        return self._tree

    @property
    def present(self) -> bool:
        """Whether the folder is there."""
        return self._tree is not None

    @property
    def opened(self) -> bool:
        """Whether the index can be asked."""
        return hasattr(self, "index")

    @property
    def run_blocking(self) -> Any:
        """Runs a function in a worker thread."""
        return self.host.ctx.run_blocking

    @property
    def mirror(self) -> bool:
        """Whether contents come here, too."""
        return self.record.mode is Mode.MIRROR

    async def run(self) -> None:
        """Keep it in step until cancelled."""
        self.index = await self.run_blocking(Index, self._index_path)
        try:
            with self.library.following(self._committed):
                async with anyio.create_task_group() as tasks:
                    self._tasks.begin(tasks)
                    tasks.start_soon(self._rescan)
                    tasks.start_soon(watch_folder, self)
                    if self.mirror:
                        tasks.start_soon(self.fetcher.run)
                    await self._own()
        finally:
            self._tasks.end()
            self._stopping = True
            with anyio.CancelScope(shield=True):
                await self.run_blocking(self._close)

    def _close(self) -> None:
        self.index.close()
        if self._tree is not None:
            self._tree.close()
            self._tree = None

    def remove_files(self) -> None:
        """Delete the index; blocks. The folder stays as it is."""
        for path in self.index.files():
            path.unlink(missing_ok=True)

    # What wakes the owner

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def changed_here(self, paths: Iterable[str]) -> None:
        """Paths of the folder may have changed."""
        if len(self._local) < MAX_DIRTY:
            self._local.update(paths)
        else:
            self._local_all = True
        self._begin()

    def changed_there(self, keys: Iterable[str]) -> None:
        """Files of the library are to be compared with the disk."""
        self._remote.update(keys)

    def later(self, paths: Iterable[str], delay_s: float) -> None:
        """Look at paths again after a while: they are being written to."""
        paths = list(paths)

        async def look() -> None:
            await anyio.sleep(delay_s)
            self.changed_here(paths)

        self._tasks.start(look)

    def infos(self, keys: Sequence[str]) -> dict[str, FileInfo]:
        """What the library says about files; blocks."""
        store = self.library.replica.store
        found: dict[str, FileInfo] = {}
        for start in range(0, len(keys), 500):
            by_key = {
                store.key(FILE_KIND, file_id(self.record.location, key)): key for key in keys[start : start + 500]
            }
            for entry_key, state in store.get_many(list(by_key)).items():
                info = effective(state)
                if info is not None:
                    found[by_key[entry_key]] = info
        return found

    def rescan(self) -> None:
        """Anything may have changed."""
        self._local_all = True
        self._begin()

    def look_again(self) -> None:
        """Contents may be had that could not before."""
        self.fetcher.look_again()
        self.wake()

    def fetched(self, digests: Iterable[bytes]) -> None:
        """Parts are whole."""
        self._ready.extend(digests)
        self._begin()

    @property
    def crowded(self) -> bool:
        """Whether whole parts wait to be placed."""
        return len(self._ready) > 2 * PLACED_TOGETHER

    def _begin(self) -> None:
        if self.settled.is_set():
            self.settled = anyio.Event()
        self._wake.set()

    def _committed(self, commit: Commit) -> None:
        for changed in commit.changes:
            if changed.state.kind == LOCATION_KIND and changed.state.id == self.record.location:
                self._in_library = changed.state.visible
        if not self.mirror:
            return
        if commit.many:
            self._remote_all = True
        for changed in commit.changes:
            state = changed.state
            if state.kind == FILE_KIND and location_of(state.id) == self.record.location:
                # What we wrote ourselves is on our disk; what else we write, its writer says.
                if changed.author != self.device or state.conflicted:
                    self._remote.add(key_of(state.id))
        if len(self._remote) > MAX_DIRTY:
            self._remote.clear()
            self._remote_all = True
        if self._remote or self._remote_all:
            self._begin()
        elif self.state == "starting":
            self._wake.set()

    async def _rescan(self) -> None:
        while True:
            await anyio.sleep(self.host.settings.rescan_s * self.host.ctx.randomness.uniform(0.75, 1.25))
            if self._tree is not None:
                settings = self.host.settings
                before = self.host.ctx.clock.now() - settings.keep_days * 86400
                await self.run_blocking(expire, self._tree, self.index, before, settings.keep_versions)
            self._remote_all = self.mirror
            self.rescan()

    # The owner

    async def _own(self) -> None:
        while True:
            pause_s: float | None = None
            try:
                if not await self.run_blocking(self._look_for_it):
                    self.state, pause_s = "absent", ABSENT_POLL_S
                elif self.host.paused(self.library.library):
                    self.state, pause_s = "paused", ABSENT_POLL_S
                elif self.library.role is Role.NONE or self.library.replica.view.loading:
                    self.state, pause_s = "starting", ABSENT_POLL_S
                elif not await self._belongs():
                    # Taken out of the library for all: the files stay, here as everywhere.
                    self.state, pause_s = "removed", ABSENT_POLL_S
                    self.settled.set()
                else:
                    await self._work()
                    if self.fetcher.wanted:
                        self.state = "fetching"
                        self._progress("fetching")
                    else:
                        await self._settle()
            except (NetworkingError, OSError) as error:
                logger.warning("the folder %s is not in step: %s", self.record.path, error)
                self.problems["."] = str(error)
                pause_s = RETRY_S
            with anyio.move_on_after(pause_s if pause_s is not None else float("inf")):
                await self._wake.wait()
            self._wake = anyio.Event()

    async def _belongs(self) -> bool:
        """Whether the location is (still) in the library."""
        if self._in_library is None:
            self._in_library = await self.library.get(LOCATION_KIND, self.record.location) is not None
        return self._in_library

    def _look_for_it(self) -> bool:
        """Whether the folder is there and is the one that it should be: an unmounted disk leaves an empty one."""
        if self._tree is not None and not self._tree.present():
            self._tree.close()
            self._tree = None
            self._local_all = True
        if self._tree is None:
            try:
                tree = Tree(Path(self.record.path))
            except StorageError:
                return False
            self._tree = tree
        if self.mirror:
            there = self._tree.marker() == self.record.location
        else:
            there = self._tree.inode == self.record.inode
        if not there:
            self._tree.close()
            self._tree = None
        return there

    async def still_there(self) -> bool:
        """Whether what seems to be gone is gone, and not the whole folder."""
        return bool(await self.run_blocking(self._look_for_it))

    async def _work(self) -> None:
        while await self._belongs():
            if self._local_all:
                self._local_all, self.state = False, "indexing"
                self._local.clear()
                await self._scan(None)
            elif self._ready:
                await self._place_ready()
            elif self._local:
                paths, self._local = self._local, set()
                await self._scan(paths)
            elif self._remote_all:
                self._remote_all = False
                self._remote.clear()
                await self._compare_all()
            elif self._remote:
                keys = sorted(self._remote)[:PLANNED_TOGETHER]
                self._remote.difference_update(keys)
                await self._bring(keys)
            else:
                return

    async def _settle(self) -> None:
        totals = await self.run_blocking(self.index.totals)
        first = self._totals is None
        if totals != self._totals:
            await self._announce(totals)
        if self.state != "ready" or first:
            self.state = "ready"
            self._progress("done", force=True)
        self._attempts.clear()
        if not (self._local or self._local_all or self._remote or self._remote_all or self._ready):
            self.settled.set()

    async def _announce(self, totals: tuple[int, int]) -> None:
        """Tell the others how many files there are, but not with every change."""
        wait_s = self._announced_at + ANNOUNCE_S - anyio.current_time()
        if wait_s <= 0:
            self._totals, self._announced_at = totals, anyio.current_time()
            await self._indexing.announce()
        elif not self._announcing:

            async def remind() -> None:
                await anyio.sleep(wait_s)
                self._announcing = False
                self.wake()

            self._announcing = self._tasks.start(remind)

    async def _scan(self, paths: set[str] | None) -> None:
        ignore = await self.run_blocking(Ignore.read, self.tree)
        mode = self.record.mode
        try:
            if paths is None:
                scan = await self.run_blocking(
                    partial(scan_all, self.tree, self.index, mode, ignore, stopped=lambda: self._stopping)
                )
                if self.mirror and self.problems.keys() - scan.problems.keys():
                    self._remote_all = True  # what cannot be placed says so again
                self.problems = dict(scan.problems)
            else:
                scan = await self.run_blocking(scan_some, self.tree, self.index, mode, ignore, paths)
                for path in paths:
                    self.problems.pop(path, None)
                self.problems |= scan.problems
                if "/" not in "".join(paths) and any(path == ".sdnetignore" for path in paths):
                    self._local_all, self._remote_all = True, self.mirror
        except (StorageError, OSError):
            self._local_all = True
            raise
        try:
            await self._indexing.take(scan)
        except BaseException:
            self._local_all = True
            raise
        if scan.more:
            self._local_all = True

    async def _compare_all(self) -> None:
        """Look at every file of the location, and at every file that we know of."""
        store = self.library.replica.store
        after = 0
        while True:
            page = await self.run_blocking(lambda after=after: store.page(after, PLANNED_TOGETHER, kind=FILE_KIND))
            keys = [key_of(state.id) for _, state in page if location_of(state.id) == self.record.location]
            if keys:
                await self._bring(keys)
            if len(page) < PLANNED_TOGETHER:
                break
            after = page[-1][0]
        last = ""
        while rows := await self.run_blocking(self.index.page, last, PLANNED_TOGETHER):
            last = rows[-1].key
            await self._bring([row.key for row in rows])

    async def _bring(self, keys: Sequence[str]) -> None:
        """Bring files to what the library says."""
        ignore = await self.run_blocking(Ignore.read, self.tree)
        replica = self.library.replica
        plan = await self.run_blocking(make_plan, replica.store, self.index, self.record.location, keys, ignore)
        if plan.settle and self.library.role >= Role.WRITER:
            names = self.member_names()
            copies = await replica.work(
                lambda transaction: settle(transaction, self.record.location, plan.settle, self.device, names)
            )
            self._remote.update(copies)
        applier = self._applier()
        done = Done()
        # The location goes before its files do; that takes nothing from anybody's disk.
        if await self._belongs() and (plan.places or plan.removes or plan.renames or plan.touches):
            done = await self.run_blocking(applier.apply, plan)
            await self._after(done)
        lacking = {place.key for place in done.fetch}
        self.fetcher.drop(key for key in keys if key not in lacking)

    def _applier(self) -> Applier:
        return Applier(self.tree, self.index, keep_versions=self.host.settings.keep_versions > 0)

    async def _place_ready(self) -> None:
        digests = [self._ready.popleft() for _ in range(min(PLACED_TOGETHER, len(self._ready)))]
        places: list[Place] = []
        again: list[str] = []
        for digest in digests:
            want = self.fetcher.take(digest)
            if want is not None:
                places.append(want.place)
                again += want.others
        keys = [place.key for place in places]
        rows = await self.run_blocking(self.index.get_many, keys)
        places = [Place(place.key, place.info, rows.get(place.key)) for place in places]
        done = Done()
        await self.run_blocking(self._applier().place_ready, places, done)
        self._remote.update(again)
        await self._after(done)
        room, self.room = self.room, anyio.Event()
        room.set()
        if done.placed:
            self.host.tell(self.library.library, {"what": "have", "location": self.record.location})
        self._progress("fetching")

    async def _after(self, done: Done) -> None:
        self.problems |= done.problems
        self.fetcher.want(done.fetch)
        for path in done.changed:
            self._local.add(path)
        self._remote.update(done.later)
        for key in done.again:
            self._attempts[key] += 1
            if self._attempts[key] <= MAX_ATTEMPTS:
                self._remote.add(key)
            else:
                self.problems[key] = "something else lies in its place"
                self._tasks.start(self._try_again, key)

    async def _try_again(self, key: str) -> None:
        await anyio.sleep(BLOCKED_S)
        self.problems.pop(key, None)
        self._remote.add(key)
        self._begin()

    def member_names(self) -> dict[bytes, str]:
        """The members' names, as the library has them: the same on all devices."""
        return {member.device: member.name for member in self.library.replica.view.members.members()}

    def progress(self, phase: str, files: int, total: int, done_bytes: int, total_bytes: int, *, force: bool) -> None:
        """Tell how far it is, here and to the other members; at most twice a second, unless forced."""
        now = anyio.current_time()
        if not force and now - self._told_at < PROGRESS_S:
            return
        self._told_at = now
        numbers = [files, total, done_bytes, total_bytes]
        self.host.publish(progress_event(self.library, self.record.location, self.device, phase, numbers))
        message = {"what": "progress", "location": self.record.location, "phase": phase, "numbers": numbers}
        self.host.tell(self.library.library, message)

    def _progress(self, phase: str, *, force: bool = False) -> None:
        fetcher, (files, size) = self.fetcher, self._totals or (0, 0)
        if phase == "fetching":
            numbers = (fetcher.files_done, fetcher.files_total, fetcher.bytes_done, fetcher.bytes_total)
        else:
            numbers = (files, files, size, size)
        self.progress(phase, *numbers, force=force)
