"""Gets the contents that a mirror lacks from the members that have them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from sdnet_core import RemoteDevice
from sdnet_core.errors import NetworkingError, NotFoundError

from .applying import Place
from .contents import MIN_BLOCK_BYTES
from .entries import FileInfo
from .fetching import ContentStream, open_content
from .parts import PartFile, write_small

if TYPE_CHECKING:
    from .folder import Folder

__all__ = ["Fetcher", "Want"]

logger = logging.getLogger(__name__)

GROUP_FILES, GROUP_BYTES = 256, 1 << 20
WRITTEN_BYTES = 8 << 20
FIRST_PAUSE_S, LAST_PAUSE_S = 0.3, 15.0


@dataclass(slots=True)
class Want:
    """Contents that are to come.

    :param place: where they go first.
    :param others: keys of other files with the same contents, which are then copied.
    :param without: devices that do not have them now.
    """

    place: Place
    others: list[str] = field(default_factory=list)
    without: set[uuid.UUID] = field(default_factory=set)
    here: bool = False


class Fetcher:
    """The fetching side of one folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._wants: dict[bytes, Want] = {}
        self._by_key: dict[str, bytes] = {}
        self._wake = anyio.Event()
        self.files_done = self.files_total = 0
        self.bytes_done = self.bytes_total = 0
        self.received_bytes = 0

    @property
    def wanted(self) -> bool:
        """Whether anything is lacking."""
        return bool(self._wants)

    @property
    def count(self) -> int:
        """How many files are lacking."""
        return len(self._by_key)

    def waiting(self, limit: int = 100) -> list[FileInfo]:
        """What is lacking, some of it."""
        return [want.place.info for want, _ in zip(self._wants.values(), range(limit), strict=False)]

    def want(self, places: Iterable[Place]) -> None:
        """Have contents fetched."""
        added = False
        for place in places:
            digest = place.info.digest
            earlier = self._by_key.get(place.key)
            if earlier is not None and earlier != digest:
                self.drop([place.key])
            if not self._wants:
                self.files_done = self.files_total = self.bytes_done = self.bytes_total = 0
            want = self._wants.get(digest)
            if want is None:
                self._wants[digest] = Want(place)
                self.files_total += 1
                self.bytes_total += place.info.size
                added = True
            elif want.place.key == place.key:
                want.place = place
            elif place.key not in want.others:
                want.others.append(place.key)
            self._by_key[place.key] = digest
        if added:
            self._wake.set()

    def drop(self, keys: Iterable[str]) -> None:
        """These are no longer wanted."""
        for key in keys:
            digest = self._by_key.pop(key, None)
            want = self._wants.get(digest) if digest is not None else None
            if digest is None or want is None:
                continue
            if key in want.others:
                want.others.remove(key)
            elif want.others:
                # Another one has to be planned again to say where it goes.
                self._folder.changed_there(want.others)
                for other in want.others:
                    self._by_key.pop(other, None)
                del self._wants[digest]
            else:
                del self._wants[digest]

    def take(self, digest: bytes) -> Want | None:
        """Contents have come: what they are for. None if nobody wants them any more."""
        want = self._wants.pop(digest, None)
        if want is not None:
            for key in (want.place.key, *want.others):
                self._by_key.pop(key, None)
            self.files_done += 1
            self.bytes_done += want.place.info.size
        return want

    def look_again(self) -> None:
        """Somebody may have what nobody had before."""
        for want in self._wants.values():
            want.without.clear()
        self._wake.set()

    async def run(self) -> None:
        """Fetch until cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            if not any(not want.here for want in self._wants.values()):
                self._wake = anyio.Event()
                await self._wake.wait()
                pause_s = FIRST_PAUSE_S
            self._wake = anyio.Event()
            got = False
            folder = self._folder
            if folder.present and not folder.host.paused(folder.library.library):
                for device in folder.host.members(folder.library.library):
                    wanted = [w for w in self._wants.values() if not w.here and device.device_id not in w.without]
                    if wanted:
                        got = await self._fetch(device, wanted) or got
            if got:
                pause_s = FIRST_PAUSE_S
                continue
            with anyio.move_on_after(pause_s):
                await self._wake.wait()
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
            for want in self._wants.values():
                want.without.clear()

    async def _fetch(self, device: RemoteDevice, wanted: Sequence[Want]) -> bool:
        """Fetch from one device.

        :returns: whether anything came, or there is more to ask it for.
        """
        folder = self._folder
        before = self.received_bytes
        try:
            async with open_content(folder.host.ctx, device, folder.library.library) as stream:
                await self._small(stream, device, [w for w in wanted if w.place.info.size <= MIN_BLOCK_BYTES])
                for want in wanted:
                    if want.place.info.size > MIN_BLOCK_BYTES and not want.here:
                        await self._large(stream, device, want)
        except NotFoundError:
            pass  # noted where it was asked for; the others are asked for on another stream
        except (NetworkingError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            logger.info("contents from %s: %s", device.device_id, error or type(error).__name__)
            for want in wanted:
                want.without.add(device.device_id)
        except OSError as error:
            folder.problems["."] = error.strerror or str(error)
            for want in wanted:
                want.without.add(device.device_id)
        left = any(not want.here and device.device_id not in want.without for want in wanted)
        return left or self.received_bytes > before

    async def _small(self, stream: ContentStream, device: RemoteDevice, wanted: Sequence[Want]) -> None:
        folder = self._folder
        by_digest = {want.place.info.digest: want for want in wanted}
        async with aclosing(stream.files(_groups(wanted))) as answers:
            async for found in answers:
                files: list[tuple[FileInfo, bytes]] = []
                for digest, data in found:
                    want = by_digest[digest]
                    if data is None or len(data) != want.place.info.size:
                        want.without.add(device.device_id)
                    elif digest in self._wants:
                        files.append((want.place.info, data))
                        self.received_bytes += len(data)
                if files:
                    await folder.run_blocking(write_small, folder.tree, files)
                    for info, _ in files:
                        by_digest[info.digest].here = True
                    folder.fetched(info.digest for info, _ in files)
                await self._room()

    async def _large(self, stream: ContentStream, device: RemoteDevice, want: Want) -> None:
        folder, info = self._folder, want.place.info
        part: PartFile | None = None
        try:
            recipe = await folder.run_blocking(folder.index.recipe, info.digest)
            if recipe is None:
                recipe = await stream.recipe(info.digest, info.size)
                self.received_bytes += len(recipe)
                await folder.run_blocking(_keep_recipe, folder, info.digest, recipe)
            part = PartFile(folder.tree, info, recipe)
            sources = [want.place.row.local] if want.place.row is not None else []
            missing = await folder.run_blocking(part.prepare, sources)
            waiting: list[tuple[int, bytes]] = []
            size = 0
            async with aclosing(stream.blocks(info.digest, info.size, recipe, missing)) as blocks:
                async for index, data in blocks:
                    waiting.append((index, data))
                    size += len(data)
                    self.received_bytes += len(data)
                    if size >= WRITTEN_BYTES:
                        await folder.run_blocking(part.write, waiting)
                        waiting, size = [], 0
                        folder.wake()
            await folder.run_blocking(part.write, waiting)
            await folder.run_blocking(part.finish)
            want.here = True
            folder.fetched([info.digest])
        except NotFoundError:
            want.without.add(device.device_id)
            # Answers that are under way belong to a request that failed: begin anew with a stream of its own.
            raise
        finally:
            if part is not None:
                part.close()

    async def _room(self) -> None:
        while self._folder.crowded:
            await self._folder.room.wait()


def _groups(wanted: Sequence[Want]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for want in wanted:
        if group and (len(group) >= GROUP_FILES or size + want.place.info.size > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(want.place.info.digest)
        size += want.place.info.size
    if group:
        yield group


def _keep_recipe(folder: Folder, digest: bytes, recipe: bytes) -> None:
    folder.index.change(recipes=[(digest, recipe)])
