"""The sync service: which libraries this device has, with whom they are shared, and everything that keeps them so."""

from __future__ import annotations

import logging
import uuid
from contextlib import AbstractContextManager
from functools import partial

import anyio
import msgspec
from anyio.abc import TaskStatus

from sdnet_core import PeerStream, PluginContext, RemoteDevice
from sdnet_core.errors import (
    ConflictError,
    InvalidRequestError,
    NetworkingError,
    NotFoundError,
    NotRunningError,
    RefusedError,
)
from sdnet_core.wire import Message, MessageStream

from . import messages, records
from .catalog import Catalog, LibraryRecord
from .compare import Comparison, answer_comparison
from .documents import CHANNEL as documents_channel
from .documents import Documents
from .folders.service import CHANNEL as folders_channel
from .folders.service import FolderService
from .invitations import Invitations, change_role
from .library import Library
from .limits import MAX_NAME
from .linker import PROTOCOL_NAME
from .operations import Membership, Put, Role
from .records import LibraryStatus, MemberInfo, Verification
from .replica import Commit, Replica
from .settings import SyncSettings
from .sharing import Sharing, SignalHandler
from .store import LIBRARY_KIND, LibraryKeys, Store
from .strategies import Merge
from .tasks import Tasks
from .upkeep import Upkeep
from .vectors import ahead

__all__ = ["SignalHandler", "SyncService"]

logger = logging.getLogger(__name__)

OPEN_STATES = ("joining", "active", "leaving", "left", "removed")


class SyncService:
    """Libraries of this device; other plugins get it with ``ctx.get_service(SyncService)``.

    :param settings: the plugin's table in the configuration; defaults if None.
    """

    def __init__(self, ctx: PluginContext, settings: SyncSettings | None = None) -> None:
        self._ctx = ctx
        self._settings = settings or SyncSettings()
        self.merges: dict[str, Merge] = {}
        self._catalog = Catalog(ctx.storage)
        self._stopped: dict[bytes, anyio.CancelScope] = {}
        self._tasks = Tasks()
        self._sharing = Sharing(ctx, self._catalog, self._greet, relay_delay_s=self._settings.relay_delay_s)
        self._libraries = self._sharing.libraries
        self.replica = self._sharing.replica
        self._invitations = Invitations(ctx, self._catalog, self.replica, self._sharing.changed, self._open)
        self._upkeep = Upkeep(ctx, self._settings, self._libraries, self._sharing.retry, self.remove)
        self.folders = FolderService(ctx, self._settings, self)
        self.documents = Documents()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled.

        :raises StorageError: the list of libraries cannot be read.
        """
        await self._catalog.load()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks.begin(tasks)
                for record in list(self._catalog.records.values()):
                    if record.state in OPEN_STATES:
                        try:
                            await self._open(record)
                        except NetworkingError as error:
                            logger.error("a library cannot be opened and stays closed: %s", error)
                self._sharing.start(tasks)
                self._upkeep.start(tasks)
                self.documents.start(tasks)
                documents = self.on_signal(documents_channel, self.documents.heard)
                with self.on_signal(folders_channel, self.folders.heard), documents:
                    await self.folders.run(tasks)
                    task_status.started()
                    await anyio.sleep_forever()
        finally:
            self._tasks.end()
            self._sharing.stop()
            self._upkeep.stop()
            self.documents.stop()
            self.folders.stop()
            with anyio.CancelScope(shield=True):
                for library in list(self._libraries):
                    await self._close(library)

    # Libraries

    def libraries(self) -> list[Library]:
        """All libraries of this device that are open, by name."""
        return sorted(self._libraries.values(), key=lambda library: (library.name, library.id))

    def library(self, library_id: uuid.UUID) -> Library:
        """One library.

        :raises NotFoundError: this device has none with that id.
        """
        try:
            return self._libraries[library_id.bytes]
        except KeyError:
            raise NotFoundError(f"This device has no library {library_id}.") from None

    def find(self, reference: str) -> Library:
        """A library by name, by id, or by a unique prefix of either.

        :raises NotFoundError: none fits, or several do (they are listed).
        """
        text = reference.casefold()
        exact = [lib for lib in self.libraries() if text in (lib.name.casefold(), str(lib.id))]
        found = exact or [
            lib for lib in self.libraries() if lib.name.casefold().startswith(text) or str(lib.id).startswith(text)
        ]
        if not found or not text:
            raise NotFoundError(f"There is no library {reference!r}.")
        if len(found) > 1:
            raise NotFoundError(f"{reference!r} fits several: " + ", ".join(f"{x.name} ({x.id})" for x in found))
        return found[0]

    async def create(self, name: str) -> Library:
        """Make a library of which this device is the owner.

        :param name: 1 to 64 printable characters.
        """
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InvalidRequestError(f"A library's name is 1 to {MAX_NAME} printable characters.")
        random, info = self._ctx.randomness, self._ctx.local_device
        record = LibraryRecord(
            id=uuid.UUID(bytes=random.bytes(16), version=4).bytes,
            name=name,
            state="active",
            secret=random.bytes(32),
            row_key=random.bytes(32),
            founder=info.device_id,
            founder_key=info.public_key,
            source=b"",
            role=Role.OWNER,
        )
        await self._catalog.store(record)
        await self._open(record)
        library = self._libraries[record.id]
        owner = Membership(info.device_id, info.public_key, Role.OWNER, info.name[:MAX_NAME], 0)
        await library.replica.write([owner, Put(LIBRARY_KIND, "name", {"name": name})], 512)
        return library

    def record(self, library: bytes) -> LibraryRecord:
        """What is remembered of a library outside of its database."""
        return self._catalog.get(library)

    async def pause(self, library_id: uuid.UUID) -> None:
        """Exchange nothing about a library until `resume`."""
        await self._set(library_id, paused=True)

    async def resume(self, library_id: uuid.UUID) -> None:
        """End a `pause`."""
        await self._set(library_id, paused=False)

    async def _set(self, library_id: uuid.UUID, **values: object) -> None:
        self.library(library_id)
        await self._sharing.set_record(library_id.bytes, **values)

    # Members

    async def invite(self, library_id: uuid.UUID, device_id: uuid.UUID, role: Role = Role.WRITER) -> bool:
        """Ask a paired device's person whether it wants to be a member. It is one when it accepts.

        :returns: whether the device has been asked; if not, it is as soon as it is connected.
        :raises RefusedError: this device is no owner of the library.
        :raises ConflictError: it is a member.
        """
        self.library(library_id)
        return await self._invitations.invite(library_id.bytes, self._ctx.get_device(device_id), role)

    def invitations(self) -> list[records.Invitation]:
        """Invitations that wait for this device's person."""
        return self._invitations.waiting()

    async def accept(self, library_id: uuid.UUID) -> Library:
        """Accept an invitation. The library fills as soon as its inviter is connected.

        :raises NotFoundError: there is no such invitation.
        """
        await self._invitations.accept(self._invited(library_id))
        return self.library(library_id)

    async def decline(self, library_id: uuid.UUID) -> None:
        """Decline an invitation."""
        await self._invitations.decline(self._invited(library_id))

    def _invited(self, library_id: uuid.UUID) -> LibraryRecord:
        record = self._catalog.records.get(library_id.bytes)
        if record is None or record.state != "invited":
            raise NotFoundError(f"There is no invitation to a library {library_id}.")
        return record

    async def request_access(self, device_id: uuid.UUID, library: str, role: Role = Role.WRITER) -> None:
        """Ask an owner's person to be invited to a library.

        :param library: its name or id, as the person there knows it.
        :raises ConnectionFailedError: the device is away.
        """
        await self._invitations.request_access(self._ctx.get_device(device_id), library, role)

    def requests(self) -> list[records.Request]:
        """Who asks to be invited; `invite` answers. Kept until the node stops."""
        return list(self._invitations.requests.values())

    async def set_role(self, library_id: uuid.UUID, device_id: uuid.UUID, role: Role) -> None:
        """Change a member's role; `Role.NONE` removes it. What it wrote before this device heard of stays.

        :raises NotFoundError: it is not a member.
        :raises RefusedError: this device is no owner of the library.
        """
        library = self.library(library_id)
        member = next((m for m in library.replica.view.members.members() if m.device == device_id.bytes), None)
        if member is None:
            raise NotFoundError("That device is not a member of the library.")
        await change_role(library.replica, member.device, member.public_key, member.name, role)

    async def remove(self, library_id: uuid.UUID, device_id: uuid.UUID) -> None:
        """Remove a member: it gets nothing more, and what it writes from now on counts nowhere."""
        if device_id == self._ctx.local_device.id:
            await self.leave(library_id)
        else:
            await self.set_role(library_id, device_id, Role.NONE)

    async def leave(self, library_id: uuid.UUID, *, delete: bool = False) -> None:
        """Be no member any more. What this device has of the library stays, unless it is to be deleted.

        :raises ConflictError: this device is the only owner while there are other members.
        """
        library = self.library(library_id)
        members = library.replica.view.members.members()
        ours = self._ctx.local_device.device_id
        if library.role > Role.NONE:
            others = [member for member in members if member.device != ours]
            if library.role is Role.OWNER and others and not any(m.role is Role.OWNER for m in others):
                raise ConflictError("This device is the only owner; make another member an owner first.")
            info = self._ctx.local_device
            head = library.replica.view.heads.get(ours)
            operation = Membership(ours, info.public_key, Role.NONE, info.name[:MAX_NAME], head.sequence if head else 0)
            await library.replica.write([operation], 256)
            await self._set(library_id, state="leaving" if others else "left")
            with anyio.move_on_after(2.0):
                await self._catalog.wait_while(library_id.bytes, "leaving")  # until somebody has it
        else:
            await self._set(library_id, state="left")
        if delete:
            await self.delete(library_id)

    async def delete(self, library_id: uuid.UUID) -> None:
        """Delete what this device has of a library.

        :raises ConflictError: it is still a member.
        """
        record = self.record(library_id.bytes)
        if record.state not in ("leaving", "left", "removed"):
            raise ConflictError("This device is a member of the library; leave it first.")
        files = self._libraries[library_id.bytes].replica.store.files() if library_id.bytes in self._libraries else []
        await self._catalog.store(msgspec.structs.replace(record, state="left"))
        self._sharing.changed(library_id.bytes)
        await self.folders.close_library(library_id.bytes, forget=True)
        await self._close(library_id.bytes)

        def remove() -> None:
            for path in files:
                path.unlink(missing_ok=True)

        await self._ctx.run_blocking(remove)
        await self._catalog.remove(record)

    def members(self, library: bytes) -> list[MemberInfo]:
        """The members of a library."""
        view = self.replica(library).view
        ours = self._ctx.local_device
        found = []
        for member in view.members.members():
            device_id = uuid.UUID(bytes=member.device)
            link = self._sharing.linker.links.get(device_id)
            linked = link is not None and library in link.machine.libraries
            behind = ahead(view.vector, link.machine.theirs(library)) if link is not None and linked else {}
            found.append(
                MemberInfo(
                    device_id=device_id,
                    name=self._name(device_id, member.name),
                    role=member.role.name.lower(),
                    connected=linked,
                    this_device=device_id == ours.id,
                    behind=sum(n - link.machine.theirs(library).get(a, 0) for a, n in behind.items())
                    if link is not None and linked
                    else None,
                )
            )
        return found

    def _name(self, device_id: uuid.UUID, name: str) -> str:
        try:
            return self._ctx.get_device(device_id).name
        except NetworkingError:
            return name

    async def status(self, library: bytes) -> LibraryStatus:
        """How a library stands."""
        record, opened = self.record(library), self._libraries[library]
        counts = await opened.replica.read(opened.replica.store.counts)
        return LibraryStatus(
            id=opened.id,
            name=opened.name,
            role=opened.role.name.lower(),
            state=record.state,
            paused=record.paused,
            loading=opened.replica.view.loading,
            entries=counts["entries"],
            conflicts=counts["conflicts"],
            deletions=counts["deletions"],
            batches=counts["batches"],
            size_bytes=counts["bytes"],
            members=tuple(self.members(library)),
            refusals=tuple(self._sharing.refusals.get(library, ())),
        )

    # Comparing

    async def verify(self, library: bytes, device_id: uuid.UUID, *, repair: bool = False) -> Verification:
        """Compare our replica with a connected member's.

        :param repair: take what differs from the other side, which must be an owner.
        :raises ConnectionFailedError: it is away.
        :raises RefusedError: it is to repair, and is no owner.
        """
        device, replica = self._ctx.get_device(device_id), self.replica(library)
        began = anyio.current_time()
        comparison = Comparison(replica, library, partial(self._ctx.request, device_id, PROTOCOL_NAME))
        await comparison.run()
        repaired = await comparison.repair(device_id.bytes) if repair and comparison.differing else 0
        keys = comparison.differing[:500]
        states = await replica.read(replica.store.get_many, keys) if keys else {}
        return Verification(
            device_id=device_id,
            device_name=device.name,
            equal=not comparison.differing,
            in_step=comparison.in_step,
            differing=tuple((state.kind, state.id) for state in states.values()),
            differing_count=len(comparison.differing),
            exchanged_bytes=comparison.exchanged_bytes,
            duration_s=anyio.current_time() - began,
            repaired=repaired,
        )

    # For other plugins

    def register_strategy(self, name: str, merge: Merge) -> None:
        """Add a strategy for conflicts, ``custom:<name>``; do it on every device, and let it depend on nothing else."""
        self.merges[f"custom:{name}"] = merge

    def on_signal(self, channel: str, handler: SignalHandler) -> AbstractContextManager[None]:
        """Take the signals that members send on a channel, for the length of the block. The handler returns at once.

        :raises ConflictError: somebody takes them already.
        """
        return self._sharing.on_signal(channel, handler)

    def send_signal(self, library: bytes, channel: str, payload: bytes) -> None:
        """Send a signal to all connected members; see `Library.send_signal`."""
        self._sharing.send_signal(library, channel, payload)

    # What the handler needs

    async def accept_link(self, stream: PeerStream, messages_: MessageStream, device: RemoteDevice) -> None:
        """Talk on a stream that another device opened."""
        await self._sharing.linker.accept(stream, messages_, device)

    async def answer(self, device: RemoteDevice, request: Message) -> Message:
        """Answer a request."""
        match request:
            case messages.Invitation():
                return await self._invitations.take_invitation(device, request)
            case messages.InvitationAnswer():
                return await self._invitations.take_answer(device, request)
            case messages.AccessRequest():
                return self._invitations.take_request(device, request)
            case messages.CompareRanges() | messages.CompareLeaves() | messages.ListEntries() | messages.ReadEntries():
                if self._sharing.shareable(request.library, device) is None:
                    return messages.Understood(reason="It is not shared with this device.")
                return await answer_comparison(self.replica(request.library), request)
            case _:
                raise RefusedError("That is no request.")

    # Inside

    async def _greet(self, device: RemoteDevice) -> None:
        await self._invitations.catch_up(device)
        for library in list(self._libraries):
            if self.may_read(library, device):
                self.folders.linked(library)

    async def _open(self, record: LibraryRecord) -> None:
        if record.id in self._libraries:
            return
        keys = LibraryKeys(record.id, record.secret, record.row_key, record.founder, record.founder_key)
        ctx = self._ctx

        def make() -> Store:
            return Store(
                ctx.data_dir / f"{record.uuid}.sqlite3",
                keys,
                device=ctx.local_device.device_id,
                sign=ctx.sign,
                clock=ctx.clock,
                random_bytes=ctx.randomness.bytes,
            )

        replica = Replica(make, ctx.run_blocking)
        await replica.open()
        if not self._tasks.start(self._run_replica, record.id, replica):
            await replica.close()
            raise NotRunningError("Sync is not running.")
        self._libraries[record.id] = Library(self, record.id, replica)
        replica.listeners.append(partial(self._committed, record.id))

    async def _run_replica(self, library: bytes, replica: Replica) -> None:
        with anyio.CancelScope() as scope:
            self._stopped[library] = scope
            await replica.run()

    async def _close(self, library: bytes) -> None:
        scope = self._stopped.pop(library, None)
        if scope is not None:
            scope.cancel()
        opened = self._libraries.pop(library, None)
        if opened is not None:
            opened.closed()
            await opened.replica.close()

    def _committed(self, library: bytes, commit: Commit) -> None:
        self._sharing.committed(library, commit)
        self._upkeep.committed(library, commit)
        opened = self._libraries.get(library)
        if opened is not None and commit.changes:
            self.folders.signals.committed(opened, commit)
        ours = self._ctx.local_device.device_id
        record = self._catalog.records.get(library)
        if record is not None and record.state == "joining" and commit.view.members.role(ours) > Role.NONE:
            self._tasks.start(partial(self._sharing.try_set_record, library, state="active"))

    async def maintain(self) -> None:
        """Acknowledge, forget what all members have, ask again for what was missing; done now and then by itself."""
        await self._upkeep.maintain()

    # What the folders ask

    def open_library(self, library: bytes) -> Library | None:
        """A library that is open."""
        return self._libraries.get(library)

    def connected_members(self, library: bytes) -> list[RemoteDevice]:
        """Its members that are connected, apart from those that may not be told about it."""
        if self.is_paused(library):
            return []
        return [device for device in self._ctx.devices() if device.connected and self.may_read(library, device)]

    def is_paused(self, library: bytes) -> bool:
        """Whether nothing is exchanged about a library."""
        record = self._catalog.records.get(library)
        return record is None or record.paused or record.state != "active"

    def may_read(self, library: bytes, device: RemoteDevice) -> bool:
        """Whether a device may be told about a library."""
        return self._sharing.shareable(library, device) is not None and not self.is_paused(library)
