"""Whom a piece of work is about, so that every line of the log that it writes names the device and the peer (pure)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

__all__ = ["current_log_context", "log_context"]

_NOTHING: Mapping[str, str] = MappingProxyType({})
_context: ContextVar[Mapping[str, str]] = ContextVar("sdnet_log_context", default=_NOTHING)


@contextmanager
def log_context(*, device_id: uuid.UUID | None = None, peer_id: str | None = None) -> Iterator[None]:
    """Name a device or a peer in what is logged within the block, also by tasks and threads that begin there.

    What is None stays as it was.
    """
    named = dict(_context.get())
    if device_id is not None:
        named["device_id"] = str(device_id)
    if peer_id is not None:
        named["peer_id"] = peer_id
    token = _context.set(MappingProxyType(named))
    try:
        yield
    finally:
        _context.reset(token)


def current_log_context() -> Mapping[str, str]:
    """What is known here: ``device_id``, ``peer_id``, or less."""
    return _context.get()
