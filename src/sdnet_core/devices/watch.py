"""Looks after connections from time to time: has the machine slept, are they alive, how fast are they."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from ..clock import Clock, sleep_to_beat
from ..errors import NetworkingError, NetworkTimeoutError
from .connection import DeviceConnection
from .pool import ConnectionPool

__all__ = ["ConnectionWatch"]

logger = logging.getLogger(__name__)

PING_INTERVALS = 4
"""The round trip to every device is measured once in so many keepalive intervals."""
SLEPT_S = 3.0
"""When the clock that counts sleep gains so much on the one that does not, the machine was asleep."""
PROBE_TIMEOUT_S = 5.0
"""After sleep, or in another network, a connection on which no answer comes in this time is given up."""


@dataclass(slots=True, kw_only=True)
class ConnectionWatch:
    """Watches the connections of a node.

    :param address_of: where the connection to a peer goes; of two that were made at once another one may stay.
    :param keepalive_interval_s: a sixth of it lies between two looks.
    :param moved: called when a connection turns out to go another way than was thought.
    :param slept: called with a sentence when the machine has slept.
    :param silent: called for a connection on which no answer came although one was asked for.
    """

    pool: ConnectionPool
    clock: Clock
    address_of: Callable[[str], str | None]
    keepalive_interval_s: float
    moved: Callable[[], None]
    slept: Callable[[str], None]
    silent: Callable[[DeviceConnection], Awaitable[None]]

    async def run(self, tasks: TaskGroup) -> None:
        """Watch until cancelled.

        :param tasks: in which pings are on their way.
        """
        gained_s = self.clock.monotonic() - anyio.current_time()
        while True:
            await sleep_to_beat(self.keepalive_interval_s / 6)
            before_s, gained_s = gained_s, self.clock.monotonic() - anyio.current_time()
            if gained_s - before_s > SLEPT_S:
                self.slept(f"the machine has slept for {gained_s - before_s:.0f} s")
            now = self.clock.monotonic()
            for live in self.pool:
                live.look(now)
                address = self.address_of(live.peer_id) or live.address
                if address != live.address:
                    live.address = address
                    self.moved()
                if now - live.pinged_at >= PING_INTERVALS * self.keepalive_interval_s:
                    live.pinged_at = now
                    tasks.start_soon(self._measure, live)

    async def probe(self, live: DeviceConnection) -> None:
        """Find out whether the device at the other end is still there."""
        try:
            live.measured(await live.control.ping(timeout_s=PROBE_TIMEOUT_S))
        except NetworkTimeoutError:
            await self.silent(live)
        except NetworkingError as error:
            logger.debug("device %s gives no sign: %s", live.device_id, error)

    async def _measure(self, live: DeviceConnection) -> None:
        try:
            live.measured(await live.control.ping())
        except NetworkingError as error:
            logger.debug("no round trip to device %s: %s", live.device_id, error)
