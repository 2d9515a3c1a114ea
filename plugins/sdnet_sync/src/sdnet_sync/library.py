"""A library as programs use it: put, get, delete, query, watch, transaction, conflicts."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from sdnet_core.errors import InvalidRequestError, NotFoundError, RefusedError

from .folders.entries import LOCATION_KIND
from .limits import MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS, MAX_OPERATION_BYTES
from .operations import Delete, EntryOperation, Put, Resolution, Role
from .records import Conflict, Entry, LibraryStatus, MemberInfo, Value, Verification
from .replica import Commit, Replica
from .state import EntryState
from .store import STRATEGY_KIND, UNIQUE_KIND
from .strategies import BUILT_IN, conflicts_of, entry_of
from .transaction import size_of
from .values import check_fields, check_id, check_kind
from .watching import Changes, Condition, test_of

if TYPE_CHECKING:
    from .documents import Document
    from .service import SyncService

__all__ = ["Changes", "Condition", "Library", "LibraryTransaction"]

WRITTEN_TOGETHER = 4
"""Batches that a long list of entries is written in at a time."""
PAGE = 256
"""Entries read at once; what a query holds in memory."""


class LibraryTransaction:
    """Changes that become effective together, here and at every other member; see `Library.transaction`."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._operations: list[EntryOperation] = []
        self._size = 0

    def put(self, kind: str, entry_id: str, fields: Mapping[str, Any]) -> None:
        """Write some fields of an entry; see `Library.put`."""
        self._add(make_put(kind, entry_id, fields))

    def delete(self, kind: str, entry_id: str) -> None:
        """Delete an entry, whether or not it is there."""
        self._add(_make_delete(kind, entry_id))

    def _add(self, operation: EntryOperation) -> None:
        size = checked_size(operation)
        if len(self._operations) >= MAX_BATCH_OPERATIONS or self._size + size > MAX_BATCH_BYTES:
            raise InvalidRequestError(
                f"A transaction holds at most {MAX_BATCH_OPERATIONS} changes and {MAX_BATCH_BYTES >> 10} KiB."
            )
        self._operations.append(operation)
        self._size += size

    async def commit(self) -> None:
        """Make the changes effective; called at the end of the block."""
        operations, self._operations = self._operations, []
        if operations:
            await self._library.replica.write(operations, self._size)


class Library:
    """A set of entries that is the same at all its members. Made by `SyncService`.

    Every writing method returns when the change is durable here; it reaches the other members as soon as they are
    connected. It raises RefusedError if this device's role does not allow it, and StorageError if it cannot be stored.
    """

    def __init__(self, service: SyncService, library: bytes, replica: Replica) -> None:
        self._service = service
        self.replica = replica
        self.library = library
        self._watchers: set[Changes] = set()
        self._followers: list[Callable[[Commit], None]] = []
        replica.listeners.append(self._committed)
        replica.wants_changes = self._wants_changes

    def _wants_changes(self) -> bool:
        return bool(self._watchers or self._followers) or LOCATION_KIND in self.replica.store.kinds

    def __repr__(self) -> str:
        return f"<Library {self.id}>"

    @property
    def id(self) -> uuid.UUID:
        """The library's id."""
        return uuid.UUID(bytes=self.library)

    @property
    def name(self) -> str:
        """The library's name."""
        return self.replica.view.name or self._service.record(self.library).name

    @property
    def role(self) -> Role:
        """What this device may do."""
        return self.replica.view.members.role(self.replica.store.device)

    # Writing

    async def put(self, kind: str, entry_id: str, fields: Mapping[str, Any]) -> None:
        """Write some fields of an entry, which comes to be if it was not there. Its other fields stay.

        :param kind: what sort of entry, such as ``note``; 1 to 64 characters.
        :param entry_id: 1 to 512 characters, unique within the kind.
        :param fields: 1 to 64; None as a value removes one.
        :raises InvalidRequestError: something of it cannot be carried.
        :raises ConflictError: a value that must be unique is taken.
        """
        operation = make_put(kind, entry_id, fields)
        await self.replica.write([operation], checked_size(operation))

    async def put_many(self, entries: Iterable[tuple[str, str, Mapping[str, Any]]]) -> int:
        """Write many entries, each as `put`, in as few batches as possible; not all or nothing.

        :param entries: kind, id and fields of each; read as they are written.
        :returns: how many.
        """
        portions: list[tuple[list[EntryOperation], int]] = []
        operations: list[EntryOperation] = []
        size = count = 0
        for kind, entry_id, fields in entries:
            operation = make_put(kind, entry_id, fields)
            added = checked_size(operation)
            if size + added > MAX_BATCH_BYTES or len(operations) >= MAX_BATCH_OPERATIONS:
                portions.append((operations, size))
                operations, size = [], 0
                if len(portions) >= WRITTEN_TOGETHER:
                    await self.replica.write_all(portions)
                    portions = []
                else:
                    await anyio.lowlevel.checkpoint()  # putting one together takes milliseconds
            operations.append(operation)
            size += added
            count += 1
        if operations:
            portions.append((operations, size))
        await self.replica.write_all(portions)
        return count

    async def delete(self, kind: str, entry_id: str) -> None:
        """Delete an entry.

        :raises NotFoundError: it is not there.
        """
        if await self.get(kind, entry_id) is None:
            raise NotFoundError(f"There is no {kind} {entry_id} in the library.")
        operation = _make_delete(kind, entry_id)
        await self.replica.write([operation], checked_size(operation))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[LibraryTransaction]:
        """Collect changes that become effective together at the end of the block, or not at all if it raises."""
        transaction = LibraryTransaction(self)
        yield transaction
        await transaction.commit()

    # Reading

    async def get(self, kind: str, entry_id: str) -> Entry | None:
        """One entry, None if it is not there."""
        store = self.replica.store
        state = await self.replica.read(store.get, store.key(kind, entry_id))
        return None if state is None else self._entry(state)

    async def query(self, kind: str | None = None, where: Condition = None) -> AsyncGenerator[Entry, None]:
        """Give entries, in the order in which they first came to this device, a page at a time.

        What comes in meanwhile may be left out.

        :param kind: of this kind only.
        """
        wanted = test_of(where)
        unique = self._unique_condition(kind, where)
        if unique is not None:
            for entry in await self._claimed(*unique):
                if wanted(entry):
                    yield entry
            return
        after, until = 0, None
        while True:
            page = await self.replica.read(self._page, after, kind, until)
            for number, found in page:
                if found is not None and wanted(found):
                    yield found
                after = number
            if len(page) < PAGE:
                return
            if until is None:  # or somebody who writes faster than this reads would never let it end
                until = await self.replica.read(self.replica.store.newest)

    async def count(self, kind: str | None = None) -> int:
        """How many entries there are."""
        store = self.replica.store
        if kind is None:
            return (await self.replica.read(store.counts))["entries"]
        return await self.replica.read(store.count_kind, kind)

    async def search(self, text: str, *, limit: int = 100) -> list[Entry]:
        """Entries whose id or any text in whose fields contains a text, whatever its case."""
        needle = text.casefold()
        found: list[Entry] = []
        async with aclosing(self.query(where=lambda e: needle in e.id.casefold() or _contains(e.fields, needle))) as it:
            async for entry in it:
                found.append(entry)
                if len(found) >= limit:
                    break
        return found

    @asynccontextmanager
    async def watch(self, kind: str | None = None, where: Condition = None) -> AsyncIterator[Changes]:
        """Hear of all changes from here on, our own and others': ``async with library.watch() as changes``.

        :param where: entries that came to be, or changed, otherwise are left out; deletions are told in any case.
        """
        changes = Changes(kind, where)
        self._watchers.add(changes)
        try:
            yield changes
        finally:
            self._watchers.discard(changes)

    def document(self, kind: str, entry_id: str, field: str = "document") -> AbstractAsyncContextManager[Document]:
        """Open a text or map that devices edit at once: ``async with library.document("note", "1") as document``.

        Edits reach connected members at once and are durable shortly after, at the latest when the block is left.

        :param field: of the entry; it holds nothing else.
        :raises InvalidRequestError: kind, id or field cannot be carried; or the document is too long, at the end.
        """
        return self._service.documents.open(self, kind, entry_id, field)

    @contextmanager
    def following(self, listener: Callable[[Commit], None]) -> Iterator[None]:
        """Call a function with every commit, from the event loop, for the length of the block."""
        self._followers.append(listener)
        try:
            yield
        finally:
            self._followers.remove(listener)

    def _page(self, after: int, kind: str | None, until: int | None) -> list[tuple[int, Entry | None]]:
        rows = self.replica.store.page(after, PAGE, kind=kind, until=until)
        return [(number, None if state.kind.startswith("$") else self._entry(state)) for number, state in rows]

    def _unique_condition(self, kind: str | None, where: Condition) -> tuple[str, str, Any] | None:
        if kind is None or not isinstance(where, Mapping):
            return None
        for name in self.replica.view.unique.get(kind, ()):
            if where.get(name) is not None:
                return kind, name, where[name]
        return None

    async def _claimed(self, kind: str, name: str, value: Any) -> list[Entry]:
        store = self.replica.store
        keys = await self.replica.read(store.claimants, store.claim_tag(kind, name, value))
        states = await self.replica.read(store.get_many, keys[:500])
        return [entry for state in states.values() if (entry := self._entry(state)) is not None]

    def _entry(self, state: EntryState) -> Entry | None:
        return entry_of(state, self.replica.view.settings, self._service.merges)

    def _committed(self, commit: Commit) -> None:
        for follower in list(self._followers):
            follower(commit)
        if not self._watchers:
            return
        if commit.many:
            for watcher in self._watchers:
                watcher.reset()
            return
        for changed in commit.changes:
            entry = self._entry(changed.state)
            if entry is None and not changed.was_visible:
                continue
            for watcher in self._watchers:
                watcher.offer(changed.state.kind, changed.state.id, entry, changed.author)

    def closed(self) -> None:
        """The library is no longer open: watchers end."""
        for watcher in self._watchers:
            watcher.end()

    # Settings, which all members share; only owners change them

    async def set_strategy(self, kind: str, strategies: Mapping[str, str]) -> None:
        """Say what counts when devices wrote the same field without knowing of each other.

        :param kind: of entries; ``*`` for all kinds that have no strategies of their own.
        :param strategies: name of a strategy by field; ``*`` for all others. ``last-writer``, ``first-writer``,
            ``max``, ``min``, ``union``, ``keep-both`` (the default: a person decides), or one registered on every
            device with `SyncService.register_strategy`.
        """
        for name in strategies.values():
            if name not in BUILT_IN and not name.startswith("custom:"):
                raise InvalidRequestError(f"{name!r} is not a strategy: {', '.join(BUILT_IN)} or custom:<name> is.")
        operation = Put(STRATEGY_KIND, kind, check_fields(strategies))
        await self.replica.write([operation], checked_size(operation))

    async def set_unique(self, kind: str, fields: Sequence[str]) -> None:
        """Say which fields of a kind have different values in all its entries.

        A change that breaks this is refused here; devices that were apart can still break it together, which is listed
        as a conflict.
        """
        operation = Put(UNIQUE_KIND, kind, {"fields": list(fields)})
        await self.replica.write([operation], checked_size(operation))

    # Conflicts

    async def conflicts(self, *, all_of_them: bool = False, limit: int = 1000) -> list[Conflict]:
        """Changes whose authors did not know of each other.

        :param all_of_them: also those that a strategy settles.
        """
        found = await self._contested()
        after = b""
        store, view = self.replica.store, self.replica.view
        while len(found) < limit:
            page = await self.replica.read(store.conflicted, after, PAGE)
            for key, state in page:
                after = key
                conflicts = conflicts_of(state, view.settings, self._service.merges)
                found += [conflict for conflict in conflicts if all_of_them or not conflict.settled]
            if len(page) < PAGE:
                break
        return found[:limit]

    async def _contested(self) -> list[Conflict]:
        store = self.replica.store
        found = []
        for keys in await self.replica.read(store.contested):
            states = list((await self.replica.read(store.get_many, keys[:500])).values())
            states.sort(key=lambda state: min(write[:3] for write in state.writes()))
            if len(states) < 2:
                continue
            sides = [
                Value(index=index, value=state.id, author=entry.author, at=entry.modified_at)
                for index, state in enumerate(states)
                if (entry := self._entry(state)) is not None
            ]
            found.append(
                Conflict(
                    kind=states[0].kind,
                    id=states[0].id,
                    field="",
                    sides=tuple(sides),
                    settled=False,
                    strategy="unique",
                    others=tuple(state.id for state in states[1:]),
                )
            )
        return found

    async def resolve(
        self,
        kind: str,
        entry_id: str,
        *,
        field: str | None = None,
        choose: int | None = None,
        values: Mapping[str, Any] | None = None,
        delete: bool = False,
    ) -> None:
        """Settle the conflicts of an entry, everywhere.

        :param field: only those of this field.
        :param choose: the index of the side that counts; None for the last writer's.
        :param values: what counts, by field, in the place of any side.
        :param delete: the entry is deleted.
        :raises NotFoundError: it has no such conflict.
        """
        store = self.replica.store
        state = await self.replica.read(store.get, store.key(kind, entry_id))
        if state is None or not state.conflicted:
            raise NotFoundError(f"{kind} {entry_id} is in no conflict.")
        if delete:
            fields = None
        elif values is not None:
            fields = check_fields(values)
        else:
            fields = self._chosen(state, field, choose)
        operation = Resolution(kind, entry_id, fields)
        await self.replica.write([operation], checked_size(operation))

    def _chosen(self, state: EntryState, field: str | None, choose: int | None) -> dict[str, Any] | None:
        conflicts = [
            conflict
            for conflict in conflicts_of(state, self.replica.view.settings, self._service.merges)
            if field is None or conflict.field == field
        ]
        if not conflicts:
            raise NotFoundError(f"The field {field} is in no conflict.")
        fields: dict[str, Any] = {}
        for conflict in conflicts:
            index = len(conflict.sides) - 1 if choose is None else choose
            if not 0 <= index < len(conflict.sides):
                raise InvalidRequestError(f"The conflict has the sides 0 to {len(conflict.sides) - 1}.")
            side = conflict.sides[index]
            if side.deletes:
                return None
            if conflict.field:
                fields[conflict.field] = side.value
            else:
                fields |= {name: writes[-1].value for name, writes in state.fields.items()} | side.value
        return fields

    # Members and the rest, which the service does

    def members(self) -> list[MemberInfo]:
        """Who the members are."""
        return self._service.members(self.library)

    async def status(self) -> LibraryStatus:
        """How the library stands on this device."""
        return await self._service.status(self.library)

    async def verify(self, device_id: uuid.UUID, *, repair: bool = False) -> Verification:
        """Compare with another member's replica; see `SyncService.verify`."""
        return await self._service.verify(self.library, device_id, repair=repair)

    def send_signal(self, channel: str, payload: bytes) -> None:
        """Send something to the members that are connected and listen just now; it is neither kept nor repeated.

        :param payload: up to 64 KiB.
        """
        if self.role is Role.NONE:
            raise RefusedError("This device is not a member of the library.")
        self._service.send_signal(self.library, channel, payload)


def make_put(kind: str, entry_id: str, fields: Mapping[str, Any]) -> Put:
    """A checked `Put`."""
    check_kind(kind)
    check_id(entry_id)
    return Put(kind, entry_id, check_fields(fields))


def _make_delete(kind: str, entry_id: str) -> Delete:
    check_kind(kind)
    check_id(entry_id)
    return Delete(kind, entry_id)


def checked_size(operation: EntryOperation) -> int:
    """How many bytes an operation takes.

    :raises InvalidRequestError: too many, or its texts are not valid Unicode.
    """
    try:
        size = size_of(operation)
    except (UnicodeEncodeError, ValueError) as error:
        raise InvalidRequestError("A text in it is not valid Unicode.") from error
    if size > MAX_OPERATION_BYTES:
        raise InvalidRequestError(f"One change has at most {MAX_OPERATION_BYTES >> 10} KiB; this one has {size} bytes.")
    return size


def _contains(value: Any, needle: str) -> bool:
    if isinstance(value, str):
        return needle in value.casefold()
    if isinstance(value, Mapping):
        return any(_contains(item, needle) for item in value.values())
    if isinstance(value, list):
        return any(_contains(item, needle) for item in value)
    return False
