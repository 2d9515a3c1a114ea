"""Takes batches from other devices into a library, or says why not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from sdnet_core.errors import AuthenticationFailedError, SerializationError

from .clock import FutureStampError
from .operations import BatchBody, Membership, Role, SignedBatch, check_signature, open_batch
from .standing import NO_HEAD, Head
from .store import Store
from .transaction import Transaction, needed_role
from .vectors import merged

__all__ = ["Applied", "Reason", "Refusal", "apply_batches"]


class Reason(StrEnum):
    """Why a batch was not taken."""

    MALFORMED = "malformed"
    WRONG_LIBRARY = "wrong-library"
    NOT_A_MEMBER = "not-a-member"
    BAD_SIGNATURE = "bad-signature"
    FORK = "fork"
    """The author, or somebody in its name, signed two different batches for one place."""
    BACKDATED = "backdated"
    """It says to be older than what it builds on."""
    NOT_ALLOWED = "not-allowed"
    REMOVED = "removed"
    """The author had lost its role by then, as far as anybody in good standing knows."""
    FUTURE = "future"
    """It is stamped too far in the future; it may be taken later."""
    GAP = "gap"
    """Something that comes before it is missing; whoever sent it is asked for that."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A batch that was not taken.

    :param author: who it says it is from; empty if it does not even say that.
    """

    reason: Reason
    author: bytes
    sequence: int
    detail: str


class RefusedBatchError(Exception):
    """Carries a `Refusal`."""

    def __init__(self, reason: Reason, body: BatchBody | None, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(reason, body.author if body else b"", body.sequence if body else 0, detail)


@dataclass(slots=True)
class Applied:
    """What became of some batches.

    :ivar pushed: the last batch of each author that the sender has, taken now or before.
    :ivar gaps: authors of batches before which something was missing that the sender may have.
    """

    taken: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    pushed: dict[bytes, int] = field(default_factory=dict)
    gaps: set[bytes] = field(default_factory=set)


def apply_batches(transaction: Transaction, batches: Iterable[SignedBatch]) -> Applied:
    """Apply those that can be, in their order. In a transaction only."""
    result = Applied()
    for batch in batches:
        try:
            body, taken = _apply(transaction, batch)
            result.taken += taken
            result.pushed[body.author] = max(result.pushed.get(body.author, 0), body.sequence)
        except RefusedBatchError as error:
            if error.refusal.reason is Reason.GAP:
                result.gaps.add(error.refusal.author)
            else:
                result.refusals.append(error.refusal)
    return result


def _apply(transaction: Transaction, batch: SignedBatch) -> tuple[BatchBody, bool]:
    store = transaction.store
    try:
        body = open_batch(batch)
    except SerializationError as error:
        raise RefusedBatchError(Reason.MALFORMED, None, error.detail) from error
    if body.library != store.keys.library:
        raise RefusedBatchError(Reason.WRONG_LIBRARY, body, "It belongs to another library.")
    head = store.heads.get(body.author, NO_HEAD)
    if body.sequence < head.sequence:
        return body, False
    digest = _authentic(store, batch, body)
    if body.sequence == head.sequence:
        if digest != head.hash:
            raise RefusedBatchError(Reason.FORK, body, "There are two different batches for one place.")
        return body, False
    if body.sequence > head.sequence + 1 or store.loading:
        raise RefusedBatchError(Reason.GAP, body, "The author's batch before it is missing.")
    if body.previous != head.hash:
        raise RefusedBatchError(Reason.FORK, body, "It does not follow the author's batch before it.")
    _check_order(store, body, head)
    seen = merged(head.seen, body.seen)
    _check_permission(store, body, seen)
    transaction.apply_all(body.operations, body.stamp, body.author, body.sequence, seen)
    store.clock.observe(body.last_stamp)
    transaction.record(body, batch, digest, seen)
    return body, True


def _authentic(store: Store, batch: SignedBatch, body: BatchBody) -> bytes:
    key = store.members.public_key(body.author)
    if key is None:
        if any(n > store.heads.get(author, NO_HEAD).sequence for author, n in body.seen.items()):
            # What made its author a member may be on its way.
            raise RefusedBatchError(Reason.GAP, body, "What its author had seen is missing.")
        raise RefusedBatchError(Reason.NOT_A_MEMBER, body, "Its author never was a member.")
    try:
        return check_signature(batch, key)
    except AuthenticationFailedError as error:
        raise RefusedBatchError(Reason.BAD_SIGNATURE, body, "Its signature is not its author's.") from error


def _check_order(store: Store, body: BatchBody, head: Head) -> None:
    """Check what the batch says of its place in time."""
    missing = []
    for author, sequence in body.seen.items():
        if sequence <= head.seen.get(author, 0):
            raise RefusedBatchError(Reason.MALFORMED, body, "It says again what its author had seen before.")
        if sequence > store.heads.get(author, NO_HEAD).sequence:
            missing.append((author, sequence))
    if missing:
        _vouch(store, body, head, missing)
        raise RefusedBatchError(Reason.GAP, body, "What its author had seen is missing.")
    if body.stamp <= head.stamp or any(body.stamp <= _stamp(store, a, n) for a, n in body.seen.items()):
        raise RefusedBatchError(Reason.BACKDATED, body, "It is stamped earlier than what it builds on.")
    try:
        store.clock.check(body.last_stamp)
    except FutureStampError as error:
        raise RefusedBatchError(Reason.FUTURE, body, error.detail) from error


def _vouch(store: Store, body: BatchBody, head: Head, missing: list[tuple[bytes, int]]) -> None:
    """A writer in good standing built on batches of a removed device: then they count."""
    known = {**merged(head.seen, body.seen), body.author: head.sequence}
    members = store.members
    if members.role_at(body.author, known) < Role.WRITER or members.role(body.author) < Role.WRITER:
        return
    for author, sequence in missing:
        if members.role(author) < Role.WRITER and sequence > members.vouched.get(author, 0):
            store.vouch(author, sequence)


def _stamp(store: Store, author: bytes, sequence: int) -> int:
    """The stamp of a batch that we have; 0 if we no longer know."""
    head = store.heads[author]
    if head.sequence == sequence:
        return head.stamp
    row = store.db.execute(
        "SELECT stamp FROM log WHERE author = ? AND sequence = ?", (store.numbers[author], sequence)
    ).fetchone()
    return 0 if row is None else int(row[0])


def _check_permission(store: Store, body: BatchBody, seen: dict[bytes, int]) -> None:
    known = {**seen, body.author: body.sequence - 1}
    role = store.members.role_at(body.author, known)
    needed = max((needed_role(operation, body.author) for operation in body.operations), default=Role.READER)
    if role < needed or role is Role.NONE:
        raise RefusedBatchError(
            Reason.NOT_ALLOWED, body, f"Its author was no {needed.name.lower()} of the library when it wrote that."
        )
    for operation in body.operations:
        if isinstance(operation, Membership):
            _check_membership(store, body, operation, role)
    if store.members.barred(body.author, body.sequence, known, max(needed, Role.READER)):
        raise RefusedBatchError(Reason.REMOVED, body, "Its author had been removed by then.")


def _check_membership(store: Store, body: BatchBody, operation: Membership, role: Role) -> None:
    key = store.members.public_key(operation.device)
    if key is not None and key != operation.public_key:
        raise RefusedBatchError(Reason.NOT_ALLOWED, body, "It gives a member another key.")
    if operation.device == body.author and operation.role > role:
        raise RefusedBatchError(Reason.NOT_ALLOWED, body, "Its author gives itself a higher role.")
