"""Both sides of a transfer's conversation as state machines without I/O: records in, events and records out.

They check what the other side says: order, counts, sizes, names. What is on a disk is not their business.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

import msgspec

from sdnet_core.errors import ProtocolError

from . import messages as m
from .names import check_component, check_length, check_path, printable

__all__ = [
    "Accepted",
    "Acknowledged",
    "Heartbeat",
    "ManifestCheck",
    "Offered",
    "PeerCancelled",
    "PeerFailed",
    "ReceiverMachine",
    "Rejected",
    "SenderEvent",
    "SenderMachine",
    "SentAll",
]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver takes it.

    :param resume: what it holds already, by item.
    """

    resume: Mapping[int, m.ItemResume]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The receiver does not take it."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Everything is in place at the receiver.

    :param failed: items that are not, because they could not be read here.
    :param before: it had been received whole in an earlier conversation.
    """

    failed: int
    before: bool = False


@dataclass(frozen=True, slots=True)
class PeerCancelled:
    """A person at the other side cancelled."""

    reason: str


@dataclass(frozen=True, slots=True)
class PeerFailed:
    """The other side cannot go on."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The other side is busy and alive."""


@dataclass(frozen=True, slots=True)
class Offered:
    """The whole manifest has come, and holds together."""

    transfer_id: uuid.UUID
    purpose: str
    items: tuple[m.Item, ...]
    total_bytes: int


@dataclass(frozen=True, slots=True)
class SentAll:
    """The sender has sent everything it could.

    :param failed: items that it could not read.
    """

    failed: int


SenderEvent: TypeAlias = Accepted | Rejected | Acknowledged | PeerCancelled | PeerFailed | Heartbeat


class _State(Enum):
    START = auto()
    MANIFEST = auto()
    OFFERED = auto()
    RESUME = auto()
    DATA = auto()
    COMPLETE = auto()
    DONE = auto()


_UNTOUCHED = -1
_FINISHED = -2


def _ended(message: object) -> PeerCancelled | PeerFailed | None:
    if isinstance(message, m.TransferCancel):
        return PeerCancelled(printable(message.reason))
    if isinstance(message, m.TransferFailure):
        return PeerFailed(message.code, printable(message.reason))
    return None


class SenderMachine:
    """The sending side of one conversation.

    :param items: the manifest; one that `ManifestCheck` lets through.
    """

    def __init__(self, transfer_id: uuid.UUID, purpose: str, items: Sequence[m.Item]) -> None:
        self.transfer_id = transfer_id
        self.purpose = purpose
        self.items = items
        self._state = _State.START
        self._resume: dict[int, m.ItemResume] = {}
        self._resume_count = 0

    def start(self) -> Iterator[bytes]:
        """The records that open the conversation."""
        self._expect(_State.START)
        self._state = _State.OFFERED
        pieces = m.batches(self.items)
        yield m.encode_control(
            m.FileTransferRequest(
                transfer_id=self.transfer_id.bytes,
                purpose=self.purpose,
                item_count=len(self.items),
                total_bytes=sum(item.size for item in self.items),
                items=next(pieces),
            )
        )
        for piece in pieces:
            yield m.encode_control(m.FileTransferItems(items=piece))

    def complete(self, failed: int) -> bytes:
        """The record that says that everything was sent, but ``failed`` items."""
        self._expect(_State.DATA)
        self._state = _State.COMPLETE
        return m.encode_control(m.TransferComplete(failed=failed))

    def receive(self, record: bytes | memoryview) -> SenderEvent | None:
        """Take a record from the receiver.

        :returns: what it means, None when more is to come.
        :raises ProtocolError: it may not come now, or does not fit the manifest.
        """
        message = m.decode_control(record)
        if isinstance(message, m.TransferHeartbeat):
            return Heartbeat()
        if (ended := _ended(message)) is not None:
            self._state = _State.DONE
            return ended
        if isinstance(message, m.FileTransferResponse) and self._state is _State.OFFERED:
            return self._response(message)
        if isinstance(message, m.FileTransferResume) and self._state is _State.RESUME:
            return self._take_resume(message.resume)
        if isinstance(message, m.TransferAck) and self._state is _State.COMPLETE:
            self._state = _State.DONE
            return Acknowledged(message.failed)
        raise ProtocolError(f"The other device sent a {type(message).__name__} where none may come.")

    def _response(self, message: m.FileTransferResponse) -> SenderEvent | None:
        if message.transfer_id != self.transfer_id.bytes:
            raise ProtocolError("The other device answered another transfer.")
        if not message.accepted:
            self._state = _State.DONE
            return Rejected(message.code, printable(message.reason))
        if message.complete:
            self._state = _State.DONE
            return Acknowledged(0, before=True)
        self._resume_count = message.resume_count
        self._state = _State.RESUME
        return self._take_resume(message.resume)

    def _take_resume(self, resume: Sequence[m.ItemResume]) -> Accepted | None:
        for held in resume:
            item = self.items[held.item] if held.item < len(self.items) else None
            if item is None or item.directory or held.length > item.size or held.item in self._resume:
                raise ProtocolError("The other device claims to hold something that was not offered.")
            if held.landed and held.length != item.size:
                raise ProtocolError("The other device claims to have finished a file that it does not hold.")
            self._resume[held.item] = held
        if len(self._resume) > self._resume_count:
            raise ProtocolError("The other device holds more files than it said.")
        if len(self._resume) < self._resume_count:
            return None
        self._state = _State.DATA
        return Accepted(self._resume)

    def _expect(self, state: _State) -> None:
        if self._state is not state:
            raise ProtocolError("The transfer is not at this point.")


class ReceiverMachine:
    """The receiving side of one conversation."""

    def __init__(self) -> None:
        self._state = _State.START
        self._request: m.FileTransferRequest | None = None
        self._manifest = ManifestCheck()
        self._items: Sequence[m.Item] = ()
        self._position: list[int] = []
        """By item, the offset that must come next, or one of the two values above."""
        self._resume: Mapping[int, m.ItemResume] = {}
        self._open: int | None = None
        self._unfinished = 0
        self.failed = 0
        """Items the sender gave up so far."""

    @property
    def receiving(self) -> bool:
        """Whether data records may come now."""
        return self._state is _State.DATA

    def receive(self, record: bytes | memoryview) -> Offered | SentAll | PeerCancelled | PeerFailed | Heartbeat | None:
        """Take a control record from the sender.

        :returns: what it means, None when more is to come.
        :raises ProtocolError: it may not come now, or the manifest does not hold together.
        """
        message = m.decode_control(record)
        if isinstance(message, m.TransferHeartbeat):
            return Heartbeat()
        if (ended := _ended(message)) is not None:
            self._state = _State.DONE
            return ended
        if isinstance(message, m.FileTransferRequest) and self._state is _State.START:
            self._request = message
            self._state = _State.MANIFEST
            return self._take_items(message, message.items)
        if isinstance(message, m.FileTransferItems) and self._state is _State.MANIFEST and self._request is not None:
            return self._take_items(self._request, message.items)
        if isinstance(message, m.TransferComplete) and self._state is _State.DATA:
            if self._unfinished or message.failed != self.failed:
                raise ProtocolError("The sender says that it has sent everything, but files are missing.")
            self._state = _State.COMPLETE
            return SentAll(message.failed)
        raise ProtocolError(f"The sender sent a {type(message).__name__} where none may come.")

    def _take_items(self, request: m.FileTransferRequest, items: Sequence[m.Item]) -> Offered | None:
        if len(self._manifest.items) + len(items) > request.item_count:
            raise ProtocolError("The sender named more files than it said.")
        self._manifest.add(items)
        if len(self._manifest.items) < request.item_count:
            return None
        self._items = checked = tuple(self._manifest.items)
        self._manifest = ManifestCheck()  # its sets of names have done what they are for
        if sum(item.size for item in checked) != request.total_bytes:
            raise ProtocolError("The sizes that the sender named do not make up the sum it named.")
        self._state = _State.OFFERED
        return Offered(uuid.UUID(bytes=request.transfer_id), request.purpose, checked, request.total_bytes)

    def accept(self, resume: Sequence[m.ItemResume]) -> Iterator[bytes]:
        """The records that let the sender begin.

        :param resume: what is held already, verified.
        """
        request = self._offered()
        self._resume = {held.item: held for held in resume}
        self._position = [_UNTOUCHED] * len(self._items)
        landed = sum(held.landed for held in resume)
        self._unfinished = sum(not item.directory for item in self._items) - landed
        self._state = _State.DATA
        step = m.BATCH_ITEMS
        yield m.encode_control(
            m.FileTransferResponse(
                transfer_id=request.transfer_id,
                accepted=True,
                complete=False,
                code="",
                reason="",
                resume_count=len(resume),
                resume=tuple(resume[:step]),
            )
        )
        for start in range(step, len(resume), step):
            yield m.encode_control(m.FileTransferResume(resume=tuple(resume[start : start + step])))

    def already_complete(self) -> bytes:
        """The record that says that all this was received before."""
        return self._final_response(accepted=True, code="", reason="")

    def reject(self, code: str, reason: str) -> bytes:
        """The record that declines the offer."""
        return self._final_response(accepted=False, code=code, reason=reason[: m.MAX_REASON_LENGTH])

    def _final_response(self, *, accepted: bool, code: str, reason: str) -> bytes:
        request = self._offered()
        self._state = _State.DONE
        return m.encode_control(
            m.FileTransferResponse(
                transfer_id=request.transfer_id,
                accepted=accepted,
                complete=accepted,
                code=code,
                reason=reason,
                resume_count=0,
                resume=(),
            )
        )

    def acknowledge(self, failed: int) -> bytes:
        """The record that says that everything is in place, but ``failed`` items."""
        if self._state is not _State.COMPLETE:
            raise ProtocolError("The transfer is not at this point.")
        self._state = _State.DONE
        return m.encode_control(m.TransferAck(failed=failed))

    def chunks(self, record: bytes | memoryview) -> Iterator[m.FileChunk]:
        """Take a data record apart.

        One file is sent at a time, from what is held or from its start, without gaps, to exactly its declared size.

        :raises ProtocolError: a segment breaks that rule.
        """
        if self._state is not _State.DATA:
            raise ProtocolError("The sender sent file contents where none may come.")
        for chunk in m.segments(record):
            self._check(chunk)
            yield chunk

    def _check(self, chunk: m.FileChunk) -> None:
        index = chunk.item
        if index >= len(self._items):
            raise ProtocolError("The sender sent contents of a file that it has not named.")
        item = self._items[index]
        position = self._position[index]
        held = self._resume.get(index)
        if item.directory or position == _FINISHED or (held is not None and held.landed):
            raise ProtocolError("The sender sent contents of a file that takes none.")
        if self._open is not None and self._open != index:
            raise ProtocolError("The sender began a file before it ended another.")
        end = chunk.offset + len(chunk.data)
        if chunk.failure is not None:
            self.failed += 1
        elif position == _UNTOUCHED:
            if chunk.offset and (held is None or chunk.offset != held.length):
                raise ProtocolError("The sender began in the middle of a file.")
        elif chunk.offset != position:
            raise ProtocolError("The sender left a gap in a file.")
        if end > item.size and chunk.failure is None:
            raise ProtocolError("The sender sent more of a file than it said the file has.")
        if chunk.digest is not None and end != item.size:
            raise ProtocolError("The sender ended a file before the size it said.")
        if chunk.digest is not None or chunk.failure is not None:
            self._position[index] = _FINISHED
            self._open = None
            self._unfinished -= 1
        else:
            self._position[index] = end
            self._open = index

    def _offered(self) -> m.FileTransferRequest:
        if self._state is not _State.OFFERED or self._request is None:
            raise ProtocolError("There is no offer to answer.")
        return self._request


class ManifestCheck:
    """Checks that paths are valid, different, and stand behind the folders they are in, a batch at a time.

    :ivar items: those checked so far, with their paths in NFC.
    """

    def __init__(self) -> None:
        self.items: list[m.Item] = []
        self._directories: set[tuple[str, ...]] = set()
        self._seen: set[tuple[str, ...]] = set()

    def add(self, items: Iterable[m.Item]) -> None:
        """Check the next ones.

        :raises ProtocolError: they do not hold together.
        """
        directories, seen = self._directories, self._seen
        for item in items:
            path = item.path
            folder = path[:-1]
            if folder in directories:  # whose components were checked
                name = check_component(path[-1])
                path = check_length(path if name == path[-1] else (*folder, name))
            else:
                path = check_path(path)
                folder = path[:-1]
            if path in seen:
                raise ProtocolError(f"The name {printable(path[-1])!r} comes twice.")
            if folder and folder not in directories:
                raise ProtocolError(f"The folder of {printable(path[-1])!r} was not named.")
            seen.add(path)
            if item.directory:
                if item.size or item.executable:
                    raise ProtocolError(f"The folder {printable(path[-1])!r} has a size.")
                directories.add(path)
            self.items.append(item if path == item.path else msgspec.structs.replace(item, path=path))
