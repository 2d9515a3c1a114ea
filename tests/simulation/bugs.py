"""Bugs to plant: each takes away one thing that holds the whole together."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sdnet_core.devices import outbox_store
from sdnet_core.session.control import ControlChannel
from sdnet_core.session.keys import Role, SessionKeys
from sdnet_core.session.rekey import Rekey
from sdnet_core.storage import atomic, chained, database
from sdnet_core.testing.simulation.scenario import replaced


@contextmanager
def no_deduplication() -> Iterator[None]:
    """A message that comes again is worked on again."""
    with replaced(database, "_new", lambda db, messages: messages):
        yield


@contextmanager
def no_fsync() -> Iterator[None]:
    """What is written is left to the system to put on the disk."""

    def lazy(path: Path) -> sqlite3.Connection:
        opened = connect(path)
        opened.execute("PRAGMA synchronous = OFF")
        return opened

    connect = database.connect
    with ExitStack() as stack:
        for module, name in ((database, "connect"), (outbox_store, "connect")):
            stack.enter_context(replaced(module, name, lazy))
        for module in (atomic, chained):
            for name in ("_sync", "_sync_directory"):
                stack.enter_context(replaced(module, name, lambda what: None))
        yield


@contextmanager
def no_rekey() -> Iterator[None]:
    """Sessions keep the keys that they began with."""
    with replaced(ControlChannel, "rotate", lambda self: None):
        yield


@contextmanager
def swapped_keys() -> Iterator[None]:
    """After a change of keys, the side that was dialled takes the one for sending as the one for receiving."""
    new_keys = Rekey.new_keys

    def swapped(self: Rekey, created_at: float, lifetime_s: float) -> SessionKeys:
        keys = new_keys(self, created_at, lifetime_s)
        if keys.role is Role.RESPONDER:
            return _replace(keys, send_key=keys.receive_key, receive_key=keys.send_key)
        return keys

    with replaced(Rekey, "new_keys", swapped):
        yield


def _replace(keys: SessionKeys, **changes: Any) -> SessionKeys:
    return dataclasses.replace(keys, **changes)


BUGS: dict[str, Callable[[], Any]] = {bug.__name__: bug for bug in (no_deduplication, no_fsync, no_rekey, swapped_keys)}
