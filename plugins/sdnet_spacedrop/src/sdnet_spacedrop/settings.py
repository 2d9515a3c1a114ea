"""The table ``[plugins.spacedrop]`` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["SpacedropSettings"]


class SpacedropSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this device does with offers.

    :param policy: ``ask`` a person each time; ``accept-trusted`` takes offers of trusted devices unasked; ``never``
        refuses all.
    :param answer_timeout_s: how long an offer waits for its answer, made here or received here; the same for the
        comparison of numbers before an offer between devices that are not paired.
    :param visibility: who may send here: ``everyone`` near, ``paired`` devices only, or nobody (``off``). What a person
        chooses with ``sdnet drop visibility`` goes before it.
    :param history_days: how long drops that have ended are remembered.
    """

    policy: Literal["ask", "accept-trusted", "never"] = "ask"
    visibility: Literal["everyone", "paired", "off"] = "paired"
    history_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] = 90.0
    answer_timeout_s: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 60.0
