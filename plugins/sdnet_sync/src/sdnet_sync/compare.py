"""Compares our replica with another device's, range by range, and can take its entries where they differ."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from sdnet_core.errors import ConflictError, ProtocolError, RefusedError
from sdnet_core.wire import Message, decode, encode

from .fingerprints import LEAVES_PER_RANGE
from .limits import MAX_MESSAGE_BYTES, MAX_OPERATION_BYTES
from .messages import (
    AnyAnswer,
    CompareLeaves,
    CompareRanges,
    EntryList,
    EntryStates,
    LeafSumsAnswer,
    ListEntries,
    RangeSums,
    ReadEntries,
)
from .operations import Role
from .replica import Replica
from .state import decode_foreign_state
from .transaction import Transaction

__all__ = ["Comparison", "answer_comparison"]

T = TypeVar("T", bound=Message)

LIST_ENTRIES = 2048
MAX_DIFFERING = 100_000
"""Differing entries that are looked for; more are only counted as at least so many."""
_RECORD = 32


@dataclass(slots=True)
class Comparison:
    """One comparison, as the side that asks.

    :param ask: sends a request and gives the answer.
    :ivar differing: keys of the entries that differ.
    :ivar in_step: whether both have the same batches.
    """

    replica: Replica
    library: bytes
    ask: Callable[[bytes], Awaitable[bytes]]
    differing: list[bytes] = field(default_factory=list)
    in_step: bool = True
    exchanged_bytes: int = 0

    async def run(self) -> None:
        """Find what differs.

        :raises ProtocolError: the other side does not answer as it should.
        """
        sums = await self._ask(CompareRanges(library=self.library), RangeSums)
        self.in_step = dict(sums.vector) == self.replica.view.vector
        ours = await self.replica.read(self.replica.store.leaves.ranges)
        ranges = tuple(number for number, total in enumerate(sums.sums) if total != ours[number])
        if not ranges:
            return
        answer = await self._ask(CompareLeaves(library=self.library, ranges=ranges), LeafSumsAnswer)
        our_leaves = await self.replica.read(self.replica.store.leaves.leaves, ranges)
        if len(answer.sums) != 16 * len(our_leaves):
            raise ProtocolError("The other device gave another number of sums than it was asked for.")
        for index, total in enumerate(our_leaves):
            if answer.sums[16 * index : 16 * index + 16] != total:
                number = ranges[index // LEAVES_PER_RANGE]
                await self._compare_leaf(number * LEAVES_PER_RANGE + index % LEAVES_PER_RANGE)
            if len(self.differing) >= MAX_DIFFERING:
                return

    async def _compare_leaf(self, leaf: int) -> None:
        theirs: dict[bytes, bytes] = {}
        ours: dict[bytes, bytes] = {}
        after = b""
        while True:
            answer = await self._ask(ListEntries(library=self.library, leaf=leaf, after=after), EntryList)
            if len(answer.entries) % _RECORD:
                raise ProtocolError("The other device gave a list that is cut off.")
            for start in range(0, len(answer.entries), _RECORD):
                key = answer.entries[start : start + 16]
                if key <= after:
                    raise ProtocolError("The other device's list is not in order.")
                theirs[key] = answer.entries[start + 16 : start + _RECORD]
                after = key
            if not answer.more or not answer.entries or len(theirs) > MAX_DIFFERING:
                break
        after = b""
        while page := await self.replica.read(self.replica.store.leaf_entries, leaf, after, LIST_ENTRIES):
            ours |= page
            after = page[-1][0]
        self.differing += sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))

    async def repair(self, device: bytes, *, max_entries: int = MAX_DIFFERING) -> int:
        """Take what differs from the other side, an owner.

        :returns: how many entries were changed.
        :raises ConflictError: the two are not in step; what differs may only be on its way.
        :raises RefusedError: the other side is no owner.
        """
        if self.replica.view.members.role(device) is not Role.OWNER:
            raise RefusedError("Only an owner's replica counts for repairs.")
        if not self.in_step:
            raise ConflictError("The two replicas have not the same batches yet; wait until they are in step.")
        repaired = 0
        for start in range(0, min(len(self.differing), max_entries), 16):
            keys = self.differing[start : start + 16]
            answer = await self._ask(ReadEntries(library=self.library, keys=tuple(keys)), EntryStates)
            vector = self.replica.view.vector

            def take(
                transaction: Transaction,
                keys: list[bytes] = keys,
                states: tuple[bytes, ...] = answer.states,
                vector: dict[bytes, int] = vector,
            ) -> int:
                return _take(transaction, keys, states, vector)

            repaired += await self.replica.work(take)
        return repaired

    async def _ask(self, request: Message, type_: type[T]) -> T:
        data = encode(request)
        answer = await self.ask(data)
        self.exchanged_bytes += len(data) + len(answer)
        message: Message = decode(answer, AnyAnswer, max_bytes=MAX_MESSAGE_BYTES + (64 << 10))
        if not isinstance(message, type_):
            reason = getattr(message, "reason", "")
            raise ProtocolError(f"The other device does not compare this library{': ' + reason if reason else ''}.")
        return message


def _take(transaction: Transaction, keys: list[bytes], states: tuple[bytes, ...], vector: dict[bytes, int]) -> int:
    """Put the other side's entries in the place of ours, as far as nothing has changed since."""
    store = transaction.store
    if {author: head.sequence for author, head in store.heads.items() if head.sequence} != vector:
        return 0
    transaction.prefetch(keys)
    given = {}
    for encoded in states:
        state = decode_foreign_state(encoded, max_bytes=4 * MAX_OPERATION_BYTES)
        if any(write.sequence > vector.get(write.author, 0) for write in state.writes()):
            raise ProtocolError("The other device gave a write that it says it has not got.")
        given[store.key(state.kind, state.id)] = state
    changed = 0
    for key in keys:
        if key in given:
            transaction.hold(key, given[key].kind, given[key].id)
            transaction.replace_state(key, given[key])
            changed += 1
        elif transaction.state(key) is not None:
            transaction.replace_state(key, None)
            changed += 1
    return changed


async def answer_comparison(
    replica: Replica, message: CompareRanges | CompareLeaves | ListEntries | ReadEntries
) -> Message:
    """The answer to a comparing member."""
    store = replica.store
    match message:
        case CompareRanges():
            vector = {author: sequence for author, sequence in replica.view.vector.items() if sequence}
            return RangeSums(vector=vector, sums=tuple(await replica.read(store.leaves.ranges)))
        case CompareLeaves():
            return LeafSumsAnswer(sums=b"".join(await replica.read(store.leaves.leaves, message.ranges)))
        case ListEntries():
            rows = await replica.read(store.leaf_entries, message.leaf, message.after, LIST_ENTRIES)
            return EntryList(entries=b"".join(key + digest for key, digest in rows), more=len(rows) == LIST_ENTRIES)
        case ReadEntries():
            states, size = [], 0
            for encoded in await replica.read(store.encoded_states, message.keys):
                if size + len(encoded) <= MAX_MESSAGE_BYTES:
                    states.append(encoded)
                    size += len(encoded)
            return EntryStates(states=tuple(states))
