"""A TCP proxy on loopback that counts what passes."""

from __future__ import annotations

import socket
import struct
from functools import partial
from types import TracebackType
from typing import Self

import trio

__all__ = ["CountingProxy"]

_HEADER_BYTES = 52
"""IPv4 (20) and TCP with time stamps (32), per segment."""
_SEGMENTS = struct.Struct("=136xII")
"""``tcpi_segs_out`` and ``tcpi_segs_in`` in Linux's struct tcp_info (linux/tcp.h)."""
_TCP_INFO_BYTES = 192
_WAIT_S = 20.0


class CountingProxy:
    """Passes connections on to a port of this machine.

    :param target_port: where to.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.payload_bytes = 0
        self._moved = trio.Event()
        self._sockets: list[trio.socket.SocketType] = []
        self._nursery_manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._nursery = await self._nursery_manager.__aenter__()
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._nursery.start_soon(partial(trio.serve_listeners, self._pass_on, listeners))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        return await self._nursery_manager.__aexit__(kind, value, trace)

    async def _pass_on(self, near: trio.SocketStream) -> None:
        self._sockets.append(near.socket)
        far = await trio.open_tcp_stream("127.0.0.1", self._target_port)
        async with near, far, trio.open_nursery() as nursery:

            async def pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
                try:
                    async for data in source:
                        self.payload_bytes += len(data)
                        self._moved.set()
                        await target.send_all(data)
                except trio.BrokenResourceError:
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, near, far)
            nursery.start_soon(pump, far, near)

    async def wait_quiet(self, quiet_s: float) -> None:
        """Wait until nothing has passed for so long.

        :raises trio.TooSlowError: it never becomes quiet.
        """
        with trio.fail_after(_WAIT_S):
            quiet = False
            while not quiet:
                self._moved = trio.Event()
                with trio.move_on_after(quiet_s) as scope:
                    await self._moved.wait()
                quiet = scope.cancelled_caught

    def wire_bytes(self) -> int:
        """The payload and the IPv4 and TCP headers of the segments between the dialler and us; 0 if unknown here."""
        if not hasattr(socket, "TCP_INFO"):
            return 0
        segments = 0
        for one in self._sockets:
            info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            if len(info) >= _SEGMENTS.size:
                segments += sum(_SEGMENTS.unpack_from(info))
        return self.payload_bytes + segments * _HEADER_BYTES
