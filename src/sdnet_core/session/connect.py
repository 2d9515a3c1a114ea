"""Running the handshake over a stream; what remains of the stream becomes the session's control stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from sdnet_core.clock import Clock, Randomness
from sdnet_core.errors import AuthenticationFailedError, NetworkTimeoutError
from sdnet_core.identity import NetworkIdentity
from sdnet_core.session.epoch import SessionLimits
from sdnet_core.session.handshake import (
    MAX_HANDSHAKE_MESSAGE_BYTES,
    Established,
    InitiatorHandshake,
    ResponderHandshake,
    SessionRefusedError,
)
from sdnet_core.session.keys import PeerSecret, Role, Suite, derive_session_keys
from sdnet_core.session.session import Session, SessionTable
from sdnet_core.swarm.abc import SwarmStream
from sdnet_core.wire import MessageStream

__all__ = ["initiate", "respond"]

_CLOSE_TIMEOUT_S = 1.0


async def initiate(
    stream: SwarmStream,
    identity: NetworkIdentity,
    secret: PeerSecret,
    suites: Sequence[Suite],
    clock: Clock,
    randomness: Randomness,
    *,
    timeout_s: float = 10.0,
    limits: SessionLimits | None = None,
    table: SessionTable | None = None,
) -> Session:
    """Make a session as the device that dialled.

    :param stream: newly opened for `/sdnet/session/1`; reset if this fails.
    :param secret: of the pairing with the device at the other end.
    :param suites: that we take, preferred first.
    :param timeout_s: for the whole handshake.
    :param table: where the session is put before the other side can open a stream in it. It is taken out again if
        the handshake fails after all; otherwise the caller takes it out when the session ends.
    :raises SessionRefusedError: the other device, proven to be it, takes no session; its ``reason`` says why.
    :raises AuthenticationFailedError: the other side did not prove who it is.
    :raises ProtocolError: the other side sent something that is not allowed.
    :raises ConnectionFailedError: the connection was lost.
    :raises NetworkTimeoutError: the handshake took too long.
    """
    async with _guarded(stream, timeout_s, table) as made:
        if stream.peer_id != secret.peer_id:
            raise AuthenticationFailedError("The connection leads to another device than the one meant.")
        machine = InitiatorHandshake(identity, secret, suites, randomness)
        messages = MessageStream(stream, max_bytes=MAX_HANDSHAKE_MESSAGE_BYTES)
        await messages.send_bytes(machine.start())
        proof = machine.receive(await messages.receive_bytes())
        if machine.established is None or proof is None:
            raise AuthenticationFailedError("The other side did not prove who it is.")
        session = _session(stream, identity, secret, machine.established, Role.INITIATOR, clock, limits)
        made(session)
        await messages.send_bytes(proof)
        machine.receive(await messages.receive_bytes())
        session.control_stream.feed(messages.take_pending())
        return session


async def respond(
    stream: SwarmStream,
    identity: NetworkIdentity,
    resolve: Callable[[bytes], PeerSecret | None],
    suites: Sequence[Suite],
    clock: Clock,
    randomness: Randomness,
    *,
    admit: Callable[[PeerSecret], bool] = lambda _: True,
    timeout_s: float = 10.0,
    limits: SessionLimits | None = None,
    table: SessionTable | None = None,
) -> tuple[Session, PeerSecret]:
    """Make a session as the device that was dialled.

    :param stream: newly opened by the other side for `/sdnet/session/1`; closed after a refusal, reset after any other
        failure.
    :param resolve: the secret of a pairing by its id (16 bytes), or None if there is none or it must not be used.
    :param suites: that we take.
    :param admit: whether to make a session with that device now; False refuses it as busy.
    :param timeout_s: for the whole handshake.
    :param table: where the session is put before the other side can open a stream in it. It is taken out again if
        the handshake fails after all; otherwise the caller takes it out when the session ends.
    :returns: the session and the pairing that proved it.
    :raises SessionRefusedError: we have refused; its ``reason`` says why.
    :raises AuthenticationFailedError: the other side did not prove who it is.
    :raises ProtocolError: the other side sent something that is not allowed.
    :raises ConnectionFailedError: the connection was lost.
    :raises NetworkTimeoutError: the handshake took too long.
    """
    async with _guarded(stream, timeout_s, table) as made:
        machine = ResponderHandshake(identity, stream.peer_id, resolve, suites, randomness, admit=admit)
        messages = MessageStream(stream, max_bytes=MAX_HANDSHAKE_MESSAGE_BYTES)
        welcome = machine.receive(await messages.receive_bytes())
        if welcome is not None:
            await messages.send_bytes(welcome)
        if machine.refused is not None:
            raise SessionRefusedError(machine.refused)
        ready = machine.receive(await messages.receive_bytes())
        if machine.established is None or machine.secret is None or ready is None:
            raise AuthenticationFailedError("The other side did not prove who it is.")
        session = _session(stream, identity, machine.secret, machine.established, Role.RESPONDER, clock, limits)
        made(session)
        session.control_stream.feed(messages.take_pending())
        await messages.send_bytes(ready)
        return session, machine.secret


@asynccontextmanager
async def _guarded(
    stream: SwarmStream, timeout_s: float, table: SessionTable | None
) -> AsyncIterator[Callable[[Session], None]]:
    """Bound a handshake in time, and leave nothing of one that failed."""
    sessions: list[Session] = []

    def made(session: Session) -> None:
        sessions.append(session)
        if table is not None:
            table.add(session)

    try:
        with anyio.fail_after(timeout_s):
            yield made
    except BaseException as error:
        for session in sessions:
            session.close()
            if table is not None:
                table.remove(session)
        if isinstance(error, SessionRefusedError):
            # A reset could overtake the refusal.
            with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                await stream.aclose()
        else:
            with anyio.CancelScope(shield=True):
                await stream.reset()
        if isinstance(error, TimeoutError):
            raise NetworkTimeoutError("The other device did not finish the session handshake in time.") from error
        raise


def _session(
    stream: SwarmStream,
    identity: NetworkIdentity,
    secret: PeerSecret,
    established: Established,
    role: Role,
    clock: Clock,
    limits: SessionLimits | None,
) -> Session:
    limits = limits or SessionLimits()
    keys = derive_session_keys(
        established.key,
        established.transcript_hash,
        role=role,
        suite=established.suite,
        created_at=clock.now(),
        lifetime_s=limits.lifetime_s,
    )
    return Session(identity.peer_id, secret.peer_id, secret.pairing_id, keys, stream, clock, limits=limits)
