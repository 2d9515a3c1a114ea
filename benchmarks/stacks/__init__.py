"""The network stacks that are measured, each behind the same few calls.

The workloads are written once, against :class:`Stack`; what a call does below that is the stack's own code. A stack's
module is imported only in a process that runs that stack.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

__all__ = ["PING", "Handler", "Stack", "Stream", "Where", "make_stack"]

PING = "/ipfs/ping/1.0.0"
"""libp2p's ping protocol: 32 bytes are sent back. https://github.com/libp2p/specs/blob/master/ping/ping.md"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where a node listens on loopback, and who it is (empty where a stack has no identities)."""

    port: int
    peer_id: str = ""


@dataclass(slots=True)
class Stream:
    """The calls of a stack's own stream, bound without a layer in between.

    :param send: sends all of its argument.
    :param receive: gives at most so many bytes; at the end it gives none or raises one of :attr:`Stack.ends`.
    :param close: ends the stream in both directions in an orderly way.
    """

    send: Callable[[bytes], Awaitable[None]]
    receive: Callable[[int], Awaitable[bytes]]
    close: Callable[[], Awaitable[None]]


Handler = Callable[[Stream], Awaitable[None]]


class Stack(ABC):
    """One node of a network stack."""

    ends: tuple[type[Exception], ...] = ()
    """What `receive` raises when the other side has ended the stream or the connection."""

    chunk_bytes = 256 * 1024
    """What bulk data is written in."""

    @abstractmethod
    def run(self, *, listening: bool) -> AbstractAsyncContextManager[None]:
        """Run the node for the length of the block."""

    @abstractmethod
    def where(self) -> Where:
        """Where a node that was run with ``listening`` can be reached."""

    @abstractmethod
    def serve(self, protocol: str, handler: Handler) -> None:
        """Run the handler for every stream of a protocol; the stream is closed when it returns."""

    @abstractmethod
    async def connect(self, where: Where) -> None:
        """Connect as the stack's users do. There is one connection at a time."""

    async def connect_directly(self, where: Where) -> None:
        """Connect by an inner call that leaves out what the public one does besides.

        :raises NotImplementedError: there is nothing to leave out.
        """
        raise NotImplementedError

    @abstractmethod
    async def disconnect(self) -> None:
        """Close the connection."""

    @abstractmethod
    async def open(self, protocol: str) -> Stream:
        """Open a stream on the connection."""

    @abstractmethod
    def connection_count(self) -> int:
        """How many connections the node has."""


def make_stack(name: str) -> Stack:
    """Make a node of the stack of that name, importing it now."""
    module, _, variant = name.partition("_")
    made: Stack = importlib.import_module(f"{__name__}.{module}").make(variant)
    return made
