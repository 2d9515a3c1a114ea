"""Keeps a place at each meeting point that relays, so that others can reach this device through it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from sdnet_core.clock import Clock, Randomness
from sdnet_core.discovery.points import MeetingPoint
from sdnet_core.errors import NetworkingError
from sdnet_core.swarm.abc import Swarm
from sdnet_core.swarm.relay_client import reserve

__all__ = ["Reservations"]

_logger = logging.getLogger(__name__)

RENEW_SHARE = 0.6
MIN_RENEW_S = 5.0
RETRY_MIN_S = 2.0
RETRY_MAX_S = 60.0


class Reservations:
    """The places of a device at relays.

    :param changed: called when one is got or lost.
    """

    def __init__(self, swarm: Swarm, clock: Clock, randomness: Randomness, *, changed: Callable[[], None]) -> None:
        self._swarm = swarm
        self._clock = clock
        self._randomness = randomness
        self._changed = changed
        self._held: dict[str, MeetingPoint] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this device is reached through relays."""
        return tuple(f"{full}/p2p-circuit" for point in self._held.values() for full in point.full_addresses)

    @property
    def relays(self) -> tuple[str, ...]:
        """The peer ids of the relays."""
        return tuple(self._held)

    async def attend(self, point: MeetingPoint) -> None:
        """Keep a place at a meeting point that we are connected to, until cancelled."""
        retry_s = RETRY_MIN_S
        try:
            while True:
                pause_s = await self._reserve(point)
                if pause_s is None:
                    self._let_go(point)
                    pause_s, retry_s = retry_s, min(RETRY_MAX_S, retry_s * 2)
                else:
                    retry_s = RETRY_MIN_S
                await anyio.sleep(pause_s * self._randomness.uniform(0.8, 1.0))
        finally:
            self._let_go(point)

    async def _reserve(self, point: MeetingPoint) -> float | None:
        """How long the place is good for, seconds; None if there is none."""
        try:
            got = await reserve(self._swarm, point.peer_id, now=self._clock.now())
        except NetworkingError as error:
            _logger.info("no place at the relay %s: %s", point.peer_id, error)
            return None
        self._swarm.relays |= {point.peer_id}
        if point.peer_id not in self._held:
            self._held[point.peer_id] = point
            _logger.info("there is a place at the relay %s", point.peer_id)
            self._changed()
        # The relay's clock may be another; a lifetime that cannot be is taken for a short one.
        return max(MIN_RENEW_S, min(3600.0, got.lifetime_s) * RENEW_SHARE)

    def _let_go(self, point: MeetingPoint) -> None:
        self._swarm.relays -= {point.peer_id}
        if self._held.pop(point.peer_id, None) is not None:
            self._changed()
