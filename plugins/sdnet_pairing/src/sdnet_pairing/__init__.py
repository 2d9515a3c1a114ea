"""Pairing of two devices with a 12-word code, or by an introduction.

The names below are the public interface; each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .code import CodeError, PairingCode
    from .events import (
        IntroductionChanged,
        IntroductionCompleted,
        IntroductionFailed,
        IntroductionRequested,
        IntroductionStarted,
        PairingAttemptsRefused,
        PairingCompleted,
        PairingFailed,
        PairingProgress,
        PairingRequest,
        PairingStateChanged,
    )
    from .introduction.messages import EndReason
    from .introduction.service import IntroductionService
    from .introduction.status import IntroducedDevice, IntroductionRole, IntroductionState, IntroductionStatus
    from .limits import PairingLimits
    from .search import Activity, SearchStatus, SearchWay
    from .service import CodeUsedError, PairingService, ShownCode
    from .session import PairingStatus, PeerDevice, Reason, Role, SessionState
    from .terminal import TerminalInterface
    from .ui import PairingUserInterface, PendingList, ProgrammaticInterface
    from .uri import PairingUri, UriError

_HOMES = {
    "code": ("CodeError", "PairingCode"),
    "events": (
        "IntroductionChanged",
        "IntroductionCompleted",
        "IntroductionFailed",
        "IntroductionRequested",
        "IntroductionStarted",
        "PairingAttemptsRefused",
        "PairingCompleted",
        "PairingFailed",
        "PairingProgress",
        "PairingRequest",
        "PairingStateChanged",
    ),
    "introduction.messages": ("EndReason",),
    "introduction.service": ("IntroductionService",),
    "introduction.status": ("IntroducedDevice", "IntroductionRole", "IntroductionState", "IntroductionStatus"),
    "limits": ("PairingLimits",),
    "search": ("Activity", "SearchStatus", "SearchWay"),
    "service": ("CodeUsedError", "PairingService", "ShownCode"),
    "session": ("PairingStatus", "PeerDevice", "Reason", "Role", "SessionState"),
    "terminal": ("TerminalInterface",),
    "ui": ("PairingUserInterface", "PendingList", "ProgrammaticInterface"),
    "uri": ("PairingUri", "UriError"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Activity",
    "CodeError",
    "CodeUsedError",
    "EndReason",
    "IntroducedDevice",
    "IntroductionChanged",
    "IntroductionCompleted",
    "IntroductionFailed",
    "IntroductionRequested",
    "IntroductionRole",
    "IntroductionService",
    "IntroductionStarted",
    "IntroductionState",
    "IntroductionStatus",
    "PairingAttemptsRefused",
    "PairingCode",
    "PairingCompleted",
    "PairingFailed",
    "PairingLimits",
    "PairingProgress",
    "PairingRequest",
    "PairingService",
    "PairingStateChanged",
    "PairingStatus",
    "PairingUri",
    "PairingUserInterface",
    "PeerDevice",
    "PendingList",
    "ProgrammaticInterface",
    "Reason",
    "Role",
    "SearchStatus",
    "SearchWay",
    "SessionState",
    "ShownCode",
    "TerminalInterface",
    "UriError",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
