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
    :param rescan_s: folders are read anew so often, for what the system did not tell of.
    :param poll_s: the same where the system tells nothing at all, such as on network disks.
    :param keep_versions: of each file that was replaced in a mirror; 0 for none.
    :param keep_days: how long replaced and deleted files of a mirror are kept.
    """

    relay_delay_s: _Seconds = 0.1
    acknowledge_after_s: _Seconds = 20.0
    maintenance_s: _Seconds = 30.0
    keep_batches: Annotated[int, msgspec.Meta(ge=0)] = 256
    rescan_s: Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)] = 3600.0
    poll_s: _Seconds = 10.0
    keep_versions: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 5
    keep_days: Annotated[float, msgspec.Meta(ge=0, le=36500)] = 30.0
