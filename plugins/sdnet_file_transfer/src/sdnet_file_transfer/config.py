"""The plugin's settings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["FileTransferConfig"]


class FileTransferConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[plugins.file_transfer]``

    :param accept: whether trusted devices may send files without being asked for.
    :param min_free_bytes: what a transfer must leave free on the disk.
    :param max_active: how many outgoing transfers run at once.
    :param keep_days: how long what has arrived of an unfinished transfer is kept.
    """

    accept: Literal["always", "never"] = "always"
    min_free_bytes: Annotated[int, msgspec.Meta(ge=0)] = 16 << 20
    max_active: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    keep_days: Annotated[float, msgspec.Meta(gt=0)] = 7.0
