"""The asking side of ``/sdnet/sync-content/1``."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from sdnet_core import PeerStream, PluginContext, RemoteDevice
from sdnet_core.errors import NetworkTimeoutError, NotFoundError, ProtocolError
from sdnet_core.wire import Message, MessageStream, decode

from .content_messages import (
    MAX_BLOCKS,
    MAX_CONTENT_FRAME_BYTES,
    PROTOCOL_NAME,
    RECIPE_PAGE,
    AnyContentAnswer,
    Block,
    Files,
    GetBlocks,
    GetFiles,
    GetRecipe,
    Gone,
    Recipe,
)
from .contents import HASH_BYTES, block_count, block_size, digest_of, hash_block

__all__ = ["ContentStream", "open_content"]

T = TypeVar("T", bound=Message)

ANSWER_TIMEOUT_S = 60.0
_AHEAD_BYTES = 4 << 20
"""What is asked for before earlier answers are in."""


@asynccontextmanager
async def open_content(ctx: PluginContext, device: RemoteDevice, library: bytes) -> AsyncIterator[ContentStream]:
    """Ask a device for contents.

    :raises NetworkingError: it cannot be reached, or does not speak the protocol.
    """
    stream = await ctx.open_stream(device.device_id, PROTOCOL_NAME)
    async with stream:
        yield ContentStream(stream, library)


class ContentStream:
    """A stream on which contents come. Whatever comes was checked: it is what it was asked for as."""

    def __init__(self, stream: PeerStream, library: bytes) -> None:
        self._messages: MessageStream = stream.messages(max_bytes=MAX_CONTENT_FRAME_BYTES)
        self._library = library
        self.received_bytes = 0

    async def files(self, groups: Iterable[Sequence[bytes]]) -> AsyncGenerator[list[tuple[bytes, bytes | None]], None]:
        """Get files of one block, those of the next group being asked for while this one comes.

        :param groups: their digests.
        :returns: digests and contents, None for those that cannot be had there.
        :raises ProtocolError: something else came.
        """
        waiting: deque[Sequence[bytes]] = deque()
        source = iter(groups)
        while True:
            while len(waiting) < 2 and (group := next(source, None)) is not None:
                await self._messages.send(GetFiles(library=self._library, digests=tuple(group)))
                waiting.append(group)
            if not waiting:
                return
            group = waiting.popleft()
            position = 0
            while position < len(group):
                answer = await self._receive(Files)
                if len(answer.contents) > len(group) - position:
                    raise ProtocolError("More files came than were asked for.")
                found = []
                for data in answer.contents:
                    digest = group[position]
                    position += 1
                    # A file that changed there meanwhile is not what was asked for: as good as gone.
                    found.append((digest, data if data is not None and hash_block(data) == digest else None))
                yield found

    async def recipe(self, digest: bytes, size: int) -> bytes:
        """Get the hashes of a file's blocks.

        :raises NotFoundError: it cannot be had there.
        :raises ProtocolError: something else came.
        """
        count = block_count(size)
        recipe = bytearray()
        while len(recipe) < count * HASH_BYTES:
            first = len(recipe) // HASH_BYTES
            await self._messages.send(GetRecipe(library=self._library, digest=digest, first=first))
            part = (await self._receive(Recipe)).hashes
            wanted = min(RECIPE_PAGE, count - first) * HASH_BYTES
            if len(part) != wanted:
                raise ProtocolError("A list of blocks is not as long as it should be.")
            recipe += part
        if digest_of(bytes(recipe)) != digest:
            raise ProtocolError("A list of blocks is not that of the file.")
        return bytes(recipe)

    async def blocks(
        self, digest: bytes, size: int, recipe: bytes, wanted: Iterable[int]
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Get blocks of a file.

        :raises NotFoundError: one cannot be had there (any more).
        :raises ProtocolError: something else came.
        """
        at_once = max(1, min(MAX_BLOCKS, _AHEAD_BYTES // 2 // block_size(size)))
        source = iter(wanted)
        waiting: deque[list[int]] = deque()
        while True:
            while len(waiting) < 2:
                group = [index for _, index in zip(range(at_once), source, strict=False)]
                if not group:
                    break
                request = GetBlocks(library=self._library, digest=digest, size=size, blocks=tuple(group))
                await self._messages.send(request)
                waiting.append(group)
            if not waiting:
                return
            for index in waiting.popleft():
                data = (await self._receive(Block)).data
                if hash_block(data) != recipe[index * HASH_BYTES : (index + 1) * HASH_BYTES]:
                    raise NotFoundError("A file has changed at the other device.")
                yield index, data

    async def _receive(self, type_: type[T]) -> T:
        try:
            with anyio.fail_after(ANSWER_TIMEOUT_S):
                data = await self._messages.receive_bytes()
        except TimeoutError:
            raise NetworkTimeoutError("The other device gave no contents in time.") from None
        self.received_bytes += len(data)
        answer: Any = decode(data, AnyContentAnswer, max_bytes=MAX_CONTENT_FRAME_BYTES)
        if isinstance(answer, Gone):
            raise NotFoundError("The other device does not have it now.")
        if not isinstance(answer, type_):
            raise ProtocolError("The other device gave another answer than was asked for.")
        return answer
