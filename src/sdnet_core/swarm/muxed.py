"""What the host asks of a multiplexed connection and of its streams, whichever transport carries them."""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.peer.id import ID

from .abc import ReceiveBuffer

__all__ = ["MuxedConnection", "MuxedStream", "OwnSecurity"]


class MuxedStream(IMuxedStream):
    """One stream; beside what py-libp2p asks, it can be ended without awaiting, so also in a cancelled scope."""

    __slots__ = ()

    @abstractmethod
    def finish(self) -> None:
        """End our direction after everything written so far."""

    @abstractmethod
    def close_read(self) -> None:
        """Take no more data; a peer that goes on sending is told."""

    @abstractmethod
    def abort(self, reason: str = "The stream was reset by this side.") -> None:
        """Reset the stream: both directions end at once.

        What was written is sent first, what was not read is dropped.
        """

    async def read_into(self, buffer: ReceiveBuffer, end: int) -> None:
        """Receive into a buffer until it is filled up to ``end``, which is within it.

        Cancelled or not, what has come is in it. More may come into it at any time, until it is full.

        :raises MuxedStreamError: as ``read``.
        """
        while buffer.end < end:
            buffer.put(await self.read(buffer.room))

    async def __aenter__(self) -> MuxedStream:
        return self


class MuxedConnection(IMuxedConn):
    """One multiplexed connection.

    :ivar on_fail: called once, when the connection is gone and before its streams break.
    :ivar on_close: awaited when :meth:`start` ends.
    """

    event_closed: trio.Event
    on_close: Callable[[], Awaitable[Any]] | None
    on_fail: Callable[[], None] | None

    @property
    @abstractmethod
    def streams(self) -> Mapping[int, MuxedStream]:
        """The streams that are not done, by their ids."""

    @property
    @abstractmethod
    def failure(self) -> str | None:
        """Why the connection is gone, or None while it is not."""

    @property
    def peer_left(self) -> bool:
        """Whether the peer has said that it leaves; where that cannot be known, it has not."""
        return False

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether the connection is gone."""

    @abstractmethod
    async def open_stream(self) -> MuxedStream:
        """Open a stream; the peer has not agreed to it yet.

        :raises MuxedStreamError: the connection is closed or closing.
        """

    @abstractmethod
    async def accept_stream(self) -> MuxedStream:
        """Wait for a stream that the peer opens.

        :raises MuxedConnUnavailable: the connection is gone.
        """


class OwnSecurity(MuxedConnection):
    """A connection whose transport brings security and streams of its own, so that nothing has to be put on top.

    It is handed over when the other side has answered, and goes through the same two steps as others do: who it is,
    which leaves nothing behind at the other side, and the agreement, which makes a connection there.
    """

    @abstractmethod
    async def authenticate(self, expected: ID | None) -> None:
        """Find out who the peer is.

        :param expected: who it must be; None for an inbound connection.
        :raises PeerIDMismatchesPubkey: it is another.
        :raises BaseLibp2pError: it has not proved to be anybody, or is gone.
        """

    @abstractmethod
    async def agree(self) -> None:
        """Let the connection come about.

        :raises BaseLibp2pError: the other side refuses, or is gone.
        """
