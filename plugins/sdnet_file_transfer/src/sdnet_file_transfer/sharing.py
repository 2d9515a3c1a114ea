"""Shared folders, as programs and the local API see them."""

from __future__ import annotations

import builtins
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from sdnet_core import PluginContext
from sdnet_core.errors import InvalidRequestError

from .fetching import list_shared
from .jobs import Job, JobRecord
from .names import InvalidNameError, check_path
from .serving import PURPOSE
from .shares import Entry, Share, ShareBook
from .transfer import Transfer, TransferState

__all__ = ["SharedFolders", "check_absolute", "new_id"]


class SharedFolders:
    """Folders that this device shares with others, and what they share with it; `FileTransferService.shared`.

    :param add: starts a transfer.
    """

    def __init__(self, ctx: PluginContext, shares: ShareBook, add: Callable[[Job], Awaitable[None]]) -> None:
        self._ctx = ctx
        self._shares = shares
        self._add = add

    def shares(self) -> builtins.list[Share]:
        """The folders that this device shares, by name."""
        return [*self._shares]

    async def share(self, path: Path | str, devices: Sequence[uuid.UUID], *, name: str = "") -> Share:
        """Let devices read a folder and all that is in it, until it is taken back; nothing is shared by itself.

        :param path: absolute.
        :param devices: who may; those that may already keep it.
        :param name: what they call it; the folder's own name when empty.
        :raises DeviceNotFoundError: one is not paired.
        :raises InvalidRequestError: it is no folder, or cannot have that name.
        :raises ConflictError: another folder is shared under that name.
        """
        text = os.fspath(path)
        check_absolute(text)
        if not devices:
            raise InvalidRequestError("Say with which devices.")
        for device_id in devices:
            self._ctx.get_device(device_id)
        return await self._shares.add(text, devices, name=name, now=self._ctx.clock.now())

    async def unshare(self, name: str, devices: Sequence[uuid.UUID] = ()) -> Share:
        """Take a share back, at once for what is asked from now on.

        :param devices: from these; from all when empty.
        :returns: what is left of it.
        :raises NotFoundError: it is not shared, or not with one of these.
        """
        return await self._shares.remove(name, devices)

    async def list(self, device_id: uuid.UUID, path: Sequence[str] = ()) -> builtins.list[Entry]:
        """What a device shares with this one.

        :param path: the share's name and folders in it; empty for the shares.
        :raises NotFoundError: nothing that this device may see is there.
        :raises NetworkingError: the device cannot be reached, or does not answer.
        """
        return await list_shared(self._ctx, device_id, path)

    async def get(
        self, device_id: uuid.UUID, path: Sequence[str], destination: Path | None = None, *, priority: int = 0
    ) -> Transfer:
        """Start to get a file or folder that a device shares; goes on like a transfer that was sent.

        :param path: the share's name first.
        :param destination: the folder that it goes into, absolute, made if it is missing; the downloads folder if None.
        :param priority: among the transfers that wait for their turn, the higher, the sooner.
        :raises DeviceNotFoundError: the device is not paired.
        :raises InvalidRequestError: the path cannot be one.
        """
        device = self._ctx.get_device(device_id)
        if destination is not None:
            check_absolute(os.fspath(destination))
        try:
            wanted = check_path(path)
        except InvalidNameError as error:
            raise InvalidRequestError(error.detail) from error
        now = self._ctx.clock.now()
        transfer = Transfer(
            id=new_id(self._ctx),
            direction="receive",
            device_id=device_id,
            device_name=device.name,
            purpose=PURPOSE,
            state=TransferState.QUEUED,
            name=wanted[-1],
            destination=os.fspath(destination or self._ctx.downloads_dir),
            origin="/".join(wanted),
            created_at=now,
        )
        job = Job(self._ctx, JobRecord(transfer=transfer, wanted=wanted, priority=priority, updated_at=now))
        await self._add(job)
        return job.transfer


def new_id(ctx: PluginContext) -> uuid.UUID:
    """An id for a new transfer."""
    return uuid.UUID(bytes=ctx.randomness.bytes(16), version=4)


def check_absolute(text: str) -> None:
    """:raises InvalidRequestError: it is no path from the root, or holds bytes that are not text."""
    if not os.path.isabs(text):
        raise InvalidRequestError(f"{text} is not an absolute path.")
    if not text.isprintable():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError("A path contains bytes that are not text.") from None
