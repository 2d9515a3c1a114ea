"""With whom libraries are shared: what the links may tell, what they brought, and signals."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

from sdnet_core import PluginContext, RemoteDevice, public_key_from_peer_id
from sdnet_core.errors import ConflictError, NetworkingError, NotRunningError

from . import messages, records
from .apply import Refusal
from .catalog import Catalog
from .library import Library
from .link import Link
from .linker import Linker
from .operations import Role
from .replica import Commit, Replica
from .standing import View
from .tasks import Tasks

__all__ = ["Sharing", "SignalHandler"]

logger = logging.getLogger(__name__)

TALKING_STATES = ("joining", "active", "leaving")

SignalHandler = Callable[[Library, RemoteDevice, bytes], None]


class Sharing:
    """Keeps links to the members of the open libraries, and is their `LinkHost`.

    :param connected: called when a device has come.
    :ivar libraries: those that are open.
    :ivar refusals: what was refused lately, by library, for people.
    """

    def __init__(
        self,
        ctx: PluginContext,
        catalog: Catalog,
        connected: Callable[[RemoteDevice], Coroutine[Any, Any, None]],
        *,
        relay_delay_s: float,
    ) -> None:
        self._ctx = ctx
        self._catalog = catalog
        self.relay_delay_s = relay_delay_s
        self.libraries: dict[bytes, Library] = {}
        self.refusals: dict[bytes, deque[str]] = {}
        self._turns: dict[bytes, anyio.Semaphore] = {}
        self._signals: dict[str, SignalHandler] = {}
        self._tasks = Tasks()
        self.linker = Linker(ctx, self, self._wanted, self._began, connected)

    def start(self, tasks: TaskGroup) -> None:
        """From now on links are opened; they live in ``tasks``."""
        self._tasks.begin(tasks)
        self.linker.start(tasks)

    def stop(self) -> None:
        """No more links."""
        self._tasks.end()
        self.linker.stop()

    def committed(self, library: bytes, commit: Commit) -> None:
        """A library changed here: tell the others."""
        for link in list(self.linker.links.values()):
            link.committed(library, commit)
        self.changed(library)

    def retry(self, library: bytes) -> None:
        """Ask again for what was refused or missing."""
        for link in list(self.linker.links.values()):
            link.do(link.machine.retry(library))

    async def try_set_record(self, library: bytes, **values: object) -> None:
        """The same, in a task of its own that must not fail."""
        try:
            await self.set_record(library, **values)
        except NetworkingError as error:
            logger.error("what became of a library could not be stored: %s", error)

    async def set_record(self, library: bytes, **values: object) -> None:
        """Change what is remembered of a library, and talk about it accordingly."""
        record = msgspec.structs.replace(self._catalog.get(library), **values)
        await self._catalog.store(record)
        self.changed(library)

    def replica(self, library: bytes) -> Replica:
        """The replica of a library that is open."""
        opened = self.libraries.get(library)
        if opened is None:
            raise NotRunningError("The library is not open.")
        return opened.replica

    # `LinkHost`

    def snapshot_source(self, library: bytes) -> bytes | None:
        """The device whose word counts for a library of which we have nothing yet."""
        record = self._catalog.records.get(library)
        return record.source if record is not None else None

    def refused(self, library: bytes, device: RemoteDevice, refusals: Sequence[Refusal]) -> None:
        """A device sent batches that do not count: say so."""
        for refusal in refusals[:16]:
            self._report(library, device, refusal.author, refusal.sequence, refusal.reason, refusal.detail)

    def forked(self, library: bytes, device: RemoteDevice, author: bytes, sequence: int) -> None:
        """A device has another history of an author."""
        self._report(library, device, author, sequence, "fork", "It has another batch in this place than we have.")

    def diverged(self, library: bytes, device: RemoteDevice) -> None:
        """A device has the same batches and yet other entries."""
        self._report(library, device, b"", 0, "diverged", "It has the same batches but not the same entries; verify.")

    def _report(
        self, library: bytes, device: RemoteDevice, author: bytes, sequence: int, reason: str, detail: str
    ) -> None:
        log = self.refusals.setdefault(library, deque(maxlen=16))
        log.append(f"{reason} from {device.name}: {detail}")
        self._ctx.publish(
            records.SyncRefused(
                library_id=uuid.UUID(bytes=library),
                device_id=device.device_id,
                device_name=device.name,
                author=uuid.UUID(bytes=author) if author else None,
                sequence=sequence,
                reason=str(reason),
                detail=detail,
            )
        )

    def delivered(self, device: RemoteDevice, message: messages.Signal | messages.Goodbye) -> None:
        """A signal came, or a device ended the talk about a library."""
        if isinstance(message, messages.Goodbye):
            opened = self.libraries.get(message.library)
            removed = message.reason == "removed" and opened is not None
            if removed and opened is not None:
                view = opened.replica.view
                state = self._catalog.get(message.library).state
                if view.members.role(device.device_id.bytes) is Role.OWNER and state in ("active", "leaving"):
                    self._tasks.start(self._was_removed, opened, "left" if state == "leaving" else "removed")
            return
        handler = self._signals.get(message.channel)
        library = self.libraries.get(message.library)
        if handler is not None and library is not None:
            try:
                handler(library, device, message.payload)
            except Exception:
                logger.exception("the handler of signals on %s raised", message.channel)

    async def _was_removed(self, library: Library, state: str) -> None:
        await self.try_set_record(library.library, state=state)
        if state == "removed":
            self._ctx.publish(records.LibraryRemoved(library_id=library.id, name=library.name))

    def shareable(self, library: bytes, device: RemoteDevice) -> View | None:
        """How a library stands that a device may be told about."""
        record, opened = self._catalog.records.get(library), self.libraries.get(library)
        if record is None or opened is None or record.paused or record.state not in TALKING_STATES:
            return None
        view, ours = opened.replica.view, self._ctx.local_device.device_id
        them = device.device_id.bytes
        if record.state == "joining" and record.source == them:
            return view
        if record.state == "active" and view.members.role(ours) is Role.NONE:
            return None
        if view.members.role(them) is Role.NONE:
            return None
        return view if view.members.public_key(them) == public_key_from_peer_id(device.peer_id) else None

    def completed(self, library: bytes) -> None:
        """A snapshot was taken in: what others offered meanwhile can be taken now."""
        self.retry(library)

    def moved(self, library: bytes) -> None:
        """What another device has changed."""
        record = self._catalog.records.get(library)
        if record is None or record.state != "leaving":
            return
        if any(link.machine.in_step(library) for link in self.linker.links.values()):
            self._tasks.start(partial(self.try_set_record, library, state="left"))

    def snapshot_turn(self, library: bytes) -> anyio.Semaphore:
        """Held by the link that takes in a snapshot."""
        return self._turns.setdefault(library, anyio.Semaphore(1, max_value=1))

    @contextmanager
    def on_signal(self, channel: str, handler: SignalHandler) -> Iterator[None]:
        """Take the signals that members send on a channel, for the length of the block. The handler returns at once.

        :raises ConflictError: somebody takes them already.
        """
        if channel in self._signals:
            raise ConflictError(f"Signals on {channel} are taken by another plugin already.")
        self._signals[channel] = handler
        try:
            yield
        finally:
            del self._signals[channel]

    def send_signal(self, library: bytes, channel: str, payload: bytes) -> None:
        """Send a signal to all connected members; see `Library.send_signal`."""
        message = messages.Signal(library=library, channel=channel, payload=payload)
        for link in self.linker.links.values():
            link.signal(message)

    # Which libraries are talked about with whom

    def changed(self, library: bytes) -> None:
        """A library's record or members may have changed: talk about it with those with whom we may."""
        for link in list(self.linker.links.values()):
            self._adjust(link, library)
        self.linker.ensure_all()

    def _adjust(self, link: Link, library: bytes) -> None:
        view = self.shareable(library, link.device)
        if view is not None:
            link.do(link.machine.share(library, view))
        elif library in link.machine.libraries:
            record = self._catalog.records.get(library)
            removed = record is not None and record.state == "active" and not record.paused
            link.do(link.machine.unshare(library, "removed" if removed else "paused"))

    def _began(self, link: Link) -> None:
        for library in list(self.libraries):
            self._adjust(link, library)

    def _wanted(self, device: RemoteDevice) -> bool:
        return any(self.shareable(library, device) is not None for library in self.libraries)
