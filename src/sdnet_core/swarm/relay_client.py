"""Using a relay: a place at it, a connection through it to somebody, and one from somebody (circuit relay v2)."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from sdnet_core.errors import ConnectionFailedError, NetworkTimeoutError, SerializationError
from sdnet_core.swarm.abc import Swarm, SwarmStream
from sdnet_core.swarm.relay_messages import (
    HOP,
    MAX_MESSAGE_BYTES,
    HopMessage,
    HopType,
    Limit,
    RelayStatus,
    StopMessage,
    StopType,
    exchange,
    explain,
)
from sdnet_core.wire import MessageStream

__all__ = ["Circuit", "Reservation", "answer_call", "call_through", "reserve"]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A place at a relay.

    :param lifetime_s: as the relay says, seconds from now.
    """

    lifetime_s: float
    limit: Limit


@dataclass(frozen=True, slots=True)
class Circuit:
    """A stream that reaches from one peer through a relay to another; not secured yet.

    :param stream: to or from the relay.
    :param pending: bytes that have come already.
    :param peer_id: who is at the other end, as far as the relay says.
    """

    stream: SwarmStream
    pending: bytes
    peer_id: str
    limit: Limit


async def reserve(swarm: Swarm, relay: str, *, now: float, timeout_s: float = 10.0) -> Reservation:
    """Ask for a place at a relay that we are connected to.

    :param now: seconds since the epoch.
    :raises ConnectionFailedError: it has none, or is no relay.
    :raises NetworkingError: it cannot be asked.
    """
    try:
        with anyio.fail_after(timeout_s):
            stream = await swarm.open_stream(relay, [HOP], timeout_s=timeout_s)
            try:
                messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
                answer = HopMessage.decode(await exchange(messages, HopMessage(type=HopType.RESERVE)))
            finally:
                with anyio.CancelScope(shield=True):
                    await stream.reset()
    except TimeoutError as error:
        raise NetworkTimeoutError("The relay did not answer in time.") from error
    if answer.status is not RelayStatus.OK:
        raise explain(answer.status)
    return Reservation(max(0.0, answer.expires_at - now), answer.limit or Limit())


async def call_through(swarm: Swarm, relay: str, peer_id: str, *, timeout_s: float = 10.0) -> Circuit:
    """Ask a relay that we are connected to for a connection to a peer.

    :raises ConnectionFailedError: it does not make one; says why.
    :raises NetworkingError: it cannot be asked.
    """
    stream: SwarmStream | None = None
    done = False
    try:
        with anyio.fail_after(timeout_s):
            stream = await swarm.open_stream(relay, [HOP], timeout_s=timeout_s)
            messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
            request = HopMessage(type=HopType.CONNECT, peer=peer_id)
            answer = HopMessage.decode(await exchange(messages, request))
        if answer.status is not RelayStatus.OK:
            raise explain(answer.status)
        done = True
        return Circuit(stream, messages.take_pending(), peer_id, answer.limit or Limit())
    except TimeoutError as error:
        raise NetworkTimeoutError("The relay did not answer in time.") from error
    finally:
        if not done and stream is not None:
            with anyio.CancelScope(shield=True):
                await stream.reset()


async def answer_call(stream: SwarmStream, *, take: bool, timeout_s: float = 10.0) -> Circuit | None:
    """Answer a relay that has a call for us.

    :param take: whether we take calls from this relay.
    :returns: the connection, or None if there is none.
    """
    messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
    status = RelayStatus.PERMISSION_DENIED
    request: StopMessage | None = None
    try:
        with anyio.fail_after(timeout_s):
            try:
                request = StopMessage.decode(await messages.receive_bytes())
            except SerializationError:
                status = RelayStatus.MALFORMED_MESSAGE
            else:
                if request.type is not StopType.CONNECT or not request.peer:
                    status = RelayStatus.UNEXPECTED_MESSAGE
                elif take:
                    status = RelayStatus.OK
            await messages.send_bytes(StopMessage(type=StopType.STATUS, status=status).encode())
    except (ConnectionFailedError, TimeoutError):
        return None
    if request is None or status is not RelayStatus.OK:
        return None
    return Circuit(stream, messages.take_pending(), request.peer, request.limit or Limit())
