"""A session between two paired devices: its epochs, its streams, and who keeps which of two."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from weakref import WeakSet

from sdnet_core.clock import Clock
from sdnet_core.errors import EncryptionError, ProtocolError
from sdnet_core.session.channel import SealedStream
from sdnet_core.session.epoch import Epoch, SessionLimits, Traffic
from sdnet_core.session.keys import Role, SessionKeys
from sdnet_core.session.preamble import Preamble
from sdnet_core.swarm.abc import SwarmStream

__all__ = ["MAX_EPOCHS", "Session", "SessionTable", "keep_ours"]

logger = logging.getLogger(__name__)

MAX_EPOCHS = 4
"""Epochs of a session that live at a time before we begin another: the current one and old ones that are ending.

The other device may begin one more, since what has ended for it lives here as much longer as a message took.
"""


def keep_ours(local_peer_id: str, remote_peer_id: str, role: Role) -> bool:
    """Which of two sessions stays when both devices dialled at once: the one that the higher peer id initiated.

    Both sides decide alike, whatever order they see the sessions in. The rule is for two handshakes that overlap. Where
    one session was established before the other handshake began, the newer one stays: the device that dials again has
    lost the older one.

    :param local_peer_id: base58 text, compared by code points.
    :param role: our role in the session in question.
    :returns: whether that session stays.
    """
    return (role is Role.INITIATOR) == (local_peer_id > remote_peer_id)


class Session:
    """What two devices have in common after the handshake.

    :param local_peer_id: us.
    :param peer_id: the other device, which has proven itself.
    :param pairing_id: which pairing proved it, 16 bytes.
    :param keys: of the first epoch.
    :param control: the stream the handshake ran on, which carries the control messages from now on.
    """

    def __init__(
        self,
        local_peer_id: str,
        peer_id: str,
        pairing_id: bytes,
        keys: SessionKeys,
        control: SwarmStream,
        clock: Clock,
        *,
        limits: SessionLimits,
    ) -> None:
        self.local_peer_id = local_peer_id
        self.peer_id = peer_id
        self.pairing_id = pairing_id
        self.role = keys.role
        self.generation = control.generation
        self.limits = limits
        self.clock = clock
        now = clock.monotonic()
        self.traffic = Traffic(last_sent=now, last_received=now)
        self.created_at = keys.created_at
        self._epochs = [Epoch(keys, clock, limits, self.traffic)]
        self._streams: WeakSet[SealedStream] = WeakSet()
        self.closed = False
        self.rotations = 0
        """How often its keys were changed."""
        self.control_stream = SealedStream(control, self._epochs[0], opener=Role.INITIATOR, number=0)

    def __repr__(self) -> str:
        return f"Session({self.peer_id}, {self.role.name.lower()}, epoch {self.epoch.keys.epoch_id.hex()})"

    @property
    def epoch(self) -> Epoch:
        """The epoch that new streams are opened in."""
        return self._epochs[-1]

    @property
    def keys(self) -> SessionKeys:
        """The keys of the current epoch, with their dates."""
        return self.epoch.keys

    @property
    def expires_at(self) -> float:
        """When the current keys stop working, seconds since the Unix epoch."""
        return self.keys.expires_at

    @property
    def streams(self) -> tuple[SealedStream, ...]:
        """The streams that are open, without the control stream."""
        return tuple(
            sorted((item for item in self._streams if not item.ended), key=lambda item: (item.opener, item.number))
        )

    def has_epoch(self, epoch_id: bytes) -> bool:
        """Whether streams of an epoch are taken."""
        return any(epoch.keys.epoch_id == epoch_id and not epoch.over for epoch in self._epochs)

    def open_stream(self, stream: SwarmStream) -> SealedStream:
        """Seal a stream that we have opened to the device.

        :raises EncryptionError: the session is closed or its keys have expired.
        :raises ProtocolError: the stream goes to somebody else.
        """
        self._check(stream)
        number = self.epoch.take_number()
        sealed = SealedStream(stream, self.epoch, opener=self.role, number=number, begin=True)
        self.traffic.streams_opened += 1
        self._streams.add(sealed)
        return sealed

    def accept(self, stream: SwarmStream, preamble: Preamble) -> SealedStream:
        """Seal a stream that the device has opened to us.

        :param preamble: what `read_preamble` gave.
        :raises AuthenticationFailedError: its opener does not hold the keys of this session.
        :raises EncryptionError: the session is closed.
        :raises ProtocolError: the epoch is not one of this session, or the stream's number was used before.
        """
        self._check(stream)
        epoch = next((item for item in self._epochs if item.keys.epoch_id == preamble.epoch_id), None)
        if epoch is None or epoch.over:
            raise ProtocolError("The other side opened a stream under keys that are not in use.")
        sealed = SealedStream(stream, epoch, opener=self.role.other, number=preamble.number)
        sealed.check_opening(preamble)
        epoch.window.add(preamble.number)
        self.traffic.streams_accepted += 1
        self._streams.add(sealed)
        return sealed

    def add_epoch(self, keys: SessionKeys) -> Epoch:
        """Take streams under new keys; we open none under them before `use_epoch`.

        :raises ProtocolError: too many epochs are alive.
        """
        self._forget_old()
        if len(self._epochs) > MAX_EPOCHS:
            raise ProtocolError("The other side changes keys too often.")
        if self.closed:
            raise ProtocolError("The session is closed.")
        epoch = Epoch(keys, self.clock, self.limits, self.traffic)
        self._epochs.insert(len(self._epochs) - 1, epoch)
        return epoch

    def use_epoch(self, epoch: Epoch) -> None:
        """Open new streams under a newer epoch; the one so far goes on for `SessionLimits.old_epoch_s`."""
        self._epochs.remove(epoch)
        self.epoch.retire()
        self._epochs.append(epoch)
        self.rotations += 1
        logger.info("the session with %s has new keys, until %.0f", self.peer_id, epoch.keys.expires_at)

    @property
    def next_end(self) -> float:
        """When the first of the keys in use stop working, monotonic time, seconds."""
        return min(epoch.deadline for epoch in self._epochs)

    @property
    def can_rotate(self) -> bool:
        """Whether another epoch may begin now."""
        self._forget_old()
        return not self.closed and len(self._epochs) < MAX_EPOCHS

    async def end_old_streams(self) -> None:
        """Reset every stream whose keys have ended."""
        self._forget_old()
        for stream in self.streams:
            if stream.epoch.over:
                await stream.reset()

    def close(self) -> None:
        """Use no key of the session any more. Every stream fails from now on; `reset_streams` also wakes readers."""
        self.closed = True
        for epoch in self._epochs:
            epoch.ended = True

    async def reset_streams(self) -> None:
        """Reset all streams of the session, the control stream too."""
        for stream in (*self.streams, self.control_stream):
            await stream.reset()

    def _check(self, stream: SwarmStream) -> None:
        if self.closed:
            raise EncryptionError("The session is closed.")
        if stream.peer_id != self.peer_id:
            raise ProtocolError("The stream belongs to another device than the session.")

    def _forget_old(self) -> None:
        self._epochs = [epoch for epoch in self._epochs if epoch is self.epoch or not epoch.over]


class SessionTable:
    """The sessions of a node, found by what an inbound stream begins with.

    A device has one session at a time, and for a moment two: while two dials at once are being settled, or while
    streams move to a better path.
    """

    __slots__ = ("_sessions",)

    def __init__(self) -> None:
        self._sessions: dict[str, list[Session]] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter([session for sessions in self._sessions.values() for session in sessions])

    def add(self, session: Session) -> None:
        """Take streams of a session. Give this to `initiate` and `respond` as ``register``."""
        self._sessions.setdefault(session.peer_id, []).append(session)

    def remove(self, session: Session) -> None:
        """Take no more streams of a session. Does nothing if it is not there."""
        sessions = self._sessions.get(session.peer_id, [])
        if session in sessions:
            sessions.remove(session)
        if not sessions:
            self._sessions.pop(session.peer_id, None)

    def of_peer(self, peer_id: str) -> tuple[Session, ...]:
        """The sessions with a device, oldest first."""
        return tuple(self._sessions.get(peer_id, ()))

    def find(self, peer_id: str, epoch_id: bytes) -> Session | None:
        """The session with a device that has an epoch, or None."""
        return next((session for session in self.of_peer(peer_id) if session.has_epoch(epoch_id)), None)
