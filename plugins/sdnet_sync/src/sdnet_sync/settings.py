"""The table ``[plugins.sync]`` of the configuration."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["SyncSettings"]

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class SyncSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How this device keeps libraries in step.

    :param relay_delay_s: what came from one member is passed on after so long to those that have not got it by then.
    :param acknowledge_after_s: others are told what we have when nothing was written for so long.
    :param maintenance_s: how often the log is cleared of what all members have.
    :param keep_batches: of each author, for members who are invited next.
    """

    relay_delay_s: _Seconds = 0.1
    acknowledge_after_s: _Seconds = 20.0
    maintenance_s: _Seconds = 30.0
    keep_batches: Annotated[int, msgspec.Meta(ge=0)] = 256
