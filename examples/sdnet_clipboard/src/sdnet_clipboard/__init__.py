"""One clipboard for all paired devices: a plugin for sdnet.

Another plugin, or a program that hosts a node, uses it so::

    from sdnet_clipboard import ClipboardService

    clipboard = core.get_service(ClipboardService)
    await clipboard.copy("to be pasted elsewhere")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .events import ClipboardChanged
    from .service import ClipboardService

__all__ = ["ClipboardChanged", "ClipboardService"]


def __getattr__(name: str) -> Any:
    # Imported when first used: the command line loads every plugin's package and must stay quick.
    if name == "ClipboardService":
        from .service import ClipboardService

        return ClipboardService
    if name == "ClipboardChanged":
        from .events import ClipboardChanged

        return ClipboardChanged
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
