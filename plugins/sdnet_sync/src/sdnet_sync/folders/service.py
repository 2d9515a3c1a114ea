"""The folders of this device, and what can be done with those of others."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
import cbor2
from anyio.abc import TaskGroup

from sdnet_core import PluginContext, RemoteDevice
from sdnet_core.errors import (
    ConflictError,
    InvalidRequestError,
    NetworkingError,
    NotFoundError,
    NotRunningError,
    RefusedError,
)
from sdnet_core.events import NetworkEvent

from ..library import Library
from ..operations import Role
from ..settings import SyncSettings
from ..tasks import Tasks
from .attachments import Attachments, FolderRecord
from .browsing import files_below, holders_of, locations_of
from .entries import FILE_KIND, HOLDER_KIND, LOCATION_KIND, Location, Mode, file_id, file_key, holder_id
from .folder import Folder
from .jobs import Jobs
from .keeping import bring_back
from .publish import set_location
from .records import FolderStatus, HolderInfo, LocationInfo, TrashItem
from .serving import Source
from .signals import FolderSignals
from .tree import Tree

__all__ = ["FolderService"]

logger = logging.getLogger(__name__)

CHANNEL = "folders"
MAX_WATCHED = 64
_DELETED_TOGETHER = 500


class LibraryHost(Protocol):
    """What the folders need from the sync service."""

    def open_library(self, library: bytes) -> Library | None:
        """A library that is open."""

    def connected_members(self, library: bytes) -> list[RemoteDevice]:
        """Its members that are connected."""

    def is_paused(self, library: bytes) -> bool:
        """Whether nothing is exchanged about it."""

    def may_read(self, library: bytes, device: RemoteDevice) -> bool:
        """Whether a device may be told about it."""


class FolderService:
    """Locations and mirrors; reached as `SyncService.folders`."""

    def __init__(self, ctx: PluginContext, settings: SyncSettings, libraries: LibraryHost) -> None:
        self.ctx = ctx
        self.settings = settings
        self._libraries = libraries
        self._attachments = Attachments(ctx.storage)
        self._folders: dict[str, Folder] = {}
        self._scopes: dict[str, tuple[anyio.CancelScope, anyio.Event]] = {}
        self._tasks = Tasks()
        self._watched = 0
        self.jobs = Jobs(ctx, self)
        self.signals = FolderSignals(ctx)

    async def run(self, tasks: TaskGroup) -> None:
        """Start the folders whose libraries are open; they live in ``tasks``."""
        await self._attachments.load()
        self._tasks.begin(tasks)
        self.jobs.start(tasks)
        for record in list(self._attachments.records.values()):
            library = self._libraries.open_library(record.library)
            if library is not None:
                self._start(record, library)

    def stop(self) -> None:
        """No more folders."""
        self._tasks.end()
        self.jobs.stop()

    def _start(self, record: FolderRecord, library: Library) -> None:
        if not self._tasks.running:
            raise NotRunningError("Sync is not running.")
        folder = self._folders[record.location] = Folder(self, record, library, self.ctx.data_dir)
        scope, ended = self._scopes[record.location] = anyio.CancelScope(), anyio.Event()

        async def run() -> None:
            try:
                with scope:
                    await folder.run()
            except NetworkingError as error:
                logger.error("the folder %s is not kept in step: %s", record.path, error)
                folder.problems["."] = str(error)
            except Exception:
                logger.exception("a folder failed")
                folder.problems["."] = "it failed unexpectedly; see the log"
            finally:
                ended.set()

        self._tasks.start(run)

    async def close_library(self, library: bytes, *, forget: bool = False) -> None:
        """A library is no longer open: stop its folders.

        :param forget: it will not come back.
        """
        for location, folder in list(self._folders.items()):
            if folder.record.library == library:
                await self._end(location)
                if forget:
                    await self.ctx.run_blocking(folder.remove_files)
                    await self._attachments.remove(folder.record)

    async def _end(self, location: str) -> None:
        found = self._scopes.pop(location, None)
        if found is not None:
            found[0].cancel()
            await found[1].wait()
        self._folders.pop(location, None)

    # Adding and removing

    async def add_location(self, library: Library, path: Path, *, name: str = "") -> Location:
        """Index a folder of this device: all members see what is in it, and get contents on demand.

        :param name: its name in the library; that of the folder if empty.
        :raises InvalidRequestError: it is no folder.
        :raises ConflictError: it is a location of the library already, or the name is taken.
        """
        path = await self.ctx.run_blocking(_checked_folder, path)
        _check_may_write(library)
        self._check_free(library, path)
        name = _checked_name(name or path.name)
        if any(location.name == name for location in await locations_of(library)):
            raise ConflictError(f"There is a location {name} in {library.name} already; give another --name.")
        return await self._attach(library, path, self._new(name, Mode.INDEX), new=True)

    async def mirror(self, library: Library, path: Path, *, name: str = "", new: bool = False) -> Location:
        """Have the same files in a folder of this device as in those of the other members that mirror it.

        :param name: of the mirror; not needed if the library has one only.
        :param new: make another mirror, even if there is one.
        :raises ConflictError: the folder or the name is taken.
        :raises NotFoundError: there are several mirrors, and none is named.
        """
        path = await self.ctx.run_blocking(partial(_checked_folder, path, create=True))
        mirrors = [location for location in await locations_of(library) if location.mode is Mode.MIRROR]
        wanted = [location for location in mirrors if location.name == (name or path.name)]
        if not name and len(mirrors) == 1:
            wanted = mirrors
        if wanted and not new:
            location = wanted[0]
            there = self._folders.get(location.id)
            if there is not None and Path(there.record.path) != path:
                raise ConflictError(f"{location.name} is mirrored in {there.record.path} on this device already.")
            if there is not None:
                await self._end(location.id)  # once more, for a folder whose marker was lost
            self._check_free(library, path)
            return await self._attach(library, path, location, new=False)
        if mirrors and not name and not new:
            raise NotFoundError("Say which mirror with --name: " + ", ".join(location.name for location in mirrors))
        _check_may_write(library)
        self._check_free(library, path)
        name = _checked_name(name or path.name)
        if any(location.name == name for location in await locations_of(library)):
            raise ConflictError(f"There is a location {name} in {library.name} already; give another --name.")
        return await self._attach(library, path, self._new(name, Mode.MIRROR), new=True)

    def _new(self, name: str, mode: Mode) -> Location:
        random = self.ctx.randomness.bytes(8).hex()
        return Location(id=random, name=name, mode=mode, device=self.ctx.local_device.device_id)

    def _check_free(self, library: Library, path: Path) -> None:
        for folder in self._folders.values():
            other = Path(folder.record.path)
            same = folder.library is library or folder.mirror
            if same and (path == other or other in path.parents or path in other.parents):
                raise ConflictError(f"{path} is, or lies in or around, {other}, which is a location already.")

    async def _attach(self, library: Library, path: Path, location: Location, *, new: bool) -> Location:
        inode = await self.ctx.run_blocking(_mark, path, location)
        record = FolderRecord(
            location=location.id, library=library.library, path=str(path), mode=location.mode, inode=inode
        )
        await self._attachments.store(record)
        if new:
            fields = {"name": location.name, "mode": str(location.mode), "device": location.device}
            try:
                await library.replica.work(partial(set_location, location=location.id, fields=fields))
            except NetworkingError:
                await self._attachments.remove(record)
                raise
        self._start(record, library)
        return location

    async def remove(self, library: Library, location: Location, *, everywhere: bool = False) -> None:
        """Take a location away from this device. The folder and its files stay as they are.

        :param everywhere: also take it out of the library, for all members; always so for an index of this device.
        """
        own = location.device == self.ctx.local_device.device_id
        folder = self._folders.get(location.id)
        if folder is not None:
            await self._end(location.id)
            await self.ctx.run_blocking(folder.remove_files)
            if folder.mirror:
                await self.ctx.run_blocking(_unmark, Path(folder.record.path), location)
            await self._attachments.remove(folder.record)
        elif not everywhere:
            raise NotFoundError(f"This device has no folder of {location.name}.")
        if library.role < Role.WRITER:
            return
        async with library.transaction() as transaction:
            transaction.delete(HOLDER_KIND, holder_id(location.id, self.ctx.local_device.device_id))
            if everywhere or (location.mode is Mode.INDEX and own):
                transaction.delete(LOCATION_KIND, location.id)
        if everywhere or (location.mode is Mode.INDEX and own):
            await self._delete_files(library, location)

    async def _delete_files(self, library: Library, location: Location) -> None:
        waiting: list[str] = []

        async def delete() -> None:
            async with library.transaction() as transaction:
                for entry_id in waiting:
                    transaction.delete(FILE_KIND, entry_id)
            waiting.clear()

        async for info in files_below(library, location):
            waiting.append(file_id(location.id, file_key(info.path, location.mode)))
            if len(waiting) >= _DELETED_TOGETHER:
                await delete()
        if waiting:
            await delete()

    # Looking

    def folder(self, location: str) -> Folder:
        """This device's folder of a location.

        :raises NotFoundError: it has none.
        """
        try:
            return self._folders[location]
        except KeyError:
            raise NotFoundError("This device has no folder of that location.") from None

    async def locations(self, library: Library) -> list[LocationInfo]:
        """The locations of a library, who holds them, and how this device's own folders stand."""
        holders = await holders_of(library)
        found = []
        for location in await locations_of(library):
            infos = []
            for holder in holders:
                if holder.location != location.id:
                    continue
                told = self.signals.latest(library.library, location.id, holder.device)
                infos.append(
                    HolderInfo(
                        device_id=uuid.UUID(bytes=holder.device),
                        device_name=self._name(library, holder.device),
                        state=holder.state,
                        files=holder.files,
                        size=holder.size,
                        sequence=holder.sequence,
                        updated_at=holder.updated_at,
                        this_device=holder.device == self.ctx.local_device.device_id,
                        phase=told.phase if told is not None and told.phase != "done" else "",
                        files_done=told.files_done if told is not None else 0,
                        files_total=told.files_total if told is not None else 0,
                    )
                )
            folder = self._folders.get(location.id)
            found.append(
                LocationInfo(
                    library_id=library.id,
                    id=location.id,
                    name=location.name,
                    mode=str(location.mode),
                    holders=tuple(infos),
                    folder=None if folder is None else await self.folder_status(folder),
                )
            )
        return found

    async def places(self, library: Library) -> dict[str, tuple[str, str]]:
        """By location, its name and the names of the devices that hold it."""
        devices: dict[str, list[str]] = {}
        for holder in await holders_of(library):
            devices.setdefault(holder.location, []).append(self._name(library, holder.device))
        return {
            location.id: (location.name, ", ".join(sorted(devices.get(location.id, ()))))
            for location in await locations_of(library)
        }

    async def folder_status(self, folder: Folder) -> FolderStatus:
        """How a folder of this device stands."""
        files, size = await self.ctx.run_blocking(folder.index.totals) if folder.opened else (0, 0)
        fetcher = folder.fetcher
        return FolderStatus(
            path=folder.record.path,
            state=folder.state,
            files=files,
            size=size,
            waiting=fetcher.count,
            bytes_done=fetcher.bytes_done,
            bytes_total=fetcher.bytes_total,
            received_bytes=fetcher.received_bytes,
            problems=tuple(sorted(folder.problems.items()))[:100],
        )

    def _name(self, library: Library, device: bytes) -> str:
        names = {member.device: member.name for member in library.replica.view.members.members()}
        return names.get(device, device.hex()[:8])

    # What was deleted or replaced

    async def trash(self, folder: Folder, path: str | None = None) -> list[TrashItem]:
        """What was deleted or replaced in a mirror and is kept, latest first."""
        kept = await self.ctx.run_blocking(partial(folder.index.kept, path=path))
        return [
            TrashItem(number=item.number, path=item.path, size=item.size, at=item.at, deleted=item.deleted)
            for item in kept
        ]

    async def restore(self, folder: Folder, number: int) -> str:
        """Bring back something that was kept, here and at all members.

        :returns: where it is now.
        :raises NotFoundError: there is no such thing.
        """
        kept = next((k for k in await self.ctx.run_blocking(folder.index.kept) if k.number == number), None)
        if kept is None:
            raise NotFoundError(f"Nothing is kept under the number {number}.")
        path: str = await self.ctx.run_blocking(bring_back, folder.tree, folder.index, kept)
        folder.changed_here([path])
        return path

    # What folders and the content protocol ask

    def sources(self, library: bytes, device: RemoteDevice) -> Sequence[Source]:
        """The folders whose contents a device may have."""
        if not self._libraries.may_read(library, device):
            return []
        return self.own(library)

    def own(self, library: bytes) -> Sequence[Source]:
        """Folders of this device in a library that are there."""
        return [folder for folder in self._folders.values() if folder.record.library == library and folder.present]

    def members(self, library: bytes) -> list[RemoteDevice]:
        """The connected members of a library."""
        return self._libraries.connected_members(library)

    def paused(self, library: bytes) -> bool:
        """Whether nothing is exchanged about a library."""
        return self._libraries.is_paused(library)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Held while the system watches a folder: each takes a thread."""
        if self._watched >= MAX_WATCHED:
            raise RuntimeError(f"{MAX_WATCHED} folders are watched already")
        limiter = anyio.to_thread.current_default_thread_limiter()
        self._watched += 1
        limiter.total_tokens += 1
        try:
            yield
        finally:
            self._watched -= 1
            limiter.total_tokens -= 1

    def tell(self, library: bytes, message: dict[str, Any]) -> None:
        """Send a signal about folders to the members of a library."""
        opened = self._libraries.open_library(library)
        if opened is None:
            return
        try:
            opened.send_signal(CHANNEL, cbor2.dumps(message))
        except RefusedError:
            return  # not a member (any more)

    def publish(self, event: NetworkEvent) -> None:
        """Tell those who listen on this device."""
        self.signals.remember(event)
        self.ctx.publish(event)

    def heard(self, library: Library, device: RemoteDevice, payload: bytes) -> None:
        """A signal came."""
        location = self.signals.heard(library, device, payload)
        folder = self._folders.get(location) if location else None
        if folder is not None and folder.library is library:
            folder.look_again()

    def linked(self, library: bytes) -> None:
        """A member has come: it may have what is lacking."""
        for folder in self._folders.values():
            if folder.record.library == library:
                folder.look_again()


def _check_may_write(library: Library) -> None:
    if library.role < Role.WRITER:
        raise RefusedError(f"This device is a {library.role.name.lower()} of {library.name} and may not add to it.")


def _checked_name(name: str) -> str:
    if not 0 < len(name) <= 255 or not name.isprintable() or "/" in name or name in (".", ".."):
        raise InvalidRequestError("A location's name is 1 to 255 printable characters without a slash.")
    return name


def _checked_folder(path: Path, *, create: bool = False) -> Path:
    if not path.is_absolute():
        raise InvalidRequestError(f"{path} is not an absolute path.")
    try:
        if create:
            path.mkdir(parents=True, exist_ok=True)
        path = path.resolve(strict=True)
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be used: {error.strerror}.") from error
    if not path.is_dir() or path == Path(path.anchor):
        raise InvalidRequestError(f"{path} is not a folder.")
    return path


def _mark(path: Path, location: Location) -> int:
    tree = Tree(path)
    try:
        if location.mode is Mode.MIRROR:
            tree.mark(location.id)
        return tree.inode
    finally:
        tree.close()


def _unmark(path: Path, location: Location) -> None:
    try:
        tree = Tree(path)
    except NetworkingError:
        return
    try:
        if tree.marker() == location.id:
            tree.unmark()
    finally:
        tree.close()
