"""A port on the router, by UPnP, where there is a router that gives one and ``miniupnpc`` is installed.

Everything happens in worker threads that are left behind when they take too long; a router that does not answer, or
answers nonsense, costs nothing but that.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import anyio
import anyio.to_thread

__all__ = ["PortMapper", "make_client"]

logger = logging.getLogger(__name__)

DISCOVER_MS = 2000
STEP_TIMEOUT_S = 10.0
LEASE_S = 3600
AGAIN_S = 1200.0
"""Well within the lease, since a router may have been restarted."""
RETRY_S = 900.0
DESCRIPTION = "sdnet"


def make_client() -> Any | None:
    """miniupnpc's client; None where it is not installed."""
    try:
        module = import_module("miniupnpc")
    except ImportError:
        return None
    if getattr(module, "is_stand_in", False):
        return None
    client = module.UPnP()
    client.discoverdelay = DISCOVER_MS
    return client


@dataclass(frozen=True, slots=True)
class _Mapping:
    address: str
    port: int


class PortMapper:
    """Keeps a TCP port of the router that leads to the one we listen on.

    :param listens_on: gives that port; None if there is none.
    :param changed: called when the address outside has changed.
    :param is_ours: whether others see us at an IP address; behind two routers a port on the nearer one is of no use.
    :param client: makes the UPnP client.
    :ivar address: the multiaddr at which others reach us, None if there is none.
    """

    def __init__(
        self,
        listens_on: Callable[[], int | None],
        changed: Callable[[], None],
        is_ours: Callable[[str], bool],
        *,
        client: Callable[[], Any | None] = make_client,
    ) -> None:
        self.address: str | None = None
        self._listens_on = listens_on
        self._changed = changed
        self._is_ours = is_ours
        self._make_client = client
        self._client: Any = None
        self._mapping: _Mapping | None = None

    async def run(self) -> None:
        """Keep it until cancelled; it is given back then, if the router answers within a second."""
        try:
            while True:
                mapping = await self._map_within_bounds()
                if mapping != self._mapping:
                    self._mapping = mapping
                    self.address = None if mapping is None else f"/ip4/{mapping.address}/tcp/{mapping.port}"
                    logger.info("the router gives %s", self.address or "no port")
                    self._changed()
                await anyio.sleep(AGAIN_S if mapping is not None else RETRY_S)
        finally:
            if self._mapping is not None:
                with anyio.move_on_after(1, shield=True):
                    await self._call(partial(self._unmap, self._mapping.port))
                self._mapping = self.address = None

    async def _map_within_bounds(self) -> _Mapping | None:
        port = self._listens_on()
        if port is None:
            return None
        with anyio.move_on_after(STEP_TIMEOUT_S):
            found: _Mapping | None = await self._call(partial(self._map, port))
            return found
        logger.info("the router does not answer in time")
        return None

    @staticmethod
    async def _call(function: Callable[[], Any]) -> Any:
        # Left behind when it takes too long: nothing of ours waits for a router.
        return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)

    def _map(self, port: int) -> _Mapping | None:
        """Ask for the port, in a worker thread."""
        try:
            if self._client is None:
                self._client = self._make_client()
            client = self._client
            if client is None or not client.discover():
                return None
            client.selectigd()
            outside = ipaddress.IPv4Address(client.externalipaddress())
            if not self._is_ours(str(outside)):
                logger.info("the router says that its address is %s, which is not where others see us", outside)
                return None
            for candidate in (port, *range(port % 40_000 + 20_000, port % 40_000 + 20_004)):
                try:
                    if client.addportmapping(candidate, "TCP", client.lanaddr, port, DESCRIPTION, "", LEASE_S):
                        return _Mapping(str(outside), candidate)
                except Exception as exc:
                    logger.debug("the router does not give port %d: %r", candidate, exc)
        except Exception as exc:
            # Whatever a router answers: miniupnpc raises plain Exception.
            logger.debug("no port on the router: %r", exc)
        return None

    def _unmap(self, port: int) -> None:
        try:
            self._client.deleteportmapping(port, "TCP")
        except Exception as exc:
            logger.debug("the router does not take port %d back: %r", port, exc)
