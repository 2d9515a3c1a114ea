"""How a connection is kept alive: as for all devices, or as a person has set it for one (pure)."""

from __future__ import annotations

from ..config import ConnectionSettings
from ..session import ControlSettings
from .records import ConnectionConfig

__all__ = ["keepalive_of"]

GOODBYE_TIMEOUT_S = 0.3


def keepalive_of(config: ConnectionConfig, settings: ConnectionSettings) -> ControlSettings:
    """The settings of a connection's control channel.

    :param config: of the device.
    :param settings: of all devices.
    """
    return ControlSettings(
        keepalive_interval_s=config.keepalive_interval_s or settings.keepalive_interval_s,
        keepalive_misses=config.keepalive_misses or settings.keepalive_misses,
        goodbye_timeout_s=GOODBYE_TIMEOUT_S,
    )
