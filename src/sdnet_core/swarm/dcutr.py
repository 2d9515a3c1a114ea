"""Hole punching: two peers behind routers dial each other at the same moment (libp2p's DCUtR).

Specification: https://github.com/libp2p/specs/blob/master/relay/DCUtR.md. They agree on the moment over the connection
that they have through a relay. Both dial from the port that they listen on, where the relay has seen them: each router
takes what comes for an answer to what went out. The one who was called through the relay begins; the one who called
plays the client of what comes about.
"""

from __future__ import annotations

from sdnet_core.swarm import _fastecdsa as _fastecdsa

# isort: split
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from ..errors import NetworkingError, SerializationError
from ..wire import MessageStream
from .abc import Swarm, SwarmStream
from .host import Network
from .relay_messages import DCUTR, MAX_MESSAGE_BYTES, PunchMessage, PunchType
from .relay_transport import is_relayed
from .tcp import open_tcp, prepare_socket, resolve

__all__ = ["HolePuncher"]

logger = logging.getLogger(__name__)

MAX_ADDRESSES = 8
MESSAGE_TIMEOUT_S = 5.0
PUNCH_S = 4.0
"""How long both dial."""
RETRY_S = 0.05
"""A router that is not open yet may refuse; the next attempt comes so soon after that."""
ATTEMPT_S = 2.5
"""Long enough for a packet that was dropped to be sent once more."""
SILENT_S = 0.7
"""The client speaks first. If it says nothing for so long, the other side took our call as one that came in by itself,
and waits for us."""


@dataclass(eq=False, slots=True)
class _Attempt:
    """Both sides dialling each other once.

    :param client: whether we play the client of what comes about.
    :param newer_than: the generation of the connection that is to be replaced.
    """

    peer_id: ID
    client: bool
    newer_than: int
    commit: trio.Lock = field(default_factory=trio.Lock)


class HolePuncher:
    """Punches holes for a swarm.

    :param swarm: knows where we have been seen (`Swarm.outside`) and which ports we listen on.
    """

    def __init__(self, swarm: Swarm, network: Network) -> None:
        self._swarm = swarm
        self._network = network
        self._busy: set[str] = set()

    async def punch(self, peer_id: ID, ports: dict[int, int]) -> None:
        """Begin, as the one who was called through the relay.

        :param ports: that we listen on, by IP version.
        :raises SwarmException: no connection came about.
        :raises NetworkingError: the other side does not take part.
        """
        text = str(peer_id)
        best = self._network.best_connection(peer_id)
        if best is None:
            raise SwarmException("there is no connection to improve")
        if not best.relayed:
            return
        stream = await self._swarm.open_stream(text, [DCUTR], timeout_s=MESSAGE_TIMEOUT_S)
        try:
            messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
            with trio.fail_after(MESSAGE_TIMEOUT_S):
                began = trio.current_time()
                await messages.send_bytes(self._ours().encode())
                theirs = PunchMessage.decode(await messages.receive_bytes())
                round_trip_s = trio.current_time() - began
                await messages.send_bytes(PunchMessage(type=PunchType.SYNC).encode())
            await trio.sleep(round_trip_s / 2)
            await self._dial(peer_id, theirs.addresses, ports, client=False, newer_than=best.generation)
        except trio.TooSlowError as exc:
            raise SwarmException("the other side did not agree on a moment in time") from exc
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()

    async def answer(self, stream: SwarmStream, ports: dict[int, int]) -> None:
        """Take part, as the one who called through the relay.

        :param stream: that the other side has opened.
        """
        peer = stream.peer_id
        path = self._swarm.path(peer)
        known = self._swarm.knows is None or self._swarm.knows(peer)
        # A stranger could have us dial any address of our own network.
        if path is None or not path.relayed or peer in self._busy or not known:
            await stream.reset()
            return
        self._busy.add(peer)
        try:
            messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
            with trio.fail_after(MESSAGE_TIMEOUT_S):
                theirs = PunchMessage.decode(await messages.receive_bytes())
                await messages.send_bytes(self._ours().encode())
                sync = PunchMessage.decode(await messages.receive_bytes())
            if theirs.type is PunchType.CONNECT and sync.type is PunchType.SYNC:
                peer_id = ID.from_base58(peer)
                await self._dial(peer_id, theirs.addresses, ports, client=True, newer_than=path.generation)
        except (trio.TooSlowError, NetworkingError, SwarmException, SerializationError) as exc:
            logger.debug("no hole to %s: %s", peer, exc)
        finally:
            self._busy.discard(peer)

    def _ours(self) -> PunchMessage:
        addresses = [text for text in (*self._swarm.outside, *self._swarm.addresses) if _usable(text)]
        binary = tuple(Multiaddr(text).to_bytes() for text in dict.fromkeys(addresses))
        return PunchMessage(type=PunchType.CONNECT, addresses=binary[:MAX_ADDRESSES])

    async def _dial(
        self, peer_id: ID, addresses: Iterable[bytes], ports: dict[int, int], *, client: bool, newer_than: int
    ) -> None:
        """Dial all addresses until one of them is a connection to the peer."""
        texts = []
        for raw in list(addresses)[:MAX_ADDRESSES]:
            try:
                text = str(Multiaddr(raw))
            except Exception as exc:
                logger.debug("%s names what is no address: %r", peer_id, exc)
                continue
            if _usable(text):
                texts.append(text)
        if not texts:
            raise SwarmException("the other side names no address that could be dialled")
        attempt = _Attempt(peer_id, client, newer_than)
        with trio.move_on_after(PUNCH_S):
            async with trio.open_nursery() as nursery:
                for text in dict.fromkeys(texts):
                    nursery.start_soon(self._try, attempt, text, ports, nursery.cancel_scope)
                nursery.start_soon(self._stop_when_connected, peer_id, newer_than, nursery.cancel_scope)
        best = self._network.best_connection(peer_id)
        if best is None or best.relayed:
            raise SwarmException(f"no hole at {', '.join(texts)}")

    async def _stop_when_connected(self, peer_id: ID, newer_than: int, scope: trio.CancelScope) -> None:
        # The other side's call may come in by itself.
        while self._network.best_connection(peer_id) is not None and not self._is_direct(peer_id, newer_than):
            await self._network.connected.park()
        scope.cancel()

    def _is_direct(self, peer_id: ID, newer_than: int) -> bool:
        best = self._network.best_connection(peer_id)
        return best is not None and best.generation > newer_than and not best.relayed

    async def _try(self, attempt: _Attempt, text: str, ports: dict[int, int], scope: trio.CancelScope) -> None:
        try:
            version, host, port = (await resolve(text))[0]
        except OpenConnectionError:
            return
        while True:
            stream: trio.SocketStream | None = None
            try:
                with trio.fail_after(ATTEMPT_S):
                    stream = await open_tcp(version, host, port, from_port=ports.get(version, 0))
                await self._upgrade(attempt, stream, text)
                scope.cancel()
                return
            except Exception as exc:
                logger.debug("%s does not let through yet: %r", text, exc)
                if stream is not None:
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(stream)
            except BaseException:
                if stream is not None:
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(stream)
                raise
            await trio.sleep(RETRY_S)

    async def _upgrade(self, attempt: _Attempt, stream: trio.SocketStream, text: str) -> None:
        """Make a connection of what went through."""
        peer_id, client = attempt.peer_id, attempt.client
        if not client:
            with trio.move_on_after(SILENT_S) as patience:
                await stream.socket.recv(1, trio.socket.MSG_PEEK)
            client = patience.cancelled_caught
        raw = RawConnection(TrioTCPStream(stream), client)
        prepare_socket(raw)
        with trio.fail_after(ATTEMPT_S):
            secured = await self._network.secure(raw, peer_id if client else None)
            if not client and secured.get_remote_peer() != peer_id:  # type: ignore[union-attr]
                raise SwarmException("another peer answered")
        async with attempt.commit:
            if self._is_direct(peer_id, attempt.newer_than):
                raise SwarmException("another way was faster")
            # What has got so far that the other side may count on it is finished.
            with trio.CancelScope(shield=True), trio.fail_after(ATTEMPT_S):
                muxed = await self._network.multiplex(secured)
                await self._network.add_conn(muxed, "outbound" if client else "inbound", text)


def _usable(text: str) -> bool:
    parts = text.removeprefix("/").split("/")
    return not is_relayed(text) and len(parts) == 4 and parts[0] in ("ip4", "ip6") and parts[2] == "tcp"
