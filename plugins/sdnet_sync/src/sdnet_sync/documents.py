"""Documents that several people edit at once: text and maps in a field of a library's entry.

Edits go to the other devices at once, as signals, and into the library a moment later, as the whole state of the
document without its past. What is in the library is merged with whatever others wrote, so nothing is lost when a
signal is, or when devices were apart.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import cbor2
from anyio.abc import TaskGroup
from pycrdt import Doc, Map, Text, merge_updates

from sdnet_core import RemoteDevice
from sdnet_core.errors import InvalidRequestError, NetworkingError, NotRunningError, RefusedError, SerializationError
from sdnet_core.wire import decode_values

from .document_values import (
    MAX_DOCUMENT_BYTES,
    MAX_UPDATE_BYTES,
    check_update,
    document_state,
    document_value,
    merge_documents,
)
from .operations import Put, Role
from .replica import Commit
from .state import EntryState
from .tasks import Tasks
from .transaction import Transaction, size_of
from .values import check_fields, check_id, check_kind

if TYPE_CHECKING:
    from .library import Library

__all__ = ["CHANNEL", "Document", "Documents"]

logger = logging.getLogger(__name__)

CHANNEL = "documents"
SEND_AFTER_S = 0.02
"""Edits within this time go out together."""
WRITE_AFTER_S = 0.5
_OTHERS = "from another device"
"""Origin of what others did, which is not sent again."""


class Document:
    """An open document; see `Library.document`. Edit what `text` and `map` give with pycrdt's own methods.

    :ivar doc: the pycrdt document; may only be used in the thread of the event loop.
    """

    def __init__(self, library: Library, kind: str, entry_id: str, field: str) -> None:
        self._library = library
        self.place = (kind, entry_id, field)
        self._key = library.replica.store.key(kind, entry_id)
        self.doc: Doc[Any] = Doc()
        self._unsent: list[bytes] = []
        self._dirty = False
        self._edited = anyio.Event()
        self._changed = anyio.Event()
        self._subscription = self.doc.observe(self._observed)

    @property
    def library(self) -> Library:
        """The library that it is in."""
        return self._library

    def text(self, name: str = "text") -> Text:
        """A collaborative text of the document: ``document.text().insert(0, "Hello")``."""
        found: Text = self.doc.get(name, type=Text)
        return found

    def map(self, name: str = "map") -> Map[Any]:
        """A collaborative map of the document: ``document.map()["title"] = "Pancakes"``."""
        found: Map[Any] = self.doc.get(name, type=Map)
        return found

    async def changed(self) -> None:
        """Wait for the next change that another device makes."""
        await self._changed.wait()

    async def flush(self) -> None:
        """Have all edits durable here; they reach members that are away when these come.

        :raises InvalidRequestError: the document is too long.
        :raises RefusedError: this device's role does not allow it.
        :raises StorageError: it could not be stored.
        """
        self._send()
        if not self._dirty:
            return
        self._dirty = False
        state = self.doc.get_update()
        if len(state) > MAX_DOCUMENT_BYTES:
            self._dirty = True
            raise InvalidRequestError(
                f"A document has at most {MAX_DOCUMENT_BYTES >> 10} KiB; this one has {len(state) >> 10}."
            )
        try:
            await self._library.replica.work(lambda transaction: self._write(transaction, state))
        except BaseException:
            self._dirty = True
            raise

    def _write(self, transaction: Transaction, state: bytes) -> None:
        """Write the state together with whatever others wrote meanwhile: none of it is replaced unseen."""
        kind, entry_id, field = self.place
        transaction.prefetch([self._key])
        writes = _writes(transaction.state(self._key), field)
        values = [write.value for write in writes if document_state(write.value) is not None]
        merged = merge_documents([*values, document_value(state)])
        if merged is None or (len(writes) == 1 and writes[0].value == merged):
            return
        operation = Put(kind, entry_id, {field: merged})
        transaction.add([operation], size_of(operation))

    # What others do

    async def load(self) -> None:
        """Take in what the library has."""
        store = self._library.replica.store
        self.take(await self._library.replica.read(store.get, self._key))

    def committed(self, commit: Commit) -> None:
        """The library changed."""
        for changed in commit.changes:
            if changed.key == self._key:
                self.take(changed.state)

    def take(self, state: EntryState | None) -> None:
        """Merge what the library has into what is open."""
        for write in _writes(state, self.place[2]):
            update = document_state(write.value)
            if update is not None:
                self.apply(update, max_bytes=MAX_DOCUMENT_BYTES)

    def apply(self, update: bytes, *, max_bytes: int = MAX_UPDATE_BYTES) -> None:
        """Merge an update of another device; one that is malformed is left out."""
        try:
            check_update(update, max_bytes=max_bytes)
            before = self.doc.get_state()
            with self.doc.transaction(origin=_OTHERS):
                self.doc.apply_update(update)
        except (SerializationError, ValueError) as error:
            logger.warning("an update of a document was left out: %s", error)
            return
        if self.doc.get_state() != before:
            changed, self._changed = self._changed, anyio.Event()
            changed.set()

    # What we do

    def _observed(self, event: Any) -> None:
        if event.transaction.origin == _OTHERS:
            return
        self._unsent.append(event.update)
        self._dirty = True
        self._edited.set()

    def _send(self) -> None:
        updates, self._unsent = self._unsent, []
        if not updates:
            return
        update = updates[0] if len(updates) == 1 else merge_updates(*updates)
        if len(update) <= MAX_UPDATE_BYTES:
            try:
                self._library.send_signal(CHANNEL, cbor2.dumps([*self.place, update]))
            except RefusedError as error:
                logger.info("an edit was not sent: %s", error)

    async def run(self) -> None:
        """Send and write edits as they are made, until cancelled."""
        while True:
            await self._edited.wait()
            self._edited = anyio.Event()
            await anyio.sleep(SEND_AFTER_S)
            self._send()
            with anyio.move_on_after(WRITE_AFTER_S):
                while True:
                    await self._edited.wait()
                    self._edited = anyio.Event()
                    await anyio.sleep(SEND_AFTER_S)
                    self._send()
            try:
                await self.flush()
            except NetworkingError as error:
                logger.warning("a document is not in the library yet: %s", error)


class Documents:
    """The documents of all libraries that are open just now."""

    def __init__(self) -> None:
        self._open: set[Document] = set()
        self._tasks = Tasks()

    def start(self, tasks: TaskGroup) -> None:
        """From now on documents can be opened; what they do lives in ``tasks``."""
        self._tasks.begin(tasks)

    def stop(self) -> None:
        """No more documents."""
        self._tasks.end()

    @asynccontextmanager
    async def open(self, library: Library, kind: str, entry_id: str, field: str) -> AsyncIterator[Document]:
        """Open a document, which comes to be if it was not there; see `Library.document`."""
        check_kind(kind)
        check_id(entry_id)
        check_fields({field: None})
        document, scope = Document(library, kind, entry_id, field), anyio.CancelScope()

        async def run() -> None:
            with scope:
                await document.run()

        with library.following(document.committed):
            await document.load()
            if not self._tasks.start(run):
                raise NotRunningError("Sync is not running.")
            self._open.add(document)
            try:
                yield document
            finally:
                scope.cancel()
                self._open.discard(document)
                with anyio.CancelScope(shield=True):
                    await document.flush()

    def heard(self, library: Library, device: RemoteDevice, payload: bytes) -> None:
        """A signal came: an edit of another device."""
        if library.replica.view.members.role(device.device_id.bytes) < Role.WRITER:
            return
        try:
            value = decode_values(payload, max_bytes=MAX_UPDATE_BYTES + 4096)
        except SerializationError as error:
            logger.warning("an update of a document was left out: %s", error)
            return
        if type(value) is not list or len(value) != 4 or type(value[3]) is not bytes:
            return
        for document in list(self._open):
            if document.library is library and document.place == tuple(value[:3]):
                document.apply(value[3])


def _writes(state: EntryState | None, field: str) -> list[Any]:
    return [] if state is None or state.deletions else list(state.fields.get(field, ()))
