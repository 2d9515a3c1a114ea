"""One link's conversation about libraries, without I/O: messages and happenings in, commands out.

Either side says what it has (`Hello`), asks for what comes after that (`Pull`), and is then sent batches (`Push`),
those that exist and those to come. Each push is acknowledged once it is durable; so much may be under way and no more.
What came from elsewhere is held back a moment before it is passed on: by then the other side has mostly said that it
has it, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sdnet_core.errors import ProtocolError

from .apply import Applied, Reason
from .limits import WINDOW_BYTES
from .messages import (
    Ack,
    AnyLinkMessage,
    Goodbye,
    Hello,
    Place,
    Pull,
    Push,
    Signal,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotPage,
)
from .operations import SignedBatch
from .standing import View
from .vectors import Vector, ahead, merged

__all__ = [
    "ApplyBatches",
    "Command",
    "Deliver",
    "Diverged",
    "Fork",
    "LinkMachine",
    "ReadLog",
    "ReadSnapshot",
    "Send",
    "TakeSnapshot",
]

MAX_STALLS = 4
"""How often the same gap is asked about in a row."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message."""

    message: AnyLinkMessage


@dataclass(frozen=True, slots=True)
class ApplyBatches:
    """Apply these, then call `LinkMachine.applied`."""

    library: bytes
    batches: Sequence[SignedBatch]


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read what the other side lacks, then call `LinkMachine.log_read` or `LinkMachine.log_gone`."""

    library: bytes
    after: Vector
    cursor: int | None


@dataclass(frozen=True, slots=True)
class ReadSnapshot:
    """Read the next part of a snapshot, then call `LinkMachine.snapshot_read`.

    :param first: begin a new one.
    """

    library: bytes
    first: bool


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Take in a part of a snapshot, then call `LinkMachine.snapshot_taken`."""

    message: SnapshotBegin | SnapshotPage | SnapshotEnd


@dataclass(frozen=True, slots=True)
class Fork:
    """The other side has another batch of an author's in one place than we have."""

    library: bytes
    author: bytes
    sequence: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """A signal came, or the other side ended the talk about a library."""

    message: Signal | Goodbye


@dataclass(frozen=True, slots=True)
class Diverged:
    """The other side has the same batches and yet other entries."""

    library: bytes


Command = Send | ApplyBatches | ReadLog | ReadSnapshot | TakeSnapshot | Fork | Diverged | Deliver


@dataclass(slots=True)
class _Share:
    ours: dict[bytes, int]
    hashes: dict[bytes, bytes]
    root: Callable[[], bytes]
    wants_snapshot: bool
    dealing: int = 0
    """Pushes and pages that are being dealt with; each ends with an `Ack` anyway."""
    theirs: dict[bytes, int] = field(default_factory=dict)
    told: dict[bytes, int] = field(default_factory=dict)
    subscribed: bool = False
    """The other side wants what is new."""
    pulled: bool = False
    """We have asked for what is new."""
    reading: bool = False
    held: bool = False
    cursor: int | None = None
    flight: deque[int] = field(default_factory=deque)
    snapshot: bool = False
    """We are sending one."""
    snapshot_begun: bool = False
    snapshot_heads: dict[bytes, int] = field(default_factory=dict)
    taking: bool = False
    """We are taking one."""
    stalls: int = 0
    refused: set[bytes] = field(default_factory=set)
    """Authors of what was refused; empty bytes for nobody knows whose."""

    @property
    def in_flight_bytes(self) -> int:
        return sum(self.flight)


class LinkMachine:
    """The state of one link.

    :param device: our device id.
    """

    def __init__(self, device: bytes) -> None:
        self._device = device
        self._shares: dict[bytes, _Share] = {}

    @property
    def libraries(self) -> frozenset[bytes]:
        """What is being talked about."""
        return frozenset(self._shares)

    def theirs(self, library: bytes) -> Vector:
        """What the other side has of a library, as far as we know."""
        share = self._shares.get(library)
        return {} if share is None else dict(share.theirs)

    def in_step(self, library: bytes) -> bool:
        """Whether the other side is known to have all that we have."""
        share = self._shares.get(library)
        return share is not None and not ahead(share.ours, share.theirs)

    # From our side

    def share(self, library: bytes, view: View) -> list[Command]:
        """Begin to talk about a library."""
        if library in self._shares:
            return []
        share = self._shares[library] = _Share({}, {}, view.root, False)
        _update(share, view)
        return [Send(self._hello(library, share, answer=False))]

    def unshare(self, library: bytes, reason: str) -> list[Command]:
        """End the talk about a library."""
        if self._shares.pop(library, None) is None:
            return []
        return [Send(Goodbye(library=library, reason=reason))]

    def committed(self, library: bytes, view: View) -> list[Command]:
        """Something changed on our side; call `relay` a moment later, if `holds` says so."""
        share = self._shares.get(library)
        if share is None:
            return []
        before = share.ours
        _update(share, view)
        news = ahead(share.ours, before)
        if any(author != self._device for author in ahead(news, share.theirs)):
            share.held = True
        told = [] if share.dealing else self._tell(library, share, 0)
        return [*told, *self._pump(library, share)]

    def holds(self, library: bytes) -> bool:
        """Whether something of others is held back."""
        share = self._shares.get(library)
        return share is not None and share.held

    def relay(self, library: bytes) -> list[Command]:
        """Pass on what others wrote and the other side still has not got."""
        share = self._shares.get(library)
        if share is None:
            return []
        share.held, share.cursor = False, None
        return self._pump(library, share)

    def retry(self, library: bytes) -> list[Command]:
        """Ask again for what was refused or missing, or for a snapshot if one is needed."""
        share = self._shares.get(library)
        if share is None or share.taking or not share.pulled:
            return []
        if not (share.wants_snapshot or share.refused or share.stalls):
            return []
        share.refused, share.stalls = set(), 0
        share.told = dict(share.ours)
        return [_pull(library, share)]

    def applied(self, library: bytes, applied: Applied) -> list[Command]:
        """The batches of a push were dealt with; `committed` was called before."""
        share = self._shares.get(library)
        if share is None:
            return []
        share.dealing = max(0, share.dealing - 1)
        share.theirs = merged(share.theirs, applied.pushed)
        # What is malformed does not say in a way that counts whose it is.
        share.refused |= {b"" if r.reason is Reason.MALFORMED else r.author for r in applied.refusals}
        commands = self._tell(library, share, 1)
        if applied.taken:
            share.stalls = 0
        if applied.gaps - share.refused and not share.taking and share.stalls < MAX_STALLS:
            share.stalls += 1
            commands.append(_pull(library, share))
        return commands

    def log_read(
        self, library: bytes, batches: Sequence[tuple[bytes, int, SignedBatch]], cursor: int | None, after: Vector
    ) -> list[Command]:
        """What a `ReadLog` gave.

        :param cursor: where to go on; None if that was all.
        :param after: what was asked for.
        """
        share = self._shares.get(library)
        if share is None:
            return []
        share.reading = False
        # A Pull that came in between says better what they have.
        fresh = [batch for author, sequence, batch in batches if sequence > share.theirs.get(author, 0)]
        share.cursor = cursor
        if not fresh:
            return self._pump(library, share) if batches or cursor is not None else []
        share.theirs = merged(share.theirs, {author: sequence for author, sequence, _ in batches})
        share.flight.append(sum(len(batch.body) for batch in fresh))
        push = Send(Push(library=library, batches=tuple(fresh)))
        return [push, *self._pump(library, share)]

    def log_gone(self, library: bytes, *, may_give: bool) -> list[Command]:
        """What the other side lacks is no longer in the log.

        :param may_give: whether a snapshot from us counts.
        """
        share = self._shares.get(library)
        if share is None:
            return []
        share.reading = False
        if not may_give:
            share.subscribed = share.snapshot = False  # it has to get it from an owner, and then pulls again
            return []
        return self._begin_snapshot(library, share)

    def snapshot_read(
        self, library: bytes, message: SnapshotBegin | SnapshotPage | SnapshotEnd, size: int
    ) -> list[Command]:
        """The next part of a snapshot.

        :param size: of what it carries, bytes.
        """
        share = self._shares.get(library)
        if share is None:
            return []
        share.reading = False
        if not share.snapshot:
            return self._pump(library, share)
        share.flight.append(size)
        if isinstance(message, SnapshotBegin):
            share.snapshot_heads = {head.author: head.sequence for head in message.heads}
        if isinstance(message, SnapshotEnd):
            share.snapshot = False
            share.theirs = merged(share.theirs, share.snapshot_heads)
            share.cursor = None
        return [Send(message), *self._pump(library, share)]

    def snapshot_taken(self, library: bytes, message: SnapshotBegin | SnapshotPage | SnapshotEnd) -> list[Command]:
        """A part of a snapshot is ours now; `committed` was called before."""
        share = self._shares.get(library)
        if share is None:
            return []
        share.dealing = max(0, share.dealing - 1)
        commands = self._tell(library, share, 1)
        if isinstance(message, SnapshotEnd):
            share.taking = False
            # What we have beyond the snapshot, and did not send while it came.
            share.held = False
            commands += self._pump(library, share)
        return commands

    def signal(self, message: Signal) -> list[Command]:
        """Send something to whoever listens."""
        return [Send(message)] if message.library in self._shares else []

    # From the other side

    def received(self, message: AnyLinkMessage) -> list[Command]:
        """A message came. About libraries that we do not share, nothing is said.

        :raises ProtocolError: it does not fit.
        """
        share = self._shares.get(message.library)
        if share is None:
            return []
        match message:
            case Hello():
                return self._hello_came(message, share)
            case Pull():
                share.subscribed, share.held, share.cursor = True, False, None
                share.theirs = dict(message.after)
                share.snapshot = False
                if message.rebuild:
                    return self._begin_snapshot(message.library, share)
                return self._pump(message.library, share)
            case Push():
                share.dealing += 1
                return [ApplyBatches(message.library, message.batches)]
            case Ack():
                share.theirs = merged(share.theirs, message.vector)
                # There may be late ones from before the talk about the library began anew.
                for _ in range(min(message.taken, len(share.flight))):
                    share.flight.popleft()
                return self._pump(message.library, share)
            case SnapshotBegin():
                share.taking = True
                share.dealing += 1
                return [TakeSnapshot(message)]
            case SnapshotPage() | SnapshotEnd():
                if not share.taking:
                    raise ProtocolError("A part of a snapshot came without its beginning.")
                share.dealing += 1
                return [TakeSnapshot(message)]
            case Goodbye():
                del self._shares[message.library]
                return [Deliver(message)]
            case Signal():
                return [Deliver(message)]

    def _hello_came(self, message: Hello, share: _Share) -> list[Command]:
        commands: list[Command] = []
        if not message.answer:
            share.subscribed = share.pulled = share.taking = share.snapshot = False
            share.flight.clear()
            commands.append(Send(self._hello(message.library, share, answer=True)))
        share.theirs = merged(share.theirs, {author: place.sequence for author, place in message.heads.items()})
        for author, place in message.heads.items():
            if share.ours.get(author) == place.sequence and share.hashes[author][:16] != place.hash:
                commands.append(Fork(message.library, author, place.sequence))
                share.refused.add(author)
        if not (ahead(share.ours, share.theirs) or ahead(share.theirs, share.ours) or share.wants_snapshot):
            if share.root() != message.root:
                commands.append(Diverged(message.library))
        if not share.pulled:
            share.pulled = True
            share.told = dict(share.ours)
            commands.append(_pull(message.library, share))
        return commands

    # Inside

    def _hello(self, library: bytes, share: _Share, *, answer: bool) -> Hello:
        heads = {author: Place(n, share.hashes[author][:16]) for author, n in share.ours.items() if n}
        return Hello(library=library, heads=heads, root=share.root(), answer=answer)

    def _tell(self, library: bytes, share: _Share, taken: int) -> list[Command]:
        """Say what we have, as far as it is new to them; what we wrote ourselves they get from us anyway."""
        news = {author: n for author, n in ahead(share.ours, share.told).items() if author != self._device}
        share.told = merged(share.told, news)
        if not (news or taken) or not share.pulled:
            return []
        return [Send(Ack(library=library, vector=news, taken=taken))]

    def _pump(self, library: bytes, share: _Share) -> list[Command]:
        if not share.subscribed or share.reading or share.in_flight_bytes >= WINDOW_BYTES:
            return []
        if share.snapshot:
            share.reading = True
            first, share.snapshot_begun = not share.snapshot_begun, True
            return [ReadSnapshot(library, first=first)]
        after: Vector = share.theirs
        lacking = ahead(share.ours, after)
        if share.held:
            own = self._device
            if own not in lacking:
                return []
            after = {**merged(share.theirs, share.ours), own: share.theirs.get(own, 0)}
            share.reading = True
            return [ReadLog(library, _known(after), None)]
        if not lacking:
            return []
        share.reading = True
        return [ReadLog(library, dict(after), share.cursor)]

    def _begin_snapshot(self, library: bytes, share: _Share) -> list[Command]:
        share.snapshot, share.snapshot_begun, share.cursor = True, False, None
        return self._pump(library, share)


def _pull(library: bytes, share: _Share) -> Send:
    return Send(Pull(library=library, after=_known(share.ours), rebuild=share.wants_snapshot))


def _update(share: _Share, view: View) -> None:
    share.ours = view.vector
    share.hashes = {author: head.hash for author, head in view.heads.items()}
    share.root = view.root
    share.wants_snapshot = view.loading or view.rebuild


def _known(vector: Vector) -> dict[bytes, int]:
    """A vector for the wire, which names no author that has nothing."""
    return {author: sequence for author, sequence in vector.items() if sequence}
