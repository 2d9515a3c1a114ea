"""The giving side of ``/sdnet/sync-content/1``: contents of files for members of the library they are in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from sdnet_core import PeerStream, ProtocolHandler, RemoteDevice, Runner
from sdnet_core.errors import TryLaterError
from sdnet_core.wire import decode, encode

from .content_messages import (
    MAX_ANSWER_BYTES,
    MAX_CONTENT_FRAME_BYTES,
    PROTOCOL_NAME,
    RECIPE_PAGE,
    AnyContentRequest,
    Block,
    Files,
    GetBlocks,
    GetFiles,
    GetRecipe,
    Gone,
    Recipe,
)
from .contents import HASH_BYTES, MIN_BLOCK_BYTES, block_count, read_block
from .index import Index, Row
from .tree import Tree

__all__ = ["ContentHandler", "ContentHost", "Source"]


class Source(Protocol):
    """A folder whose files can be read."""

    @property
    def tree(self) -> Tree:
        """Where they are."""

    @property
    def index(self) -> Index:
        """Which they are."""


class ContentHost(Protocol):
    """What the handler needs to know."""

    def sources(self, library: bytes, device: RemoteDevice) -> Sequence[Source]:
        """The folders of a library; none if the device is no member, or the library is paused."""


class ContentHandler(ProtocolHandler):
    """Answers requests for contents, one after the other, each read in a worker thread."""

    protocol_name = PROTOCOL_NAME

    def __init__(self, host: ContentHost, run_blocking: Runner) -> None:
        self._host = host
        self._run = run_blocking

    async def handle_stream(self, stream: PeerStream) -> None:
        device = stream.require_device()
        messages = stream.messages(max_bytes=MAX_CONTENT_FRAME_BYTES)
        while (data := await messages.receive_bytes_or_end()) is not None:
            request: AnyContentRequest = decode(data, AnyContentRequest, max_bytes=MAX_CONTENT_FRAME_BYTES)
            sources = self._host.sources(request.library, device)
            answers = _answers(request, sources)
            # An answer at a time: what is read is sent before more is read.
            while (answer := await self._run(next, answers, None)) is not None:
                await messages.send_bytes(answer)


def _answers(request: AnyContentRequest, sources: Sequence[Source]) -> Iterator[bytes]:
    """The encoded answers to a request. Blocks."""
    match request:
        case GetFiles():
            contents: list[bytes | None] = []
            size = 0
            for data in _read_files(request.digests, sources):
                if contents and size + len(data or b"") > MAX_ANSWER_BYTES:
                    yield encode(Files(contents=tuple(contents)))
                    contents, size = [], 0
                contents.append(data)
                size += len(data or b"") + 8
            yield encode(Files(contents=tuple(contents)))
        case GetRecipe():
            recipe = next((r for source in sources if (r := source.index.recipe(request.digest)) is not None), None)
            if recipe is None:
                yield encode(Gone())
            else:
                first = request.first * HASH_BYTES
                yield encode(Recipe(hashes=recipe[first : first + RECIPE_PAGE * HASH_BYTES]))
        case GetBlocks():
            yield from _read_blocks(request, sources)


def _read_files(digests: Sequence[bytes], sources: Sequence[Source]) -> Iterator[bytes | None]:
    rows = [(source, source.index.with_digests(digests)) for source in sources]
    for digest in digests:
        yield next((data for source, found in rows if (data := _small(source, found.get(digest))) is not None), None)


def _small(source: Source, row: Row | None) -> bytes | None:
    if row is None or row.info.size > MIN_BLOCK_BYTES:
        return None
    try:
        with source.tree.open(row.local) as descriptor:
            return read_block(descriptor, row.info.size, 0)
    except (OSError, TryLaterError):
        return None


def _read_blocks(request: GetBlocks, sources: Sequence[Source]) -> Iterator[bytes]:
    count = block_count(request.size)
    for row, source in _files(request.digest, sources):
        if row.info.size != request.size or any(block >= count for block in request.blocks):
            continue
        try:
            with source.tree.open(row.local) as descriptor:
                for block in request.blocks:
                    yield encode(Block(data=read_block(descriptor, request.size, block)))

                return
        except (OSError, TryLaterError):
            break
    yield encode(Gone())


def _files(digest: bytes, sources: Iterable[Source]) -> Iterator[tuple[Row, Source]]:
    for source in sources:
        for row in source.index.with_digest(digest):
            yield row, source
