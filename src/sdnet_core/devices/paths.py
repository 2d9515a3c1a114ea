"""Looks for better ways to devices that are reached through a relay, and moves their sessions there.

The connection goes on meanwhile. When there is a better one, a new session is made on it; the streams of the old one
are told to end at their next opportunity and are opened anew by whoever they belong to; what has not ended after a
moment is cut off, as when a connection is lost.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from ..clock import Clock
from ..errors import NetworkingError
from ..swarm.abc import Direction, Path, Swarm
from .connection import DeviceConnection, transport_of
from .pool import ConnectionPool

__all__ = ["PathKeeper"]

logger = logging.getLogger(__name__)

AGAIN_S = 1.0
"""After a move, or a fresh connection, that failed."""
RELAYED = "p2p-circuit"
RELAYED_LOOK_S = 0.2
"""How often it is looked how much of what a relay allows is used up: what it may carry can be used up soon."""
RENEW_AT = 0.5
"""When so much of what a relay allows is used up, a fresh connection through it is made."""
PAUSES_S = (0.0, 4.0, 10.0, 30.0, 60.0)
"""Before each attempt to reach a relayed device directly."""
LATER_S = 300.0
IMPROVE_TIMEOUT_S = 3.0
PUNCH_TIMEOUT_S = 8.0
DRAIN_S = 3.0
"""How long the streams of an old path have to end by themselves."""
MIN_DRAIN_S = 1.0
MOVE_ANYWAY_S = 5.0
"""The side that made the new path moves the session; the other one does if it has not by then."""


@dataclass(slots=True)
class _Efforts:
    """What is done about one connection."""

    attempts: int = 0
    next_at: float = -math.inf
    improving: bool = False
    renewing: bool = False
    moving: bool = False
    newer_since: float | None = None


class PathKeeper:
    """Keeps the paths to devices good.

    :param addresses: where a device may be reached directly.
    :param move: makes a new session over the swarm's best connection to a device.
    :param finish: ends a connection.
    """

    def __init__(
        self,
        *,
        swarm: Swarm,
        pool: ConnectionPool,
        clock: Clock,
        addresses: Callable[[DeviceConnection], list[str]],
        move: Callable[[DeviceConnection], Awaitable[None]],
        finish: Callable[[DeviceConnection, str], None],
    ) -> None:
        self._swarm = swarm
        self._pool = pool
        self._clock = clock
        self._addresses = addresses
        self._move = move
        self._finish = finish
        self._efforts: dict[DeviceConnection, _Efforts] = {}
        self._better: dict[str, int] = {}
        self._wake = anyio.Event()

    def wake(self) -> None:
        """Connections have come or gone, or go another way."""
        self._wake.set()

    def changed(self, peer_id: str, generation: int) -> None:
        """The swarm has a better connection to a peer than the one so far."""
        self._better[peer_id] = generation
        self._wake.set()

    def lost(self, peer_id: str) -> None:
        """The last connection to a peer is gone."""
        self._better.pop(peer_id, None)

    def look(self, peer_id: str = "") -> None:
        """Something has changed: try again soon to reach relayed devices directly.

        :param peer_id: only that one; all when empty.
        """
        for live, efforts in self._efforts.items():
            if not peer_id or live.peer_id == peer_id:
                efforts.attempts = 0
                efforts.next_at = min(efforts.next_at, self._clock.monotonic() + PAUSES_S[1] / 2)
        self._wake.set()

    def is_move(self, old: DeviceConnection, new: DeviceConnection) -> bool:
        """Whether a new session takes over from an old one that still works, because there is a better path."""
        better = self._better.get(new.peer_id)
        return (
            not old.ended.is_set()
            and better is not None
            and old.session.generation < new.session.generation
            and new.session.generation >= better
        )

    async def run(self, tasks: TaskGroup) -> None:
        """Look after the paths until cancelled.

        :param tasks: in which the work is done.
        """
        while True:
            self._wake = anyio.Event()
            due = math.inf
            current = tuple(self._current())
            for live in self._efforts.keys() - set(current):
                del self._efforts[live]
            for live in current:
                if not self._needs_a_look(live):
                    continue
                path = self._swarm.path(live.peer_id)
                if path is not None and (path.relayed or path.generation > live.session.generation):
                    due = min(due, self._look_after(tasks, live, path))
            with anyio.move_on_after(max(0.0, due - self._clock.monotonic())):
                await self._wake.wait()

    def _needs_a_look(self, live: DeviceConnection) -> bool:
        """Without asking the swarm, of which there may be much to ask."""
        return (
            transport_of(live.address) == RELAYED
            or self._better.get(live.peer_id, 0) > live.session.generation
            or live in self._efforts
        )

    def _current(self) -> Iterator[DeviceConnection]:
        return (live for live in self._pool if not live.retiring and not live.ended.is_set())

    def _look_after(self, tasks: TaskGroup, live: DeviceConnection, path: Path) -> float:
        """Do what is due for a connection.

        :returns: when to look again, monotonic time, seconds. What is under way wakes `run` at its end.
        """
        efforts = self._efforts.setdefault(live, _Efforts())
        now = self._clock.monotonic()
        if path.generation > live.session.generation:
            efforts.newer_since = now if efforts.newer_since is None else efforts.newer_since
            ours = path.direction is Direction.OUTBOUND or now - efforts.newer_since >= MOVE_ANYWAY_S
            if not ours:
                return efforts.newer_since + MOVE_ANYWAY_S
            if not efforts.moving:
                efforts.moving = True
                tasks.start_soon(self._move_session, live, efforts)
            return math.inf
        efforts.newer_since = None
        if path.direction is Direction.OUTBOUND and path.used >= RENEW_AT and not efforts.renewing:
            efforts.renewing = True
            tasks.start_soon(self._renew, live, efforts)
        if not efforts.improving and now >= efforts.next_at:
            efforts.improving = True
            tasks.start_soon(self._improve, live, path, efforts)
        due = math.inf if efforts.improving else efforts.next_at
        return min(due, now + RELAYED_LOOK_S) if path.limited and path.direction is Direction.OUTBOUND else due

    async def _move_session(self, live: DeviceConnection, efforts: _Efforts) -> None:
        try:
            await self._move(live)
        except NetworkingError as error:
            logger.info("the session with device %s could not be moved to a better path: %s", live.device_id, error)
            await anyio.sleep(AGAIN_S)
        finally:
            efforts.moving = False
            self._wake.set()

    async def _renew(self, live: DeviceConnection, efforts: _Efforts) -> None:
        try:
            await self._swarm.renew(live.peer_id)
            logger.info("device %s has a fresh connection through its relay", live.device_id)
        except NetworkingError as error:
            logger.info("no fresh connection to device %s through its relay: %s", live.device_id, error)
            await anyio.sleep(AGAIN_S)
        finally:
            efforts.renewing = False

    async def _improve(self, live: DeviceConnection, path: Path, efforts: _Efforts) -> None:
        pauses = PAUSES_S[1:]
        try:
            await self._reach_directly(live, path)
            logger.info("device %s is reached directly", live.device_id)
        except NetworkingError as error:
            logger.info("device %s is not reached directly: %s", live.device_id, error)
        finally:
            pause_s = pauses[efforts.attempts] if efforts.attempts < len(pauses) else LATER_S
            efforts.next_at = self._clock.monotonic() + pause_s
            efforts.attempts += 1
            efforts.improving = False
            self._wake.set()

    async def _reach_directly(self, live: DeviceConnection, path: Path) -> None:
        """Dial the device; if that is in vain and it dialled us, let both dial at the same moment."""
        try:
            await self._swarm.improve(live.peer_id, self._addresses(live), timeout_s=IMPROVE_TIMEOUT_S)
        except NetworkingError:
            if path.direction is Direction.OUTBOUND:
                raise  # the other side lets both dial
            await self._swarm.punch(live.peer_id, timeout_s=PUNCH_TIMEOUT_S)

    async def retire(self, old: DeviceConnection) -> None:
        """Let what runs on an old path end, and then the path."""
        with anyio.move_on_after(DRAIN_S):
            # What the other side opens before it has the new session comes on the old one.
            await anyio.sleep(MIN_DRAIN_S)
            while old.session.streams and not old.ended.is_set():  # noqa: ASYNC110 - streams tell nobody of their end
                await anyio.sleep(RELAYED_LOOK_S / 2)
        self._finish(old, "there is a better path")
        old.session.close()
        await old.session.reset_streams()
