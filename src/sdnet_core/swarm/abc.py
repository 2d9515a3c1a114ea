"""What the layers above know of a swarm: peers, connections to them, and streams.

A *peer id* is libp2p's base58 text form (``12D3Koo…``); an *address* is a multiaddr as text
(``/ip4/192.0.2.1/tcp/4001``), without a trailing ``/p2p/…`` component unless it is a relay's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum

from anyio.abc import ByteStream, ObjectReceiveStream

from ..errors import ConnectionFailedError

__all__ = [
    "AddressesChanged",
    "Connected",
    "Direction",
    "Disconnected",
    "Path",
    "PathChanged",
    "ReceiveBuffer",
    "StreamHandler",
    "Swarm",
    "SwarmEvent",
    "SwarmStream",
]


class Direction(StrEnum):
    """Who opened a connection."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True)
class Connected:
    """There is now a connection to a peer where there was none.

    :param generation: counts up for every first connection to any peer in this swarm, so that a late
        :class:`Disconnected` is never mistaken for the loss of a newer connection.
    """

    peer_id: str
    address: str
    direction: Direction
    generation: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The last connection to a peer is gone."""

    peer_id: str
    generation: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """The addresses this swarm can be dialled at have changed."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PathChanged:
    """There is a better connection to a peer than the one so far, or a fresh one through its relay.

    New streams use it. The old one is closed when no stream is left on it.
    """

    peer_id: str
    address: str
    direction: Direction
    generation: int


@dataclass(frozen=True, slots=True)
class Path:
    """How a peer is connected.

    :param relayed: through a relay, which allows only so much.
    :param direction: who made it.
    :param used: how much of what the relay allows is used up, 0 to 1.
    :param limited: whether the relay has set a limit at all.
    """

    address: str
    relayed: bool
    direction: Direction
    generation: int
    used: float = 0.0
    limited: bool = False


SwarmEvent = Connected | Disconnected | AddressesChanged | PathChanged


class ReceiveBuffer:
    """Memory into which a stream receives.

    :ivar memory: of bytes.
    :ivar end: how much of it is filled. Whoever receives may move what is there, and set this.
    """

    __slots__ = ("end", "memory")

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.end = 0

    @property
    def room(self) -> int:
        """How many bytes fit in."""
        return len(self.memory) - self.end

    def put(self, data: bytes | bytearray | memoryview) -> int:
        """Put as much as fits behind what is there.

        :returns: how many bytes.
        """
        end = self.end
        count = min(len(data), len(self.memory) - end)
        self.memory[end : end + count] = data if count == len(data) else memoryview(data)[:count]
        self.end = end + count
        return count


class SwarmStream(ByteStream):
    """One bidirectional stream to a peer, authenticated and encrypted by the connection below.

    It is an :class:`anyio.abc.ByteStream`: ``receive()`` raises :exc:`anyio.EndOfStream` after the other side's
    orderly end, :exc:`anyio.BrokenResourceError` when the stream was reset or the connection was lost, and
    :exc:`anyio.ClosedResourceError` after our own ``aclose()``. One task may receive while another sends.
    """

    @property
    @abstractmethod
    def peer_id(self) -> str:
        """The peer at the other end, as the connection below authenticated it."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """The libp2p protocol id agreed for this stream, such as ``/sdnet/session/1``."""

    @property
    @abstractmethod
    def generation(self) -> int:
        """The :attr:`Connected.generation` of the connection the stream runs on."""

    async def receive_into(self, buffer: ReceiveBuffer, end: int) -> None:
        """Receive into a buffer until it is filled up to ``end``, which is within it. Raises what ``receive()`` does.

        Whether this is cancelled or not, what has come is in it. More may come into it at any time, until it is full;
        everything else must be received into the same buffer.
        """
        while buffer.end < end:
            buffer.put(await self.receive(buffer.room))

    @abstractmethod
    async def reset(self) -> None:
        """End the stream in both directions at once; what was not delivered is dropped.

        Never raises; may be called at any time, also from a cancelled scope.
        """


StreamHandler = Callable[[SwarmStream], Awaitable[None]]


class Swarm(ABC):
    """All of a node's connections.

    Use: ``async with swarm.run(): await swarm.listen([...])``. Everything a swarm started has ended when the
    ``run()`` block is left; every listener is closed then.

    :ivar gate: asked with the peer id whether a connection may be, once the peer has proven who it is and before any
        stream; not asked for connections that are there already. None lets everybody in.
    :ivar knows: tells whether a peer is one of ours; all others are strangers, who share a smaller part of the
        connections. None knows everybody.
    :ivar awaits_stranger: tells whether a stranger is waited for. While it is, the stranger that has been connected for
        longest makes room for a new one; otherwise it is the new one that is turned away.
    :ivar shows_port: tells whether a peer is one that is to see us at the port that we listen on, so that it can tell
        others where we are; None shows it to nobody.
    :ivar relays: peers that may bring us connections from others.
    :ivar outside: addresses at which we may be reached besides those we listen on, for hole punching.
    """

    gate: Callable[[str], bool] | None = None
    knows: Callable[[str], bool] | None = None
    awaits_stranger: Callable[[], bool] | None = None
    shows_port: Callable[[str], bool] | None = None
    relays: frozenset[str] = frozenset()
    outside: tuple[str, ...] = ()

    @property
    @abstractmethod
    def peer_id(self) -> str:
        """Our own peer id."""

    @property
    @abstractmethod
    def addresses(self) -> tuple[str, ...]:
        """The concrete addresses we listen on (wildcards resolved, real ports). Empty before `listen`."""

    @property
    def listen_ports(self) -> Mapping[int, int]:
        """A TCP port that we listen on, for each IP version that there is one for."""
        return {}

    @abstractmethod
    def run(self) -> AbstractAsyncContextManager[None]:
        """Run the swarm's own tasks for the length of the block."""

    @abstractmethod
    async def listen(self, addresses: Sequence[str]) -> None:
        """Listen on each address; port 0 picks a free one.

        An address family that this machine lacks is a warning as long as another address works.

        :raises TransportError: none of the addresses could be listened on, or a named port is in use.
        """

    @abstractmethod
    async def dial(self, peer_id: str, addresses: Iterable[str], *, timeout_s: float = 15.0) -> None:
        """Have a connection to a peer: return at once if there is one, else try all addresses.

        Cancel-safe: a cancelled dial leaves no connection half open.

        :raises ConnectionFailedError: no address answered as that peer, or there were none.
        """

    @abstractmethod
    async def hang_up(self, peer_id: str) -> None:
        """Close every connection to a peer. Does nothing if there is none."""

    @abstractmethod
    def is_connected(self, peer_id: str) -> bool:
        """Whether there is a connection to a peer now."""

    @abstractmethod
    def remote_address(self, peer_id: str) -> str | None:
        """The address of the connection to a peer, or None if there is none or it is not known."""

    def path(self, peer_id: str) -> Path | None:
        """How a peer is connected now; None if it is not, or if this swarm has only one kind of path."""
        return None

    async def improve(self, peer_id: str, addresses: Iterable[str], *, timeout_s: float = 5.0) -> None:
        """Have a direct connection to a peer that is connected through a relay; returns at once if there is one.

        :raises ConnectionFailedError: no address answered as that peer.
        """
        raise ConnectionFailedError("This swarm has only one kind of path.")

    async def punch(self, peer_id: str, *, timeout_s: float = 10.0) -> None:
        """The same where neither side can be dialled: both dial at the same moment (DCUtR).

        :raises ConnectionFailedError: it did not work.
        """
        raise ConnectionFailedError("This swarm has only one kind of path.")

    async def renew(self, peer_id: str, *, timeout_s: float = 10.0) -> None:
        """Have a fresh connection through the relay that we reach a peer through.

        :raises ConnectionFailedError: there is none to be had.
        """
        raise ConnectionFailedError("This swarm has only one kind of path.")

    @abstractmethod
    def dialled_address(self, peer_id: str) -> str | None:
        """Where the connection to a peer was dialled, so that it can be again; None if the peer dialled us."""

    @abstractmethod
    async def open_stream(self, peer_id: str, protocols: Sequence[str], *, timeout_s: float = 10.0) -> SwarmStream:
        """Open a stream for the first of the protocols that the other side speaks.

        :param protocols: protocol ids, preferred first.
        :raises ConnectionFailedError: there is no connection to that peer, or it broke.
        :raises ProtocolError: the peer speaks none of the protocols.
        :raises NetworkTimeoutError: the peer did not agree within ``timeout_s``.
        """

    @abstractmethod
    def set_stream_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol. The stream is closed when the handler returns, and reset when it raises.

        A handler runs in a cancel scope of its own, which is cancelled when the connection the stream runs on is
        lost or hung up. An exception is logged, never raised into the swarm.
        """

    @abstractmethod
    def remove_stream_handler(self, protocol: str) -> None:
        """Stop serving a protocol; streams already running go on."""

    @property
    @abstractmethod
    def events(self) -> ObjectReceiveStream[SwarmEvent]:
        """What happens to connections, in order. There is one reader: the core's event loop task."""
