"""The swarm on py-libp2p: TCP, Noise and Yamux, on trio.

Only this module needs to be imported; importing it imports libp2p (about a second), so it is done when a swarm is
about to start.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import importlib.metadata
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import anyio
import sniffio
import trio
from anyio.abc import ObjectReceiveStream
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.stream_muxer.exceptions import (
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from ..errors import ConnectionFailedError, NetworkTimeoutError, ProtocolError, TransportError
from . import hardening
from ._events import EventQueue
from .abc import AddressesChanged, Direction, Path, ReceiveBuffer, StreamHandler, Swarm, SwarmEvent, SwarmStream
from .connection import Connection
from .dcutr import HolePuncher
from .dialler import Dialler
from .host import Host, Network, SwarmLimits, make_upgrader
from .interfaces import PortInUseError, check_listen, expand
from .muxed import MuxedStream
from .negotiation import select
from .noise import PROTOCOL_ID as NOISE_PROTOCOL_ID
from .noise import NoiseTransport
from .reach import Reach
from .relay_client import Circuit
from .relay_messages import DCUTR, STOP
from .relay_transport import CircuitTransport, is_relayed
from .tcp import FROM_PORTS
from .transports import make_transports

__all__ = ["Libp2pSwarm", "SwarmLimits"]

logger = logging.getLogger(__name__)

hardening.apply()


class Libp2pStream(SwarmStream):
    """A stream on one of our connections."""

    def __init__(self, muxed: MuxedStream, connection: Connection, protocol: str) -> None:
        self._muxed = muxed
        self._peer_id = str(connection.peer_id)
        self._generation = connection.generation
        self._protocol = protocol
        self._closed = False
        self._reading = anyio.ResourceGuard("reading from")
        self._writing = anyio.ResourceGuard("writing to")

    @property
    def peer_id(self) -> str:
        return self._peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def generation(self) -> int:
        return self._generation

    async def receive(self, max_bytes: int = 65536) -> bytes:
        with self._reading:
            try:
                return await self._muxed.read(max_bytes)
            except (MuxedStreamEOF, MuxedStreamClosed, MuxedStreamReset) as exc:
                raise _ended(exc) from exc

    async def receive_into(self, buffer: ReceiveBuffer, end: int) -> None:
        with self._reading:
            try:
                await self._muxed.read_into(buffer, end)
            except (MuxedStreamEOF, MuxedStreamClosed, MuxedStreamReset) as exc:
                raise _ended(exc) from exc

    async def send(self, item: bytes) -> None:
        with self._writing:
            try:
                await self._muxed.write(item)
            except MuxedStreamClosed:
                raise anyio.ClosedResourceError from None
            except MuxedStreamReset as exc:
                if self._closed:
                    raise anyio.ClosedResourceError from None
                raise anyio.BrokenResourceError(str(exc)) from exc

    async def send_eof(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        await self._muxed.close()

    async def aclose(self) -> None:
        self._closed = True
        self._muxed.finish()
        self._muxed.close_read()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        if not self._closed:
            self._closed = True
            self._muxed.abort()
            self._muxed.close_read()


def _ended(exc: MuxedStreamError) -> Exception:
    """Why nothing can be received any more, as anyio says it."""
    if isinstance(exc, MuxedStreamEOF):
        return anyio.EndOfStream()
    return anyio.ClosedResourceError() if isinstance(exc, MuxedStreamClosed) else anyio.BrokenResourceError(str(exc))


class Libp2pSwarm(Swarm):
    """A swarm on py-libp2p. It runs on trio only, and once.

    :param private_key: the seed of our Ed25519 key, 32 bytes; the peer id is derived from it.
    :param limits: what is allowed of connections, handshakes and streams.
    :param agent_version: what identify says we are; None for this distribution's name and version.
    :param transports: what to dial and listen with, preferred first: ``tcp``, ``quic``, ``ws``.
    """

    def __init__(
        self,
        private_key: bytes,
        *,
        limits: SwarmLimits | None = None,
        agent_version: str | None = None,
        transports: Sequence[str] = ("tcp",),
    ) -> None:
        if len(private_key) != 32:
            raise ValueError("The private key must be the 32 bytes of an Ed25519 seed.")
        self._limits = limits or SwarmLimits()
        self._agent_version = agent_version or f"sdnet-core/{_own_version()}"
        key_pair = create_new_key_pair(private_key)
        self._id = ID.from_pubkey(key_pair.public_key)
        peerstore = PeerStore()
        peerstore.add_key_pair(self._id, key_pair)
        self._events = EventQueue()
        self._network = Network(
            self._id,
            peerstore,
            make_upgrader({NOISE_PROTOCOL_ID: NoiseTransport(key_pair)}, self._limits),
            [*make_transports(transports, key_pair.private_key, self._limits), CircuitTransport(self._call)],
            limits=self._limits,
            emit=self._events.put,
            accepting=lambda: not self._events.full,
            admits=lambda peer_id: self.gate is None or self.gate(peer_id),
            knows=lambda peer_id: self.knows is None or self.knows(peer_id),
            awaits_stranger=lambda: self.awaits_stranger is not None and self.awaits_stranger(),
        )
        self._dialler = Dialler(self._network)
        self._network.dialler = self._dialler.dial
        self._host = Host(
            self._network,
            negotiate_timeout=int(self._limits.negotiate_timeout_s),
            addrs_factory=self._announced,
        )
        self._state = "new"
        self._reach = Reach(self, self._network, self._dialler)
        self._puncher = HolePuncher(self, self._network)
        self.set_stream_handler(STOP, self._reach.answer)
        self.set_stream_handler(DCUTR, lambda stream: self._puncher.answer(stream, self.listen_ports))

    @property
    def host(self) -> IHost:
        """py-libp2p's view of this swarm, for its own protocols such as the DHT."""
        return self._host

    @property
    def peer_id(self) -> str:
        return str(self._id)

    @property
    def addresses(self) -> tuple[str, ...]:
        listening = (str(address) for listener in self._network.listeners.values() for address in listener.get_addrs())
        return tuple(dict.fromkeys(concrete for address in listening for concrete in expand(address)))

    @property
    def events(self) -> ObjectReceiveStream[SwarmEvent]:
        return self._events

    def run(self) -> AbstractAsyncContextManager[None]:
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        if sniffio.current_async_library() != "trio":
            raise RuntimeError("py-libp2p runs on trio only; run this node with anyio's trio backend.")
        if self._state != "new":
            raise RuntimeError("A swarm runs once.")
        self._state = "running"
        hardening.quiet_logs()
        hardening.set_agent_version(self._agent_version)
        failure: Exception | None = None
        async with background_trio_service(self._network):
            await self._network.event_background_nursery_created.wait()
            try:
                yield
            except Exception as exc:
                # Raised below, so that the caller's own exception does not come out of a group.
                failure = exc
            finally:
                self._state = "stopped"
                await self._network.close()
                self._events.finish()
        if failure is not None:
            raise failure

    async def listen(self, addresses: Sequence[str]) -> None:
        self._check_running()
        reasons: list[str] = []
        possible: list[Multiaddr] = []
        places: dict[str, str] = {}
        for address in addresses:
            multiaddr = _parse(address)
            place = address.removesuffix("/ws")
            if places.setdefault(place, address) != address and not place.endswith("/tcp/0"):
                # The library shares ports, so half of the connections would reach the wrong one.
                raise TransportError(f"{address} and {places[place]} cannot share a port.")
            try:
                missing = check_listen(address)
            except PortInUseError as exc:
                port = address.split("/")[4]
                raise TransportError(f"Port {port} is already in use: another program listens on {address}.") from exc
            except OSError as exc:
                raise TransportError(f"Listening on {address} is not possible: {exc.strerror}.") from exc
            if missing is None:
                possible.append(multiaddr)
            else:
                reasons.append(f"{address}: {missing}")
        listening = 0
        for multiaddr in possible:
            try:
                await self._network.listen_on(multiaddr)
                listening += 1
            except (BaseLibp2pError, OSError) as exc:
                reasons.append(f"{multiaddr}: {exc}")
        if not listening and addresses:
            raise TransportError(f"None of the addresses could be listened on: {'; '.join(reasons)}.")
        for reason in reasons:
            logger.warning("not listening on %s", reason)
        if listening:
            self._events.put(AddressesChanged(self.addresses))

    async def dial(self, peer_id: str, addresses: Iterable[str], *, timeout_s: float = 15.0) -> None:
        self._check_running()
        remote = _parse_peer_id(peer_id)
        if remote == self._id:
            raise ConnectionFailedError("That is this device itself.")
        if self._events.full:
            raise ConnectionFailedError("Too many events wait to be read.")
        if self.gate is not None and not self.gate(peer_id):
            raise ConnectionFailedError("That device is not let in here.")
        candidates, reasons = _candidates(peer_id, addresses)
        with self._leaving_from_ports(peer_id), _explained(peer_id, timeout_s, reasons):
            with trio.fail_after(timeout_s):
                await self._dialler.dial(remote, candidates)

    def path(self, peer_id: str) -> Path | None:
        return self._reach.path(_parse_peer_id(peer_id))

    async def improve(self, peer_id: str, addresses: Iterable[str], *, timeout_s: float = 5.0) -> None:
        candidates, reasons = _candidates(peer_id, [address for address in addresses if not is_relayed(address)])
        with _explained(peer_id, timeout_s, reasons), trio.fail_after(timeout_s):
            await self._reach.improve(_parse_peer_id(peer_id), candidates)

    async def renew(self, peer_id: str, *, timeout_s: float = 10.0) -> None:
        with _explained(peer_id, timeout_s, []), trio.fail_after(timeout_s):
            await self._reach.renew(_parse_peer_id(peer_id))

    async def punch(self, peer_id: str, *, timeout_s: float = 10.0) -> None:
        with _explained(peer_id, timeout_s, []), trio.fail_after(timeout_s):
            await self._puncher.punch(_parse_peer_id(peer_id), self.listen_ports)

    @property
    def listen_ports(self) -> dict[int, int]:
        """A TCP port that we listen on, for each IP version."""
        ports: dict[int, int] = {}
        for listener in self._network.listeners.values():
            for address in listener.get_addrs():
                parts = str(address).removeprefix("/").split("/")
                if len(parts) == 4 and parts[2] == "tcp":
                    ports.setdefault(int(parts[0][2]), int(parts[3]))
        return ports

    @contextmanager
    def _leaving_from_ports(self, peer_id: str) -> Iterator[None]:
        """Dial from the ports that we listen on, if the peer is to see them."""
        shows = self.shows_port is not None and self.shows_port(peer_id)
        token = FROM_PORTS.set(self.listen_ports if shows else None)
        try:
            yield
        finally:
            FROM_PORTS.reset(token)

    async def _call(self, address: str, relay: str, peer_id: str) -> Circuit:
        return await self._reach.call(address, relay, peer_id)

    async def hang_up(self, peer_id: str) -> None:
        await self._network.close_peer(_parse_peer_id(peer_id))

    def is_connected(self, peer_id: str) -> bool:
        return self._network.best_connection(_parse_peer_id(peer_id)) is not None

    def remote_address(self, peer_id: str) -> str | None:
        connection = self._network.best_connection(_parse_peer_id(peer_id))
        return connection.address or None if connection is not None else None

    def dialled_address(self, peer_id: str) -> str | None:
        connection = self._network.best_connection(_parse_peer_id(peer_id))
        if connection is None or connection.way is not Direction.OUTBOUND:
            return None
        return connection.address or None

    async def open_stream(self, peer_id: str, protocols: Sequence[str], *, timeout_s: float = 10.0) -> SwarmStream:
        connection = self._network.best_connection(_parse_peer_id(peer_id))
        if connection is None:
            raise ConnectionFailedError(f"There is no connection to {peer_id}.")
        try:
            with trio.fail_after(timeout_s):
                muxed = await connection.open_muxed()
                try:
                    protocol = await select(muxed, protocols)
                    if protocol is None:
                        raise ProtocolError(f"{peer_id} speaks none of {', '.join(protocols)}.")
                except BaseException:
                    muxed.abort()
                    raise
        except trio.TooSlowError as exc:
            raise NetworkTimeoutError(f"{peer_id} did not answer within {timeout_s:g} s.") from exc
        except MuxedStreamError as exc:
            raise ConnectionFailedError(f"The stream to {peer_id} broke before it was open: {exc}") from exc
        return Libp2pStream(muxed, connection, protocol)

    def set_stream_handler(self, protocol: str, handler: StreamHandler) -> None:
        self._host.set_stream_handler(TProtocol(protocol), _guarded(protocol, handler))

    def remove_stream_handler(self, protocol: str) -> None:
        self._host.remove_stream_handler(TProtocol(protocol))

    def _announced(self, candidates: Sequence[Multiaddr]) -> list[Multiaddr]:
        """The addresses that identify and the DHT tell others: without wildcards."""
        texts = dict.fromkeys(concrete for one in candidates for concrete in expand(str(one)))
        return [Multiaddr(text) for text in texts]

    def _check_running(self) -> None:
        if self._state != "running":
            raise TransportError("The swarm is not running.")


def _guarded(protocol: str, handler: StreamHandler) -> Callable[[INetStream], Coroutine[Any, Any, None]]:
    """Wrap a handler for py-libp2p: the stream closes when it returns and is reset when it raises."""

    async def serve(stream: INetStream) -> None:
        muxed, connection = getattr(stream, "muxed_stream", None), getattr(stream, "swarm_conn", None)
        if not isinstance(muxed, MuxedStream) or not isinstance(connection, Connection):
            await stream.reset()
            return
        try:
            await handler(Libp2pStream(muxed, connection, protocol))
        except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead) as exc:
            # The peer's doing, not the handler's.
            logger.debug("a stream of %s from %s broke off: %r", protocol, connection.peer_id, exc)
            muxed.abort()
        except Exception:
            logger.exception("The handler of %s failed.", protocol)
            muxed.abort()

    return serve


@contextmanager
def _explained(peer_id: str, timeout_s: float, reasons: list[str]) -> Iterator[None]:
    """What went wrong with a dial, in the words of the layers above.

    :param reasons: what went wrong before it began.
    """
    try:
        yield
    except trio.TooSlowError as exc:
        raise ConnectionFailedError(f"{peer_id} did not answer within {timeout_s:g} s.") from exc
    except SwarmException as exc:
        reasons.append(str(exc))
        raise ConnectionFailedError(f"No address of the device answers: {'; '.join(reasons)}.") from exc


def _candidates(peer_id: str, addresses: Iterable[str]) -> tuple[list[Multiaddr], list[str]]:
    """The addresses to dial, each once, and what is wrong with the others."""
    candidates: list[Multiaddr] = []
    reasons: list[str] = []
    for address in dict.fromkeys(addresses):
        way, circuit, _ = address.partition("/p2p-circuit")
        transport, _, named = (f"{way}{circuit}/p2p/{peer_id}", "", "") if circuit else address.partition("/p2p/")
        if named and named != peer_id:
            reasons.append(f"{address}: it names another peer")
        else:
            try:
                candidates.append(_parse(transport))
            except TransportError as exc:
                reasons.append(str(exc).rstrip("."))
    return list(dict.fromkeys(candidates)), reasons


def _parse(address: str) -> Multiaddr:
    try:
        return Multiaddr(address)
    except Exception as exc:
        raise TransportError(f"{address} is not a libp2p address, such as /ip4/192.0.2.1/tcp/4001.") from exc


def _parse_peer_id(peer_id: str) -> ID:
    try:
        parsed = ID.from_base58(peer_id)
    except Exception as exc:
        raise ConnectionFailedError(f"{peer_id} is not a peer id.") from exc
    multihash = parsed.to_bytes()
    # A key itself (0x00) or its SHA-256 (0x12), and the length of what follows.
    if len(multihash) < 2 or multihash[0] not in {0x00, 0x12} or multihash[1] != len(multihash) - 2:
        raise ConnectionFailedError(f"{peer_id} is not a peer id.")
    return parsed


def _own_version() -> str:
    try:
        return importlib.metadata.version("sdnet-core")
    except importlib.metadata.PackageNotFoundError:
        return "0"
