"""What devices say to each other on ``/sdnet/sync/1``; the specification is ``docs/protocol/sync.md``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from sdnet_core.wire import Bytes16, Bytes32, Message

from .fingerprints import RANGES
from .limits import LEAVES, MAX_MEMBERS, MAX_MESSAGE_BYTES, MAX_NAME, MAX_PUSH_BATCHES
from .operations import Count, Membership, Role, Sequence, SignedBatch, Stamp, WireVector

__all__ = [
    "AccessAnswer",
    "AccessRequest",
    "Ack",
    "AnyAnswer",
    "AnyLinkMessage",
    "AnyOpening",
    "CompareLeaves",
    "CompareRanges",
    "EntryList",
    "EntryStates",
    "Goodbye",
    "HeadRecord",
    "Hello",
    "Invitation",
    "InvitationAnswer",
    "LeafSumsAnswer",
    "ListEntries",
    "Open",
    "Place",
    "Pull",
    "Push",
    "RangeSums",
    "ReadEntries",
    "RoleRecord",
    "Signal",
    "SnapshotBegin",
    "SnapshotEnd",
    "SnapshotPage",
    "Understood",
]

_Text = Annotated[str, Meta(max_length=300)]
_Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
_Sum = Bytes16


class Open(Message, frozen=True, kw_only=True, tag=16):
    """First on a stream: from here on the two keep libraries in step until it ends."""


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """How far an author's chain goes.

    :param hash: the beginning of the hash of the author's last batch.
    """

    sequence: Sequence
    hash: Bytes16


class Hello(Message, frozen=True, kw_only=True, tag=17):
    """What I have of a library in which you are a member.

    :param heads: by author.
    :param root: the fingerprint of all entries.
    :param answer: whether it answers yours; if not, answer with your own.
    """

    library: Bytes16
    heads: Annotated[dict[Bytes16, Place], Meta(max_length=MAX_MEMBERS)]
    root: Bytes16
    answer: bool


class Pull(Message, frozen=True, kw_only=True, tag=18):
    """Send me everything after this, now and from now on.

    :param rebuild: what I hold is not sound: send a snapshot.
    """

    library: Bytes16
    after: WireVector
    rebuild: bool = False


class Push(Message, frozen=True, kw_only=True, tag=19):
    """Batches, in an order in which they can be applied."""

    library: Bytes16
    batches: Annotated[tuple[SignedBatch, ...], Meta(min_length=1, max_length=MAX_PUSH_BATCHES)]


class Ack(Message, frozen=True, kw_only=True, tag=20):
    """What I have now, durably.

    :param vector: what has changed since my last word on it.
    :param taken: how many pushes and pages of a snapshot I have dealt with since.
    """

    library: Bytes16
    vector: WireVector
    taken: Annotated[int, Meta(ge=0, le=1 << 20)]


class HeadRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One author's standing in a snapshot."""

    author: Bytes16
    sequence: Sequence
    hash: Bytes32
    stamp: Stamp
    seen: WireVector
    written: Count


class RoleRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One decision about a member, in a snapshot."""

    author: Bytes16
    sequence: Sequence
    seen: WireVector
    operation: Membership


class SnapshotBegin(Message, frozen=True, kw_only=True, tag=21):
    """You are too far behind, or new: the whole library follows. Only an owner may send it."""

    library: Bytes16
    heads: Annotated[tuple[HeadRecord, ...], Meta(max_length=MAX_MEMBERS)]
    roles: Annotated[tuple[RoleRecord, ...], Meta(max_length=4096)]
    vouched: WireVector
    root: Bytes16
    entries: Count


class SnapshotPage(Message, frozen=True, kw_only=True, tag=22):
    """Entries in the order of their keys.

    :param through: there are no other entries with keys up to this one, apart from those in earlier pages.
    :param states: encoded.
    :param continues: the last of these is only a part; the next page begins with the rest of it.
    """

    library: Bytes16
    through: Bytes16
    states: Annotated[tuple[Annotated[bytes, Meta(max_length=MAX_MESSAGE_BYTES)], ...], Meta(max_length=16384)]
    continues: bool = False


class SnapshotEnd(Message, frozen=True, kw_only=True, tag=23):
    """That was all."""

    library: Bytes16


class Goodbye(Message, frozen=True, kw_only=True, tag=24):
    """I say no more about this library: you are no longer a member, or I pause or have left."""

    library: Bytes16
    reason: _Text


class Signal(Message, frozen=True, kw_only=True, tag=25):
    """Something for the members who listen just now; it is neither kept nor repeated.

    :param channel: who it is for.
    """

    library: Bytes16
    channel: _Name
    payload: Annotated[bytes, Meta(max_length=64 << 10)]


AnyLinkMessage = Hello | Pull | Push | Ack | SnapshotBegin | SnapshotPage | SnapshotEnd | Goodbye | Signal


class Invitation(Message, frozen=True, kw_only=True, tag=32):
    """An owner asks a device's person whether it wants to be a member.

    :param secret: the library's.
    """

    library: Bytes16
    name: _Name
    role: Role
    secret: Bytes32
    founder: Bytes16
    founder_key: Bytes32


class InvitationAnswer(Message, frozen=True, kw_only=True, tag=33):
    """What the person said."""

    library: Bytes16
    accepted: bool


class AccessRequest(Message, frozen=True, kw_only=True, tag=34):
    """A device's person asks an owner to be invited.

    :param library: name or id, as the person knows it.
    """

    library: _Name
    role: Role


class CompareRanges(Message, frozen=True, kw_only=True, tag=35):
    """What do the ranges of the library sum up to at your side?"""

    library: Bytes16


class CompareLeaves(Message, frozen=True, kw_only=True, tag=36):
    """And the leaves of these ranges?"""

    library: Bytes16
    ranges: Annotated[tuple[Annotated[int, Meta(ge=0, lt=RANGES)], ...], Meta(min_length=1, max_length=RANGES)]


class ListEntries(Message, frozen=True, kw_only=True, tag=37):
    """Which entries are in this leaf?

    :param after: begin after this key.
    """

    library: Bytes16
    leaf: Annotated[int, Meta(ge=0, lt=LEAVES)]
    after: Annotated[bytes, Meta(max_length=16)] = b""


class ReadEntries(Message, frozen=True, kw_only=True, tag=38):
    """Give me these entries."""

    library: Bytes16
    keys: Annotated[tuple[Bytes16, ...], Meta(min_length=1, max_length=16)]


AnyOpening = (
    Open | Invitation | InvitationAnswer | AccessRequest | CompareRanges | CompareLeaves | ListEntries | ReadEntries
)
"""What a stream can begin with; all but `Open` are requests, each with one answer."""


class Understood(Message, frozen=True, kw_only=True, tag=48):
    """The answer to `Invitation`, `InvitationAnswer` and `AccessRequest`: it was taken note of, or not.

    :param reason: why not; empty if it was.
    """

    reason: _Text = ""


class RangeSums(Message, frozen=True, kw_only=True, tag=49):
    """The answer to `CompareRanges`.

    :param vector: what the sums are about.
    """

    vector: WireVector
    sums: Annotated[tuple[_Sum, ...], Meta(min_length=RANGES, max_length=RANGES)]


class LeafSumsAnswer(Message, frozen=True, kw_only=True, tag=50):
    """The answer to `CompareLeaves`: 128 sums for each range, one after the other."""

    sums: Annotated[bytes, Meta(max_length=16 * LEAVES)]


class EntryList(Message, frozen=True, kw_only=True, tag=51):
    """The answer to `ListEntries`: keys and hashes, 32 bytes each, in the order of the keys.

    :param more: there are more behind the last one.
    """

    entries: Annotated[bytes, Meta(max_length=32 * 4096)]
    more: bool


class EntryStates(Message, frozen=True, kw_only=True, tag=52):
    """The answer to `ReadEntries`: the encoded states of those that are there and not too long."""

    states: Annotated[tuple[Annotated[bytes, Meta(max_length=MAX_MESSAGE_BYTES)], ...], Meta(max_length=16)]


AccessAnswer = Understood
AnyAnswer = Understood | RangeSums | LeafSumsAnswer | EntryList | EntryStates
