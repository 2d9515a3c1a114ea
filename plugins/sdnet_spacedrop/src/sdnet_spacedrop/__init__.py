"""Files offered to a nearby device, whose person decides."""

from __future__ import annotations

__all__: list[str] = []
