"""The control stream of a session: alive or not, round-trip time, new keys, and the last word."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import anyio
import msgspec

from sdnet_core.clock import Clock, Randomness, last_beat
from sdnet_core.errors import (
    AuthenticationFailedError,
    ConflictError,
    ConnectionFailedError,
    EncryptionError,
    NetworkTimeoutError,
    ProtocolError,
)
from sdnet_core.session.channel import SealedStream
from sdnet_core.session.epoch import Epoch
from sdnet_core.session.rekey import Rekey, RekeyAnswer, RekeyConfirm, RekeyDone, RekeyRequest
from sdnet_core.session.session import Session
from sdnet_core.wire import Message, decode, encode

__all__ = [
    "ControlChannel",
    "ControlEnd",
    "ControlSettings",
    "EndReason",
    "Goodbye",
    "GoodbyeReason",
    "Keepalive",
    "Ping",
    "Pong",
]

MAX_CONTROL_MESSAGE_BYTES = 512
_MAX_PINGS = 64
_MAX_QUEUED = 64
"""Messages that wait to be sent; while there are more, none of the other side's are taken."""
_ASK_AFTER = 1.25
"""Keepalive intervals without a sign of the other side after which it is asked for one: its own interval may be
longer than ours, and then it would be taken for gone while it is only quiet."""

_BEATS = 6
"""Beats in a keepalive interval: what is due between two of them is said on the first, for all sessions at once."""
_ANSWER_AFTER = 2 / 3
"""A keepalive is answered with one if ours would be due after no more than the rest of the interval, so that the two
sides speak, and wake up, at the same moment."""
_CALM_RECORDS = 8
"""When more records than that moved since the last look, the next one comes soon: keys may be used up early."""

_PingNumber = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class GoodbyeReason(StrEnum):
    """Why a device ends a session in order."""

    SHUTDOWN = "shutdown"
    """It stops."""
    DUPLICATE = "duplicate"
    """There is another session between the two that stays."""
    MOVED = "moved"
    """A session over a better path has taken its place."""
    IDLE = "idle"
    """It makes room for other connections."""
    NOT_PAIRED = "not-paired"
    """It has ended the pairing; there will be no session again."""
    EXPIRED = "expired"
    """The keys have reached their end."""


class Ping(Message, frozen=True, kw_only=True, tag=16):
    """Asks for a `Pong` with the same number at once."""

    number: _PingNumber


class Pong(Message, frozen=True, kw_only=True, tag=17):
    """Answers a `Ping`."""

    number: _PingNumber


class Keepalive(Message, frozen=True, kw_only=True, tag=18):
    """Says that the sender is there; sent when it has sent nothing else for a while."""


class Goodbye(Message, frozen=True, kw_only=True, tag=19):
    """The last message of a session."""

    reason: GoodbyeReason


_ControlMessage = Ping | Pong | Keepalive | Goodbye | RekeyRequest | RekeyAnswer | RekeyConfirm | RekeyDone


class EndReason(StrEnum):
    """Why a session ended."""

    PEER_GOODBYE = "peer-goodbye"
    OUR_GOODBYE = "our-goodbye"
    STALE = "stale"
    """Nothing was heard for several keepalive intervals, or the other side took nothing for as long."""
    LOST = "lost"
    """The connection broke."""
    EXPIRED = "expired"
    """The keys reached their end without being renewed."""
    VIOLATION = "violation"
    """The other side sent something that the protocol does not allow, or that did not open."""


@dataclass(frozen=True, slots=True)
class ControlEnd:
    """How a session ended.

    :param goodbye: what the side that ended it in order gave as its reason.
    :param detail: for the log.
    """

    reason: EndReason
    goodbye: GoodbyeReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """How often, and how patient.

    :param keepalive_interval_s: a side that has sent nothing in the session for so long says that it is there.
    :param keepalive_misses: intervals without a sign of the other side after which it counts as gone.
    :param jitter: share by which each interval is shortened or lengthened at random.
    :param goodbye_timeout_s: how long `goodbye` waits for the other side to take it.
    """

    keepalive_interval_s: float = 30.0
    keepalive_misses: int = 3
    jitter: float = 0.1
    goodbye_timeout_s: float = 1.0

    @property
    def stale_after_s(self) -> float:
        """Silence after which the other side counts as gone, seconds."""
        return self.keepalive_interval_s * (1 + self.jitter) * self.keepalive_misses


class _Pinging:
    """A ping on its way."""

    __slots__ = ("answered", "event")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.answered: float | None = None


class ControlChannel:
    """Runs the control stream of one session.

    :param session: it is closed when `run` ends.
    """

    def __init__(
        self, session: Session, clock: Clock, randomness: Randomness, settings: ControlSettings | None = None
    ) -> None:
        self._session = session
        self._stream: SealedStream = session.control_stream
        self._clock = clock
        self._randomness = randomness
        self._settings = settings or ControlSettings()
        self._parting: GoodbyeReason | None = None
        self._end: ControlEnd | None = None
        self._ended = anyio.Event()
        self._scope: anyio.CancelScope | None = None
        self._look = anyio.Event()
        # Only `_write` sends, so that a caller that gives up never leaves half a record behind.
        self._queue: deque[tuple[bytes, Epoch | None]] = deque()
        self._queued = anyio.Event()
        self._sent = anyio.Event()
        self._pings: dict[int, _Pinging] = {}
        self._next_ping = 0
        # A change of keys that we asked for, or that we have answered and that is not confirmed yet.
        self._asked: Rekey | None = None
        self._answered: tuple[Rekey, Epoch] | None = None
        self._confirmed: Epoch | None = None
        self._rotate_age = self._next_rotate_age()

    @property
    def end(self) -> ControlEnd | None:
        """How the session ended, or None while it goes on."""
        return self._end

    async def run(self) -> ControlEnd:
        """Serve the control stream until the session ends.

        Whatever the other side does, this returns; it raises nothing but cancellation. The session is closed and all
        its streams are reset on the way out.
        """
        try:
            if self._end is None:
                async with anyio.create_task_group() as tasks:
                    self._scope = tasks.cancel_scope
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._watch)
                    await self._read()
                    tasks.cancel_scope.cancel()
        finally:
            self._stop(ControlEnd(EndReason.LOST, detail="The control channel was stopped."))
            self._session.close()
            with anyio.CancelScope(shield=True):
                await self._session.reset_streams()
        return self._end or ControlEnd(EndReason.LOST)

    async def ping(self, timeout_s: float = 10.0) -> float:
        """Measure the round trip to the other side's control channel.

        :returns: seconds.
        :raises NetworkTimeoutError: no answer came within ``timeout_s``.
        :raises ConnectionFailedError: the session has ended.
        :raises ConflictError: too many pings are on their way.
        """
        if self._end is not None:
            raise ConnectionFailedError("The connection to the device has ended.")
        if len(self._pings) >= _MAX_PINGS:
            raise ConflictError("Too many pings wait for an answer already.")
        number, self._next_ping = self._next_ping, self._next_ping + 1
        pinging = self._pings[number] = _Pinging()
        start = self._clock.monotonic()
        try:
            with anyio.move_on_after(timeout_s):
                self._send(Ping(number=number))
                await pinging.event.wait()
        finally:
            del self._pings[number]
        if pinging.answered is not None:
            return pinging.answered - start
        if self._end is not None:
            raise ConnectionFailedError("The connection to the device has ended.")
        raise NetworkTimeoutError("The device did not answer the ping in time.")

    def look(self) -> None:
        """Look now whether the session is alive: its time has gone on while the event loop's stood still."""
        self._look.set()

    def rotate(self) -> None:
        """Ask for new keys now. Does nothing while a change of keys is on its way."""
        if self._asked is not None or self._answered is not None or self._confirmed is not None:
            return
        self._asked = Rekey(self._session.keys, self._randomness)
        self._send(self._asked.request())

    async def goodbye(self, reason: GoodbyeReason) -> None:
        """End the session in order: tell the other side why, and have `run` return. Raises nothing but cancellation."""
        if self._end is not None:
            return
        if self._parting is None:
            self._parting = reason
            self._send(Goodbye(reason=reason))
        with anyio.move_on_after(self._settings.goodbye_timeout_s):
            # The other side answers by ending the stream. Our own reset could overtake the message.
            await self._ended.wait()
        self._stop(ControlEnd(EndReason.OUR_GOODBYE, reason))

    async def _read(self) -> None:
        while self._end is None:
            try:
                payload = await self._stream.receive_record()
                message: _ControlMessage = decode(payload, _ControlMessage, max_bytes=MAX_CONTROL_MESSAGE_BYTES)
                self._take(message)
                if len(self._queue) >= _MAX_QUEUED:
                    await self._sent.wait()
            except anyio.EndOfStream:
                self._stop(ControlEnd(EndReason.LOST, detail="The other side ended its control stream."))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                self._stop(self._broken(error))
            except (ProtocolError, AuthenticationFailedError) as error:
                self._stop(ControlEnd(EndReason.VIOLATION, detail=str(error)))

    def _take(self, message: _ControlMessage) -> None:
        match message:
            case Ping():
                self._send(Pong(number=message.number))
            case Pong():
                # One that is not waited for any more came too late.
                if (pinging := self._pings.get(message.number)) is not None:
                    pinging.answered = self._clock.monotonic()
                    pinging.event.set()
            case Keepalive():
                speak_from = self._session.traffic.last_sent + _ANSWER_AFTER * self._settings.keepalive_interval_s
                if self._clock.monotonic() >= speak_from and not self._queue:
                    self._send(Keepalive())
            case Goodbye():
                self._stop(ControlEnd(EndReason.PEER_GOODBYE, message.reason))
            case RekeyRequest():
                self._take_request(message)
            case RekeyAnswer():
                self._take_answer(message)
            case RekeyConfirm():
                self._take_confirm(message)
            case RekeyDone():
                self._take_done()

    def _take_request(self, request: RekeyRequest) -> None:
        if self._asked is not None and self._session.local_peer_id > self._session.peer_id:
            return  # both asked at once: the higher peer id's request counts, and the other side answers it
        if self._answered is not None or self._confirmed is not None:
            raise ProtocolError("The other side asked for new keys twice.")
        self._asked = None
        rekey = Rekey(self._session.keys, self._randomness)
        answer = rekey.answer(request)
        self._answered = rekey, self._new_epoch(rekey)
        self._send(answer)

    def _take_answer(self, answer: RekeyAnswer) -> None:
        rekey, self._asked = self._asked, None
        if rekey is None:
            raise ProtocolError("The other side answered a question that was not asked.")
        confirm = rekey.accept(answer)
        self._confirmed = self._new_epoch(rekey)
        self._use(self._confirmed)
        self._send(confirm, then=self._confirmed)

    def _take_confirm(self, confirm: RekeyConfirm) -> None:
        if self._answered is None:
            raise ProtocolError("The other side confirmed keys that were not agreed on.")
        (rekey, epoch), self._answered = self._answered, None
        rekey.confirm(confirm)
        self._use(epoch)
        self._stream.receive_under(epoch)
        self._send(RekeyDone(), then=epoch)

    def _take_done(self) -> None:
        if self._confirmed is None:
            raise ProtocolError("The other side finished a change of keys that was not begun.")
        self._stream.receive_under(self._confirmed)
        self._confirmed = None

    def _new_epoch(self, rekey: Rekey) -> Epoch:
        return self._session.add_epoch(rekey.new_keys(self._clock.now(), self._session.limits.lifetime_s))

    def _use(self, epoch: Epoch) -> None:
        self._session.use_epoch(epoch)
        self._rotate_age = self._next_rotate_age()
        self._look.set()

    def _next_rotate_age(self) -> float:
        limits = self._session.limits
        return limits.rotate_after_s + self._randomness.uniform(-limits.rotate_jitter_s, limits.rotate_jitter_s)

    async def _watch(self) -> None:
        """Say that we are there, notice that the other side is not, renew keys in time."""
        session, settings = self._session, self._settings
        interval = self._jittered()
        asked = float("-inf")
        beat_s = settings.keepalive_interval_s / _BEATS
        moved = 0
        while self._end is None:
            self._look = anyio.Event()
            now = self._clock.monotonic()
            ahead = anyio.current_time() - now  # of the event loop's time, which stands still while the machine sleeps
            if session.closed:
                self._stop(ControlEnd(EndReason.LOST, detail="The session was closed."))
                return
            if session.epoch.over:
                self._stop(ControlEnd(EndReason.EXPIRED, detail="The session's keys reached their end."))
                return
            stale_at = session.traffic.last_received + settings.stale_after_s
            if now >= stale_at:
                self._stop(ControlEnd(EndReason.STALE, detail=f"Nothing heard for {settings.stale_after_s:.0f} s."))
                return
            speak_at = last_beat(session.traffic.last_sent + interval + ahead, beat_s)
            if now + ahead >= speak_at:
                interval = self._jittered()
                speak_at = last_beat(now + interval + ahead, beat_s)
                if not self._queue:
                    self._send(Keepalive())
            ask_at = max(session.traffic.last_received, asked) + _ASK_AFTER * settings.keepalive_interval_s
            if now >= ask_at:
                asked, ask_at = now, now + _ASK_AFTER * settings.keepalive_interval_s
                if not self._queue:
                    number, self._next_ping = self._next_ping, self._next_ping + 1
                    self._send(Ping(number=number))
            rotate_at = session.epoch.created + self._rotate_age
            if (now >= rotate_at or session.epoch.half_used) and session.can_rotate:
                self.rotate()
            await session.end_old_streams()
            due = min(stale_at, ask_at, session.next_end)
            if rotate_at > now:
                due = min(due, rotate_at)
            before, moved = moved, session.traffic.records_sent + session.traffic.records_received
            if moved - before > _CALM_RECORDS:
                due = min(due, now + beat_s)
            with anyio.CancelScope(deadline=max(min(due + ahead, speak_at), now + ahead + 0.001)):
                await self._look.wait()

    def _jittered(self) -> float:
        settings = self._settings
        return settings.keepalive_interval_s * (1 + self._randomness.uniform(-settings.jitter, settings.jitter))

    def _send(self, message: Message, then: Epoch | None = None) -> None:
        """Have one message sent.

        :param then: the epoch whose keys protect what follows.
        """
        self._queue.append((encode(message), then))
        self._queued.set()
        if self._sent.is_set():
            self._sent = anyio.Event()

    async def _write(self) -> None:
        """Send what is queued; a stream that takes nothing, or is gone, ends the session."""
        try:
            while True:
                while self._queue:
                    payload, then = self._queue[0]
                    with anyio.fail_after(self._settings.stale_after_s):
                        if then is None:
                            await self._stream.send_record(payload)
                        else:
                            await self._stream.send_last_record_of_epoch(payload, then)
                    self._queue.popleft()
                self._sent.set()
                self._queued = anyio.Event()
                await self._queued.wait()
        except TimeoutError:
            self._stop(ControlEnd(EndReason.STALE, detail="The other side takes no messages."))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self._stop(self._broken(error))

    def _broken(self, error: BaseException) -> ControlEnd:
        if self._session.closed:
            return ControlEnd(EndReason.LOST, detail="The session was closed.")
        if self._session.epoch.over:
            return ControlEnd(EndReason.EXPIRED, detail="The session's keys reached their end.")
        if isinstance(error.__cause__, EncryptionError):
            return ControlEnd(EndReason.VIOLATION, detail=str(error))
        return ControlEnd(EndReason.LOST, detail=str(error) or "The connection was lost.")

    def _stop(self, end: ControlEnd) -> None:
        """The session ends; the first reason counts."""
        if self._end is not None:
            return
        self._end = end if self._parting is None else ControlEnd(EndReason.OUR_GOODBYE, self._parting)
        self._ended.set()
        for pinging in self._pings.values():
            pinging.event.set()
        if self._scope is not None:
            self._scope.cancel()
