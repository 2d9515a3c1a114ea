"""Files and folders between paired devices: verified, resumable, never replacing anything.

``ctx.get_service(FileTransferService)`` is the interface for other plugins and for host applications.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .beneath import DirectoryCache, move_exclusive, open_directory, open_private_directory
    from .config import FileTransferConfig
    from .events import TransferCompleted, TransferEvent, TransferFailed, TransferProgress, TransferStarted
    from .names import InvalidNameError, check_path, numbered
    from .plugin import FileTransferPlugin
    from .service import FileTransferService
    from .source import Manifest, scan
    from .transfer import FileProblem, Transfer, TransferState

_MODULES = {
    "DirectoryCache": "beneath",
    "FileProblem": "transfer",
    "FileTransferConfig": "config",
    "FileTransferPlugin": "plugin",
    "FileTransferService": "service",
    "InvalidNameError": "names",
    "Manifest": "source",
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
    "scan": "source",
}

__all__ = [
    "DirectoryCache",
    "FileProblem",
    "FileTransferConfig",
    "FileTransferPlugin",
    "FileTransferService",
    "InvalidNameError",
    "Manifest",
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
    "open_directory",
    "open_private_directory",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
