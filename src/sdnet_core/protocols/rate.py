"""How often peers may open streams: a token bucket for each peer and protocol."""

from __future__ import annotations

from ..clock import Clock

__all__ = ["OpenRates"]

MAX_BUCKETS = 4096
"""Buckets held; the one that was used least recently gives way, and is full again by then or soon."""


class OpenRates:
    """Counts streams opened, by peer and protocol."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def admit(self, peer_id: str, protocol: str, *, per_s: float) -> bool:
        """Count a stream.

        :param per_s: streams a second; as many may come at once after a second of quiet, and at least one.
        :returns: whether it is within the rate.
        """
        now, burst = self._clock.monotonic(), max(1.0, per_s)
        key = peer_id, protocol
        tokens, since = self._buckets.pop(key, (burst, now))
        tokens = min(burst, tokens + (now - since) * per_s)
        admitted = tokens >= 1.0
        if len(self._buckets) >= MAX_BUCKETS:
            # The one that was used least recently: the dictionary is in the order of use.
            del self._buckets[next(iter(self._buckets))]
        self._buckets[key] = (tokens - 1.0 if admitted else tokens), now
        return admitted
