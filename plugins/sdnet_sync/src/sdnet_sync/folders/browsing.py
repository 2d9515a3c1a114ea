"""What folders look like from any member: listings and searches over the files in a library."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from sdnet_core.errors import NotFoundError

from ..library import Library
from .entries import (
    CONTENT_FIELD,
    FILE_KIND,
    HOLDER_KIND,
    LOCATION_KIND,
    FileInfo,
    Holder,
    Location,
    file_id,
    file_key,
    location_of,
    read_holder,
    read_info,
    read_location,
)

__all__ = [
    "Item",
    "file_at",
    "files_below",
    "find_location",
    "holders_of",
    "list_folder",
    "locations_of",
    "split_place",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line of a listing.

    :param name: within the folder that is listed.
    :param size: bytes; of a folder, of all that is in it.
    :param files: in a folder; 1 for a file.
    """

    name: str
    path: str
    folder: bool
    size: int
    modified_at: float
    files: int = 1


async def locations_of(library: Library) -> list[Location]:
    """The locations of a library, by name."""
    async with aclosing(library.query(LOCATION_KIND)) as entries:
        found = [location async for entry in entries if (location := read_location(entry.id, entry.fields))]
    return sorted(found, key=lambda location: (location.name, location.id))


async def holders_of(library: Library) -> list[Holder]:
    """Which devices hold which locations."""
    async with aclosing(library.query(HOLDER_KIND)) as entries:
        return [holder async for entry in entries if (holder := read_holder(entry.id, entry.fields))]


async def find_location(library: Library, reference: str) -> Location:
    """A location by name or id.

    :raises NotFoundError: none fits, or several do.
    """
    locations = await locations_of(library)
    found = [loc for loc in locations if reference in (loc.name, loc.id)]
    if not found:
        found = [loc for loc in locations if loc.name.casefold() == reference.casefold()]
    if not found:
        raise NotFoundError(f"There is no location {reference!r} in {library.name}.")
    if len(found) > 1:
        raise NotFoundError(f"{reference!r} fits several locations: " + ", ".join(loc.id for loc in found))
    return found[0]


async def split_place(library: Library, place: str) -> tuple[Location, str]:
    """Take ``location/path/in/it`` apart; a location's name may itself hold slashes.

    :returns: the location, and the path in it, empty for its top.
    :raises NotFoundError: there is no such location.
    """
    reference, _, path = place.strip("/").partition("/")
    return await find_location(library, reference), path


async def files_below(library: Library, location: Location, path: str = "") -> AsyncIterator[FileInfo]:
    """All files of a location in a folder and below, in no particular order.

    :param path: the folder; empty for the whole location.
    """
    prefix = f"{path}/" if path else ""
    async with aclosing(library.query(FILE_KIND)) as entries:
        async for entry in entries:
            if location_of(entry.id) == location.id:
                info = read_info(entry.fields.get(CONTENT_FIELD))
                if info is not None and info.path.startswith(prefix):
                    yield info


async def file_at(library: Library, location: Location, path: str) -> FileInfo | None:
    """The file at a path."""
    entry = await library.get(FILE_KIND, file_id(location.id, file_key(path, location.mode)))
    return None if entry is None else read_info(entry.fields.get(CONTENT_FIELD))


async def list_folder(library: Library, location: Location, path: str) -> list[Item]:
    """What is in a folder of a location, folders first.

    :raises NotFoundError: there is nothing at the path.
    """
    info = await file_at(library, location, path) if path else None
    if info is not None:
        return [_file(info, info.path.rpartition("/")[2])]
    folders: dict[str, list[float]] = {}
    files: list[Item] = []
    prefix = f"{path}/" if path else ""
    async for found in files_below(library, location, path):
        name, slash, _ = found.path.removeprefix(prefix).partition("/")
        if slash:
            totals = folders.setdefault(name, [0, 0, 0])
            totals[0] += 1
            totals[1] += found.size
            totals[2] = max(totals[2], found.mtime_ns / 1e9)
        else:
            files.append(_file(found, name))
    if path and not folders and not files:
        raise NotFoundError(f"There is nothing at {location.name}/{path}.")
    items = [
        Item(name=name, path=prefix + name, folder=True, size=int(size), modified_at=latest, files=int(count))
        for name, (count, size, latest) in folders.items()
    ]
    return sorted(items, key=lambda item: item.name) + sorted(files, key=lambda item: item.name)


def _file(info: FileInfo, name: str) -> Item:
    return Item(name=name, path=info.path, folder=False, size=info.size, modified_at=info.mtime_ns / 1e9)
