"""Keeps a link to every connected device with which a library is shared."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import TaskGroup

from sdnet_core import PeerStream, PluginContext, RemoteDevice, Trust
from sdnet_core.errors import NetworkingError, ProtocolError
from sdnet_core.wire import MessageStream, encode, encode_frame

from .link import MAX_FRAME_BYTES, Link, LinkHost
from .messages import Open
from .tasks import Tasks

__all__ = ["PROTOCOL_NAME", "Linker"]

logger = logging.getLogger(__name__)

PROTOCOL_NAME = "sync"
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 5.0
NO_PLUGIN_PAUSE_S = 30.0


class Linker:
    """Opens links, takes in those that others open, and opens them again when they end.

    :param wanted: whether there is anything to talk about with a device.
    :param began: called when a link begins, to share what is shared on it.
    """

    def __init__(
        self,
        ctx: PluginContext,
        host: LinkHost,
        wanted: Callable[[RemoteDevice], bool],
        began: Callable[[Link], None],
        connected: Callable[[RemoteDevice], Coroutine[Any, Any, None]],
    ) -> None:
        self._ctx = ctx
        self._host = host
        self._wanted = wanted
        self._began = began
        self._connected = connected
        self._tasks = Tasks()
        self._opening: set[uuid.UUID] = set()
        self.links: dict[uuid.UUID, Link] = {}

    @property
    def _our_device(self) -> bytes:
        return self._ctx.local_device.device_id

    def start(self, tasks: TaskGroup) -> None:
        """From now on links are opened; they live in ``tasks``."""
        self._tasks.begin(tasks)
        self._tasks.start(self._watch)

    def stop(self) -> None:
        """No more links."""
        self._tasks.end()
        for link in list(self.links.values()):
            link.close()

    def ensure(self, device: RemoteDevice) -> None:
        """Have a link to a device, if it is connected and there is something to talk about."""
        if device.device_id in self.links or device.device_id in self._opening or not self._tasks.running:
            return
        if device.connected and device.trust is Trust.TRUSTED and self._wanted(device):
            self._opening.add(device.device_id)
            self._tasks.start(self._keep, device.device_id)

    def ensure_all(self) -> None:
        """Have links to all devices that want one."""
        for device in self._ctx.devices():
            self.ensure(device)

    async def _watch(self) -> None:
        kinds = ("connection-established", "device-revoked", "device-removed")
        async with self._ctx.subscribe(kinds) as events:
            for device in self._ctx.devices():
                if device.connected:
                    await self._greet(device)
            async for event in events:
                device_id = getattr(event, "device_id", None)
                if device_id is not None:
                    await self._look_at(device_id)

    async def _look_at(self, device_id: uuid.UUID) -> None:
        """A device came, or is no longer what it was."""
        device: RemoteDevice | None = None
        with suppress(NetworkingError):
            device = self._ctx.get_device(device_id)
        if device is not None and device.trust is Trust.TRUSTED:
            await self._greet(device)
        elif device_id in self.links:
            self.links[device_id].close()

    async def _greet(self, device: RemoteDevice) -> None:
        self.ensure(device)
        self._tasks.start(self._connected, device)

    async def _keep(self, device_id: uuid.UUID) -> None:
        """Hold a link to a device while it is connected."""
        pause_s = FIRST_PAUSE_S
        try:
            while self._tasks.running:
                try:
                    device = self._ctx.get_device(device_id)
                except NetworkingError:
                    return
                if not device.connected or device.trust is not Trust.TRUSTED or not self._wanted(device):
                    return
                if device_id not in self.links:
                    began = anyio.current_time()
                    pause_s = await self._open(device, pause_s)
                    if anyio.current_time() - began > LAST_PAUSE_S:
                        pause_s = FIRST_PAUSE_S
                await anyio.sleep(pause_s * self._ctx.randomness.uniform(0.75, 1.25))
                pause_s = min(pause_s * 2, max(LAST_PAUSE_S, pause_s))
        finally:
            self._opening.discard(device_id)

    async def _open(self, device: RemoteDevice, pause_s: float) -> float:
        try:
            stream = await self._ctx.open_stream(device.device_id, PROTOCOL_NAME)
        except ProtocolError as error:
            logger.info("%s does not speak the sync protocol: %s", device.device_id, error)
            return NO_PLUGIN_PAUSE_S
        except NetworkingError as error:
            logger.debug("no link to %s: %s", device.device_id, error)
            return pause_s
        if device.device_id in self.links:
            await stream.reset()
            return pause_s
        try:
            async with stream:
                await stream.send(encode_frame(encode(Open())))
                await self.talk(stream, stream.messages(max_bytes=MAX_FRAME_BYTES), device)
        except (NetworkingError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            logger.info("the link to %s ended: %s", device.device_id, error or type(error).__name__)
        except Exception:
            logger.exception("the link to %s failed", device.device_id)
        return pause_s

    async def accept(self, stream: PeerStream, messages: MessageStream, device: RemoteDevice) -> None:
        """Talk on a stream that the other side began with `Open`."""
        ours = self.links.get(device.device_id)
        if ours is not None:
            if self._our_device < device.device_id.bytes and ours.opened_by_us:
                return  # both opened one; the one that the lower id opened stays
            ours.close()
        await self.talk(stream, messages, device, opened_by_us=False)

    async def talk(
        self, stream: PeerStream, messages: MessageStream, device: RemoteDevice, *, opened_by_us: bool = True
    ) -> None:
        """Run a link until it ends."""
        link = Link(self._host, stream, messages, device, self._our_device)
        link.opened_by_us = opened_by_us
        self.links[device.device_id] = link
        try:
            self._began(link)
            await link.run()
        finally:
            if self.links.get(device.device_id) is link:
                del self.links[device.device_id]
                self.ensure_after(device.device_id)

    def ensure_after(self, device_id: uuid.UUID) -> None:
        """A link ended: have another one, if the device is still there."""
        try:
            self.ensure(self._ctx.get_device(device_id))
        except NetworkingError:
            return
