"""Echo between paired devices: a plugin for sdnet.

Another plugin, or a program that hosts a node, uses it so::

    from sdnet_echo import EchoService

    answer = await core.get_service(EchoService).ask(device.device_id, "hello")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .service import EchoService

__all__ = ["EchoService"]


def __getattr__(name: str) -> Any:
    # Imported when first used: the command line loads every plugin's package and must stay quick.
    if name in __all__:
        from . import service

        return getattr(service, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
