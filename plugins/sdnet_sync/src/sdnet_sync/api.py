"""The plugin's routes in the local API, under ``/v1/sync``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec

from sdnet_core import ApiRequest, PluginContext, Route
from sdnet_core.errors import InvalidRequestError, NotFoundError

from .folders.entries import CONTENT_FIELD, FILE_KIND, HOLDER_KIND, LOCATION_KIND, location_of, read_info
from .library import Library
from .operations import Role
from .records import Change, Conflict, Entry, Invitation, LibraryStatus, MemberInfo, Request, Verification
from .service import SyncService
from .values import from_json, to_json

__all__ = ["SyncApi"]

MAX_IMPORTED = 2000
"""Entries in one request."""


class _Name(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class _Invite(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    role: str = "writer"


class _AskFor(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    library: str
    role: str = "writer"


class _Place(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    id: str


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    id: str
    fields: dict[str, Any]


class _Entries(msgspec.Struct, forbid_unknown_fields=True):
    entries: Annotated[list[_Entry], msgspec.Meta(max_length=MAX_IMPORTED)]


class _Resolve(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    id: str
    field: str | None = None
    choose: int | None = None
    values: dict[str, Any] | None = None
    delete: bool = False


class _Verify(msgspec.Struct, forbid_unknown_fields=True):
    device: str | None = None
    repair: bool = False


class _Leave(msgspec.Struct, forbid_unknown_fields=True):
    delete: bool = False


class _Settings(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    strategies: dict[str, str] | None = None
    unique: list[str] | None = None


class SyncApi:
    """The plugin's routes. ``{library}`` is a name, an id, or a unique prefix of either."""

    def __init__(self, ctx: PluginContext, service: SyncService) -> None:
        self._ctx = ctx
        self._service = service

    def routes(self) -> list[Route]:
        """All of them."""
        one = "/libraries/{library}"
        table = [
            ("GET", "/libraries", self.libraries, "All libraries of this device"),
            ("POST", "/libraries", self.create, "Make a library"),
            ("GET", one, self.status, "How a library stands"),
            ("POST", f"{one}/invitations", self.invite, "Invite a device"),
            ("POST", f"{one}/leave", self.leave, "Leave a library"),
            ("DELETE", one, self.delete, "Delete what is left of a library that was left"),
            ("POST", f"{one}/pause", self.pause, "Exchange nothing for a while"),
            ("POST", f"{one}/resume", self.resume, "Go on"),
            ("POST", f"{one}/verify", self.verify, "Compare with other members"),
            ("GET", f"{one}/members", self.members, "The members"),
            ("POST", f"{one}/members", self.set_role, "Change a member's role"),
            ("DELETE", f"{one}/members/{{device}}", self.remove, "Remove a member"),
            ("GET", f"{one}/entries", self.query, "Entries, as a stream"),
            ("POST", f"{one}/entries", self.put, "Write entries"),
            ("GET", f"{one}/entry", self.get, "One entry"),
            ("POST", f"{one}/entries/delete", self.delete_entry, "Delete an entry"),
            ("GET", f"{one}/search", self.search, "Entries that contain a text"),
            ("GET", f"{one}/watch", self.watch, "Changes, as they come"),
            ("GET", f"{one}/conflicts", self.conflicts, "Changes whose authors did not know of each other"),
            ("POST", f"{one}/conflicts", self.resolve, "Settle conflicts"),
            ("POST", f"{one}/settings", self.set, "Strategies and unique fields of a kind"),
            ("GET", "/invitations", self.invitations, "Invitations to this device"),
            ("POST", "/invitations/{library}/accept", self.accept, "Accept an invitation"),
            ("POST", "/invitations/{library}/decline", self.decline, "Decline an invitation"),
            ("GET", "/search", self.search_all, "Entries and files of all libraries that contain a text"),
            ("GET", "/requests", self.requests, "Devices that ask to be invited"),
            ("POST", "/requests", self.ask, "Ask to be invited"),
        ]
        return [Route(method=method, path=path, endpoint=end, summary=text) for method, path, end, text in table]

    def _library(self, request: ApiRequest) -> Library:
        return self._service.find(request.path["library"])

    async def libraries(self, request: ApiRequest) -> list[LibraryStatus]:
        return [await library.status() for library in self._service.libraries()]

    async def create(self, request: ApiRequest) -> LibraryStatus:
        """``{name}``."""
        return await (await self._service.create(request.body_as(_Name).name)).status()

    async def status(self, request: ApiRequest) -> LibraryStatus:
        return await self._library(request).status()

    async def invite(self, request: ApiRequest) -> dict[str, Any]:
        """``{device, role?}``; says whether the device has been asked yet."""
        body = request.body_as(_Invite)
        device = self._ctx.find_device(body.device)
        asked = await self._service.invite(self._library(request).id, device.device_id, role_of(body.role))
        return {"device_id": device.device_id, "device_name": device.name, "asked": asked}

    async def leave(self, request: ApiRequest) -> None:
        """``{delete?}``."""
        await self._service.leave(self._library(request).id, delete=request.body_as(_Leave).delete)

    async def delete(self, request: ApiRequest) -> None:
        await self._service.delete(self._library(request).id)

    async def pause(self, request: ApiRequest) -> None:
        await self._service.pause(self._library(request).id)

    async def resume(self, request: ApiRequest) -> None:
        await self._service.resume(self._library(request).id)

    async def verify(self, request: ApiRequest) -> list[Verification]:
        """``{device?, repair?}``; all connected members if no device is named."""
        body, library = request.body_as(_Verify), self._library(request)
        if body.device is not None:
            devices = [self._ctx.find_device(body.device).device_id]
        else:
            devices = [member.device_id for member in library.members() if member.connected]
            if not devices:
                raise NotFoundError("No other member of the library is connected.")
        return [await library.verify(device, repair=body.repair) for device in devices]

    async def members(self, request: ApiRequest) -> list[MemberInfo]:
        return self._library(request).members()

    async def set_role(self, request: ApiRequest) -> None:
        """``{device, role}``."""
        body, library = request.body_as(_Invite), self._library(request)
        await self._service.set_role(library.id, self._member(library, body.device), role_of(body.role))

    async def remove(self, request: ApiRequest) -> None:
        library = self._library(request)
        await self._service.remove(library.id, self._member(library, request.path["device"]))

    def _member(self, library: Library, reference: str) -> uuid.UUID:
        for member in library.members():  # also those that are not paired with us
            if reference in (member.name, str(member.device_id)):
                return member.device_id
        return self._ctx.find_device(reference).device_id

    async def query(self, request: ApiRequest) -> AsyncIterator[dict[str, Any]]:
        """Query: ``kind``. Ends after the last entry."""
        library, kind = self._library(request), request.query.get("kind")

        async def entries() -> AsyncIterator[dict[str, Any]]:
            async with aclosing(library.query(kind)) as found:
                async for entry in found:
                    yield shown(entry)

        return entries()

    async def put(self, request: ApiRequest) -> dict[str, Any]:
        """``{entries: [{kind, id, fields}]}``; bytes are ``{"$bytes": "<hexadecimal>"}``."""
        entries = request.body_as(_Entries).entries
        written = await self._library(request).put_many((e.kind, e.id, from_json(e.fields)) for e in entries)
        return {"written": written}

    async def get(self, request: ApiRequest) -> dict[str, Any]:
        """Query: ``kind``, ``id``."""
        kind, entry_id = _place(request)
        entry = await self._library(request).get(kind, entry_id)
        if entry is None:
            raise NotFoundError(f"There is no {kind} {entry_id} in the library.")
        return shown(entry)

    async def delete_entry(self, request: ApiRequest) -> None:
        """``{kind, id}``."""
        body = request.body_as(_Place)
        await self._library(request).delete(body.kind, body.id)

    async def search(self, request: ApiRequest) -> list[dict[str, Any]]:
        """Query: ``text``, ``limit``."""
        text = request.query.get("text", "")
        if not text:
            raise InvalidRequestError("There is no text to search for.")
        return [shown(entry) for entry in await self._library(request).search(text, limit=_limit(request))]

    async def search_all(self, request: ApiRequest) -> list[dict[str, Any]]:
        """Query: ``text``, ``library``, ``limit``."""
        text, reference = request.query.get("text", ""), request.query.get("library")
        if not text:
            raise InvalidRequestError("There is no text to search for.")
        libraries = [self._service.find(reference)] if reference else self._service.libraries()
        found: list[dict[str, Any]] = []
        for library in libraries:
            entries = await library.search(text, limit=_limit(request) - len(found))
            places = await self._service.folders.places(library) if entries else {}
            found += [found_entry(library, entry, places) for entry in entries if entry.kind != HOLDER_KIND]
            if len(found) >= _limit(request):
                break
        return found

    async def watch(self, request: ApiRequest) -> AsyncIterator[dict[str, Any]]:
        """Query: ``kind``."""
        library, kind = self._library(request), request.query.get("kind")

        async def told() -> AsyncIterator[dict[str, Any]]:
            async with library.watch(kind) as changes:
                async for change in changes:
                    yield _shown_change(change)

        return told()

    async def conflicts(self, request: ApiRequest) -> list[dict[str, Any]]:
        """Query: ``all`` (``true``) for those that a strategy settles, too."""
        found = await self._library(request).conflicts(all_of_them=request.query.get("all") == "true")
        return [_shown_conflict(conflict) for conflict in found]

    async def resolve(self, request: ApiRequest) -> None:
        """``{kind, id, field?, choose?, values?, delete?}``."""
        body = request.body_as(_Resolve)
        await self._library(request).resolve(
            body.kind,
            body.id,
            field=body.field,
            choose=body.choose,
            values=None if body.values is None else from_json(body.values),
            delete=body.delete,
        )

    async def set(self, request: ApiRequest) -> None:
        """``{kind, strategies?, unique?}``."""
        body, library = request.body_as(_Settings), self._library(request)
        if body.strategies:
            await library.set_strategy(body.kind, body.strategies)
        if body.unique is not None:
            await library.set_unique(body.kind, body.unique)

    async def invitations(self, request: ApiRequest) -> list[Invitation]:
        return self._service.invitations()

    async def accept(self, request: ApiRequest) -> LibraryStatus:
        return await (await self._service.accept(self._invitation(request))).status()

    async def decline(self, request: ApiRequest) -> None:
        await self._service.decline(self._invitation(request))

    def _invitation(self, request: ApiRequest) -> uuid.UUID:
        reference = request.path["library"].casefold()
        found = [
            invitation.library_id
            for invitation in self._service.invitations()
            if invitation.name.casefold() == reference or str(invitation.library_id).startswith(reference)
        ]
        if len(found) != 1:
            raise NotFoundError(f"There is {'no' if not found else 'more than one'} invitation {reference!r}.")
        return found[0]

    async def requests(self, request: ApiRequest) -> list[Request]:
        return self._service.requests()

    async def ask(self, request: ApiRequest) -> None:
        """``{device, library, role?}``."""
        body = request.body_as(_AskFor)
        device = self._ctx.find_device(body.device)
        await self._service.request_access(device.device_id, body.library, role_of(body.role))


def role_of(name: str) -> Role:
    """A role by its name.

    :raises InvalidRequestError: there is none.
    """
    try:
        return {"reader": Role.READER, "writer": Role.WRITER, "owner": Role.OWNER}[name]
    except KeyError:
        raise InvalidRequestError("A role is reader, writer or owner.") from None


def shown(entry: Entry) -> dict[str, Any]:
    """An entry for JSON."""
    return {
        "kind": entry.kind,
        "id": entry.id,
        "fields": to_json(dict(entry.fields)),
        "modified_at": entry.modified_at,
        "author": entry.author,
        "conflicted": entry.conflicted,
    }


def _shown_change(change: Change) -> dict[str, Any]:
    return {
        "kind": change.kind,
        "id": change.id,
        "entry": None if change.entry is None else shown(change.entry),
        "author": change.author,
        "reset": change.reset,
    }


def _shown_conflict(conflict: Conflict) -> dict[str, Any]:
    result: dict[str, Any] = msgspec.to_builtins(conflict, builtin_types=(bytes,))
    return {**result, "sides": to_json(result["sides"])}


def _place(request: ApiRequest) -> tuple[str, str]:
    try:
        return request.query["kind"], request.query["id"]
    except KeyError:
        raise InvalidRequestError("Give kind and id.") from None


def _limit(request: ApiRequest) -> int:
    limit = request.query.get("limit", "100")
    if not (limit.isascii() and limit.isdecimal() and 0 < int(limit) <= 10_000):
        raise InvalidRequestError("limit is a number from 1 to 10000.")
    return int(limit)


def found_entry(library: Library, entry: Entry, places: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """An entry that a search has found.

    :param places: by location, its name and the devices that hold it.
    """
    info = read_info(entry.fields.get(CONTENT_FIELD)) if entry.kind == FILE_KIND else None
    location, devices, path = "", "", ""
    if info is not None or entry.kind == LOCATION_KIND:
        location, devices = places.get(location_of(entry.id), ("", ""))
        path = location if info is None else f"{location}/{info.path}"
    return {
        "library": library.name,
        "type": entry.kind.removeprefix("sdnet."),
        "path": path,
        "where": devices,
        **shown(entry),
    }
