"""The table ``[plugins.clipboard]``."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["ClipboardSettings"]


class ClipboardSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[plugins.clipboard]``

    :param keep_s: how long a clip waits for a device that is away, seconds; clips grow stale.
    """

    keep_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
