"""The plugin's settings."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["PairingSettings"]


class PairingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[plugins.pairing]``

    :param introductions: what becomes of it when a paired device introduces another one: ``ask`` a person, pair
        ``always`` if the introducer is trusted (and ask otherwise), or ``never`` pair so.
    """

    introductions: Literal["ask", "always", "never"] = "ask"
