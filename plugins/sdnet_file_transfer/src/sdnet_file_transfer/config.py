"""The plugin's settings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["FileTransferConfig"]


class FileTransferConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[plugins.file_transfer]``

    :param accept: what becomes of files that a device sends unasked: ``trusted``: those of trusted devices are taken,
        about those of verified ones a person is asked; ``ask``: a person is always asked; ``never``: only what was
        agreed to before, by Spacedrop for example.
    :param min_free_bytes: what a transfer must leave free on the disk.
    :param max_active: how many outgoing transfers run at once.
    :param compress: compress what is sent when that makes it faster.
    :param history_entries: how many transfers that are over are remembered.
    :param history_days: for how long.
    :param keep_days: how long what has arrived of an unfinished transfer is kept.
    """

    accept: Literal["trusted", "ask", "never"] = "trusted"
    min_free_bytes: Annotated[int, msgspec.Meta(ge=0)] = 16 << 20
    max_active: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    compress: bool = True
    history_entries: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 500
    history_days: Annotated[float, msgspec.Meta(gt=0)] = 90.0
    keep_days: Annotated[float, msgspec.Meta(gt=0)] = 7.0
