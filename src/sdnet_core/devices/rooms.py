"""What a connection manager does so that no more devices are connected at once than the settings allow."""

from __future__ import annotations

import uuid

from ..config import ConnectionSettings
from ..errors import ConnectionFailedError
from ..session import GoodbyeReason
from ..swarm.abc import Swarm
from .connection import DeviceConnection
from .pool import ConnectionPool

__all__ = ["RoomMethods"]


class RoomMethods:
    """The methods of `PersistentConnectionManager` that make room."""

    pool: ConnectionPool
    _settings: ConnectionSettings
    _swarm: Swarm

    def _finish(self, live: DeviceConnection, reason: str) -> None:
        raise NotImplementedError

    def _part(self, live: DeviceConnection, reason: str) -> None:
        raise NotImplementedError

    async def make_room(self, device_id: uuid.UUID, *, needed: bool) -> bool:
        """Whether one more device may be connected.

        :param needed: another one may have to go for it.
        :raises ConnectionFailedError: it is needed, and all that are connected are in use.
        """
        if self.pool.has_room(device_id):
            return True
        if not needed:
            self.pool.wait_for_room(device_id)
            return False
        least = self.pool.least_useful()
        if least is None:
            raise ConnectionFailedError(
                f"As many devices are connected as are allowed ({self._settings.max_connections}), and all are in use."
            )
        await self._let_go(least)
        return True

    def _displace(self, live: DeviceConnection) -> None:
        """Let nothing more pass on a connection that makes room for another, but for a last word."""
        live.let_go = True
        self._part(live, "it made room for another device")

    async def _let_go(self, live: DeviceConnection) -> None:
        """End a connection to make room for another."""
        self._displace(live)
        try:
            await live.control.goodbye(GoodbyeReason.IDLE)
        finally:
            self._finish(live, live.reason)
        if not self.pool.uses(live.peer_id):
            await self._swarm.hang_up(live.peer_id)
