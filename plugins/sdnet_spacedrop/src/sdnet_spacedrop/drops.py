"""The drops this device knows of, and what it keeps of them over a restart."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import anyio
import msgspec

from sdnet_core import PluginContext, RemoteDevice
from sdnet_core.errors import NotFoundError, StorageError
from sdnet_core.wire import decode, encode
from sdnet_file_transfer import SingleReceive, SingleSend

from . import messages as m
from .events import SpacedropCompleted, SpacedropFailed
from .machine import DropState, ReceiverMachine, Role, SenderMachine
from .text import printable

__all__ = ["Changes", "Drop", "DropBook", "DropItem", "DropStatus"]

logger = logging.getLogger(__name__)

MAX_KEPT = 200
"""Most drops kept that have ended; the oldest go first."""
MAX_UNANSWERED = 64
"""Most drops remembered, in memory only, that ended before anybody here said yes or no."""
_FOLDER = "drops"


class DropItem(msgspec.Struct, frozen=True):
    """One of the files or folders offered; the name is safe to show."""

    name: str
    directory: bool
    size_bytes: int
    item_count: int


class DropStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A drop as people and programs see it. Texts are safe to show; times are seconds since the epoch.

    :param role: of this device: ``sender`` or ``receiver``.
    :param state: as in `sdnet_spacedrop.DropState`.
    :param sender_name: who sends, as the sender says; ``device_name`` is who it really comes from or goes to.
    :param more_items: how many more there are at the top than ``items``.
    :param item_count: all files and folders, inside folders too.
    :param device_id: None for a device that is not paired; then ``device_name`` is what it says of itself.
    :param peer_id: its libp2p peer id, if it is not paired.
    :param check: the number that people compare, with a device that is not paired.
    :param asked: the receiver's person is being asked.
    :param expires_at: until when it can be answered, or compared.
    :param folder: where it goes at the receiver, once accepted.
    :param paths: what was put there, once completed.
    :param code: why it ended otherwise, as in `sdnet_spacedrop.messages.Refusal`.
    :param by_peer: the other side ended it.
    """

    id: str
    role: str
    state: str
    device_id: str | None
    device_name: str
    sender_name: str
    message: str
    items: tuple[DropItem, ...]
    more_items: int
    item_count: int
    total_bytes: int
    done_bytes: int = 0
    rate_bytes_s: float = 0.0
    asked: bool = False
    created_at: float = 0.0
    expires_at: float | None = None
    answered_at: float | None = None
    ended_at: float | None = None
    folder: str | None = None
    paths: tuple[str, ...] = ()
    code: str = ""
    reason: str = ""
    by_peer: bool = False
    peer_id: str = ""
    check: str = ""


class _Saved(msgspec.Struct, frozen=True, kw_only=True):
    status: DropStatus
    request: bytes
    folder: str | None
    sources: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Drop:
    """One drop, owned by the service.

    :ivar concluded: its end is stored, so far as it is kept, and was told.
    :ivar conversation: counts the streams on which it was asked about; only the last one may end it.
    :ivar folder: where it goes at the receiver.
    :ivar sources: what is sent, at the sender.
    :ivar answered: set when the answer may go out.
    :ivar confirmed: set when the person here has compared the number.
    :ivar peer_id: of a device that is not paired; ``device_id`` is None then.
    :ivar check: the number that people compare then.
    :ivar kept: it is on the disk.
    :ivar single: the transfer with a device that is not paired.
    """

    machine: SenderMachine | ReceiverMachine
    device_id: uuid.UUID | None
    device_name: str
    created_at: float
    peer_id: str = ""
    check: str = ""
    kept: bool = False
    single: SingleSend | SingleReceive | None = None
    expires_at: float | None = None
    answered_at: float | None = None
    ended_at: float | None = None
    folder: str | None = None
    paths: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    done_bytes: int = 0
    rate_bytes_s: float = 0.0
    asked: bool = False
    concluded: bool = False
    conversation: int = 0
    answered: anyio.Event = field(default_factory=anyio.Event)
    confirmed: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    listeners: WeakSet[Changes] = field(default_factory=WeakSet)

    @property
    def id(self) -> uuid.UUID:
        """The drop's id, also that of its file transfer."""
        return self.machine.drop_id

    @property
    def state(self) -> DropState:
        """Where it is."""
        return self.machine.state

    @property
    def paired(self) -> bool:
        """Whether the other side is a paired device."""
        return self.device_id is not None

    def notify(self) -> None:
        """Wake those who watch."""
        for listener in tuple(self.listeners):
            listener.note(self)

    def status(self) -> DropStatus:
        """What there is to tell."""
        request = self.machine.request if self.machine.offered else None
        sender = self.machine.role is Role.RECEIVER and not self.paired
        return DropStatus(
            id=str(self.id),
            role=str(self.machine.role),
            state=str(self.state),
            device_id=None if self.device_id is None else str(self.device_id),
            device_name=self.device_name,
            sender_name=self.device_name if sender or request is None else printable(request.sender_name),
            message="" if request is None else printable(request.message, multiline=True),
            items=() if request is None else tuple(map(_item, request.items)),
            more_items=0 if request is None else request.more_items,
            item_count=0 if request is None else request.item_count,
            total_bytes=0 if request is None else request.total_bytes,
            done_bytes=self.done_bytes,
            rate_bytes_s=self.rate_bytes_s,
            asked=self.asked,
            created_at=self.created_at,
            expires_at=self.expires_at if self.machine.open else None,
            answered_at=self.answered_at,
            ended_at=self.ended_at,
            folder=None if self.folder is None else printable(self.folder),
            paths=self.paths,
            code=self.machine.code,
            reason=self.machine.reason,
            by_peer=self.machine.by_peer,
            peer_id=self.peer_id,
            check=self.check,
        )


def _item(item: m.SpacedropItem) -> DropItem:
    return DropItem(printable(item.name), item.directory, item.size, item.item_count)


class Changes(AsyncIterator[DropStatus]):
    """The status of drops now and after every change of one, until all have ended; a slow listener misses some."""

    # No generator: one that is left early would have to be closed.
    def __init__(self, drops: Iterable[Drop]) -> None:
        self._left = list(dict.fromkeys(drops))
        self._fresh = list(self._left)
        self._wake = anyio.Event()
        for drop in self._left:
            drop.listeners.add(self)

    def note(self, drop: Drop) -> None:
        """Something has changed with a drop."""
        if drop in self._left and drop not in self._fresh:
            self._fresh.append(drop)
        self._wake.set()

    async def __anext__(self) -> DropStatus:
        while True:
            while self._fresh:
                drop = self._fresh.pop(0)
                if drop.state.ended and not drop.concluded:
                    continue  # an end is told when it is stored
                if drop.concluded:
                    self._left.remove(drop)
                    drop.listeners.discard(self)
                return drop.status()
            if not self._left:
                raise StopAsyncIteration
            self._wake = anyio.Event()
            await self._wake.wait()


class DropBook:
    """All drops, by id: those that go on, and the last that have ended.

    :param ctx: for the sealed store and the clock.
    :param history_days: how long those that have ended are kept.
    """

    def __init__(self, ctx: PluginContext, history_days: float) -> None:
        self._ctx = ctx
        self._keep_s = history_days * 86_400
        self._drops: dict[uuid.UUID, Drop] = {}

    def __iter__(self) -> Iterator[Drop]:
        return iter(tuple(self._drops.values()))

    def get(self, drop_id: uuid.UUID) -> Drop | None:
        """A drop by its whole id."""
        return self._drops.get(drop_id)

    def find(self, reference: str, *, among: Callable[[Drop], bool] = lambda drop: True) -> Drop:
        """A drop by its id or a unique prefix of it.

        :param among: which ones come into question.
        :raises NotFoundError: none fits, or several do.
        """
        wanted = reference.strip().lower()
        fitting = [drop for drop in self if wanted and str(drop.id).startswith(wanted) and among(drop)]
        if len(fitting) == 1:
            return fitting[0]
        shown = printable(reference[:40])
        if not fitting:
            raise NotFoundError(f"There is no such drop: {shown!r}.")
        names = ", ".join(str(drop.id)[:13] for drop in fitting[:5])
        raise NotFoundError(f"Several drops begin with {shown!r}: {names}. Give more of the id.")

    def add(self, machine: SenderMachine | ReceiverMachine, device: RemoteDevice, *, timeout_s: float) -> Drop:
        """Enter a drop that waits for its answer."""
        now = self._ctx.clock.now()
        drop = Drop(
            machine=machine,
            device_id=device.device_id,
            device_name=printable(device.name),
            created_at=now,
            expires_at=now + timeout_s,
        )
        self._drops[drop.id] = drop
        return drop

    def add_guest(
        self, machine: SenderMachine | ReceiverMachine, *, peer_id: str, name: str, check: str, timeout_s: float
    ) -> Drop:
        """Enter a drop with a device that is not paired, whose number is to be compared.

        :param name: what it says of itself.
        """
        now = self._ctx.clock.now()
        drop = Drop(
            machine=machine,
            device_id=None,
            device_name=printable(name).strip() or "a device without a name",
            created_at=now,
            expires_at=now + timeout_s,
            peer_id=peer_id,
            check=check,
        )
        self._drops[drop.id] = drop
        return drop

    async def forget(self, among: Callable[[Drop], bool] = lambda drop: True) -> int:
        """Take drops that have ended out of the history.

        :returns: how many.
        :raises StorageError: one cannot be removed.
        """
        gone = [drop for drop in self if drop.concluded and among(drop)]
        for drop in gone:
            if drop.kept:
                await self._ctx.storage.delete(_name(drop.id))
            self._drops.pop(drop.id, None)
        return len(gone)

    async def conclude(self, drop: Drop) -> None:
        """A drop has ended: date that, tell everybody, keep it, and forget the oldest ones.

        Of an offer that nobody here said yes or no to, nothing is written to the disk; of an offer of a device that is
        not paired, nothing unless somebody said yes.
        """
        now = self._ctx.clock.now()
        machine = drop.machine
        drop.ended_at = now
        drop.rate_bytes_s = 0.0
        if machine.role is Role.SENDER or drop.kept or (drop.paired and drop.answered_at is not None):
            await self._try_save(drop)
        await self._prune()
        drop.concluded = True
        drop.answered.set()
        drop.notify()
        about: dict[str, Any] = {
            "role": str(machine.role),
            "device_id": drop.device_id,
            "device_name": drop.device_name,
        }
        if machine.state is DropState.COMPLETED:
            total_bytes, folder = machine.request.total_bytes, drop.folder or ""
            self._ctx.publish(SpacedropCompleted(drop_id=drop.id, total_bytes=total_bytes, folder=folder, **about))
        elif machine.state is not DropState.REJECTED:
            state, reason = str(machine.state), machine.reason
            self._ctx.publish(SpacedropFailed(drop_id=drop.id, state=state, reason=reason, **about))

    async def _prune(self) -> None:
        over = sorted((drop for drop in self if drop.ended_at is not None), key=lambda drop: drop.ended_at or 0.0)
        # What nobody here has answered must not push out what somebody has.
        kept, others = [drop for drop in over if drop.kept], [drop for drop in over if not drop.kept]
        too_old = self._ctx.clock.now() - self._keep_s
        gone = kept[: max(0, len(kept) - MAX_KEPT)] + others[: max(0, len(others) - MAX_UNANSWERED)]
        gone += [drop for drop in over if (drop.ended_at or 0.0) < too_old]
        for drop in gone:
            if self._drops.pop(drop.id, None) is not None and drop.kept:
                try:
                    await self._ctx.storage.delete(_name(drop.id))
                except StorageError as error:
                    logger.warning("an old drop cannot be forgotten: %s", error)

    async def _try_save(self, drop: Drop) -> None:
        try:
            await self.save(drop)
        except StorageError as error:  # the files are where they are; only the history lacks a line
            logger.warning("drop %s cannot be kept in the history: %s", drop.id, error)

    async def save(self, drop: Drop) -> None:
        """Keep a drop over a restart, durably.

        :raises StorageError: it cannot be written.
        """
        saved = _Saved(
            status=drop.status(), request=encode(drop.machine.request), folder=drop.folder, sources=drop.sources
        )
        await self._ctx.storage.store(_name(drop.id), msgspec.msgpack.encode(saved))
        drop.kept = True

    async def load(self) -> None:
        """Take up what was kept; what cannot be read is logged and left out."""
        for name in await self._ctx.storage.list(_FOLDER):
            try:
                data = await self._ctx.storage.load(name)
                if data is not None:
                    self._restore(msgspec.msgpack.decode(data, type=_Saved))
            except (StorageError, msgspec.MsgspecError, ValueError) as error:
                logger.warning("a kept drop cannot be read: %s", error)
        self._drops = dict(sorted(self._drops.items(), key=lambda entry: entry[1].created_at))
        await self._prune()

    def _restore(self, saved: _Saved) -> None:
        status = saved.status
        request: m.SpacedropRequest = decode(saved.request, m.SpacedropRequest)
        machine = SenderMachine(request) if status.role == Role.SENDER else ReceiverMachine(request)
        machine.state = DropState(status.state)
        machine.code, machine.reason, machine.by_peer = status.code, status.reason, status.by_peer
        drop = Drop(
            machine=machine,
            device_id=None if status.device_id is None else uuid.UUID(status.device_id),
            device_name=status.device_name,
            created_at=status.created_at,
            answered_at=status.answered_at,
            ended_at=status.ended_at,
            folder=saved.folder,
            paths=status.paths,
            sources=saved.sources,
            done_bytes=status.done_bytes,
            concluded=machine.state.ended,
            peer_id=status.peer_id,
            check=status.check,
            kept=True,
        )
        drop.answered.set()
        self._drops[drop.id] = drop


def _name(drop_id: uuid.UUID) -> str:
    return f"{_FOLDER}/{drop_id}"
