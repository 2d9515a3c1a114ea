"""What goes over the wire of ``/sdnet/file-content/1``: pieces of files that another plugin serves.

Records are like those of a transfer: ``00`` and a message in CBOR, or ``01`` and contents.
``docs/protocol/file-transfer.md`` is the reference.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from sdnet_core.errors import SerializationError
from sdnet_core.wire import Bytes32, Message, decode, encode

from .messages import CONTROL, MAX_REASON_LENGTH, MAX_SIZE_BYTES

__all__ = [
    "MAX_KEY_BYTES",
    "MAX_RANGES",
    "PROTOCOL_NAME",
    "ContentEnd",
    "ContentFailure",
    "ContentRange",
    "ContentRequest",
    "ContentResponse",
    "decode_content",
    "encode_content",
]

PROTOCOL_NAME: Final = "file-content"
MAX_KEY_BYTES: Final = 4096
MAX_RANGES: Final = 4096
"""Most ranges in one request."""
_MAX_CONTROL_BYTES: Final = 128 * 1024


class ContentRange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A piece of a file; an array on the wire.

    :param length: bytes; what lies behind the file's end is left out.
    """

    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE_BYTES)]
    length: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE_BYTES)]


class ContentRequest(Message, frozen=True, kw_only=True, tag=1):
    """Asks for ranges of one file. The next request may follow without waiting.

    :param source: who serves it over there.
    :param key: which file; its meaning is the source's.
    """

    source: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"\A[a-z0-9-]+\Z")]
    key: Annotated[bytes, msgspec.Meta(max_length=MAX_KEY_BYTES)]
    ranges: Annotated[tuple[ContentRange, ...], msgspec.Meta(min_length=1, max_length=MAX_RANGES)]


class ContentResponse(Message, frozen=True, kw_only=True, tag=2):
    """The contents follow.

    :param size: of the whole file.
    """

    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE_BYTES)]
    mtime_ns: Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]


class ContentEnd(Message, frozen=True, kw_only=True, tag=3):
    """Everything that was asked for was sent, and the file did not change meanwhile.

    :param digest: BLAKE3 of the bytes sent.
    """

    digest: Bytes32


class ContentFailure(Message, frozen=True, kw_only=True, tag=4):
    """Nothing, or nothing more, comes for this request.

    :param code: ``refused``, ``not-found``, ``changed``, ``storage`` or ``busy``.
    """

    code: Annotated[str, msgspec.Meta(max_length=32, pattern=r"\A[a-z-]*\Z")]
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_LENGTH)]


ContentMessage: TypeAlias = ContentRequest | ContentResponse | ContentEnd | ContentFailure


def encode_content(message: Message) -> bytes:
    """A whole control record."""
    return bytes((CONTROL,)) + encode(message)


def decode_content(record: bytes) -> ContentMessage:
    """Open a control record.

    :raises SerializationError: it is none, or holds no valid message.
    """
    if not record or record[0] != CONTROL:
        raise SerializationError("A control message was expected.")
    message: ContentMessage = decode(memoryview(record)[1:], ContentMessage, max_bytes=_MAX_CONTROL_BYTES)
    return message
