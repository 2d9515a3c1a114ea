"""The table ``[plugins.messaging]`` of the configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["MessagingSettings"]

_Seconds = Annotated[float, Meta(gt=0, le=600)]


class MessagingSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Times in seconds.

    :param connect_timeout_s: how long a device that is away is waited for.
    :param ack_timeout_s: how long an acknowledgement may take before the connection counts as broken.
    :param idle_s: after how long a stream on which nothing is sent is closed.
    """

    connect_timeout_s: _Seconds = 5.0
    ack_timeout_s: _Seconds = 10.0
    # The other side's gate ends a stream on which nothing moved for 120 s.
    idle_s: Annotated[float, Meta(gt=0, le=100)] = 60.0
