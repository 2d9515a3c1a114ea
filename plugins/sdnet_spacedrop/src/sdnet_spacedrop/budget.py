"""How much of this device's attention strangers get, all of them together (pure)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from sdnet_core import Clock

__all__ = ["StrangerBudget"]

MAX_PROMPTS = 4
"""Most strangers' drops that a person sees waiting at a time; one of each stranger."""
MAX_MEETINGS_PER_MINUTE = 12
"""All strangers together. It also bounds how often somebody in between can try his luck with the check number."""
MAX_MEETINGS_PER_PEER = 6
"""The same of one stranger."""
MAX_QUERIES_PER_MINUTE = 120
"""How often strangers may ask for this device's name."""
_WINDOW_S = 60.0


class StrangerBudget:
    """Counts what strangers do.

    :param clock: its monotonic time counts.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: set[str] = set()
        self._meetings: deque[tuple[float, str]] = deque()
        self._queries: deque[float] = deque()

    def allow_query(self) -> bool:
        """Whether one more may ask for our name."""
        now = self._clock.monotonic()
        while self._queries and now - self._queries[0] >= _WINDOW_S:
            self._queries.popleft()
        if len(self._queries) >= MAX_QUERIES_PER_MINUTE:
            return False
        self._queries.append(now)
        return True

    def allow_meeting(self, peer_id: str) -> bool:
        """Whether a stranger may begin a meeting; it counts, whatever comes of it."""
        now = self._clock.monotonic()
        while self._meetings and now - self._meetings[0][0] >= _WINDOW_S:
            self._meetings.popleft()
        recent = Counter(peer for _, peer in self._meetings)
        if (
            peer_id in self._waiting
            or len(self._waiting) >= MAX_PROMPTS
            or recent.total() >= MAX_MEETINGS_PER_MINUTE
            or recent[peer_id] >= MAX_MEETINGS_PER_PEER
        ):
            return False
        self._meetings.append((now, peer_id))
        return True

    @contextmanager
    def waiting(self, peer_id: str) -> Iterator[None]:
        """A stranger's drop waits for people for the length of the block."""
        self._waiting.add(peer_id)
        try:
            yield
        finally:
            self._waiting.discard(peer_id)
