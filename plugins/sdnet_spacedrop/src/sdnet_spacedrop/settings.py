"""The table ``[plugins.spacedrop]`` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["SpacedropSettings"]


class SpacedropSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this device does with offers.

    :param policy: ``ask`` a person each time; ``accept-trusted`` takes offers of trusted devices unasked; ``never``
        refuses all.
    :param answer_timeout_s: how long an offer waits for its answer, made here or received here.
    """

    policy: Literal["ask", "accept-trusted", "never"] = "ask"
    answer_timeout_s: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 60.0
