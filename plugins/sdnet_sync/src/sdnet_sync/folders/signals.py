"""Signals between members about folders, and what of the library's changes concerns locations."""

from __future__ import annotations

import uuid
from collections import OrderedDict

from sdnet_core import PluginContext, RemoteDevice
from sdnet_core.errors import SerializationError
from sdnet_core.events import NetworkEvent
from sdnet_core.wire import decode_values

from ..clock import stamp_time_s
from ..library import Library
from ..replica import Commit
from .entries import FILE_KIND, HOLDER_KIND, effective, key_of, location_of
from .events import IndexerProgress, LocationUpdate, progress_event

__all__ = ["FolderSignals"]

PHASES = ("indexing", "fetching", "done")
MAX_REMEMBERED = 1024
MAX_CHANGES = 1000


class FolderSignals:
    """Turns signals and commits into events, and remembers how far others are."""

    def __init__(self, ctx: PluginContext) -> None:
        self._ctx = ctx
        self._progress: OrderedDict[tuple[bytes, str, bytes], IndexerProgress] = OrderedDict()

    def latest(self, library: bytes, location: str, device: bytes) -> IndexerProgress | None:
        """How far a device's folder was when it last said so."""
        return self._progress.get((library, location, device))

    def remember(self, event: NetworkEvent) -> None:
        """Keep what was told, for those who ask."""
        if isinstance(event, IndexerProgress):
            key = (event.library_id.bytes, event.location_id, event.device_id.bytes)
            self._progress[key] = event
            self._progress.move_to_end(key)
            while len(self._progress) > MAX_REMEMBERED:
                self._progress.popitem(last=False)

    def heard(self, library: Library, device: RemoteDevice, payload: bytes) -> str:
        """Take a signal from a member.

        :returns: the location of which it has more contents now; empty if it says something else.
        """
        try:
            message = decode_values(payload, max_bytes=4096)
        except SerializationError:
            return ""
        if type(message) is not dict or type(message.get("location")) is not str or len(message["location"]) != 16:
            return ""
        if message.get("what") == "have":
            return str(message["location"])
        numbers, phase = message.get("numbers"), message.get("phase")
        if message.get("what") == "progress" and phase in PHASES and type(numbers) is list and len(numbers) == 4:
            if all(type(number) is int and 0 <= number < 1 << 53 for number in numbers):
                event = progress_event(library, message["location"], device.device_id.bytes, phase, numbers)
                self.remember(event)
                self._ctx.publish(event)
        return ""

    def committed(self, library: Library, commit: Commit) -> None:
        """Tell of the locations that another device changed."""
        ours = self._ctx.local_device.device_id
        updates: dict[tuple[str, bytes], tuple[int, float, list[tuple[str, str]]]] = {}
        for changed in commit.changes:
            state = changed.state
            if state.kind not in (FILE_KIND, HOLDER_KIND) or changed.author in (ours, b""):
                continue
            key = (location_of(state.id), changed.author)
            sequence, at, paths = updates.get(key, (0, 0.0, []))
            writes = state.writes()
            at = max([at, *(stamp_time_s(write.stamp) for write in writes)])
            if state.kind == HOLDER_KIND:
                numbers = [write.value for write in state.fields.get("sequence", ()) if type(write.value) is int]
                sequence = max([sequence, *numbers])
            elif len(paths) < MAX_CHANGES:
                info = effective(state)
                paths.append((info.path, "written") if info is not None else (key_of(state.id), "deleted"))
            updates[key] = (sequence, at, paths)
        for (location, author), (sequence, at, paths) in updates.items():
            if paths:
                self._ctx.publish(
                    LocationUpdate(
                        library_id=library.id,
                        location_id=location,
                        device_id=uuid.UUID(bytes=author),
                        sequence=sequence,
                        timestamp=at,
                        changes=tuple(paths),
                    )
                )
