"""Files offered to a nearby device, whose person decides."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drops import DropItem, DropStatus
    from .events import (
        SpacedropAnswered,
        SpacedropCompleted,
        SpacedropFailed,
        SpacedropMet,
        SpacedropOffered,
        SpacedropVisibilityChanged,
    )
    from .finder import NearbyDevice
    from .machine import DropState, Role
    from .plugin import SpacedropPlugin
    from .policies import DevicePolicy
    from .service import SpacedropService
    from .settings import SpacedropSettings
    from .visibility import VisibilityStatus

__all__ = [
    "DevicePolicy",
    "DropItem",
    "DropState",
    "DropStatus",
    "NearbyDevice",
    "Role",
    "SpacedropAnswered",
    "SpacedropCompleted",
    "SpacedropFailed",
    "SpacedropMet",
    "SpacedropOffered",
    "SpacedropPlugin",
    "SpacedropService",
    "SpacedropSettings",
    "SpacedropVisibilityChanged",
    "VisibilityStatus",
]

_HOMES = {
    "drops": ("DropItem", "DropStatus"),
    "events": (
        "SpacedropAnswered",
        "SpacedropCompleted",
        "SpacedropFailed",
        "SpacedropMet",
        "SpacedropOffered",
        "SpacedropVisibilityChanged",
    ),
    "finder": ("NearbyDevice",),
    "machine": ("DropState", "Role"),
    "plugin": ("SpacedropPlugin",),
    "policies": ("DevicePolicy",),
    "service": ("SpacedropService",),
    "settings": ("SpacedropSettings",),
    "visibility": ("VisibilityStatus",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Imported when first used: the command line needs none of the service.
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{module}", __name__), name)
