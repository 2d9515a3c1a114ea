"""Stays in touch with the meeting points: connects, asks from time to time whether they are there, connects again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from sdnet_core.clock import Clock, Randomness, next_beat
from sdnet_core.discovery.dht_client import DhtClient
from sdnet_core.discovery.kademlia import Contact
from sdnet_core.discovery.multiaddrs import parse_multiaddr
from sdnet_core.discovery.points import MeetingPoint
from sdnet_core.errors import NetworkingError
from sdnet_core.swarm.abc import Swarm

__all__ = ["MeetingPoints"]

_logger = logging.getLogger(__name__)

MAX_KEPT = 4
"""Most meeting points that a device stays connected to."""
KEEP_ALIVE_S = 20.0
"""Shorter than the time for which routers keep an idle TCP connection's translation."""
LOOK_S = 5.0
"""How often it is looked whether one is still connected, or is to be asked, beside being told: the clock may jump."""
PATIENCE_S = 5.0
DIAL_TIMEOUT_S = 8.0
RETRY_MIN_S = 0.5
RETRY_MAX_S = 20.0
SILENT = "a meeting point takes connections, but does not answer"


@dataclass(eq=False, slots=True)
class _Kept:
    point: MeetingPoint
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    wake: anyio.Event = field(default_factory=anyio.Event)
    reached: bool = False
    error: str = ""
    seen_as: str = ""


class MeetingPoints:
    """The meeting points of a device.

    :param points: gives those to use now.
    :param changed: called when one is reached or lost, or sees us at another address.
    :param attend: runs for as long as a meeting point is reached, such as to keep a reservation there.
    """

    def __init__(
        self,
        swarm: Swarm,
        client: DhtClient,
        clock: Clock,
        randomness: Randomness,
        *,
        points: Callable[[], Sequence[MeetingPoint]],
        changed: Callable[[], None],
        attend: Callable[[MeetingPoint], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._swarm = swarm
        self._client = client
        self._clock = clock
        self._randomness = randomness
        self._points = points
        self._changed = changed
        self._attend = attend
        self._kept: dict[str, _Kept] = {}
        self._wake = anyio.Event()

    @property
    def contacts(self) -> tuple[Contact, ...]:
        """All of them, those that are reached first."""
        reached = [kept.point for kept in self._kept.values() if kept.reached]
        others = [point for point in self._points() if point not in reached]
        return tuple(Contact(point.peer_id, point.addresses) for point in (*reached, *others))

    @property
    def reached(self) -> tuple[str, ...]:
        """The peer ids of those that we are connected to."""
        return tuple(peer_id for peer_id, kept in self._kept.items() if kept.reached)

    @property
    def trouble(self) -> str:
        """Why none is reached, for a person; empty if one is, or none was tried yet."""
        return "" if self.reached else "; ".join(dict.fromkeys(k.error for k in self._kept.values() if k.error))

    @property
    def seen_as(self) -> tuple[str, ...]:
        """The addresses at which they see this device, most agreed on first."""
        seen = [kept.seen_as for kept in self._kept.values() if kept.seen_as]
        return tuple(sorted(dict.fromkeys(seen), key=seen.count, reverse=True))

    def keeps(self, peer_id: str) -> bool:
        """Whether a peer is one of them."""
        return peer_id in self._kept

    def look(self) -> None:
        """Other meeting points, another network, or somebody waits: look at all of them now."""
        self._wake.set()
        for kept in self._kept.values():
            kept.wake.set()

    def hung_up(self, peer_id: str) -> None:
        """The connection to a peer is lost; it may be one of them."""
        kept = self._kept.get(peer_id)
        if kept is not None and kept.reached:
            kept.wake.set()

    async def run(self) -> None:
        """Stay in touch until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._wake = anyio.Event()
                wanted = {point.peer_id: point for point in self._points()[:MAX_KEPT]}
                for peer_id, kept in list(self._kept.items()):
                    if wanted.get(peer_id) != kept.point:
                        del self._kept[peer_id]
                        kept.scope.cancel()
                for peer_id, point in wanted.items():
                    if peer_id not in self._kept and peer_id != self._swarm.peer_id:
                        kept = self._kept[peer_id] = _Kept(point)
                        tasks.start_soon(self._keep, kept)
                await self._wake.wait()

    async def _keep(self, kept: _Kept) -> None:
        pause_s = 0.0
        with kept.scope:
            while True:
                kept.wake = anyio.Event()
                if await self._reach(kept):
                    pause_s = 0.0
                    await self._stay(kept)
                    kept.wake = anyio.Event()  # what told of the loss does not cut the pause short
                    self._lost(kept)
                pause_s = min(RETRY_MAX_S, max(RETRY_MIN_S, pause_s * 2))
                with anyio.move_on_after(pause_s * self._randomness.uniform(0.75, 1.25)):
                    await kept.wake.wait()
        self._lost(kept)

    def _lost(self, kept: _Kept) -> None:
        if kept.reached:
            kept.reached = False
            _logger.info("meeting point %s is lost", kept.point.peer_id)
            self._changed()

    async def _reach(self, kept: _Kept) -> bool:
        point = kept.point
        try:
            await self._swarm.dial(point.peer_id, point.addresses, timeout_s=DIAL_TIMEOUT_S)
        except NetworkingError as error:
            kept.error = error.detail
            self._changed()
            return False
        if not await self._ask(kept):
            kept.error = SILENT
            await self._swarm.hang_up(point.peer_id)
            self._changed()
            return False
        _logger.info("meeting point %s is reached", point.peer_id)
        kept.error = ""
        kept.reached = True
        self._changed()
        return True

    async def _stay(self, kept: _Kept) -> None:
        """Until it is lost."""
        async with anyio.create_task_group() as tasks:
            if self._attend is not None:
                tasks.start_soon(self._attend, kept.point)
            while True:
                kept.wake = anyio.Event()
                ask_at = self._clock.monotonic() + KEEP_ALIVE_S
                while not kept.wake.is_set() and self._clock.monotonic() < ask_at:
                    with anyio.CancelScope(deadline=next_beat(LOOK_S)):
                        await kept.wake.wait()
                    if not self._swarm.is_connected(kept.point.peer_id):
                        break
                if not self._swarm.is_connected(kept.point.peer_id):
                    kept.error = "the connection to a meeting point was lost"
                    break
                if not await self._ask(kept):
                    kept.error = SILENT
                    await self._swarm.hang_up(kept.point.peer_id)
                    break
            tasks.cancel_scope.cancel()

    async def _ask(self, kept: _Kept) -> bool:
        answer = await self._client.hello(Contact(kept.point.peer_id, kept.point.addresses), timeout_s=PATIENCE_S)
        if answer is None:
            return False
        seen_as = answer.seen_as if _is_address(answer.seen_as) else ""
        if seen_as != kept.seen_as:
            kept.seen_as = seen_as
            self._changed()
        return True


def _is_address(text: str) -> bool:
    try:
        parsed = parse_multiaddr(text)
    except ValueError:
        return False
    return parsed.ip is not None and not parsed.is_relayed
