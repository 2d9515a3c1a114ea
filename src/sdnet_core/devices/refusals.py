"""Tells of refusals at a bounded rate: whoever is refused again and again must not fill logs and queues."""

from __future__ import annotations

import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..clock import Clock
from ..errors import AuthenticationFailedError, NetworkingError
from ..events import AuthenticationFailed, EventBus, PeerRefused
from ..session import RefusalReason, SessionRefusedError

__all__ = ["Refusals"]

QUIET_S = 60.0
"""After one was told, more of the same are only counted for so long."""
MAX_PER_QUIET = 30
"""Told in `QUIET_S` altogether: peers who change their identity share this."""
MAX_KNOWN = 1024


@dataclass(slots=True)
class _Known:
    told_at: float
    untold: int = 0


class Refusals:
    """Publishes `PeerRefused` and `AuthenticationFailed` events."""

    def __init__(self, clock: Clock, events: EventBus) -> None:
        self._clock = clock
        self._events = events
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._window_began = float("-inf")
        self._told = 0
        self.refusals: Counter[str] = Counter()
        """All refusals, told or not, by what was asked for."""
        self.failed = 0
        """Sessions that did not come about, for whatever reason."""

    def refused(self, peer_id: str, device_id: uuid.UUID | None, what: str, reason: str) -> None:
        """Somebody was refused.

        :param what: ``connection``, ``session`` or a protocol's name.
        """
        self.refusals[what] += 1
        self._note(
            (peer_id, what),
            lambda count: PeerRefused(peer_id=peer_id, device_id=device_id, what=what, reason=reason, count=count),
        )

    def session_failed(self, peer_id: str, device_id: uuid.UUID | None, error: NetworkingError) -> None:
        """A session did not come about: tells of it if the peer did not prove who it is, or if we have refused it."""
        self.failed += 1
        reason = error.detail
        if isinstance(error, AuthenticationFailedError):
            self._note(
                (peer_id, ""),
                lambda count: AuthenticationFailed(peer_id=peer_id, device_id=device_id, reason=reason, count=count),
            )
        elif isinstance(error, SessionRefusedError) and error.reason is RefusalReason.NOT_PAIRED:
            self.refused(peer_id, device_id, "session", "There is no such pairing, or it has ended.")

    def _note(self, key: tuple[str, str], event: Callable[[int], PeerRefused | AuthenticationFailed]) -> None:
        now = self._clock.monotonic()
        if now - self._window_began >= QUIET_S:
            self._window_began, self._told = now, 0
        known = self._known.setdefault(key, _Known(float("-inf")))
        self._known.move_to_end(key)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        known.untold += 1
        if now - known.told_at < QUIET_S or self._told >= MAX_PER_QUIET:
            return
        count, known.untold, known.told_at = known.untold, 0, now
        self._told += 1
        self._events.publish(event(count))
