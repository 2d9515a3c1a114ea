"""Files and folders between paired devices: verified, resumable, never replacing anything.

``ctx.get_service(FileTransferService)`` is the interface for other plugins and for host applications.
``ctx.get_service(ContentService)`` is for plugins that have contents of files to serve, by whatever names and
permissions: ``serve(name, provider)`` at one end, ``connect(device_id, name)`` at the other, which fetches whole files,
or ranges of them, to a path.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .beneath import DirectoryCache, move_exclusive, open_directory, open_private_directory, sync_filesystem
    from .config import FileTransferConfig
    from .content import ContentChangedError, ContentProvider, ContentService, Fetched, RemoteContent, open_beneath
    from .events import TransferCompleted, TransferEvent, TransferFailed, TransferProgress, TransferStarted
    from .limits import LimitSettings, Rates
    from .names import InvalidNameError, check_path, numbered
    from .plugin import FileTransferPlugin
    from .service import FileTransferService
    from .single import SingleOutcome, SingleProgress, SingleReceive, SingleSend
    from .source import Manifest, scan
    from .transfer import FileProblem, Transfer, TransferState

_MODULES = {
    "DirectoryCache": "beneath",
    "ContentChangedError": "content",
    "ContentProvider": "content",
    "ContentService": "content",
    "Fetched": "content",
    "FileProblem": "transfer",
    "FileTransferConfig": "config",
    "FileTransferPlugin": "plugin",
    "FileTransferService": "service",
    "InvalidNameError": "names",
    "LimitSettings": "limits",
    "Manifest": "source",
    "Rates": "limits",
    "RemoteContent": "content",
    "SingleOutcome": "single",
    "SingleProgress": "single",
    "SingleReceive": "single",
    "SingleSend": "single",
    "Transfer": "transfer",
    "TransferCompleted": "events",
    "TransferEvent": "events",
    "TransferFailed": "events",
    "TransferProgress": "events",
    "TransferStarted": "events",
    "TransferState": "transfer",
    "check_path": "names",
    "move_exclusive": "beneath",
    "numbered": "names",
    "open_directory": "beneath",
    "open_private_directory": "beneath",
    "open_beneath": "content",
    "scan": "source",
    "sync_filesystem": "beneath",
}

__all__ = [
    "ContentChangedError",
    "ContentProvider",
    "ContentService",
    "DirectoryCache",
    "Fetched",
    "FileProblem",
    "FileTransferConfig",
    "FileTransferPlugin",
    "FileTransferService",
    "InvalidNameError",
    "LimitSettings",
    "Manifest",
    "Rates",
    "RemoteContent",
    "SingleOutcome",
    "SingleProgress",
    "SingleReceive",
    "SingleSend",
    "Transfer",
    "TransferCompleted",
    "TransferEvent",
    "TransferFailed",
    "TransferProgress",
    "TransferStarted",
    "TransferState",
    "check_path",
    "move_exclusive",
    "numbered",
    "open_beneath",
    "open_directory",
    "open_private_directory",
    "scan",
    "sync_filesystem",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
