"""The routes of locations and mirrors in the local API, under ``/v1/sync``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
import msgspec

from sdnet_core import ApiRequest, PluginContext, Route
from sdnet_core.errors import InvalidRequestError

from ..library import Library
from .browsing import Item, find_location, list_folder, split_place
from .folder import Folder
from .records import FolderProgress, LocationInfo, TrashItem
from .service import FolderService

__all__ = ["FolderApi"]

PROGRESS_S = 0.2


class _AddLocation(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    name: str = ""


class _Mirror(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    name: str = ""
    new: bool = False


class _Get(msgspec.Struct, forbid_unknown_fields=True):
    place: str
    to: str = ""


class _Remove(msgspec.Struct, forbid_unknown_fields=True):
    everywhere: bool = False


class _Restore(msgspec.Struct, forbid_unknown_fields=True):
    number: Annotated[int, msgspec.Meta(ge=1)]


class FolderApi:
    """The routes. ``{location}`` is a name or an id.

    :param find: gives a library by name, id or prefix.
    """

    def __init__(self, ctx: PluginContext, service: FolderService, find: Callable[[str], Library]) -> None:
        self._ctx = ctx
        self._service = service
        self._find = find

    def routes(self) -> list[Route]:
        """All of them."""
        one = "/libraries/{library}"
        table = [
            ("GET", f"{one}/locations", self.locations, "The locations, and which devices hold them"),
            ("POST", f"{one}/locations", self.add_location, "Index a folder of this device"),
            ("POST", f"{one}/mirrors", self.mirror, "Mirror a folder of this device"),
            ("POST", f"{one}/locations/{{location}}/remove", self.remove, "Take a location away from this device"),
            ("GET", f"{one}/locations/{{location}}/progress", self.progress, "How far this device's folder is"),
            ("GET", f"{one}/locations/{{location}}/trash", self.trash, "Deleted and replaced files that are kept"),
            ("POST", f"{one}/locations/{{location}}/restore", self.restore, "Bring back one of these"),
            ("GET", f"{one}/files", self.files, "What is in a folder of a location"),
            ("POST", f"{one}/get", self.get, "Get files of a location onto this device"),
            ("GET", "/jobs/{job}", self.job, "How far a job is, as a stream"),
            ("DELETE", "/jobs/{job}", self.cancel, "End a job"),
        ]
        return [Route(method=method, path=path, endpoint=end, summary=text) for method, path, end, text in table]

    def _library(self, request: ApiRequest) -> Library:
        return self._find(request.path["library"])

    async def _folder(self, request: ApiRequest) -> Folder:
        location = await find_location(self._library(request), request.path["location"])
        return self._service.folder(location.id)

    async def locations(self, request: ApiRequest) -> list[LocationInfo]:
        return await self._service.locations(self._library(request))

    async def add_location(self, request: ApiRequest) -> LocationInfo:
        """``{path, name?}``; the path is absolute."""
        body, library = request.body_as(_AddLocation), self._library(request)
        location = await self._service.add_location(library, Path(body.path), name=body.name)
        return await self._info(library, location.id)

    async def mirror(self, request: ApiRequest) -> LocationInfo:
        """``{path, name?, new?}``; the path is absolute."""
        body, library = request.body_as(_Mirror), self._library(request)
        location = await self._service.mirror(library, Path(body.path), name=body.name, new=body.new)
        return await self._info(library, location.id)

    async def _info(self, library: Library, location: str) -> LocationInfo:
        return next(info for info in await self._service.locations(library) if info.id == location)

    async def remove(self, request: ApiRequest) -> None:
        """``{everywhere?}``."""
        library = self._library(request)
        location = await find_location(library, request.path["location"])
        await self._service.remove(library, location, everywhere=request.body_as(_Remove).everywhere)

    async def progress(self, request: ApiRequest) -> AsyncIterator[FolderProgress]:
        """Ends once the folder is in step, or cannot be now."""
        folder = await self._folder(request)

        async def told() -> AsyncIterator[FolderProgress]:
            while True:
                settled = folder.settled.is_set()
                status = await self._service.folder_status(folder)
                indexing = self._service.signals.latest(folder.library.library, folder.record.location, folder.device)
                fetching = status.state == "fetching" or indexing is None
                yield FolderProgress(
                    files_done=folder.fetcher.files_done if fetching or indexing is None else indexing.files_done,
                    files_total=folder.fetcher.files_total if fetching or indexing is None else indexing.files_total,
                    bytes_done=status.bytes_done if fetching or indexing is None else indexing.bytes_done,
                    bytes_total=status.bytes_total if fetching or indexing is None else indexing.bytes_total,
                    received_bytes=status.received_bytes,
                    state=status.state,
                    finished=settled,
                    failed=status.problems,
                )
                if settled or status.state in ("absent", "paused", "removed"):
                    return
                with anyio.move_on_after(PROGRESS_S):
                    await folder.settled.wait()

        return told()

    async def trash(self, request: ApiRequest) -> list[TrashItem]:
        """Query: ``path`` for the versions of one file."""
        return await self._service.trash(await self._folder(request), request.query.get("path"))

    async def restore(self, request: ApiRequest) -> dict[str, Any]:
        """``{number}``."""
        number = request.body_as(_Restore).number
        return {"path": await self._service.restore(await self._folder(request), number)}

    async def files(self, request: ApiRequest) -> list[Item]:
        """Query: ``place``, ``location/path``; without it, the locations."""
        library, place = self._library(request), request.query.get("place", "").strip("/")
        if place:
            return await list_folder(library, *await split_place(library, place))
        found = []
        for info in await self._service.locations(library):
            largest = max(info.holders, key=lambda holder: holder.files, default=None)
            found.append(
                Item(
                    name=info.name,
                    path="",
                    folder=True,
                    size=largest.size if largest else 0,
                    modified_at=max((holder.updated_at for holder in info.holders), default=0.0),
                    files=largest.files if largest else 0,
                )
            )
        return found

    async def get(self, request: ApiRequest) -> dict[str, Any]:
        """``{place, to?}``: begins a job; ``to`` is a folder, else that for downloads."""
        body = request.body_as(_Get)
        target = Path(body.to) if body.to else self._ctx.downloads_dir
        if not target.is_absolute():
            raise InvalidRequestError(f"{target} is not an absolute path.")
        getting = await self._service.jobs.get(self._library(request), body.place, target)
        return {
            "job": self._service.jobs.begin(getting),
            "files_total": len(getting.files),
            "bytes_total": getting.bytes_total,
        }

    async def job(self, request: ApiRequest) -> AsyncIterator[FolderProgress]:
        """Ends when the job has."""
        getting = self._service.jobs.job(request.path["job"])

        async def told() -> AsyncIterator[FolderProgress]:
            while True:
                finished = getting.finished.is_set()
                yield FolderProgress(
                    files_done=getting.files_done,
                    files_total=len(getting.files),
                    bytes_done=getting.bytes_done,
                    bytes_total=getting.bytes_total,
                    received_bytes=getting.received_bytes,
                    finished=finished,
                    error=getting.error,
                    paths=tuple(getting.here[:1000]) if finished else (),
                    failed=tuple(getting.failed.items())[:100] if finished else (),
                )
                if finished:
                    return
                with anyio.move_on_after(PROGRESS_S):
                    await getting.finished.wait()

        return told()

    async def cancel(self, request: ApiRequest) -> None:
        self._service.jobs.cancel(request.path["job"])
