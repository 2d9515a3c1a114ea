"""Bare trio sockets: what the machine and trio allow, with and without one pass of encryption.

A "stream" is a TCP connection of its own. The variant ``aead`` seals what is sent in messages of Noise's largest size
with ChaCha20-Poly1305, the cipher of libp2p's Noise, and does nothing else that a secure channel would have to.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from benchmarks.stacks import Handler, Stack, Stream, Where

__all__ = ["make"]

_KEY = bytes(32)
_PLAINTEXT_BYTES = 65_519
_TAG_BYTES = 16
_RECEIVE_BYTES = 262_144
_LENGTH = struct.Struct("!H")


class _Sealed:
    """A TCP connection whose two directions are sealed, with a two-byte length before each message as in Noise."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._aead = ChaCha20Poly1305(_KEY)
        self._sent = 0
        self._received = 0
        self._out = bytearray()
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    async def send(self, data: bytes) -> None:
        """Seal all of it in place and hand it to the kernel at once."""
        view = memoryview(data)
        messages = -(-len(view) // _PLAINTEXT_BYTES)
        total = len(view) + messages * (_LENGTH.size + _TAG_BYTES)
        if len(self._out) < total:
            self._out = bytearray(total)
        with memoryview(self._out) as out:
            end = 0
            for at in range(0, len(view), _PLAINTEXT_BYTES):
                plaintext = view[at : at + _PLAINTEXT_BYTES]
                sealed_bytes = len(plaintext) + _TAG_BYTES
                _LENGTH.pack_into(out, end, sealed_bytes)
                end += _LENGTH.size
                nonce = self._sent.to_bytes(12, "little")
                self._aead.encrypt_into(nonce, plaintext, None, out[end : end + sealed_bytes])
                end += sealed_bytes
                self._sent += 1
            await self._stream.send_all(out[:total])

    async def receive(self, _max_bytes: int) -> bytes:
        """The next message, whatever its length."""
        while True:
            held = self._end - self._start
            if held >= 2:
                (length,) = _LENGTH.unpack_from(self._buffer, self._start)
                if held >= 2 + length:
                    sealed = self._view[self._start + 2 : self._start + 2 + length]
                    self._start += 2 + length
                    self._received += 1
                    return self._aead.decrypt((self._received - 1).to_bytes(12, "little"), sealed, None)
            if self._start:
                self._buffer[:held] = self._buffer[self._start : self._end]
                self._start, self._end = 0, held
            count = await self._stream.socket.recv_into(self._view[held:])
            if not count:
                return b""
            self._end += count


class RawStack(Stack):
    """A TCP listener, or connections to one.

    :param aead: whether to encrypt.
    """

    ends = (trio.BrokenResourceError, trio.ClosedResourceError)

    def __init__(self, aead: bool) -> None:
        self._aead = aead
        self._handlers: dict[bytes, Handler] = {}
        self._listeners: Sequence[trio.SocketListener] = ()
        self._where: Where | None = None
        self._idle: trio.SocketStream | None = None
        self._connections = 0

    @asynccontextmanager
    async def run(self, *, listening: bool) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            if listening:
                self._listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                nursery.start_soon(partial(trio.serve_listeners, self._accept, self._listeners))
            yield
            nursery.cancel_scope.cancel()

    def _bind(self, stream: trio.SocketStream) -> Stream:
        if self._aead:
            sealed = _Sealed(stream)
            return Stream(sealed.send, sealed.receive, stream.aclose)
        return Stream(stream.send_all, stream.receive_some, stream.aclose)

    async def _accept(self, stream: trio.SocketStream) -> None:
        self._connections += 1
        try:
            name = b""
            while not name.endswith(b"\n"):
                one = await stream.receive_some(1)
                if not one:
                    return
                name += one
            await self._handlers[name](self._bind(stream))
        except self.ends:
            pass
        finally:
            self._connections -= 1
            await stream.aclose()

    def where(self) -> Where:
        return Where(port=self._listeners[0].socket.getsockname()[1])

    def serve(self, protocol: str, handler: Handler) -> None:
        self._handlers[protocol.encode() + b"\n"] = handler

    async def connect(self, where: Where) -> None:
        self._where = where
        self._idle = await trio.open_tcp_stream("127.0.0.1", where.port)

    async def disconnect(self) -> None:
        if self._idle is not None:
            await self._idle.aclose()

    async def open(self, protocol: str) -> Stream:
        assert self._where is not None
        stream = await trio.open_tcp_stream("127.0.0.1", self._where.port)
        await stream.send_all(protocol.encode() + b"\n")
        return self._bind(stream)

    def connection_count(self) -> int:
        return self._connections


def make(variant: str) -> Stack:
    """Make a node, with encryption if the variant is ``aead``."""
    return RawStack(variant == "aead")
