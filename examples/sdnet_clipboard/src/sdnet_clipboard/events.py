"""What the plugin tells a node's listeners."""

from __future__ import annotations

from dataclasses import dataclass

from sdnet_core.events import NetworkEvent

__all__ = ["ClipboardChanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipboardChanged(NetworkEvent):
    """Something was copied, here or on another device. Carries no content.

    :param origin: the device's name.
    """

    kind = "clipboard-changed"
    origin: str
    size_bytes: int
