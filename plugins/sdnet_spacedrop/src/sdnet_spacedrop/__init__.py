"""Files offered to a nearby device, whose person decides."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drops import DropItem, DropStatus
    from .events import SpacedropAnswered, SpacedropCompleted, SpacedropFailed, SpacedropOffered
    from .machine import DropState, Role
    from .plugin import SpacedropPlugin
    from .service import SpacedropService
    from .settings import SpacedropSettings

__all__ = [
    "DropItem",
    "DropState",
    "DropStatus",
    "Role",
    "SpacedropAnswered",
    "SpacedropCompleted",
    "SpacedropFailed",
    "SpacedropOffered",
    "SpacedropPlugin",
    "SpacedropService",
    "SpacedropSettings",
]

_HOMES = {
    "drops": ("DropItem", "DropStatus"),
    "events": ("SpacedropAnswered", "SpacedropCompleted", "SpacedropFailed", "SpacedropOffered"),
    "machine": ("DropState", "Role"),
    "plugin": ("SpacedropPlugin",),
    "service": ("SpacedropService",),
    "settings": ("SpacedropSettings",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Imported when first used: the command line needs none of the service.
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{module}", __name__), name)
