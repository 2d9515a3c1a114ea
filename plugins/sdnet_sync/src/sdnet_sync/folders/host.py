"""What a folder needs from the service that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from sdnet_core import PluginContext, RemoteDevice
from sdnet_core.events import NetworkEvent

from ..settings import SyncSettings

__all__ = ["FolderHost"]


class FolderHost(Protocol):
    """What a folder needs from the service."""

    ctx: PluginContext
    settings: SyncSettings

    def members(self, library: bytes) -> Sequence[RemoteDevice]:
        """The connected members of a library."""

    def paused(self, library: bytes) -> bool:
        """Whether nothing is exchanged about a library."""

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Held while the system watches a folder.

        :raises RuntimeError: it watches enough folders already.
        """

    def tell(self, library: bytes, message: dict[str, Any]) -> None:
        """Send a signal about folders to the members of a library."""

    def publish(self, event: NetworkEvent) -> None:
        """Tell those who listen on this device."""
