"""Contents of files for other plugins: serve them to paired devices, and fetch theirs, whole or in ranges."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import anyio
from blake3 import blake3

from sdnet_core import PeerStream, PluginContext, RemoteDevice
from sdnet_core.errors import (
    ConflictError,
    ConnectionFailedError,
    InvalidRequestError,
    NetworkingError,
    NetworkTimeoutError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    StorageError,
)

from . import beneath
from . import content_messages as m
from .conversation import STALL_S
from .limits import Limiter
from .messages import DATA, MAX_REASON_LENGTH, MAX_RECORD_BYTES, MAX_SIZE_BYTES
from .names import printable

__all__ = ["ContentChangedError", "ContentProvider", "ContentService", "Fetched", "RemoteContent", "open_beneath"]

_PIECE_BYTES = MAX_RECORD_BYTES - 4096
"""Contents of one record: whole pages, and room for the byte before them."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Progress: TypeAlias = Callable[[int, int], None]
Take: TypeAlias = Callable[[int, memoryview], object]


class ContentChangedError(NetworkingError):
    """The file changed while it was fetched, or is not what was expected; nothing of it may be used."""

    code = "changed"


class ContentProvider(Protocol):
    """What serves files under a name; see `ContentService.serve`."""

    async def open_content(self, device: RemoteDevice, key: bytes) -> int:
        """Decide whether a device gets a file, and open it.

        Called for every request, so that a permission that was taken back counts at once. `open_beneath` opens without
        following links.

        :param device: who asks; paired, at least verified.
        :param key: as it came, up to 4096 bytes: check it.
        :returns: a descriptor open for reading; it is closed when it was served.
        :raises NotFoundError: there is no such file.
        :raises RefusedError: the device may not have it.
        """


def open_beneath(root: Path, parts: Sequence[str]) -> int:
    """Open a file for reading by its path below a folder, without following any link (blocking).

    :param parts: components; ``..`` and separators are refused.
    :returns: a descriptor; the caller closes it.
    :raises NotFoundError: there is no such file, or it is a link, or no regular file.
    """
    if not parts or any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
        raise NotFoundError("There is no such file.")
    try:
        with beneath.opened_beneath(root) as folders:
            descriptor = os.open(parts[-1], _READ, dir_fd=folders.get(parts[:-1]))
    except OSError as error:
        raise NotFoundError(f"{printable(parts[-1])} cannot be opened: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFoundError(f"{printable(parts[-1])} is not a regular file.")
    return descriptor


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file, or ranges of one, that came whole.

    :param size: of the whole file over there, bytes.
    :param received: bytes that came over the wire.
    :param digest: BLAKE3 of the file that was written (`RemoteContent.fetch`), or of the bytes that came.
    """

    size: int
    mtime_ns: int
    received: int
    digest: bytes


class ContentService:
    """Serves contents of files to paired devices and fetches theirs. Names, places and permissions are the caller's.

    Get it with ``ctx.get_service(ContentService)``. Example, in a plugin that knows files by their hash::

        class Blobs:
            async def open_content(self, device, key):
                if not may_read(device):
                    raise RefusedError("Not for this device.")
                return await ctx.run_blocking(open_beneath, folder, [key.hex()])

        content = ctx.get_service(ContentService)
        with content.serve("blobs", Blobs()):
            async with content.connect(laptop.device_id, "blobs") as remote:
                await remote.fetch(digest, folder / "incoming", digest=digest)
    """

    def __init__(self, ctx: PluginContext, limiter: Limiter) -> None:
        self._ctx = ctx
        self._limiter = limiter
        self._providers: dict[str, ContentProvider] = {}

    @contextmanager
    def serve(self, source: str, provider: ContentProvider) -> Iterator[None]:
        """Serve files under a name for the length of the block.

        :param source: lower-case letters, digits, hyphens; the other side asks for it.
        :raises ConflictError: the name is taken.
        """
        if source in self._providers:
            raise ConflictError(f"Something serves {source} already.")
        self._providers[source] = provider
        try:
            yield
        finally:
            del self._providers[source]

    @asynccontextmanager
    async def connect(self, device_id: uuid.UUID, source: str) -> AsyncIterator[RemoteContent]:
        """Fetch from what a device serves under a name. One stream is used for all requests of the block.

        A stream is opened at the first request, and anew after one that failed: the block outlives lost connections.

        :raises DeviceNotFoundError: the device is not paired.
        """
        self._ctx.get_device(device_id)
        remote = RemoteContent(self._ctx, self._limiter, device_id, source)
        try:
            yield remote
        finally:
            await remote.aclose()

    async def answer(self, stream: PeerStream) -> None:
        """Serve one inbound stream of the content protocol."""
        device = stream.require_device()
        while True:
            try:
                record = await stream.receive_record()
            except anyio.EndOfStream:
                return
            request = m.decode_content(record)
            if not isinstance(request, m.ContentRequest):
                raise ProtocolError("A request for contents was expected.")
            await stream.send_record(m.encode_content(await self._answer(stream, device, request)))

    async def _answer(
        self, stream: PeerStream, device: RemoteDevice, request: m.ContentRequest
    ) -> m.ContentEnd | m.ContentFailure:
        provider = self._providers.get(request.source)
        if provider is None:
            return _failure("not-found", "Nothing serves that here.")
        try:
            descriptor = await provider.open_content(device, request.key)
        except RefusedError as error:
            return _failure("refused", error.detail)
        except NotFoundError as error:
            return _failure("not-found", error.detail)
        except (NetworkingError, OSError) as error:
            return _failure("storage", getattr(error, "detail", None) or "It cannot be read here.")
        try:
            return await self._pour(stream, device, request, descriptor)
        except OSError as error:
            return _failure("storage", f"It cannot be read: {error.strerror}.")
        finally:
            os.close(descriptor)

    async def _pour(
        self, stream: PeerStream, device: RemoteDevice, request: m.ContentRequest, descriptor: int
    ) -> m.ContentEnd | m.ContentFailure:
        before = os.fstat(descriptor)
        await stream.send_record(m.encode_content(m.ContentResponse(size=before.st_size, mtime_ns=before.st_mtime_ns)))
        hasher = blake3()
        throttle = self._limiter.up(device.device_id)
        buffer = bytearray(MAX_RECORD_BYTES)
        buffer[0] = DATA

        def fill(offset: int, length: int) -> int:
            count = os.preadv(descriptor, [memoryview(buffer)[1 : 1 + length]], offset)
            hasher.update(memoryview(buffer)[1 : 1 + count])
            return count

        for wanted in request.ranges:
            offset, end = wanted.offset, min(wanted.offset + wanted.length, before.st_size)
            while offset < end:
                count = await self._ctx.run_blocking(
                    fill, offset, min(_PIECE_BYTES, throttle.record_bytes, end - offset)
                )
                if not count:
                    return _failure("changed", "The file became shorter while it was sent.")
                await throttle.wait(count)
                with anyio.fail_after(STALL_S):
                    await stream.send_record(memoryview(buffer)[: 1 + count])
                offset += count
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            return _failure("changed", "The file changed while it was sent.")
        return m.ContentEnd(digest=hasher.digest())


def _failure(code: str, reason: str) -> m.ContentFailure:
    return m.ContentFailure(code=code, reason=reason[:MAX_REASON_LENGTH])


class RemoteContent:
    """What one device serves under one name; from `ContentService.connect`. One request runs at a time."""

    def __init__(self, ctx: PluginContext, limiter: Limiter, device_id: uuid.UUID, source: str) -> None:
        self._ctx = ctx
        self._throttle = limiter.down(device_id)
        self._device_id = device_id
        self._source = source
        self._stream: PeerStream | None = None
        self._lock = anyio.Lock()

    async def aclose(self) -> None:
        """Close the stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with anyio.CancelScope(shield=True):
                await stream.aclose()

    async def ranges(self, key: bytes, ranges: Sequence[tuple[int, int]], take: Take) -> Fetched:
        """Fetch ranges of a file.

        :param key: which file, as the other side's provider understands it.
        :param ranges: offset and length of each, in any order, at most 4096; what lies behind the end is left out.
        :param take: called in a worker thread with the offset and the bytes of each piece, in the order of ``ranges``.
            What it gave is good only when this returns: a file that changes meanwhile is an error.
        :raises NotFoundError: there is no such file over there, or nothing serves that name.
        :raises RefusedError: this device may not have it.
        :raises ContentChangedError: it changed while it was sent.
        :raises ConnectionFailedError: the device cannot be reached, or the connection was lost.
        :raises NetworkTimeoutError: nothing came for a long time.
        """
        if not 0 < len(ranges) <= m.MAX_RANGES:
            raise InvalidRequestError(f"One request is for 1 to {m.MAX_RANGES} ranges.")
        return await self._ask(self._request(key, ranges), take)

    def _request(self, key: bytes, ranges: Sequence[tuple[int, int]]) -> m.ContentRequest:
        wanted = tuple(m.ContentRange(offset, length) for offset, length in ranges)
        return m.ContentRequest(source=self._source, key=key, ranges=wanted)

    async def _ask(
        self, request: m.ContentRequest, take: Take, *, sized: Callable[[int], None] = lambda size: None
    ) -> Fetched:
        async with self._lock:
            good = False
            try:
                fetched = await self._fetch(request, take, sized)
                good = True
                return fetched
            except (NotFoundError, RefusedError, ContentChangedError, StorageError):
                good = True  # the stream is at the end of an answer
                raise
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream) as error:
                raise ConnectionFailedError("The connection was lost.") from error
            except TimeoutError:
                raise NetworkTimeoutError("The other device has stopped answering.") from None
            finally:
                if not good:
                    stream, self._stream = self._stream, None
                    if stream is not None:
                        await stream.reset()

    async def fetch(
        self, key: bytes, to: Path, *, digest: bytes | None = None, progress: Progress | None = None
    ) -> Fetched:
        """Fetch a whole file to a path, which is written as it comes: rename it when this has returned.

        With ``digest``, what ``to`` holds already is taken for the file's beginning and only the rest is fetched; what
        came of an interrupted call is kept for the next one. Without it, ``to`` is written anew.

        :param to: absolute; its folder exists. Synced to the disk when this returns.
        :param digest: the BLAKE3 that the whole file must have.
        :param progress: called with the bytes that are there and the file's size.
        :raises ContentChangedError: it changed meanwhile, or does not have that hash; ``to`` is emptied.
        :raises StorageError: it cannot be written.
        :raises NetworkingError: as `ranges`.
        """
        writing = await self._ctx.run_blocking(_Writing, to, digest is not None, progress)
        try:
            held = writing.position
            try:
                return await self._fetch_into(writing, key, digest)
            except ContentChangedError:
                if not held:
                    raise
                return await self._fetch_into(writing, key, digest)  # what was held was something else
        finally:
            with anyio.CancelScope(shield=True):
                await self._ctx.run_blocking(writing.close)

    async def _fetch_into(self, writing: _Writing, key: bytes, digest: bytes | None) -> Fetched:
        try:
            request = self._request(key, [(writing.position, MAX_SIZE_BYTES)])
            fetched = await self._ask(request, writing.take, sized=writing.sized)
            found = await self._ctx.run_blocking(writing.finish, digest)
        except ContentChangedError:
            await self._ctx.run_blocking(writing.empty)
            raise
        return Fetched(fetched.size, fetched.mtime_ns, fetched.received, found)

    async def _fetch(self, request: m.ContentRequest, take: Take, sized: Callable[[int], None]) -> Fetched:
        stream = await self._open()
        with anyio.fail_after(STALL_S):
            await stream.send_record(m.encode_content(request))
            answer = m.decode_content(await stream.receive_record())
        if isinstance(answer, m.ContentFailure):
            raise _error(answer)
        if not isinstance(answer, m.ContentResponse):
            raise ProtocolError("The other device answered something else.")
        sized(answer.size)
        hasher = blake3()
        received = 0
        for wanted in request.ranges:
            offset, end = wanted.offset, min(wanted.offset + wanted.length, answer.size)
            while offset < end:
                record = await self._record(stream)
                if record[0] != DATA:
                    raise self._ended(record)
                piece = memoryview(record)[1:]
                if not piece or offset + len(piece) > end:
                    raise ProtocolError("The other device sent more than was asked for.")
                await self._throttle.wait(len(piece))
                await self._ctx.run_blocking(_taken, take, hasher, offset, piece)
                offset += len(piece)
                received += len(piece)
        end_of_it = m.decode_content(await self._record(stream))
        if isinstance(end_of_it, m.ContentFailure):
            raise _error(end_of_it)
        if not isinstance(end_of_it, m.ContentEnd) or end_of_it.digest != hasher.digest():
            raise ProtocolError("What came is not what the other device says that it sent.")
        return Fetched(answer.size, answer.mtime_ns, received, end_of_it.digest)

    async def _record(self, stream: PeerStream) -> bytes:
        with anyio.fail_after(STALL_S):
            return await stream.receive_record()

    def _ended(self, record: bytes) -> NetworkingError:
        message = m.decode_content(record)
        if isinstance(message, m.ContentFailure):
            return _error(message)
        return ProtocolError("The other device left something out.")

    async def _open(self) -> PeerStream:
        if self._stream is not None and self._stream.draining:
            await self.aclose()
        if self._stream is None:
            self._stream = await self._ctx.open_stream(self._device_id, m.PROTOCOL_NAME)
        return self._stream


def _taken(take: Take, hasher: Any, offset: int, piece: memoryview) -> None:
    hasher.update(piece)
    take(offset, piece)


def _error(failure: m.ContentFailure) -> NetworkingError:
    reason = printable(failure.reason) or "The other device does not give it."
    match failure.code:
        case "refused":
            return RefusedError(reason)
        case "not-found":
            return NotFoundError(reason)
        case "changed":
            return ContentChangedError(reason)
        case _:
            return StorageError(reason)


class _Writing:
    """Writes a file that is fetched (blocking).

    :param keep: take what is there for the beginning.
    """

    def __init__(self, to: Path, keep: bool, progress: Progress | None) -> None:
        self._to = to
        self._progress = progress
        self._size = 0
        self._hasher = blake3()
        self.position = 0
        try:
            self._descriptor = os.open(to, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            if keep:
                while piece := os.pread(self._descriptor, 1 << 20, self.position):
                    self._hasher.update(piece)
                    self.position += len(piece)
            else:
                os.ftruncate(self._descriptor, 0)
        except OSError as error:
            raise self._failed(error) from error

    def sized(self, size: int) -> None:
        """Hear how large the whole is."""
        self._size = size

    def take(self, offset: int, piece: memoryview) -> None:
        try:
            beneath.write_all(self._descriptor, piece, offset)
        except OSError as error:
            raise self._failed(error) from error
        self._hasher.update(piece)
        self.position = offset + len(piece)
        if self._progress is not None:
            self._progress(self.position, self._size)

    def finish(self, digest: bytes | None) -> bytes:
        """Have it on the disk.

        :raises ContentChangedError: it is not what was expected.
        """
        found = self._hasher.digest()
        if self.position != self._size or (digest is not None and found != digest):
            raise ContentChangedError(f"{self._to.name} is not what was expected.")
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error
        return bytes(found)

    def empty(self) -> None:
        """Throw away what is there, to begin anew."""
        os.ftruncate(self._descriptor, 0)
        self._hasher, self.position = blake3(), 0

    def close(self) -> None:
        os.close(self._descriptor)

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(f"{self._to} cannot be written: {error.strerror}.")
