"""Libraries that are the same on all of a person's devices.

Another plugin uses it so::

    from sdnet_sync import SyncService

    sync = ctx.get_service(SyncService)
    library = await sync.create("Recipes")
    await library.put("recipe", "pancakes", {"title": "Pancakes", "eggs": 3})
    async for entry in library.query("recipe", {"eggs": 3}):
        ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .documents import Document
    from .folders.entries import Location
    from .folders.events import IndexerProgress, LocationUpdate
    from .folders.records import FolderProgress, FolderStatus, HolderInfo, LocationInfo, TrashItem
    from .folders.service import FolderService
    from .library import Library, LibraryTransaction
    from .operations import Role
    from .records import (
        AccessRequested,
        Change,
        Conflict,
        Entry,
        Invitation,
        LibraryInvitation,
        LibraryRemoved,
        LibraryStatus,
        MemberInfo,
        Request,
        SyncRefused,
        Value,
        Verification,
    )
    from .service import SignalHandler, SyncService
    from .strategies import Merge
    from .watching import Changes

_HOMES = {
    "AccessRequested": "records",
    "Change": "records",
    "Changes": "watching",
    "Conflict": "records",
    "Document": "documents",
    "Entry": "records",
    "FolderProgress": "folders.records",
    "FolderService": "folders.service",
    "FolderStatus": "folders.records",
    "HolderInfo": "folders.records",
    "IndexerProgress": "folders.events",
    "Invitation": "records",
    "Library": "library",
    "LibraryInvitation": "records",
    "LibraryRemoved": "records",
    "LibraryStatus": "records",
    "LibraryTransaction": "library",
    "Location": "folders.entries",
    "LocationInfo": "folders.records",
    "LocationUpdate": "folders.events",
    "MemberInfo": "records",
    "Merge": "strategies",
    "Request": "records",
    "Role": "operations",
    "SignalHandler": "service",
    "SyncRefused": "records",
    "SyncService": "service",
    "TrashItem": "folders.records",
    "Value": "records",
    "Verification": "records",
}

__all__ = [
    "AccessRequested",
    "Change",
    "Changes",
    "Conflict",
    "Document",
    "Entry",
    "FolderProgress",
    "FolderService",
    "FolderStatus",
    "HolderInfo",
    "IndexerProgress",
    "Invitation",
    "Library",
    "LibraryInvitation",
    "LibraryRemoved",
    "LibraryStatus",
    "LibraryTransaction",
    "Location",
    "LocationInfo",
    "LocationUpdate",
    "MemberInfo",
    "Merge",
    "Request",
    "Role",
    "SignalHandler",
    "SyncRefused",
    "SyncService",
    "TrashItem",
    "Value",
    "Verification",
]


def __getattr__(name: str) -> Any:
    # Imported when first used: the command line loads every plugin's package and must stay quick.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
