"""The table ``[plugins.messaging]`` of the configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["MessagingSettings"]

_Seconds = Annotated[float, Meta(gt=0, le=600)]


class MessagingSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Times in seconds.

    :param connect_timeout_s: how long a device that is away is waited for, where nothing is queued.
    :param away_wait_s: how long it is waited for before a message counts as queued.
    :param ack_timeout_s: how long a connected device is waited for before a message counts as queued.
    """

    connect_timeout_s: _Seconds = 5.0
    away_wait_s: _Seconds = 1.0
    ack_timeout_s: _Seconds = 10.0
