"""Keeps the clip that was copied last, and sends it around."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
from anyio.abc import TaskStatus
from sdnet_core import PluginContext, Priority, ProtocolHandler, RemoteDevice, Trust
from sdnet_core.errors import InvalidRequestError, NetworkingError
from sdnet_core.events import Subscription
from sdnet_core.wire import decode, encode

from .events import ClipboardChanged
from .messages import MAX_MESSAGE_BYTES, MAX_TEXT, Clip
from .settings import ClipboardSettings

__all__ = ["ClipboardHandler", "ClipboardService", "Clips", "plain"]

_STORED = "clip"
_MAX_CLOCK_DIFFERENCE_S = 60.0


class ClipboardService:
    """The clipboard of a node.

    :param ctx: the plugin's view of its node.
    """

    def __init__(self, ctx: PluginContext, settings: ClipboardSettings) -> None:
        self._ctx = ctx
        self._settings = settings
        self._clip: Clip | None = None

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Load the clip of the last run; there is nothing else to do in the background."""
        stored = await self._ctx.storage.load(_STORED)
        if stored is not None and self._clip is None:
            try:
                self._clip = decode(stored, Clip, max_bytes=MAX_MESSAGE_BYTES)
            except NetworkingError:
                # An earlier version wrote it in another form: a clipboard is no archive.
                await self._ctx.storage.delete(_STORED)
        task_status.started()
        await anyio.sleep_forever()

    @property
    def clip(self) -> Clip | None:
        """What was copied last, here or on another device; None if nothing ever was."""
        return self._clip

    async def copy(self, text: str) -> Clip:
        """Put a text on the clipboard of this device and of all trusted ones; those that are away get it later.

        :raises InvalidRequestError: the text is too long.
        :raises StorageError: it could not be stored.
        """
        if len(text) > MAX_TEXT:
            raise InvalidRequestError(f"The text has {len(text):,} characters; a clip has at most {MAX_TEXT:,}.")
        clip = Clip(text=text, origin=self._ctx.local_device.name, copied_at=self._ctx.clock.now())
        await self._keep(clip)
        for device in self._ctx.devices():
            if device.trust is Trust.TRUSTED:
                await self._ctx.send_message(
                    device.device_id, "clipboard", encode(clip), priority=Priority.HIGH, ttl_s=self._settings.keep_s
                )
        return clip

    async def take(self, clip: Clip) -> None:
        """Take a clip that came from another device, unless something was copied after it."""
        # A device whose clock is fast would otherwise keep its clip in front for ever.
        latest = self._ctx.clock.now() + _MAX_CLOCK_DIFFERENCE_S
        clip = msgspec.structs.replace(clip, copied_at=min(clip.copied_at, latest))
        if self._clip is None or clip.copied_at > self._clip.copied_at:
            await self._keep(clip)

    def watch(self) -> Clips:
        """What is on the clipboard now, then each clip that replaces it."""
        return Clips(self, self._ctx.subscribe([ClipboardChanged.kind]))

    async def _keep(self, clip: Clip) -> None:
        await self._ctx.storage.store(_STORED, encode(clip))
        self._clip = clip
        self._ctx.publish(ClipboardChanged(origin=clip.origin, size_bytes=len(clip.text.encode())))


def plain(clip: Clip) -> dict[str, Any]:
    """A clip as plain values, for JSON."""
    return {"text": clip.text, "origin": clip.origin, "copied_at": clip.copied_at}


class Clips:
    """Clips as they come, as plain values; an async iterator, to be closed with `aclose`."""

    def __init__(self, service: ClipboardService, changes: Subscription) -> None:
        self._service = service
        self._changes = changes
        self._begun = False

    def __aiter__(self) -> Clips:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._begun or self._service.clip is None:
            await anext(self._changes)
        self._begun = True
        assert self._service.clip is not None
        return plain(self._service.clip)

    async def aclose(self) -> None:
        """Stop watching."""
        self._changes.close()


class ClipboardHandler(ProtocolHandler):
    """Takes clips from other devices."""

    protocol_name = "clipboard"

    def __init__(self, service: ClipboardService) -> None:
        self._service = service

    async def handle_request(self, device: RemoteDevice, data: bytes) -> bytes:
        await self._service.take(decode(data, Clip, max_bytes=MAX_MESSAGE_BYTES))
        return b""
