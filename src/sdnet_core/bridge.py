"""A node inside another program: for asyncio programs, for plain scripts, and a way to a host's own event bus.

py-libp2p runs on trio, so that a node does too. `AsyncioCore` and `SyncCore` run it in a thread of its own and hand
calls over; what is passed to them is called there, and what they give back may be used anywhere.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self, TypeVar, cast

import anyio

from .config import Config
from .coordinator import DeviceHost, DeviceStateCoordinator
from .core import NetworkingCore
from .devices.delivery import Priority
from .devices.trust import RemoteDevice, Trust
from .errors import NotRunningError
from .events import NetworkEvent, Subscription
from .hosting import EventBridge, EventSource, NodeThread, ServiceProxy, SyncCore, subscribe
from .identity import DeviceInfo
from .plugins import PluginRecord
from .protocols.handler import PeerStream

__all__ = [
    "AsyncioCore",
    "AsyncioStream",
    "DeviceHost",
    "DeviceStateCoordinator",
    "EventBridge",
    "EventSource",
    "SyncCore",
]

S = TypeVar("S")


def _bound(core: NetworkingCore, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(core, name)
    return function


class AsyncioCore:
    """A node for asyncio programs: `NetworkingCore` in a thread of its own, its methods awaitable from asyncio.

    Example::

        async with AsyncioCore(load_config("my-app")) as core:
            for device in await core.get_connected_devices():
                print(device.name, await core.ping(device.device_id))

    A call that is cancelled is cancelled in the node and has ended there before the cancellation goes on. When the
    block is left, the node has stopped and its thread has ended; calls still under way raise `NotRunningError`.

    :param config: the node's settings.
    :param options: whatever else `NetworkingCore` takes.
    :raises NetworkingError: on entering: the node cannot start; says why.
    """

    def __init__(self, config: Config, **options: Any) -> None:
        self._node = NodeThread(partial(NetworkingCore, config, **options))
        self._core: NetworkingCore | None = None

    async def __aenter__(self) -> Self:
        self._node.start()
        try:
            self._core = await asyncio.shield(asyncio.wrap_future(self._node.started))
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end()

    async def _end(self) -> None:
        self._node.stop()
        try:
            await _uncancelled(self._node.ended)
        finally:
            self._node.join()

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call any function, plain or async, in the node's thread.

        :returns: what it returned.
        :raises NotRunningError: the node has stopped.
        """
        call = self._node.call(function, *args, **kwargs)
        try:
            return await asyncio.shield(asyncio.wrap_future(call.future))
        except asyncio.CancelledError:
            self._node.cancel(call)
            await _uncancelled(call.future, quietly=True)
            raise

    async def _method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return await self.call(_bound(self._running(), name), *args, **kwargs)

    def _running(self) -> NetworkingCore:
        if self._core is None:
            raise NotRunningError("The node has not started: use it with `async with`.")
        return self._core

    @property
    def device_info(self) -> DeviceInfo:
        """What this device tells others about itself."""
        return self._running().device_info

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses this node listens on."""
        return self._running().addresses

    async def status(self) -> dict[str, Any]:
        """The node at a glance, as plain values."""
        return cast(dict[str, Any], await self._method("status"))

    async def describe_devices(self) -> list[dict[str, Any]]:
        """Every paired device with its state, as plain values."""
        return cast(list[dict[str, Any]], await self._method("describe_devices"))

    async def remote_devices(self) -> tuple[RemoteDevice, ...]:
        """All paired devices, by name."""
        return cast(tuple[RemoteDevice, ...], await self._method("remote_devices"))

    async def get_connected_devices(self) -> tuple[RemoteDevice, ...]:
        """The paired devices with a live session."""
        return cast(tuple[RemoteDevice, ...], await self._method("get_connected_devices"))

    async def find_device(self, reference: str) -> RemoteDevice:
        """See `NetworkingCore.find_device`."""
        return cast(RemoteDevice, await self._method("find_device", reference))

    async def connect(self, device_id: uuid.UUID, *, timeout_s: float = 15.0) -> None:
        """See `NetworkingCore.connect`."""
        await self._method("connect", device_id, timeout_s=timeout_s)

    async def ping(self, device_id: uuid.UUID, *, timeout_s: float = 10.0) -> float:
        """See `NetworkingCore.ping`."""
        return cast(float, await self._method("ping", device_id, timeout_s=timeout_s))

    async def request(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        data: bytes,
        *,
        version: int | None = None,
        timeout_s: float = 30.0,
    ) -> bytes:
        """See `NetworkingCore.request`."""
        return cast(
            bytes,
            await self._method("request", device_id, protocol_name, data, version=version, timeout_s=timeout_s),
        )

    async def send_message(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        data: bytes,
        *,
        priority: Priority = Priority.NORMAL,
        ttl_s: float | None = None,
    ) -> uuid.UUID:
        """See `PluginContext.send_message`."""
        return cast(
            uuid.UUID,
            await self._method("send_message", device_id, protocol_name, data, priority=priority, ttl_s=ttl_s),
        )

    async def open_stream(
        self,
        device_id: uuid.UUID,
        protocol_name: str,
        *,
        versions: Sequence[int] | None = None,
        timeout_s: float = 10.0,
    ) -> AsyncioStream:
        """See `PluginContext.open_stream`."""
        stream = await self._method("open_stream", device_id, protocol_name, versions=versions, timeout_s=timeout_s)
        return AsyncioStream(self, stream)

    async def set_trust(self, device_id: uuid.UUID, trust: Trust) -> None:
        """See `NetworkingCore.set_trust`."""
        await self._method("set_trust", device_id, trust)

    async def revoke_device(self, device_id: uuid.UUID) -> None:
        """See `NetworkingCore.revoke_device`."""
        await self._method("revoke_device", device_id)

    async def forget_device(self, device_id: uuid.UUID) -> None:
        """See `NetworkingCore.forget_device`."""
        await self._method("forget_device", device_id)

    async def plugin_records(self) -> tuple[PluginRecord, ...]:
        """All installed plugins and what became of them."""
        return cast(tuple[PluginRecord, ...], await self._method("plugin_records"))

    def get_service(self, type_: type[S]) -> S:
        """A plugin's Python interface; each of its methods is awaited: ``await core.get_service(X).method(…)``.

        :raises PluginError: no loaded plugin offers it.
        """
        return cast(S, ServiceProxy(self.call, self._running().get_service(type_)))

    def subscribe_events(self, kinds: Iterable[str] | None = None) -> _AsyncioEvents:
        """Listen to what happens: ``async with core.subscribe_events() as events: async for event in events``."""
        return _AsyncioEvents(self, None if kinds is None else frozenset(kinds))


async def _uncancelled(future: concurrent.futures.Future[Any], *, quietly: bool = False) -> None:
    """Wait for a future to the end, even if we are cancelled meanwhile; that is raised afterwards."""
    wrapped = asyncio.ensure_future(asyncio.wrap_future(future))
    cancelled = False
    while not wrapped.done():
        try:
            await asyncio.wait([wrapped])
        except asyncio.CancelledError:
            cancelled = True
    error = wrapped.exception()
    if cancelled:
        raise asyncio.CancelledError
    if error is not None and not quietly:
        raise error


class AsyncioStream:
    """A sealed stream to a device, used from asyncio: as `PeerStream`."""

    def __init__(self, core: AsyncioCore, stream: PeerStream) -> None:
        self._core = core
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Some bytes. Raises ``anyio.EndOfStream`` at the orderly end."""
        return cast(bytes, await self._core.call(self._stream.receive, max_bytes))

    async def send(self, item: bytes) -> None:
        """Send bytes."""
        await self._core.call(self._stream.send, item)

    async def send_eof(self) -> None:
        """Say that nothing more comes from us."""
        await self._core.call(self._stream.send_eof)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._core.call(self._stream.aclose)

    async def reset(self) -> None:
        """Break the stream off."""
        await self._core.call(self._stream.reset)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        await (self.aclose() if exc_type is None else self.reset())


class _AsyncioEvents:
    """A node's events, in asyncio."""

    def __init__(self, core: AsyncioCore, kinds: frozenset[str] | None) -> None:
        self._core = core
        self._kinds = kinds
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._core.call(subscribe, self._core._running(), self._kinds)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._subscription is not None:
            try:
                await self._core.call(self._subscription.close)
            except NotRunningError:
                pass

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NetworkEvent:
        assert self._subscription is not None
        try:
            return cast(NetworkEvent, await self._core.call(self._subscription.receive))
        except (anyio.EndOfStream, NotRunningError):
            raise StopAsyncIteration from None
