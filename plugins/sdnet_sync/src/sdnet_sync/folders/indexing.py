"""Takes what a scan found into the library: reads the files, bounded in threads, and publishes them in portions."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from sdnet_core.errors import ConflictError, RefusedError

from ..operations import Role
from .contents import HASH_BYTES, ChangedWhileReadError, read_contents
from .entries import EXECUTABLE, FileInfo, Mode, conflict_name
from .index import Index, Row
from .publish import Change, Outcome, Publisher
from .scan import Found, Scan
from .tree import DiskFile, Tree, has_changed

if TYPE_CHECKING:
    from .folder import Folder

__all__ = ["Indexing"]

logger = logging.getLogger(__name__)

READ_TOGETHER_FILES, READ_TOGETHER_BYTES = 500, 64 << 20
READERS = 2
"""Threads that read files of one folder."""
_RACY_NS = 50_000_000
"""A file written so shortly before it was read may change again without its time showing it."""
RETRY_CHANGED_S = 1.0


@dataclass(frozen=True, slots=True)
class _Read:
    found: Found
    info: FileInfo
    disk: DiskFile
    recipe: bytes


class Indexing:
    """Indexes one folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def take(self, scan: Scan) -> None:
        """Take in what a scan found.

        :raises NetworkingError: it could not be written down; scan again.
        """
        await self._clashes(scan.clashes)
        total = len(scan.changed)
        total_bytes = sum(found.disk.size for found in scan.changed)
        done = done_bytes = 0
        missing = list(scan.missing)
        for portion in _portions(scan.changed):
            reads = await self._read(portion)
            # What is gone goes with the first portion, so that others see a rename as one.
            gone, missing = (missing[:500], missing[500:]) if done == 0 else ([], missing)
            await self._publish(reads, gone)
            done += len(portion)
            done_bytes += sum(found.disk.size for found in portion)
            if total > len(portion):
                self._folder.progress("indexing", done, total, done_bytes, total_bytes, force=done == total)
        while missing:
            gone, missing = missing[:1000], missing[1000:]
            await self._publish([], gone)

    async def announce(self) -> None:
        """Tell the members how our folder stands."""
        if self._folder.library.role >= Role.WRITER:
            try:
                await self._folder.library.replica.work(await self._publisher([]))
            except RefusedError as error:
                logger.info("how a folder stands was not written down: %s", error)

    async def _clashes(self, clashes: Sequence[Found]) -> None:
        """Give files another name whose own means the same as another's on some disks."""
        folder = self._folder
        for found in clashes:
            if folder.record.mode is Mode.INDEX or folder.library.role < Role.WRITER:
                folder.problems[found.local] = "another file's name means the same on some disks"
                continue
            day = time.strftime("%Y-%m-%d", time.gmtime(folder.host.ctx.clock.now()))
            for number in range(100):
                target = conflict_name(found.local, day, folder.host.ctx.local_device.name, number)
                try:
                    await folder.run_blocking(_move, folder.tree, found.local, target, found.disk)
                    folder.changed_here([target])
                    break
                except ConflictError:
                    continue
                except OSError as error:
                    folder.problems[found.local] = error.strerror or str(error)
                    break

    async def _read(self, portion: Sequence[Found]) -> list[_Read]:
        folder = self._folder
        results: list[list[_Read]] = [[] for _ in range(READERS)]
        again: list[str] = []

        async def read(number: int) -> None:
            part = portion[number::READERS]
            if part:
                results[number], problems, changed = await folder.run_blocking(
                    _read_files, folder.tree, folder.index, part
                )
                folder.problems |= problems
                again.extend(changed)

        async with anyio.create_task_group() as tasks:
            for number in range(READERS):
                tasks.start_soon(read, number)
        if again:
            folder.later(again, RETRY_CHANGED_S)
        return [item for result in results for item in result]

    async def _publisher(self, changes: Sequence[Change]) -> Publisher:
        folder = self._folder
        files, size = await folder.run_blocking(folder.index.totals)
        state = "ready" if folder.state in ("ready", "fetching") else "indexing"
        return Publisher(
            location=folder.record.location,
            mode=folder.record.mode,
            device=folder.device,
            device_name=folder.host.ctx.local_device.name,
            names=folder.member_names(),
            changes=changes,
            holder={"state": state, "files": files, "size": size},
            now_s=folder.host.ctx.clock.now,
        )

    async def _publish(self, reads: Sequence[_Read], missing: Sequence[Row]) -> None:
        folder = self._folder
        if missing and not await folder.still_there():
            missing = []
        changes = [Change(r.found.key, r.found.row.info if r.found.row else None, r.info) for r in reads]
        changes += [Change(row.key, row.info, None) for row in missing]
        if not changes:
            return
        publisher = await self._publisher(changes)
        if folder.library.role < Role.WRITER:
            await self._adopt(reads, missing)
            return
        await folder.library.replica.work(publisher)
        copies, again = await folder.run_blocking(self._note, publisher, reads, missing)
        if copies:
            folder.changed_here(copies)
        folder.changed_there(again)

    def _note(
        self, publisher: Publisher, reads: Sequence[_Read], missing: Sequence[Row]
    ) -> tuple[list[str], list[str]]:
        """Remember what the library has now; blocks.

        :returns: paths of conflict copies, and keys whose file is to be compared with the library.
        """
        folder = self._folder
        rows: list[Row] = []
        gone: list[str] = []
        again = list(publisher.saved)
        copies: list[str] = []
        recipes = [(r.info.digest, r.recipe) for r in reads if len(r.recipe) > HASH_BYTES]
        for read, outcome in zip(reads, publisher.outcomes, strict=False):
            found = read.found
            if outcome is Outcome.CONFLICT:
                copy = publisher.copies[found.key]
                again.append(found.key)
                gone.append(found.key)
                try:
                    folder.tree.move(found.local, copy.path, expected=read.disk)
                except ConflictError as error:
                    if folder.tree.disk_file(copy.path) is None:
                        raise
                    logger.info("a conflict copy is there already: %s", error)
                copies.append(copy.path)
            else:
                rows.append(Row(found.key, found.local, read.info, _settled(read.disk)))
                if outcome is Outcome.SAME:
                    again.append(found.key)
        for row, outcome in zip(missing, publisher.outcomes[len(reads) :], strict=False):
            gone.append(row.key)
            if outcome is not Outcome.DONE:
                again.append(row.key)
        folder.index.change(rows, gone=gone, recipes=recipes)
        return copies, again

    async def _adopt(self, reads: Sequence[_Read], missing: Sequence[Row]) -> None:
        """On a device that may only read: what is the same is ours, the rest is not for the others."""
        folder = self._folder

        def adopt() -> None:
            keys = [read.found.key for read in reads]
            known = folder.infos(keys)
            rows = []
            for read in reads:
                info = known.get(read.found.key)
                if info is not None and info.digest == read.info.digest:
                    rows.append(Row(read.found.key, read.found.local, read.info, _settled(read.disk)))
                else:
                    folder.problems[read.found.local] = "changed here, but this device may only read the library"
            folder.index.change(rows, gone=[row.key for row in missing])

        await folder.run_blocking(adopt)
        folder.changed_there([*(read.found.key for read in reads), *(row.key for row in missing)])


def _portions(changed: Sequence[Found]) -> list[list[Found]]:
    portions: list[list[Found]] = []
    size = 0
    for found in changed:
        if not portions or len(portions[-1]) >= READ_TOGETHER_FILES or size > READ_TOGETHER_BYTES:
            portions.append([])
            size = 0
        portions[-1].append(found)
        size += found.disk.size
    return portions


def _read_files(tree: Tree, index: Index, portion: Sequence[Found]) -> tuple[list[_Read], dict[str, str], list[str]]:
    """Read files; blocks.

    :returns: what was read, what could not be, and what changed meanwhile.
    """
    reads: list[_Read] = []
    problems: dict[str, str] = {}
    changed: list[str] = []
    for found in portion:
        try:
            known = _known(tree, index, found)
            if known is not None:
                info, recipe, disk = known.info, index.recipe(known.info.digest) or known.info.digest, found.disk
                digest = info.digest
            else:
                with tree.open(found.local) as descriptor:
                    contents, status = read_contents(descriptor)
                digest, recipe, disk = contents.digest, contents.recipe, DiskFile.of(status)
        except ChangedWhileReadError:
            changed.append(found.local)
            continue
        except FileNotFoundError:
            continue  # gone again; the watcher or the next scan sees that
        except OSError as error:
            problems[found.local] = error.strerror or str(error)
            continue
        flags = EXECUTABLE if disk.executable else 0
        reads.append(_Read(found, FileInfo(found.path, disk.size, disk.mtime_ns, flags, digest), disk, recipe))
    return reads, problems, changed


def _known(tree: Tree, index: Index, found: Found) -> Row | None:
    """The row of a file that was only moved here: it need not be read again."""
    if found.row is not None:
        return None
    for row in index.with_inode(found.disk.inode):
        if not has_changed(row.disk, found.disk) and row.disk.ctime_ns and tree.disk_file(row.local) is None:
            return row
    return None


def _settled(disk: DiskFile) -> DiskFile:
    """A file that was written just now is read again at the next occasion: its time may not show another change."""
    if time.time_ns() - disk.mtime_ns < _RACY_NS:
        return DiskFile(disk.size, disk.mtime_ns, 0, disk.inode, disk.executable)
    return disk


def _move(tree: Tree, local: str, target: str, disk: DiskFile) -> None:
    tree.move(local, target, expected=disk)
