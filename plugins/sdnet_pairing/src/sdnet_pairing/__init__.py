"""Pairing of two devices with a 12-word code."""

from __future__ import annotations

__all__: list[str] = []
