"""A plugin that keeps every message it gets, once, in the order in which they come."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from ...devices.delivery import InboundMessage
from ...devices.trust import RemoteDevice
from ...hookspecs import ServiceSpec, hookimpl
from ...protocols.handler import ProtocolHandler, ProtocolSpec

__all__ = ["PROTOCOL_NAME", "RecorderPlugin"]

PROTOCOL_NAME = "record"


class _RecordHandler(ProtocolHandler):
    protocol_name = PROTOCOL_NAME

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    async def handle_message(self, device: RemoteDevice, message: InboundMessage) -> None:
        def work(db: sqlite3.Connection, new: Sequence[InboundMessage]) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS record (at INTEGER PRIMARY KEY, sender TEXT, data BLOB)")
            rows = [(str(device.device_id), item.data) for item in new]
            db.executemany("INSERT INTO record (sender, data) VALUES (?, ?)", rows)

        await self._ctx.transaction(work, message)


class RecorderPlugin:
    """Serves the protocol ``record``."""

    def __init__(self) -> None:
        self._ctx: Any = None

    @hookimpl
    def sdnet_protocols(self, ctx: Any) -> list[ProtocolSpec]:
        """Give the protocol."""
        self._ctx = ctx
        return [ProtocolSpec(protocol_name=PROTOCOL_NAME, version=1, handler=_RecordHandler(ctx))]

    @hookimpl
    def sdnet_services(self, ctx: Any) -> list[ServiceSpec]:
        """Make the plugin itself reachable on the running node."""
        return [ServiceSpec(name="records", api=self)]

    async def records(self) -> list[tuple[str, bytes]]:
        """What was kept: the sender's device id and the data, in order."""

        def read(db: sqlite3.Connection, _: Sequence[InboundMessage]) -> list[tuple[str, bytes]]:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'record'").fetchone():
                return []
            rows = db.execute("SELECT sender, data FROM record ORDER BY at")
            return [(str(sender), bytes(data)) for sender, data in rows]

        found: list[tuple[str, bytes]] = await self._ctx.transaction(read)
        return found
