"""What goes over the wire: control messages in CBOR, file contents as raw segments.

Every record of a transfer's stream begins with one byte that says what it is. Control records hold one message. Data
records hold segments, one behind the other, of one large file or of many small ones, and may be compressed; each is a
17-byte header, that many bytes, and behind the last segment of a file its BLAKE3 hash.
``docs/protocol/file-transfer.md`` is the reference.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntFlag
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec

from sdnet_core.errors import SerializationError
from sdnet_core.wire import Bytes16, Bytes32, Message, decode, encode

__all__ = [
    "BATCH_ITEMS",
    "CONTROL",
    "DATA",
    "DIGEST_BYTES",
    "MAX_DEPTH",
    "MAX_ITEMS",
    "MAX_RECORD_BYTES",
    "MAX_SIZE_BYTES",
    "PACKED",
    "PROTOCOL_NAME",
    "SEGMENT_HEADER",
    "FileChunk",
    "FileTransferItems",
    "FileTransferRequest",
    "FileTransferResponse",
    "FileTransferResume",
    "Item",
    "ItemResume",
    "Refusal",
    "SegmentFlag",
    "TransferAck",
    "TransferCancel",
    "TransferComplete",
    "TransferFailure",
    "TransferHeartbeat",
    "batches",
    "decode_control",
    "encode_control",
    "segments",
]

PROTOCOL_NAME: Final = "file-transfer"
MAX_RECORD_BYTES: Final = 1 << 20
"""Longest record, kind byte included."""
MAX_ITEMS: Final = 100_000
"""Most files and folders in one transfer."""
MAX_DEPTH: Final = 64
"""Most components of one path."""
MAX_SIZE_BYTES: Final = (1 << 63) - 1
BATCH_ITEMS: Final = 1024
"""Most items in one message."""
BATCH_BYTES: Final = 192 * 1024
"""A batch ends when its encoded items have about this size."""
MAX_CONTROL_BYTES: Final = 256 * 1024
"""Longest control message; one item more than `BATCH_BYTES` fits."""
MAX_REASON_LENGTH: Final = 300

CONTROL: Final = 0x00
DATA: Final = 0x01
PACKED: Final = 0x02
DIGEST_BYTES: Final = 32
SEGMENT_HEADER: Final = struct.Struct(">BIQI")
"""Flags, item, offset in the file, length: 17 bytes."""

Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_LENGTH)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_ITEMS)]
Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE_BYTES)]
Component = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Item(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One file or folder of the manifest; an array on the wire.

    :param path: components, the first being the name that was sent.
    :param directory: a folder; it stands before everything inside it.
    :param size: bytes, 0 for a folder.
    :param mtime_ns: modification time, nanoseconds since the epoch.
    :param executable: the owner may execute the file.
    """

    path: Annotated[tuple[Component, ...], msgspec.Meta(min_length=1, max_length=MAX_DEPTH)]
    directory: bool
    size: Size
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]
    executable: bool


class ItemResume(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the receiver holds of one item, verified from its disk; an array on the wire.

    :param length: bytes held from the file's start.
    :param digest: BLAKE3 of those bytes.
    :param landed: it stands under its final name already; nothing more is to be sent.
    """

    item: Count
    length: Size
    digest: Bytes32
    landed: bool


Items = Annotated[tuple[Item, ...], msgspec.Meta(max_length=BATCH_ITEMS)]
Resumes = Annotated[tuple[ItemResume, ...], msgspec.Meta(max_length=BATCH_ITEMS)]


class Refusal:
    """Why a request was refused or a transfer failed: the values of ``code``."""

    POLICY = "policy"
    NO_SPACE = "no-space"
    TOO_LARGE = "too-large"
    CANCELLED = "cancelled"
    BUSY = "busy"
    STORAGE = "storage"
    PROTOCOL = "protocol"
    MISMATCH = "mismatch"
    OVER = "over"
    PAUSED = "paused"
    NOT_FOUND = "not-found"


Code = Annotated[str, msgspec.Meta(max_length=32, pattern=r"\A[a-z-]*\Z")]


class FileTransferRequest(Message, frozen=True, kw_only=True, tag=1):
    """Opens a transfer; `FileTransferItems` follow until ``item_count`` items were named.

    :param purpose: what it belongs to: ``send``, ``spacedrop``.
    :param total_bytes: sum of all sizes.
    """

    transfer_id: Bytes16
    purpose: Annotated[str, msgspec.Meta(min_length=1, max_length=32, pattern=r"\A[a-z0-9-]+\Z")]
    item_count: Annotated[int, msgspec.Meta(ge=1, le=MAX_ITEMS)]
    total_bytes: Size
    items: Items


class FileTransferItems(Message, frozen=True, kw_only=True, tag=2):
    """More of the manifest."""

    items: Annotated[tuple[Item, ...], msgspec.Meta(min_length=1, max_length=BATCH_ITEMS)]


class FileTransferResponse(Message, frozen=True, kw_only=True, tag=3):
    """The receiver's answer; `FileTransferResume` follow until ``resume_count`` items were named.

    :param complete: this transfer was received whole before; there is nothing to send.
    :param code: one of `Refusal`, empty when accepted.
    """

    transfer_id: Bytes16
    accepted: bool
    complete: bool
    code: Code
    reason: Reason
    resume_count: Count
    resume: Resumes


class FileTransferResume(Message, frozen=True, kw_only=True, tag=4):
    """More of what the receiver holds."""

    resume: Annotated[tuple[ItemResume, ...], msgspec.Meta(min_length=1, max_length=BATCH_ITEMS)]


class TransferComplete(Message, frozen=True, kw_only=True, tag=5):
    """The sender has sent everything.

    :param failed: how many items it could not read, each of which it said in a segment.
    """

    failed: Count


class TransferAck(Message, frozen=True, kw_only=True, tag=6):
    """Everything that came is under its final name, and safe on disk.

    :param failed: items that are not.
    """

    failed: Count


class TransferCancel(Message, frozen=True, kw_only=True, tag=7):
    """A person, on either side, does not want the transfer any more."""

    reason: Reason


class TransferFailure(Message, frozen=True, kw_only=True, tag=8):
    """The transfer cannot go on.

    :param code: one of `Refusal`.
    """

    code: Code
    reason: Reason


class TransferHeartbeat(Message, frozen=True, kw_only=True, tag=9):
    """Still there, busy with the disk."""


ControlMessage: TypeAlias = (
    FileTransferRequest
    | FileTransferItems
    | FileTransferResponse
    | FileTransferResume
    | TransferComplete
    | TransferAck
    | TransferCancel
    | TransferFailure
    | TransferHeartbeat
)


def encode_control(message: Message) -> bytes:
    """A whole control record."""
    return bytes((CONTROL,)) + encode(message)


def decode_control(record: bytes | bytearray | memoryview) -> ControlMessage:
    """Open a control record.

    :raises SerializationError: it is none, or holds no valid message.
    """
    view = memoryview(record)
    if not view or view[0] != CONTROL:
        raise SerializationError("A control message was expected.")
    message: ControlMessage = decode(view[1:], ControlMessage, max_bytes=MAX_CONTROL_BYTES)
    return message


def batches(items: Iterable[Item]) -> Iterator[tuple[Item, ...]]:
    """Cut a manifest into pieces that fit a message."""
    batch: list[Item] = []
    size = 0
    for item in items:
        item_size = 32 + sum(len(component.encode()) + 3 for component in item.path)
        if batch and (len(batch) == BATCH_ITEMS or size + item_size > BATCH_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(item)
        size += item_size
    if batch:
        yield tuple(batch)


class SegmentFlag(IntFlag):
    """First byte of a segment's header. A reader refuses bits it does not know."""

    LAST = 1
    """The file ends here; its BLAKE3 hash follows the bytes."""
    FAILED = 2
    """The sender cannot go on with this file; the bytes say why (UTF-8)."""


_LAST = int(SegmentFlag.LAST)
_FAILED = int(SegmentFlag.FAILED)


class FileChunk(NamedTuple):
    """One segment of a data record.

    :param item: index in the manifest.
    :param offset: where the bytes belong in the file.
    :param data: the bytes; a view of the record.
    :param digest: BLAKE3 of the whole file, with the last segment.
    :param failure: why the sender gave the file up; then there are no bytes.
    """

    item: int
    offset: int
    data: memoryview
    digest: bytes | None
    failure: str | None


def segments(record: bytes | bytearray | memoryview) -> Iterator[FileChunk]:
    """Take a data record apart without copying.

    :raises SerializationError: it is none, is cut off, or uses flags that are not known.
    """
    view = memoryview(record)
    end = len(view)
    if not 1 < end <= MAX_RECORD_BYTES or view[0] != DATA:
        raise SerializationError("A record of file contents was expected.")
    position = 1
    while position < end:
        start = position + SEGMENT_HEADER.size
        if start > end:
            raise SerializationError("A segment is cut off.")
        flags, item, offset, length = SEGMENT_HEADER.unpack_from(view, position)
        position = start + length
        digest = failure = None
        data = view[start:position]
        if flags == _LAST:
            position += DIGEST_BYTES
            digest = bytes(view[position - DIGEST_BYTES : position])
        elif flags == _FAILED:
            if length > 4 * MAX_REASON_LENGTH:
                raise SerializationError("The reason for a failed file is too long.")
            failure = bytes(data).decode(errors="replace")[:MAX_REASON_LENGTH]
            data = view[start:start]
        elif flags:
            raise SerializationError("A segment has flags that are not known here.")
        elif not length:
            raise SerializationError("A segment is empty.")
        if position > end:
            raise SerializationError("A segment is cut off.")
        yield FileChunk(item, offset, data, digest, failure)
