"""Who may send files to this device, for now or for good."""

from __future__ import annotations

import logging
from typing import Literal, TypeAlias

import anyio
import msgspec

from sdnet_core import PluginContext
from sdnet_core.errors import StorageError

from .events import SpacedropVisibilityChanged
from .nearby_messages import TAG

__all__ = ["Visibility", "VisibilityMode", "VisibilityStatus"]

logger = logging.getLogger(__name__)

VisibilityMode: TypeAlias = Literal["everyone", "paired", "off"]
MAX_FOR_S = 30 * 86_400.0
_NAME = "visibility"
_LONGEST_SLEEP_S = 60.0
"""The wall clock may be set meanwhile."""


class VisibilityStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Who may send here.

    :param until: when it changes back by itself, seconds since the epoch; None for never.
    :param then: to what.
    """

    visibility: VisibilityMode
    until: float | None = None
    then: VisibilityMode | None = None


class _Saved(msgspec.Struct, frozen=True):
    lasting: VisibilityMode | None = None
    passing: VisibilityMode | None = None
    until: float = 0.0


class Visibility:
    """Keeps the setting, and announces this device while everyone may find it.

    :param default: the configured one.
    """

    def __init__(self, ctx: PluginContext, default: VisibilityMode) -> None:
        self._ctx = ctx
        self._default = default
        self._saved = _Saved()
        self._changed = anyio.Event()

    async def load(self) -> None:
        """Read what a person chose. What cannot be read makes this device take drops of paired devices at most."""
        try:
            data = await self._ctx.storage.load(_NAME)
            if data is not None:
                self._saved = msgspec.msgpack.decode(data, type=_Saved)
        except (StorageError, msgspec.MsgspecError) as error:
            logger.error("the chosen visibility cannot be read: %s", error)
            self._default = "paired" if self._default == "everyone" else self._default

    @property
    def mode(self) -> VisibilityMode:
        """What counts now."""
        return self.status().visibility

    def status(self) -> VisibilityStatus:
        """What counts now, and until when."""
        saved = self._saved
        lasting = saved.lasting or self._default
        if saved.passing is not None and self._ctx.clock.now() < saved.until:
            return VisibilityStatus(visibility=saved.passing, until=saved.until, then=lasting)
        return VisibilityStatus(visibility=lasting)

    async def set(self, mode: VisibilityMode, for_s: float | None = None) -> VisibilityStatus:
        """Choose; it is kept over a restart when this returns.

        :param for_s: change back after so many seconds; None for good.
        :raises StorageError: it could not be kept; nothing changed.
        """
        if for_s is None:
            saved = _Saved(lasting=mode)
        else:
            until = self._ctx.clock.now() + min(for_s, MAX_FOR_S)
            saved = _Saved(lasting=self._saved.lasting, passing=mode, until=until)
        await self._ctx.storage.store(_NAME, msgspec.msgpack.encode(saved))
        self._saved = saved
        self._wake()
        return self.status()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def run(self) -> None:
        """Announce this device while everyone may find it; tell of every change. Runs until cancelled."""
        told = self.status()
        while True:
            status = self.status()
            if status != told:
                told = status
                self._ctx.publish(SpacedropVisibilityChanged(visibility=status.visibility, until=status.until))
            if status.visibility == "everyone":
                with self._ctx.advertise(TAG):
                    await self._until_other(status)
            else:
                await self._until_other(status)

    async def _until_other(self, status: VisibilityStatus) -> None:
        while self.status() == status:
            changed = self._changed
            wait_s = _LONGEST_SLEEP_S if status.until is not None else float("inf")
            if status.until is not None:
                wait_s = min(wait_s, max(0.01, status.until - self._ctx.clock.now()))
            with anyio.move_on_after(wait_s):
                await changed.wait()
