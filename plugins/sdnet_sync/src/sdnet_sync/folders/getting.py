"""Gets files on demand: from another folder of this device if they are there, else from a member."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from sdnet_core import RemoteDevice, Runner
from sdnet_core.errors import ConflictError, ConnectionFailedError, NetworkingError, NotFoundError, StorageError
from sdnet_file_transfer import numbered

from .contents import HASH_BYTES, MIN_BLOCK_BYTES, hash_block, read_block
from .entries import FileInfo
from .fetching import ContentStream, open_content
from .parts import PartFile, part_name, write_small
from .serving import Source
from .tree import Tree

if TYPE_CHECKING:
    from sdnet_core import PluginContext

__all__ = ["Getting"]

PRIVATE = ".sdnet-partial-sync"
WRITTEN_BYTES = 4 << 20


@dataclass
class Getting:
    """One job: some files into one folder.

    :param base: what is taken off the front of the files' paths, with its slash.
    :ivar here: where they went.
    :ivar failed: why some could not be had, by path.
    """

    ctx: PluginContext
    library: bytes
    files: Sequence[FileInfo]
    base: str
    target: Path
    files_done: int = 0
    bytes_done: int = 0
    received_bytes: int = 0

    def __post_init__(self) -> None:
        self.here: list[str] = []
        self.failed: dict[str, str] = {}
        self.finished = anyio.Event()
        self.error = ""

    @property
    def bytes_total(self) -> int:
        """What there is to get."""
        return sum(info.size for info in self.files)

    async def run(self, sources: Sequence[Source], members: Sequence[RemoteDevice]) -> None:
        """Get them.

        :param sources: folders of this device that may have them.
        :param members: who else may.
        :raises StorageError: the folder cannot be written to.
        """
        run: Runner = self.ctx.run_blocking
        tree: Tree = await run(self._open)
        try:
            left = []
            for info in self.files:
                if await run(_from_here, tree, info, sources):
                    await self._place(tree, info)
                else:
                    left.append(info)
            for device in members:
                if left:
                    left = await self._from_device(tree, device, left)
            for info in left:
                self.failed.setdefault(info.path, "no connected device has it now")
            if self.failed and not self.here:
                raise ConnectionFailedError(next(iter(self.failed.values())).capitalize() + ".")
        finally:
            with anyio.CancelScope(shield=True):
                keep = frozenset(part_name(info.digest) for info in self.files if info.path in self.failed)
                await run(tree.drop_parts, keep)
                await run(tree.close)

    def _open(self) -> Tree:
        try:
            self.target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.target} cannot be made: {error.strerror}.") from error
        return Tree(self.target, private=PRIVATE)

    async def _from_device(self, tree: Tree, device: RemoteDevice, wanted: Sequence[FileInfo]) -> list[FileInfo]:
        """Get files from one member.

        :returns: those that it has not.
        """
        left = list(wanted)
        missing: list[FileInfo] = []
        while left:
            try:
                async with open_content(self.ctx, device, self.library) as stream:
                    while left:
                        await self._get(tree, stream, left[0])
                        left.pop(0)
            except NotFoundError:
                missing.append(left.pop(0))  # the others are asked for on another stream
                self.failed[missing[-1].path] = f"{device.name} does not have it now"
            except (NetworkingError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                for info in left:
                    self.failed.setdefault(info.path, str(error) or "the connection was lost")
                return missing + left
        return missing

    async def _get(self, tree: Tree, stream: ContentStream, info: FileInfo) -> None:
        run: Runner = self.ctx.run_blocking
        if info.size <= MIN_BLOCK_BYTES:
            async with contextlib.aclosing(stream.files([[info.digest]])) as answers:
                async for found in answers:
                    data = found[0][1]
                    if data is None:
                        raise NotFoundError("The other device does not have it now.")
                    self.received_bytes += len(data)
                    await run(write_small, tree, [(info, data)])
        else:
            await self._get_large(tree, stream, info)
        await self._place(tree, info)

    async def _get_large(self, tree: Tree, stream: ContentStream, info: FileInfo) -> None:
        run: Runner = self.ctx.run_blocking
        recipe = await stream.recipe(info.digest, info.size)
        part = PartFile(tree, info, recipe)
        try:
            missing: list[int] = await run(part.prepare, [])
            waiting: list[tuple[int, bytes]] = []
            size = 0
            async with contextlib.aclosing(stream.blocks(info.digest, info.size, recipe, missing)) as blocks:
                async for index, data in blocks:
                    waiting.append((index, data))
                    size += len(data)
                    self.received_bytes += len(data)
                    self.bytes_done += len(data)
                    if size >= WRITTEN_BYTES:
                        await run(part.write, waiting)
                        waiting, size = [], 0
            await run(part.write, waiting)
            await run(part.finish)
            self.bytes_done -= min(self.bytes_done, info.size)  # counted anew when it is placed
        finally:
            part.close()

    async def _place(self, tree: Tree, info: FileInfo) -> None:
        self.failed.pop(info.path, None)
        path = info.path.removeprefix(self.base)
        self.here.append(await self.ctx.run_blocking(_expose, tree, info, path))
        self.files_done += 1
        self.bytes_done += info.size


def _from_here(tree: Tree, info: FileInfo, sources: Sequence[Source]) -> bool:
    """Take a file from a folder of this device; blocks."""
    for source in sources:
        for row in source.index.with_digest(info.digest):
            recipe = info.digest if info.size <= MIN_BLOCK_BYTES else source.index.recipe(info.digest)
            if recipe is None:
                continue
            part = PartFile(tree, info, recipe)
            try:
                with source.tree.open(row.local) as descriptor:
                    missing = part.prepare([])
                    for index in missing:
                        data = read_block(descriptor, info.size, index)
                        if hash_block(data) != recipe[index * HASH_BYTES : (index + 1) * HASH_BYTES]:
                            break
                        part.write([(index, data)])
                    else:
                        part.finish()
                        return True
            except (OSError, NetworkingError):
                continue
            finally:
                part.close()
    return False


def _expose(tree: Tree, info: FileInfo, path: str) -> str:
    """Make a file visible, never over another; blocks.

    :returns: where it went.
    """
    folder, _, name = path.rpartition("/")
    number = 0
    while True:
        target = f"{folder}/{numbered(name, number)}".lstrip("/")
        try:
            tree.place(part_name(info.digest), target, replaces=None, keep=None)
        except ConflictError:
            number += 1
            if number > 10_000:
                raise
            continue
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error.strerror}.") from error
        return str(tree.root / target)
