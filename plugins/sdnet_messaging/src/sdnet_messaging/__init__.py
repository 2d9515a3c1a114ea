"""Ping, text messages and data between paired devices."""

from __future__ import annotations

__all__: list[str] = []
