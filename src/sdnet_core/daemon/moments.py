"""Points in time as people write them: ``2h`` ago, or a date."""

from __future__ import annotations

import re
from datetime import datetime

from ..errors import InvalidRequestError

__all__ = ["parse_moment"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_moment(text: str, now: float) -> float:
    """Read a time ago (``90s``, ``2h``, ``7d``), or a date and time in ISO 8601, local without a zone.

    :param now: seconds since the epoch.
    :returns: the same.
    :raises InvalidRequestError: it is neither.
    """
    if found := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])", text):
        return now - float(found[1]) * _UNITS_S[found[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise InvalidRequestError(
            f"{text!r} is neither a time ago, such as 2h or 7d, nor a date, such as 2025-03-01 14:05."
        ) from None
