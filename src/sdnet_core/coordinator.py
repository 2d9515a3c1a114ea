"""Tells a host application, which keeps devices of its own, what becomes of them in the node."""

from __future__ import annotations

import inspect
import logging
import uuid
from contextlib import AsyncExitStack
from typing import Any, Protocol, Self

import anyio

from .devices.trust import RemoteDevice
from .event_bus import EventsDropped
from .events import (
    ConnectionEstablished,
    ConnectionLost,
    DeviceConfirmed,
    DevicePaired,
    DeviceRemoved,
    DeviceRenamed,
    DeviceRevoked,
    TrustChanged,
)

__all__ = ["DeviceHost", "DeviceStateCoordinator"]

logger = logging.getLogger(__name__)

_KINDS = frozenset(
    event.kind
    for event in (
        ConnectionEstablished,
        ConnectionLost,
        DeviceConfirmed,
        DevicePaired,
        DeviceRemoved,
        DeviceRenamed,
        DeviceRevoked,
        EventsDropped,
        TrustChanged,
    )
)


class DeviceHost(Protocol):
    """What a host implements; each method is plain or async."""

    def device_changed(self, device: RemoteDevice, /) -> object:
        """A paired device is there, or something about it is not as before: name, trust, pairing, connection."""

    def device_removed(self, device_id: uuid.UUID, /) -> object:
        """A device is not paired any more."""


class _Node(Protocol):
    """A `NetworkingCore` or an `AsyncioCore`."""

    def subscribe_events(self, kinds: frozenset[str] | None = None, /) -> Any: ...

    def remote_devices(self) -> Any: ...


class DeviceStateCoordinator:
    """Keeps a host's devices in step with the node's for as long as its block runs.

    The host hears of every paired device at first, then of each change, in order. It is told states, not events: what
    changed twice before the host had time is told once. What the host raises is logged, and it is told again at the
    device's next change.

    Example::

        async with NetworkingCore(config) as core, DeviceStateCoordinator(core, device_manager):
            ...
    """

    def __init__(self, core: _Node, host: DeviceHost) -> None:
        self._core = core
        self._host = host
        self._known: dict[uuid.UUID, RemoteDevice] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            events = await stack.enter_async_context(self._core.subscribe_events(_KINDS))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            await self._compare()
            tasks.start_soon(self._follow, events)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        return await self._stack.__aexit__(*exc_info)

    async def _follow(self, events: Any) -> None:
        async for _ in events:
            await self._compare()

    async def _compare(self) -> None:
        found = self._core.remote_devices()
        devices: dict[uuid.UUID, RemoteDevice] = {
            device.device_id: device for device in (await found if inspect.isawaitable(found) else found)
        }
        for device_id in self._known.keys() - devices.keys():
            if await self._tell(self._host.device_removed, device_id):
                del self._known[device_id]
        for device_id, device in devices.items():
            if self._known.get(device_id) != device and await self._tell(self._host.device_changed, device):
                self._known[device_id] = device

    async def _tell(self, method: Any, value: object) -> bool:
        try:
            result = method(value)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("the host did not take %s", method.__name__)
            return False
        return True
