"""Verified, resumable transfer of files and folders."""

from __future__ import annotations

__all__: list[str] = []
