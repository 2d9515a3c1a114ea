"""Folders that are shared with single devices: which, with whom, and what lies in them (listing is blocking)."""

from __future__ import annotations

import os
import re
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from sdnet_core import Runner, SecureStorage
from sdnet_core.errors import ConflictError, InvalidRequestError, NotFoundError, SerializationError
from sdnet_core.wire import decode, encode

from . import beneath
from .names import STAGING_PREFIX, InvalidNameError, check_component, printable

__all__ = ["Entry", "Share", "ShareBook", "list_folder"]

_STORED = "shares"
_MAX_SHARES = 1000
_MAX_STORED_BYTES = 4 << 20
_NAME = re.compile(r"[^/\\\0:]+")


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that some devices may read.

    :param name: what the devices call it.
    :param path: where it is, absolute.
    :param devices: ids of those that may.
    """

    name: str
    path: str
    devices: tuple[uuid.UUID, ...]
    created_at: float = 0.0


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One entry of a folder; an array on the wire."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    directory: bool
    size: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]
    executable: bool


class ShareBook:
    """The shares of this device, kept in the plugin's sealed store. Nothing is shared by default."""

    def __init__(self, storage: SecureStorage, runner: Runner) -> None:
        self._storage = storage
        self._runner = runner
        self._shares: dict[str, Share] = {}

    async def load(self) -> None:
        """Read them.

        :raises StorageError: the store cannot be opened.
        """
        data = await self._storage.load(_STORED)
        if data is not None:
            try:
                shares: list[Share] = decode(data, list[Share], max_bytes=_MAX_STORED_BYTES)
            except SerializationError:
                shares = []
            self._shares = {share.name: share for share in shares}

    def __iter__(self) -> Iterator[Share]:
        return iter(sorted(self._shares.values(), key=lambda share: share.name))

    async def add(self, path: str, devices: Sequence[uuid.UUID], *, name: str = "", now: float = 0.0) -> Share:
        """Share a folder with devices, or one that is shared already with more of them.

        :raises InvalidRequestError: it is no folder, or the name cannot be one.
        :raises ConflictError: another folder is shared under that name.
        """
        real = await self._runner(_real_folder, path)
        name = name or Path(real).name
        try:
            name = check_component(name)
        except InvalidNameError as error:
            raise InvalidRequestError(f"{error.detail} Give another with --name.") from error
        if not _NAME.fullmatch(name) or name.casefold().startswith(STAGING_PREFIX):
            raise InvalidRequestError(f"A share cannot be called {printable(name)!r}.")
        known = self._shares.get(name)
        if known is not None and known.path != real:
            raise ConflictError(f"{known.path} is shared as {name} already; give another name with --name.")
        if known is None and len(self._shares) >= _MAX_SHARES:
            raise ConflictError(f"At most {_MAX_SHARES} folders can be shared.")
        before = () if known is None else known.devices
        created_at = now if known is None else known.created_at
        share = Share(name=name, path=real, devices=tuple(dict.fromkeys((*before, *devices))), created_at=created_at)
        await self._save({**self._shares, name: share})
        return share

    async def remove(self, name: str, devices: Sequence[uuid.UUID] = ()) -> Share:
        """Share a folder no longer, or no longer with some devices.

        :param devices: all when empty.
        :returns: what is left of it.
        :raises NotFoundError: it is not shared, or not with one of these.
        """
        share = self._shares.get(name)
        if share is None:
            raise NotFoundError(f"Nothing is shared as {printable(name)!r}.")
        if any(device not in share.devices for device in devices):
            raise NotFoundError(f"{name} is not shared with that device.")
        left = tuple(device for device in share.devices if devices and device not in devices)
        share = msgspec.structs.replace(share, devices=left)
        others = {key: value for key, value in self._shares.items() if key != name}
        await self._save({**others, name: share} if left else others)
        return share

    async def forget(self, device_id: uuid.UUID) -> None:
        """Take every share back from a device that is no longer paired."""
        shares = [
            msgspec.structs.replace(share, devices=tuple(one for one in share.devices if one != device_id))
            for share in self
        ]
        if any(share.devices != self._shares[share.name].devices for share in shares):
            await self._save({share.name: share for share in shares if share.devices})

    def shared_with(self, device_id: uuid.UUID) -> list[Share]:
        """What a device may read, by name."""
        return [share for share in self if device_id in share.devices]

    def find(self, device_id: uuid.UUID, name: str) -> Share:
        """A share as a device asks for it; one that it may not read looks like one that is not there.

        :raises NotFoundError: nothing is shared with it under that name.
        """
        share = self._shares.get(name)
        if share is None or device_id not in share.devices:
            raise NotFoundError(f"Nothing is shared with this device as {printable(name)!r}.")
        return share

    async def _save(self, shares: dict[str, Share]) -> None:
        await self._storage.store(_STORED, encode(list(shares.values())))
        self._shares = shares


def _real_folder(path: str) -> str:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise InvalidRequestError(f"{path} is not a folder.")
    return real


def list_folder(root: str, parts: Sequence[str]) -> list[Entry]:
    """What lies in a folder below a shared one, links and special files left out; or the one file that ``parts`` names.

    :raises NotFoundError: there is nothing there, or a link stands in the way.
    """
    shown = printable("/".join(parts)) or "The folder"
    try:
        with beneath.opened_beneath(root) as folders:
            found = folders.find(parts)
            if found:
                status = os.stat(found[-1], dir_fd=folders.get(found[:-1]), follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    return [entry] if (entry := _entry(found[-1], status)) else []
            entries = []
            with os.scandir(folders.get(found)) as found_here:
                for one in found_here:
                    try:
                        entry = _entry(one.name, one.stat(follow_symlinks=False))
                    except OSError:
                        continue
                    if entry is not None:
                        entries.append(entry)
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise NotFoundError(f"{shown} cannot be opened: {error.strerror}.") from error


def _entry(name: str, status: os.stat_result) -> Entry | None:
    directory = stat.S_ISDIR(status.st_mode)
    if not directory and not stat.S_ISREG(status.st_mode):
        return None
    try:
        name = check_component(name)
    except InvalidNameError:
        return None
    executable = not directory and bool(status.st_mode & stat.S_IXUSR)
    return Entry(name, directory, 0 if directory else status.st_size, status.st_mtime_ns, executable)
