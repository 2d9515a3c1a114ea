"""What devices and nodes say to each other under ``/sdnet/dht/1``: questions and answers, one of each at a time."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

from sdnet_core.discovery.dht_records import MAX_RECORD_BYTES, Record
from sdnet_core.discovery.kademlia import Contact, K
from sdnet_core.wire import Bytes32, Message

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_QUESTION_BYTES",
    "PROTOCOL",
    "AnyAnswer",
    "AnyQuestion",
    "FindNodes",
    "FindRecord",
    "Found",
    "Named",
    "RefusalReason",
    "Refused",
    "StoreRecord",
    "Stored",
]

PROTOCOL = "/sdnet/dht/1"
MAX_ADDRESSES = 8
"""Addresses of one node that are named."""
MAX_QUESTION_BYTES = MAX_RECORD_BYTES + 4096
MAX_ANSWER_BYTES = MAX_RECORD_BYTES + K * (MAX_ADDRESSES * 272 + 96) + 512

_Address = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Addresses = Annotated[tuple[_Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]


class Named(Message, frozen=True, kw_only=True, tag=1):
    """A node that serves."""

    peer_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    addresses: _Addresses

    @classmethod
    def of(cls, contact: Contact) -> Named:
        """Name a contact."""
        return cls(peer_id=contact.peer_id, addresses=contact.addresses[:MAX_ADDRESSES])

    @property
    def contact(self) -> Contact:
        """Whom it names."""
        return Contact(self.peer_id, self.addresses)


_Closer = Annotated[tuple[Named, ...], msgspec.Meta(max_length=K)]


class FindNodes(Message, frozen=True, kw_only=True, tag=10):
    """Which nodes are nearest to a place?

    :param serves: where the asking node serves itself; a device names nothing.
    """

    target: Bytes32
    serves: _Addresses = ()


class FindRecord(Message, frozen=True, kw_only=True, tag=11):
    """Which record lies there, and which nodes are nearest to it?"""

    target: Bytes32


class StoreRecord(Message, frozen=True, kw_only=True, tag=12):
    """Keep this record."""

    record: Record


class Found(Message, frozen=True, kw_only=True, tag=20):
    """The answer to both questions.

    :param seen_as: the multiaddr at which the asking side is seen; empty if that is not known.
    """

    closer: _Closer
    record: Record | None = None
    seen_as: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Stored(Message, frozen=True, kw_only=True, tag=21):
    """The record is kept."""


class RefusalReason(IntEnum):
    """Why a question is not answered."""

    BUSY = 1
    STALE = 2
    """The node has a record with a higher number; it comes along."""
    CLOCK = 3
    """By the node's clock the record has expired, or would live for too long."""
    INVALID = 4


class Refused(Message, frozen=True, kw_only=True, tag=22):
    """The question is not answered, or the record not kept."""

    reason: RefusalReason
    record: Record | None = None


AnyQuestion = FindNodes | FindRecord | StoreRecord
AnyAnswer = Found | Stored | Refused
