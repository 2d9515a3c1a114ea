"""What is kept of past connections to one device: a short list, and totals since the beginning (pure)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ..wire import Message, encode
from .connection import transport_of

__all__ = ["MAX_AGE_S", "MAX_BYTES", "MAX_ENTRIES", "FailedAttempts", "PastConnection", "PastConnections"]

MAX_ENTRIES = 40
MAX_AGE_S = 90 * 86400.0
MAX_BYTES = 2048
"""Of one device's list, encoded; with its records a device stays below 5 KB on disk."""
OPEN = -1
CUT_SHORT = -2
MAX_REASON_CHARACTERS = 100
MAX_ADDRESS_CHARACTERS = 128

_Seconds = Annotated[int, msgspec.Meta(ge=0)]


class PastConnection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """One connection.

    :param began_at: seconds since the epoch.
    :param lasted_s: how long it lasted, by a clock that nobody sets; `OPEN` while it lives, `CUT_SHORT` if this device
        stopped without a word meanwhile.
    :param dialled: whether this device dialled.
    :param reason: why it ended.
    """

    began_at: _Seconds
    lasted_s: Annotated[int, msgspec.Meta(ge=CUT_SHORT)]
    dialled: bool
    address: Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS_CHARACTERS)]
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)] = ""

    @property
    def ended_at(self) -> float:
        """About when it ended, seconds since the epoch."""
        return self.began_at + max(0, self.lasted_s)


class FailedAttempts(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Attempts to connect that failed, with none between them that did not.

    :param began_at: when the first failed, seconds since the epoch.
    :param ended_at: when the last one did.
    :param reason: why the last one did.
    """

    began_at: _Seconds
    ended_at: _Seconds
    count: Annotated[int, msgspec.Meta(ge=1)]
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)] = ""


Past = PastConnection | FailedAttempts


class PastConnections(Message, frozen=True, kw_only=True, tag=1):
    """The history of one device, as it is stored.

    :param entries: the latest, oldest first.
    :param since: when it begins, seconds since the epoch; totals count from then on, whatever was pruned.
    :param connections: how many came about.
    :param failures: attempts in vain.
    :param connected_s: how long it was connected altogether, without the time of a connection that lives.
    """

    entries: Annotated[tuple[Past, ...], msgspec.Meta(max_length=MAX_ENTRIES)] = ()
    since: _Seconds = 0
    connections: _Seconds = 0
    failures: _Seconds = 0
    connected_s: _Seconds = 0

    def with_past(self, past: Past) -> PastConnections:
        """The same with what has happened since. A connection is given when it begins, and again when it has ended."""
        since = self.since or past.began_at
        match past:
            case FailedAttempts():
                last = self.entries[-1] if self.entries else None
                entries = self.entries
                if isinstance(last, FailedAttempts):
                    entries = entries[:-1]
                    past = FailedAttempts(last.began_at, past.ended_at, last.count + past.count, past.reason)
                    added = past.count - last.count
                else:
                    added = past.count
                return self._changed(entries, past, since=since, failures=self.failures + added)
            case PastConnection(lasted_s=lasted_s):
                opened = [one for one in self.entries if isinstance(one, PastConnection) and one.lasted_s == OPEN]
                is_known = lasted_s != OPEN and any(one.began_at == past.began_at for one in opened)
                entries = tuple(_cut_short(one) for one in self.entries if not (is_known and _is_open(one, past)))
                return self._changed(
                    entries,
                    past,
                    since=since,
                    connections=self.connections + (not is_known),
                    connected_s=self.connected_s + max(0, lasted_s),
                )

    def pruned(self, now: float) -> PastConnections:
        """The same without what is too old or too much.

        :param now: seconds since the epoch.
        """
        fresh = now - MAX_AGE_S
        entries = [one for one in self.entries if one.ended_at >= fresh or _lives(one)][-MAX_ENTRIES:]
        sizes = [len(encode(one)) for one in entries]
        room = MAX_BYTES - len(encode(msgspec.structs.replace(self, entries=())))
        while entries and sum(sizes) > room:
            del entries[0], sizes[0]
        return self if len(entries) == len(self.entries) else msgspec.structs.replace(self, entries=tuple(entries))

    def to_dict(self, *, latest: int | None = None) -> dict[str, Any]:
        """Plain values, the latest entries first.

        :param latest: at most so many of them.
        """
        return {
            "since": self.since or None,
            "connections": self.connections,
            "failures": self.failures,
            "connected_s": self.connected_s,
            "entries": [_describe(one) for one in reversed(self.entries)][:latest],
        }

    def _changed(self, entries: tuple[Past, ...], past: Past, **totals: int) -> PastConnections:
        return msgspec.structs.replace(self, entries=(*entries, past)[-MAX_ENTRIES:], **totals)


def _lives(past: Past) -> bool:
    return isinstance(past, PastConnection) and past.lasted_s == OPEN


def _is_open(one: Past, past: PastConnection) -> bool:
    return isinstance(one, PastConnection) and one.lasted_s == OPEN and one.began_at == past.began_at


def _cut_short(past: Past) -> Past:
    """Two connections do not live at once: of an older one, the end was never stored."""
    if isinstance(past, PastConnection) and past.lasted_s == OPEN:
        return msgspec.structs.replace(past, lasted_s=CUT_SHORT, reason="this device stopped without a word")
    return past


def _describe(past: Past) -> dict[str, Any]:
    match past:
        case PastConnection():
            return {
                "kind": "connection",
                "began_at": past.began_at,
                "lasted_s": max(0, past.lasted_s) if past.lasted_s != CUT_SHORT else None,
                "open": past.lasted_s == OPEN,
                "dialled_by": "us" if past.dialled else "them",
                "address": past.address or None,
                "transport": transport_of(past.address),
                "reason": past.reason,
            }
        case FailedAttempts():
            return {
                "kind": "failures",
                "began_at": past.began_at,
                "ended_at": past.ended_at,
                "count": past.count,
                "reason": past.reason,
            }
