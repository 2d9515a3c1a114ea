"""How folders and files stand in a library: kinds of entries, their ids and fields (pure).

A *location* is an entry of the kind `LOCATION_KIND`. Each device that holds it has an entry of the kind
`HOLDER_KIND`, and each file one of the kind `FILE_KIND` with one field, which changes as a whole.
"""

from __future__ import annotations

import unicodedata
import uuid
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from blake3 import blake3

from sdnet_core.errors import NetworkingError
from sdnet_file_transfer import check_path

from ..limits import MAX_ID
from ..state import EntryState, Write
from .contents import HASH_BYTES, MAX_FILE_BYTES

__all__ = [
    "CONTENT_FIELD",
    "EXECUTABLE",
    "FILE_KIND",
    "FOLDER_KINDS",
    "HOLDER_KIND",
    "LOCATION_KIND",
    "FileInfo",
    "Holder",
    "Location",
    "Mode",
    "Version",
    "conflict_name",
    "effective",
    "file_id",
    "file_key",
    "holder_id",
    "key_of",
    "location_of",
    "moved",
    "read_holder",
    "read_info",
    "read_location",
    "same_contents",
    "versions_of",
]

LOCATION_KIND, HOLDER_KIND, FILE_KIND = "sdnet.location", "sdnet.holder", "sdnet.file"
FOLDER_KINDS = frozenset((LOCATION_KIND, HOLDER_KIND, FILE_KIND))
CONTENT_FIELD = "file"
EXECUTABLE = 1
_MAX_FLAGS = 1
_ID_CHARACTERS = 16
_MAX_KEY = MAX_ID - _ID_CHARACTERS - 1


class Mode(StrEnum):
    """What a location is."""

    INDEX = "index"
    """A folder of one device: others see what is in it, and get contents on demand."""
    MIRROR = "mirror"
    """The same files in a folder of every device that takes part."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as the library has it.

    :param path: components joined by ``/``, in Unicode NFC.
    :param size: bytes.
    :param mtime_ns: when it was changed last, nanoseconds since the epoch.
    :param flags: `EXECUTABLE` or 0.
    :param digest: see `contents`.
    """

    path: str
    size: int
    mtime_ns: int
    flags: int
    digest: bytes

    def value(self) -> list[Any]:
        """As a field's value."""
        return [self.path, self.size, self.mtime_ns, self.flags, self.digest]


@dataclass(frozen=True, slots=True)
class Version:
    """One of the writes of a file that stand side by side."""

    info: FileInfo
    write: Write


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A location as the library has it.

    :param device: of an index: whose folder it is.
    """

    id: str
    name: str
    mode: Mode
    device: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """How a device's folder of a location stands.

    :param sequence: of its latest `LocationUpdate`.
    :param updated_at: when that was, seconds since the epoch.
    """

    location: str
    device: bytes
    state: str
    sequence: int
    updated_at: float
    files: int
    size: int


def read_info(value: Any) -> FileInfo | None:
    """A file from a field's value, which any member may have written; None if it is not one that can be."""
    if type(value) is not list or len(value) != 5:
        return None
    path, size, mtime_ns, flags, digest = value
    if type(path) is not str or any(type(number) is not int for number in (size, mtime_ns, flags)):
        return None
    if type(digest) is not bytes or len(digest) != HASH_BYTES:
        return None
    if not (0 <= size <= MAX_FILE_BYTES and 0 <= flags <= _MAX_FLAGS):
        return None
    try:
        if "/".join(check_path(path.split("/"))) != path:
            return None
    except NetworkingError:
        return None
    return FileInfo(path, size, mtime_ns, flags, digest)


def read_location(entry_id: str, fields: Any) -> Location | None:
    """A location from an entry's fields; None if it is none."""
    name, mode, device = fields.get("name"), fields.get("mode"), fields.get("device")
    if len(entry_id) != _ID_CHARACTERS or type(name) is not str or not name.isprintable() or not 0 < len(name) <= 255:
        return None
    if mode not in (Mode.INDEX, Mode.MIRROR) or type(device) is not bytes or len(device) != 16:
        return None
    return Location(id=entry_id, name=name, mode=Mode(mode), device=device)


def read_holder(entry_id: str, fields: Any) -> Holder | None:
    """A holder from an entry's fields; None if it is none."""
    location, _, device = entry_id.partition("/")
    numbers = [fields.get(name) for name in ("sequence", "updated", "files", "size")]
    try:
        device_id = uuid.UUID(hex=device).bytes
    except ValueError:
        return None
    state = fields.get("state")
    if type(state) is not str or not state.isprintable() or not all(type(n) is int and n >= 0 for n in numbers):
        return None
    sequence, updated_ms, files, size = (int(n) for n in numbers if n is not None)
    return Holder(
        location=location,
        device=device_id,
        state=state[:64],
        sequence=sequence,
        updated_at=updated_ms / 1000,
        files=files,
        size=size,
    )


def holder_id(location: str, device: bytes) -> str:
    """The id of the entry of a device's folder."""
    return f"{location}/{device.hex()}"


def file_key(path: str, mode: Mode) -> str:
    """By what a file is known within its location: its path, or a hash of that if it is long.

    In a mirror, paths that some disk takes for the same (other case, other Unicode form) are one file: so devices that
    make both meet in one entry, where that is a conflict like any other.
    """
    if mode is Mode.MIRROR:
        if path.isascii():
            path = path.lower()
        else:
            path = unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
    if len(path) <= _MAX_KEY:
        return path
    return f"/{blake3(path.encode()).hexdigest()}"


def file_id(location: str, key: str) -> str:
    """The id of a file's entry."""
    return f"{location}/{key}"


def key_of(entry_id: str) -> str:
    """The key of a file's entry."""
    return entry_id[_ID_CHARACTERS + 1 :]


def location_of(entry_id: str) -> str:
    """The location that a file's or a holder's entry belongs to."""
    return entry_id[:_ID_CHARACTERS]


def versions_of(state: EntryState | None) -> list[Version]:
    """The writes of a file that stand side by side and make sense, earliest first."""
    if state is None or state.kind != FILE_KIND:
        return []
    found = []
    for write in state.fields.get(CONTENT_FIELD, ()):
        info = read_info(write.value)
        if info is not None:
            found.append(Version(info, write))
    return found


def effective(state: EntryState | None) -> FileInfo | None:
    """The file that counts: the latest write. An edit counts more than a deletion that had not seen it."""
    versions = versions_of(state)
    return versions[-1].info if versions else None


def same_contents(one: FileInfo, other: FileInfo) -> bool:
    """Whether nothing would be lost if one stood in the other's place."""
    return (one.path, one.digest, one.flags) == (other.path, other.digest, other.flags)


def conflict_name(path: str, day: str, device: str, number: int = 0) -> str:
    """Where the version of a file goes that lost: ``report (conflict 2026-05-01 laptop).txt`` beside ``report.txt``.

    :param day: the date, as in the name.
    :param number: for when that is taken, too.
    """
    place = PurePosixPath(path)
    # What a name may not hold, and what would make it another extension.
    device = "".join(c if c.isalnum() or c in "-_" else "-" for c in device)[:32].strip("-") or "device"
    suffix = f" (conflict {day} {device}{f' {number}' if number else ''})"
    extension = place.suffix if len(place.suffix) <= 16 and " " not in place.suffix else ""
    stem = place.name.removesuffix(extension) if extension else place.name
    room = 255 - len((suffix + extension).encode())
    stem = stem.encode()[:room].decode(errors="ignore")
    return str(place.with_name(stem + suffix + extension))


def moved(info: FileInfo, path: str) -> FileInfo:
    """The same file at another path."""
    return replace(info, path=path)
