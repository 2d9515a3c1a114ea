"""Operations, and the signed batches in which they travel (pure).

Every author numbers its batches from 1. Each batch holds the hash of the one before it and what its author had seen of
the others, so that a relay can neither forge nor leave out nor reorder, and every reader knows what a change is based
on. What follows for receivers is checked in `apply`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sdnet_core import verify
from sdnet_core.errors import SerializationError
from sdnet_core.wire import Bytes16, Bytes32, Message, decode, encode

from .limits import (
    MAX_BATCH_BYTES,
    MAX_BATCH_OPERATIONS,
    MAX_FIELD_NAME,
    MAX_FIELDS,
    MAX_ID,
    MAX_KIND,
    MAX_MEMBERS,
    MAX_NAME,
    MAX_NUMBER,
    MAX_OPERATION_BYTES,
)
from .values import is_value

__all__ = [
    "GENESIS",
    "PURPOSE",
    "BatchBody",
    "Delete",
    "EntryOperation",
    "Membership",
    "Operation",
    "Put",
    "Resolution",
    "Role",
    "SignedBatch",
    "WireVector",
    "batch_hash",
    "check_signature",
    "open_batch",
    "sign_batch",
]

PURPOSE = "sync"
"""Purpose of the signatures: the plugin's name, as `PluginContext.sign` has it."""
GENESIS = bytes(32)
"""What an author's first batch names as the one before it."""
_HASH_LABEL = b"sdnet/sync-batch/v1\x00"


class Role(IntEnum):
    """What a member may do. Each role may also what the lower ones may."""

    NONE = 0
    """Not a member (any more)."""
    READER = 1
    WRITER = 2
    """Writes entries."""
    OWNER = 3
    """Also decides about members and the library's settings."""


_Kind = Annotated[str, Meta(min_length=1, max_length=MAX_KIND)]
_Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
_FieldName = Annotated[str, Meta(min_length=1, max_length=MAX_FIELD_NAME)]
_Fields = Annotated[dict[_FieldName, Any], Meta(min_length=1, max_length=MAX_FIELDS)]
Sequence = Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
Count = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
Stamp = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
WireVector = Annotated[dict[Bytes16, Sequence], Meta(max_length=MAX_MEMBERS)]
"""Author's device id to sequence number."""


# Operations are arrays on the wire: of many small ones, the names of their fields would be most.
class Put(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=1):
    """Write some fields of an entry; the others stay. Ends a deletion that the author had seen."""

    kind: _Kind
    id: _Id
    fields: _Fields


class Delete(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=2):
    """Delete an entry: what the author had seen of it is gone, for good."""

    kind: _Kind
    id: _Id


class Resolution(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=3):
    """Settle a conflict, which works like a write that has seen all sides.

    :param fields: the values that count from now on; None to settle it by deleting the entry.
    """

    kind: _Kind
    id: _Id
    fields: _Fields | None


class Membership(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=4):
    """Give a device a role. What is written without one does not count, from where it was taken away.

    :param public_key: of the device, Ed25519; never changes.
    :param through: the last batch of the device that counts under its old role, as far as the author knows.
    """

    device: Bytes16
    public_key: Bytes32
    role: Role
    name: Annotated[str, Meta(max_length=MAX_NAME)]
    through: Count


EntryOperation = Put | Delete | Resolution
Operation = Put | Delete | Resolution | Membership


class BatchBody(Message, frozen=True, kw_only=True, tag=1):
    """What an author signs.

    :param sequence: counts the author's batches, from 1.
    :param stamp: hybrid logical time of the first operation; each further one is 1 later.
    :param previous: hash of the author's batch before this one; zeros for the first.
    :param seen: what the author has seen of others, as far as it is new since its batch before.
    :param operations: none in a batch that only acknowledges.
    """

    library: Bytes16
    author: Bytes16
    sequence: Sequence
    stamp: Stamp
    previous: Bytes32
    seen: WireVector
    operations: Annotated[tuple[Operation, ...], Meta(max_length=MAX_BATCH_OPERATIONS)]

    @property
    def last_stamp(self) -> int:
        """The stamp of the last operation."""
        return self.stamp + max(0, len(self.operations) - 1)


class SignedBatch(Message, frozen=True, kw_only=True, tag=2, rename={"body": "b", "signature": "s"}):
    """A batch as it travels and as it is kept: the very bytes that were signed.

    :param body: an encoded `BatchBody`.
    """

    body: Annotated[bytes, Meta(max_length=MAX_BATCH_BYTES + MAX_OPERATION_BYTES)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


def batch_hash(body: bytes) -> bytes:
    """The hash that the author's next batch names."""
    return hashlib.sha256(_HASH_LABEL + body).digest()


def sign_batch(body: BatchBody, sign: Callable[[bytes], bytes]) -> tuple[SignedBatch, bytes]:
    """Sign a batch.

    :param sign: `PluginContext.sign`.
    :returns: the batch and its hash.
    """
    encoded = encode(body)
    digest = batch_hash(encoded)
    return SignedBatch(body=encoded, signature=sign(b"batch\x00" + digest)), digest


def open_batch(batch: SignedBatch) -> BatchBody:
    """Decode a batch, not trusting anything in it. The signature is checked by `check_signature`.

    :raises SerializationError: it is malformed.
    """
    body: BatchBody = decode(batch.body, BatchBody, max_bytes=MAX_BATCH_BYTES + MAX_OPERATION_BYTES)
    for operation in body.operations:
        match operation:
            case Put() | Resolution():
                fields = operation.fields
                if fields is not None and not all(map(is_value, fields.values())):
                    raise SerializationError("An operation holds a value that cannot be carried.")
            case Membership():
                if not operation.name.isprintable():
                    raise SerializationError("A member's name is not printable.")
    if body.author in body.seen:
        raise SerializationError("A batch names its own author among those it has seen.")
    return body


def check_signature(batch: SignedBatch, public_key: bytes) -> bytes:
    """Check that an author signed a batch.

    :returns: its hash.
    :raises AuthenticationFailedError: somebody else made it, or changed it.
    """
    digest = batch_hash(batch.body)
    verify(public_key, PURPOSE, b"batch\x00" + digest, batch.signature)
    return digest
