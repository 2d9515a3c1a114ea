"""A swarm in memory: whole networks in one process, for tests and simulations.

It behaves like the real one where the layers above can tell: back-pressure, half-close, resets, handlers that end with
their connection, one connection per pair of peers. Links between peers can be cut (with an error or in silence),
healed, partitioned, delayed and slowed down. Time is anyio's, so that under a virtual clock a network runs as fast as
it computes; nothing here is random.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import anyio
from anyio.abc import ObjectReceiveStream, TaskGroup

from ..errors import ConnectionFailedError, NetworkTimeoutError, ProtocolError, TransportError
from ._events import EventQueue
from ._memory_link import Link, Pipe, Signal
from .abc import (
    AddressesChanged,
    Connected,
    Direction,
    Disconnected,
    StreamHandler,
    Swarm,
    SwarmEvent,
    SwarmStream,
)

__all__ = ["Link", "MemoryNetwork", "MemorySwarm"]

logger = logging.getLogger(__name__)

_PREFIX = "/memory/"


class MemoryNetwork:
    """What memory swarms have in common: who listens where, and the links between them.

    :param buffer_bytes: bytes that a stream holds in each direction before its sender has to wait.
    """

    def __init__(self, *, buffer_bytes: int = 64 * 1024) -> None:
        self.buffer_bytes = buffer_bytes
        self.swarms: dict[str, MemorySwarm] = {}
        self.listeners: dict[str, MemorySwarm] = {}
        self._links: dict[frozenset[str], Link] = {}
        self._next_number = 1

    def link(self, a: str, b: str) -> Link:
        """The link between two peers; change its ``delay_s`` and ``bytes_per_s`` freely."""
        return self._links.setdefault(frozenset((a, b)), Link())

    def cut(self, a: str, b: str, *, silent: bool = False) -> None:
        """Cut the link between two peers.

        :param silent: both sides are told nothing and nothing gets through, as with a pulled cable; what was sent
            arrives after :meth:`heal`. Otherwise their connection breaks at once and cannot be made again.
        """
        link = self.link(a, b)
        if silent:
            if link.silent_since is None:
                link.silent_since = anyio.current_time()
            return
        link.cut = True
        for one, other in ((a, b), (b, a)):
            swarm = self.swarms.get(one)
            if swarm is not None:
                swarm._lose(other, "The link was cut.")

    def heal(self, a: str, b: str) -> None:
        """Undo :meth:`cut`."""
        link = self.link(a, b)
        link.cut = False
        link.silent_since = None
        pending, link.on_heal = link.on_heal, []
        for action in pending:
            action()
        link.changed.notify()

    def partition(self, *groups: Collection[str], silent: bool = False) -> None:
        """Cut every link between peers of different groups."""
        for index, group in enumerate(groups):
            for other in groups[index + 1 :]:
                for a in group:
                    for b in other:
                        self.cut(a, b, silent=silent)

    def heal_all(self) -> None:
        """Heal every link."""
        for pair in list(self._links):
            if len(pair) == 2:
                self.heal(*pair)

    def crash(self, peer_id: str, *, silent: bool = False) -> None:
        """Take a swarm out at once, as if its process had died: nothing that it does from now on gets anywhere.

        :param silent: the others are told nothing, as when the machine loses its power; otherwise their connections to
            it break.
        """
        swarm = self.swarms.pop(peer_id)
        grave = MemoryNetwork(buffer_bytes=self.buffer_bytes)
        grave.swarms[peer_id] = swarm
        for address in swarm.addresses:
            grave.listeners[address] = self.listeners.pop(address)
        swarm._network = grave
        for half in swarm._halves.values():
            other, half.other = half.other, None
            half.link = Link(cut=True)
            for stream in half.streams:
                stream.bury()
            if other is not None:
                other.other = None
                if not silent:
                    other.link.when_it_gets_through(partial(other.swarm._lose_half, other, "The peer has crashed."))

    def _claim_address(self, address: str, swarm: MemorySwarm) -> str:
        number = address.removeprefix(_PREFIX)
        if not address.startswith(_PREFIX) or not number.isdecimal():
            raise TransportError(f"{address} is not an address of a network in memory, such as /memory/1.")
        if int(number) == 0:
            while f"{_PREFIX}{self._next_number}" in self.listeners:
                self._next_number += 1
            address = f"{_PREFIX}{self._next_number}"
            self._next_number += 1
        if address in self.listeners:
            raise TransportError(f"{address} is already in use.")
        self.listeners[address] = swarm
        return address


class _MemoryStream(SwarmStream):
    """One side of a stream."""

    def __init__(self, half: _Half, protocol: str, incoming: Pipe, outgoing: Pipe) -> None:
        self._half = half
        self._protocol = protocol
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False
        self._reading = anyio.ResourceGuard("reading from")
        self._writing = anyio.ResourceGuard("writing to")
        half.streams.add(self)

    @property
    def peer_id(self) -> str:
        return self._half.peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def generation(self) -> int:
        return self._half.generation

    async def receive(self, max_bytes: int = 65536) -> bytes:
        with self._reading:
            await anyio.lowlevel.checkpoint_if_cancelled()
            data = await self._incoming.get(max_bytes)
            await anyio.lowlevel.cancel_shielded_checkpoint()
            return data

    async def send(self, item: bytes) -> None:
        with self._writing:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if self._closed:
                raise anyio.ClosedResourceError
            await self._outgoing.put(item)
            await anyio.lowlevel.cancel_shielded_checkpoint()

    async def send_eof(self) -> None:
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise anyio.ClosedResourceError
        self._outgoing.end()
        await anyio.lowlevel.cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._outgoing.end()
            self._incoming.stop_reading()
            self._half.link.when_it_gets_through(lambda: self._incoming.lose_reader("The stream was closed."))
            self._half.streams.discard(self)
        await anyio.lowlevel.checkpoint()

    async def reset(self) -> None:
        if not self._closed:
            self._closed = True
            self._incoming.stop_reading()
            self._outgoing.lose_reader("The stream was reset.")
            self._half.streams.discard(self)
            if self._half.open:
                self._half.link.when_it_gets_through(self._reset_other_side)

    def _reset_other_side(self) -> None:
        # The pipes are shared: what we write to is what the other side reads from.
        self._outgoing.lose("The stream was reset by the peer.")
        self._incoming.lose_reader("The stream was reset by the peer.")

    def bury(self) -> None:
        """What this side writes from now on, or its end, reaches nobody."""
        self._outgoing.seal("This side has crashed.")

    def lose(self, reason: str) -> None:
        """The connection is lost for this side."""
        self._incoming.lose(reason)
        self._outgoing.lose_reader(reason)


class _Half:
    """One side's view of a connection."""

    def __init__(
        self, swarm: MemorySwarm, peer_id: str, address: str, direction: Direction, link: Link, generation: int
    ) -> None:
        self.swarm = swarm
        self.peer_id = peer_id
        self.address = address
        self.direction = direction
        self.link = link
        self.generation = generation
        self.other: _Half | None = None
        self.streams: set[_MemoryStream] = set()
        self.scopes: set[anyio.CancelScope] = set()
        self.lost = Signal()
        self.open = True


class MemorySwarm(Swarm):
    """A swarm on a :class:`MemoryNetwork`.

    :param network: the network that all swarms share.
    :param peer_id: our own peer id; nothing proves it.
    """

    def __init__(self, network: MemoryNetwork, peer_id: str) -> None:
        self._network = network
        self._peer_id = peer_id
        self._addresses: tuple[str, ...] = ()
        self._handlers: dict[str, StreamHandler] = {}
        self._halves: dict[str, _Half] = {}
        self._generation = 0
        self._group: TaskGroup | None = None
        self._events = EventQueue()

    @property
    def peer_id(self) -> str:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def events(self) -> ObjectReceiveStream[SwarmEvent]:
        return self._events

    def run(self) -> AbstractAsyncContextManager[None]:
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        if self._group is not None or self._peer_id in self._network.swarms:
            raise RuntimeError(f"A swarm for {self._peer_id} is already running.")
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            self._group = group
            self._network.swarms[self._peer_id] = self
            try:
                yield
            except Exception as exc:
                # Raised below, so that the caller's own exception does not come out of a group.
                failure = exc
            finally:
                for peer_id in list(self._halves):
                    self._close(peer_id, "The other side has stopped.")
                for address in self._addresses:
                    self._network.listeners.pop(address, None)
                self._addresses = ()
                del self._network.swarms[self._peer_id]
                self._group = None
                group.cancel_scope.cancel()
                self._events.finish()
        if failure is not None:
            raise failure

    async def listen(self, addresses: Sequence[str]) -> None:
        await anyio.lowlevel.checkpoint()
        self._running()
        claimed = tuple(self._network._claim_address(address, self) for address in addresses)
        if claimed:
            self._addresses += claimed
            self._events.put(AddressesChanged(self._addresses))

    async def dial(self, peer_id: str, addresses: Iterable[str], *, timeout_s: float = 15.0) -> None:
        await anyio.lowlevel.checkpoint()
        self._running()
        if self.is_connected(peer_id):
            return
        if self.gate is not None and not self.gate(peer_id):
            raise ConnectionFailedError("That device is not let in here.")
        reasons: list[str] = []
        try:
            with anyio.fail_after(timeout_s):
                for address in dict.fromkeys(addresses):
                    reason = await self._try_address(peer_id, address)
                    if reason is None:
                        return
                    reasons.append(f"{address}: {reason}")
        except TimeoutError:
            reasons.append(f"no answer within {timeout_s:g} s")
        raise ConnectionFailedError(f"No address of the device answers: {'; '.join(reasons) or 'no address is known'}.")

    async def _try_address(self, peer_id: str, address: str) -> str | None:
        """Connect to one address; returns why that did not work, or None."""
        swarm = self._network.listeners.get(address)
        if swarm is None or swarm is self:
            return "connection refused"
        link = self._network.link(self._peer_id, swarm.peer_id)
        if not await self._round_trip(link):
            return "the link is cut"
        if self.is_connected(peer_id):
            return None
        if self._network.listeners.get(address) is not swarm:
            return "connection refused"
        if swarm.peer_id != peer_id:
            return "another peer answered"
        if self._events.full or swarm._events.full:
            return "too many events wait to be read"
        if swarm.gate is not None and not swarm.gate(self._peer_id):
            return "the other side closed the connection"
        # A half that the other side still holds is one whose end it was not told about.
        swarm._lose(self._peer_id, "The peer has connected anew.")
        ours = self._join(peer_id, address, Direction.OUTBOUND, link)
        theirs = swarm._join(
            self._peer_id, self._addresses[0] if self._addresses else f"{_PREFIX}0", Direction.INBOUND, link
        )
        ours.other, theirs.other = theirs, ours
        return None

    async def _round_trip(self, link: Link) -> bool:
        """Wait as long as a question and its answer take; returns whether they got through."""
        for _ in range(2):
            await link.wait_until_not_silent()
            if link.delay_s:
                await anyio.sleep(link.delay_s)
        await link.wait_until_not_silent()
        return not link.cut

    def _join(self, peer_id: str, address: str, direction: Direction, link: Link) -> _Half:
        self._generation += 1
        half = _Half(self, peer_id, address, direction, link, self._generation)
        self._halves[peer_id] = half
        self._events.put(Connected(peer_id, address, direction, half.generation))
        return half

    async def hang_up(self, peer_id: str) -> None:
        self._close(peer_id, "The connection was hung up.")
        await anyio.lowlevel.checkpoint()

    def is_connected(self, peer_id: str) -> bool:
        return peer_id in self._halves

    def remote_address(self, peer_id: str) -> str | None:
        half = self._halves.get(peer_id)
        return None if half is None or half.address == f"{_PREFIX}0" else half.address

    def dialled_address(self, peer_id: str) -> str | None:
        half = self._halves.get(peer_id)
        return half.address if half is not None and half.direction is Direction.OUTBOUND else None

    async def open_stream(self, peer_id: str, protocols: Sequence[str], *, timeout_s: float = 10.0) -> SwarmStream:
        await anyio.lowlevel.checkpoint()
        half = self._halves.get(peer_id)
        if half is None:
            raise ConnectionFailedError(f"There is no connection to {peer_id}.")
        through = False
        with anyio.move_on_after(timeout_s):
            through = await self._ask(half)
        if not half.open or half.other is None or not half.other.open:
            raise ConnectionFailedError(f"The connection to {peer_id} broke.")
        if not through:
            raise NetworkTimeoutError(f"{peer_id} did not answer within {timeout_s:g} s.")
        theirs = half.other
        protocol = next((p for p in protocols if p in theirs.swarm._handlers), None)
        if protocol is None:
            raise ProtocolError(f"{peer_id} speaks none of {', '.join(protocols)}.")
        to_them = Pipe(half.link, self._network.buffer_bytes)
        to_us = Pipe(half.link, self._network.buffer_bytes)
        stream = _MemoryStream(half, protocol, to_us, to_them)
        theirs.swarm._serve(_MemoryStream(theirs, protocol, to_them, to_us), theirs)
        return stream

    async def _ask(self, half: _Half) -> bool:
        """Make a round trip; ends early when the connection is lost."""
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while half.open:
                    await half.lost.wait()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            through = await self._round_trip(half.link)
            group.cancel_scope.cancel()
            return through
        return False

    def set_stream_handler(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    def remove_stream_handler(self, protocol: str) -> None:
        self._handlers.pop(protocol, None)

    def _serve(self, stream: _MemoryStream, half: _Half) -> None:
        if self._group is not None:
            self._group.start_soon(self._handle, self._handlers[stream.protocol], stream, half)

    async def _handle(self, handler: StreamHandler, stream: _MemoryStream, half: _Half) -> None:
        with anyio.CancelScope() as scope:
            half.scopes.add(scope)
            try:
                if half.open:
                    await handler(stream)
                    await stream.aclose()
            except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead) as exc:
                # The peer's doing, not the handler's.
                logger.debug("a stream of %s from %s broke off: %r", stream.protocol, stream.peer_id, exc)
            except Exception:
                logger.exception("The handler of %s failed.", stream.protocol)
            finally:
                half.scopes.discard(scope)
                # Does nothing to a stream that was closed.
                with anyio.CancelScope(shield=True):
                    await stream.reset()

    def _close(self, peer_id: str, reason: str) -> None:
        """End a connection from this side; the other side learns of it when the link lets it."""
        half = self._halves.get(peer_id)
        if half is None:
            return
        self._lose(peer_id, reason)
        other = half.other
        if other is not None:
            half.link.when_it_gets_through(lambda: other.swarm._lose_half(other, "The peer closed the connection."))

    def _lose(self, peer_id: str, reason: str) -> None:
        half = self._halves.get(peer_id)
        if half is not None:
            self._lose_half(half, reason)

    def _lose_half(self, half: _Half, reason: str) -> None:
        """A connection is gone for this side."""
        if not half.open:
            return
        half.open = False
        del self._halves[half.peer_id]
        for scope in list(half.scopes):
            scope.cancel()
        for stream in list(half.streams):
            stream.lose(reason)
        half.streams.clear()
        half.lost.notify()
        self._events.put(Disconnected(half.peer_id, half.generation, reason))

    def _running(self) -> None:
        if self._group is None:
            raise TransportError("The swarm is not running.")
