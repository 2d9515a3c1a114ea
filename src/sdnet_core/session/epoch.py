"""One epoch of a session: its keys, what they may still be used for, and which stream numbers were seen (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from sdnet_core.clock import Clock
from sdnet_core.errors import EncryptionError, ProtocolError
from sdnet_core.session.keys import SessionKeys

__all__ = ["Epoch", "ReplayWindow", "SessionLimits", "Traffic"]

_LAST_NUMBER = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How long and for how much the keys of one epoch serve.

    :param lifetime_s: hard end of an epoch.
    :param rotate_after_s: age at which a new epoch is made.
    :param rotate_jitter_s: the age is moved back or forth by up to this, so that devices do not rotate in step.
    :param old_epoch_s: how long streams of the previous epoch go on after a rotation.
    :param max_records: hard end, counted for each direction; a rotation is due at half of it.
    :param max_bytes: the same for bytes of plaintext.
    """

    lifetime_s: float = 24 * 3600.0
    rotate_after_s: float = 23 * 3600.0
    rotate_jitter_s: float = 1800.0
    old_epoch_s: float = 120.0
    max_records: int = 2**32
    max_bytes: int = 64 * 2**30


@dataclass(slots=True)
class Traffic:
    """What has moved in a session, over all epochs and streams.

    :param bytes_sent: plaintext bytes.
    :param last_sent: monotonic time of the latest record sent, seconds.
    :param last_received: monotonic time of the latest record that opened, seconds.
    """

    last_sent: float
    last_received: float
    bytes_sent: int = 0
    bytes_received: int = 0
    records_sent: int = 0
    records_received: int = 0
    streams_opened: int = 0
    streams_accepted: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            last_sent=max(self.last_sent, other.last_sent),
            last_received=max(self.last_received, other.last_received),
            bytes_sent=self.bytes_sent + other.bytes_sent,
            bytes_received=self.bytes_received + other.bytes_received,
            records_sent=self.records_sent + other.records_sent,
            records_received=self.records_received + other.records_received,
            streams_opened=self.streams_opened + other.streams_opened,
            streams_accepted=self.streams_accepted + other.streams_accepted,
        )


class ReplayWindow:
    """Which numbers were seen. Numbers may come out of order, by at most ``size``.

    :param size: how far below the highest number seen one may still be new.
    """

    __slots__ = ("_highest", "_seen", "_size")

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._highest = 0
        self._seen = 1  # bit i: `_highest - i` was seen; number 0 counts as seen from the beginning

    def add(self, number: int) -> None:
        """Take a number that was not seen before.

        :raises ProtocolError: it was seen, or is too old to tell.
        """
        if number > self._highest:
            distance = number - self._highest
            self._seen = 1 if distance >= self._size else (self._seen << distance | 1) & ((1 << self._size) - 1)
            self._highest = number
            return
        age = self._highest - number
        if number < 0 or age >= self._size or self._seen >> age & 1:
            raise ProtocolError("A stream number came twice.")
        self._seen |= 1 << age


class Epoch:
    """The keys of one epoch and their use.

    :param traffic: of the session, counted along.
    """

    def __init__(self, keys: SessionKeys, clock: Clock, limits: SessionLimits, traffic: Traffic) -> None:
        self.keys = keys
        self.window = ReplayWindow()
        self.created = clock.monotonic()
        self.deadline = self.created + limits.lifetime_s
        """Monotonic time at which the keys stop working, seconds."""
        self.retired = False
        """Whether there is a newer epoch: streams of this one are to end soon."""
        self.ended = False
        self._clock = clock
        self._limits = limits
        self._traffic = traffic
        self._last_number = 0
        self._sent_records = self._sent_bytes = 0
        self._received_records = self._received_bytes = 0

    def take_number(self) -> int:
        """The number of the next stream we open: never the same twice.

        :raises EncryptionError: the epoch is over.
        """
        self._check(self._clock.monotonic())
        if self._last_number >= _LAST_NUMBER:
            raise EncryptionError("The session has no stream numbers left.")
        self._last_number += 1
        return self._last_number

    def count_sent(self, size: int) -> None:
        """A record is about to be sealed.

        :param size: of its plaintext, bytes.
        :raises EncryptionError: the epoch is over, or its keys have protected as much as they may.
        """
        now = self._clock.monotonic()
        self._check(now)
        self._sent_records += 1
        self._sent_bytes += size
        if self._sent_records > self._limits.max_records or self._sent_bytes > self._limits.max_bytes:
            raise EncryptionError("The session's keys have protected as much as they may.")
        traffic = self._traffic
        traffic.last_sent = now
        traffic.records_sent += 1
        traffic.bytes_sent += size

    def check_receive(self) -> None:
        """A record is about to be opened.

        :raises EncryptionError: the epoch is over.
        """
        self._check(self._clock.monotonic())

    def count_received(self, size: int) -> None:
        """A record was opened.

        :param size: of its plaintext, bytes.
        :raises EncryptionError: the epoch's keys have protected as much as they may.
        """
        self._received_records += 1
        self._received_bytes += size
        if self._received_records > self._limits.max_records or self._received_bytes > self._limits.max_bytes:
            raise EncryptionError("The session's keys have protected as much as they may.")
        traffic = self._traffic
        traffic.last_received = self._clock.monotonic()
        traffic.records_received += 1
        traffic.bytes_received += size

    @property
    def half_used(self) -> bool:
        """Whether half of what the keys may protect is used up."""
        records = max(self._sent_records, self._received_records)
        size = max(self._sent_bytes, self._received_bytes)
        return records * 2 >= self._limits.max_records or size * 2 >= self._limits.max_bytes

    @property
    def over(self) -> bool:
        """Whether the keys do not work any more."""
        return self.ended or self._clock.monotonic() >= self.deadline

    def retire(self) -> None:
        """There is a newer epoch; this one lasts `SessionLimits.old_epoch_s` longer at most."""
        self.retired = True
        self.deadline = min(self.deadline, self._clock.monotonic() + self._limits.old_epoch_s)

    def _check(self, now: float) -> None:
        if self.ended or now >= self.deadline:
            raise EncryptionError("The session's keys have expired.")
