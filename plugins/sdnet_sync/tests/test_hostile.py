"""Members that lie: about others, about time, about what they may do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest

from sdnet_core.errors import ProtocolError, SerializationError, StorageError
from sdnet_core.wire import decode, encode
from sdnet_sync.apply import Reason
from sdnet_sync.clock import COUNTER_BITS
from sdnet_sync.compare import Comparison
from sdnet_sync.limits import MAX_BATCH_OPERATIONS
from sdnet_sync.messages import Hello, Invitation, Open, Pull, Push, SnapshotBegin
from sdnet_sync.operations import (
    Delete,
    Membership,
    Put,
    Role,
    SignedBatch,
    batch_hash,
    open_batch,
)
from sdnet_sync.snapshot import SnapshotReader, SnapshotWriter
from sdnet_sync.transaction import Transaction

from .nodes import contents, eventually, in_step, nodes, service, shared
from .replicas import Device, devices, forge_batch, settle


def forge(author: Device, /, *operations: Any, signer: Device | None = None, **changes: Any) -> SignedBatch:
    """A batch that follows the author's last one, with some lies in it."""
    return forge_batch(author.store, *operations, sign=(signer or author).store.sign, **changes)


def refusal(device: Device, *batches: SignedBatch) -> Reason | None:
    before, root = device.store.view().vector, device.store.leaves.root()
    applied = device.take(list(batches))
    if applied.refusals:
        assert device.store.view().vector == before
        assert device.store.leaves.root() == root
        return applied.refusals[0].reason
    return None


WRITE = Put("k", "x", {"v": "forged"})
LIES: dict[str, tuple[Callable[[Device, Device], SignedBatch], Reason]] = {
    "another's signature": (lambda a, b: forge(a, WRITE, signer=b), Reason.BAD_SIGNATURE),
    "another library": (lambda a, b: forge(a, WRITE, library=b"M" * 16), Reason.WRONG_LIBRARY),
    "a stranger": (lambda a, b: forge(a, WRITE, author=b"?" * 16, seen={}), Reason.NOT_A_MEMBER),
    "a chain of its own": (lambda a, b: forge(a, WRITE, previous=bytes(32)), Reason.FORK),
    "backdated": (lambda a, b: forge(a, WRITE, stamp=a.store.heads[a.id].stamp), Reason.BACKDATED),
    "stamped before what it has seen": (lambda a, b: forge(a, WRITE, stamp=1 << 20), Reason.BACKDATED),
    "a year ahead": (
        lambda a, b: forge(a, WRITE, stamp=a.store.clock.last + (365 * 86_400_000 << COUNTER_BITS)),
        Reason.FUTURE,
    ),
    "says again what it had seen": (
        lambda a, b: forge(a, WRITE, seen={b"\x01" * 16: 1}),
        Reason.MALFORMED,
    ),
    "settings by a writer": (lambda a, b: forge(a, Put("$strategy", "k", {"*": "max"})), Reason.NOT_ALLOWED),
    "a role by a writer": (
        lambda a, b: forge(a, Membership(b"?" * 16, bytes(32), Role.OWNER, "", 0)),
        Reason.NOT_ALLOWED,
    ),
    "a higher role for itself": (
        lambda a, b: forge(a, Membership(a.id, a.identity.public_key, Role.OWNER, "", 0)),
        Reason.NOT_ALLOWED,
    ),
    "another key for itself": (
        lambda a, b: forge(a, Membership(a.id, b.identity.public_key, Role.WRITER, "", 0)),
        Reason.NOT_ALLOWED,
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_by_every_replica(name: str) -> None:
    make, reason = LIES[name]
    with devices(3) as found:
        owner, liar, other = found
        settle(found)
        liar.write(Put("k", "x", {"v": "honest"}))
        settle(found)
        batch = make(liar, other)
        for device in (owner, other):
            assert refusal(device, batch) is reason
        # It goes on when the liar does.
        liar.write(Put("k", "y", {"v": 1}))
        settle(found)
        assert owner.states() == other.states() == liar.states()


def test_a_relay_cannot_leave_out_change_or_reorder() -> None:
    with devices(3) as found:
        _, b, c = found
        settle(found)
        for number in range(4):
            b.write(Put("k", str(number), {"v": number}))
        batches = b.lacking(c)
        assert len(batches) == 4
        assert c.take([batches[0], batches[2], batches[3]]).gaps == {b.id}
        assert c.store.heads[b.id].sequence == open_batch(batches[0]).sequence
        body = msgspec.structs.replace(open_batch(batches[1]), operations=(Delete("k", "0"),))
        changed = msgspec.structs.replace(batches[1], body=encode(body))
        assert refusal(c, changed) is Reason.BAD_SIGNATURE
        assert c.take([*reversed(batches), *batches]).taken == 3
        assert c.states() == b.states()


def test_readers_and_removed_members_cannot_write() -> None:
    with devices(4) as found:
        owner, reader, removed, other = found
        owner.role(reader, Role.READER)
        settle(found)
        assert refusal(owner, forge(reader, WRITE)) is Reason.NOT_ALLOWED
        assert refusal(other, forge(reader)) is None, "a reader says what it has"
        owner.role(removed, Role.NONE)
        # It pretends not to have heard of its removal.
        late = forge(removed, WRITE)
        settle(found, {owner, other})
        for device in (owner, other):
            assert refusal(device, late) is Reason.REMOVED
        settle(found, {owner, removed})
        assert refusal(other, forge(removed, WRITE)) is Reason.NOT_ALLOWED


def test_what_a_writer_had_taken_before_it_heard_of_a_removal_counts_everywhere() -> None:
    with devices(4) as found:
        owner, removed, writer, other = found
        settle(found)
        removed.write(Put("k", "late", {"v": 1}))
        settle(found, {removed, writer})
        owner.role(removed, Role.NONE)
        removed.write(Put("k", "too late", {"v": 2}))
        too_late = removed.lacking(writer)
        settle(found, {owner, writer, other})
        for device in (owner, writer, other):
            assert device.store.get(device.store.key("k", "late")) is not None
            device.take(too_late)
            assert device.store.get(device.store.key("k", "too late")) is None
        assert owner.states() == writer.states() == other.states()


def test_what_only_a_reader_had_taken_is_taken_back() -> None:
    with devices(3) as found:
        owner, removed, reader = found
        owner.role(reader, Role.READER)
        settle(found)
        removed.write(Put("k", "late", {"v": 1}))
        settle(found, {removed, reader})
        owner.role(removed, Role.NONE)
        settle(found, {owner, reader})
        assert reader.store.rebuild
        reader.snapshot_from(owner)
        assert not reader.store.rebuild
        assert reader.states() == owner.states() == {}
        owner.write(Put("k", "y", {"v": 2}))
        settle(found, {owner, reader})
        assert reader.states() == owner.states()


def test_two_batches_for_one_place_are_found_out() -> None:
    with devices(3) as found:
        a, b, c = found
        settle(found)
        one, two = forge(b, Put("k", "x", {"v": 1})), forge(b, Put("k", "x", {"v": 2}))
        assert refusal(a, one) is None
        assert refusal(c, two) is None
        assert refusal(a, two) is Reason.FORK
        assert refusal(c, one) is Reason.FORK


def test_a_batch_from_the_future_is_taken_when_its_time_has_come() -> None:
    with devices(2) as found:
        a, b = found
        settle(found)
        b.wall.now_s += 30 * 86400
        b.write(Put("k", "x", {"v": 1}))
        [batch] = b.lacking(a)
        assert refusal(a, batch) is Reason.FUTURE
        a.wall.now_s += 30 * 86400
        assert refusal(a, batch) is None
        assert a.states() == b.states()


def test_malformed_and_oversized_batches() -> None:
    with devices(2) as found:
        a, b = found
        settle(found)

        def signed(value: Any) -> SignedBatch:
            raw = value if isinstance(value, bytes) else encode(value)
            return SignedBatch(body=raw, signature=b.identity.sign("sync", b"batch\x00" + batch_hash(raw)))

        good = msgspec.to_builtins(open_batch(forge(b, WRITE)), builtin_types=(bytes,))
        assert refusal(a, signed(good)) is None
        settle(found)
        for change in [
            {"operations": [[9, "k", "x"]]},
            {"operations": [[1, "", "x", {"v": 1}]]},
            {"operations": [[1, "k", "x" * 513, {"v": 1}]]},
            {"operations": [[1, "k", "x", {}]]},
            {"operations": [[1, "k", "x", {"v": [[[[[[[1]]]]]]]}]]},
            {"operations": [[1, "k", "x", {"v": {1: 2}}]]},
            {"operations": [[1, "k", "x", {"v": float("inf")}]]},
            {"operations": [[1, "k", "x", {"v": 1 << 63}]]},
            {"operations": [[2, "k", "x"]] * (MAX_BATCH_OPERATIONS + 1)},
            {"seen": {b.id: 1}},
            {"sequence": 0},
            {"sequence": 1 << 60},
            {"stamp": -1},
            {"more": 1},
        ]:
            assert refusal(a, signed({**good, **change})) is Reason.MALFORMED, change
        assert refusal(a, signed(b"\xff")) is Reason.MALFORMED
        assert refusal(a, signed(b"")) is Reason.MALFORMED
        with pytest.raises(SerializationError):
            decode(encode(Push(library=bytes(16), batches=())), Push)


def test_snapshots_that_do_not_hold_together_are_refused() -> None:
    with devices(2) as found:
        a, b = found
        settle(found)
        a.write(Put("k", "x", {"v": 1}), Put("k", "y", {"v": 2}))
        reader = SnapshotReader(a.store)
        begin, page = reader.begin(), reader.next_page()
        reader.close()
        assert page is not None

        def take(begin: SnapshotBegin, states: tuple[bytes, ...]) -> None:
            writer = SnapshotWriter(begin)
            steps = [writer.start, lambda t: writer.add(t, msgspec.structs.replace(page, states=states)), writer.finish]
            for step in steps:
                with b.store.changing():
                    transaction = Transaction(b.store)
                    step(transaction)
                    transaction.finish(changes=False)

        older = msgspec.structs.replace(
            begin, heads=tuple(msgspec.structs.replace(head, sequence=1) for head in begin.heads)
        )
        for bad, states in [
            (begin, tuple(reversed(page.states))),
            (begin, (*page.states, page.states[-1])),
            (begin, (b"\xa0",)),
            (begin, (page.states[0] + b"\x00",)),
            (older, page.states),
            (msgspec.structs.replace(begin, library=b"M" * 16), page.states),
            (msgspec.structs.replace(begin, heads=begin.heads * 2), page.states),
        ]:
            with pytest.raises((ProtocolError, SerializationError)):
                take(bad, states)
        take(begin, page.states)
        assert b.states() == a.states()


def test_a_damaged_row_is_noticed() -> None:
    with devices(1) as [device]:
        device.write(Put("k", "x", {"v": "the-cake-is-in-the-oven"}), Put("k", "y", {"v": 1}))
        rows = device.store.db.execute("SELECT key, sealed FROM entry").fetchall()
        # Two rows that change places do not open either.
        device.store.db.execute("UPDATE entry SET sealed = ? WHERE key = ?", (rows[1][1], rows[0][0]))
        with pytest.raises(StorageError, match="damaged"):
            device.states()


@pytest.mark.anyio
async def test_nothing_of_it_lies_in_the_clear() -> None:
    async with nodes(2) as linked:
        a, b = linked
        la, lb = await shared(a, b)
        await la.put("secret-kind", "secret-id", {"secret-field": "secret-value"})
        await eventually(lambda: in_step(la, lb))
        files = [path for path in linked.home.rglob("*") if path.is_file()]
        assert any(path.name.endswith(".sqlite3") for path in files)
        for path in files:
            data = path.read_bytes()
            for word in (b"secret-kind", b"secret-id", b"secret-field", b"secret-value", b"Recipes"):
                assert word not in data, path


@pytest.mark.anyio
async def test_a_device_that_is_no_member_learns_nothing() -> None:
    async with nodes(3) as (a, b, stranger):
        la, lb = await shared(a, b)
        await la.put("k", "x", {"v": 1})
        ask = partial(stranger.request, a.device_info.id, "sync")
        with pytest.raises(ProtocolError, match="not shared"):
            await Comparison(la.replica, la.library, ask).run()
        # It opens a link and asks for everything.
        stream = await stranger.open_stream(a.device_info.id, "sync")
        async with stream:
            messages = stream.messages()
            await messages.send(Open())
            await messages.send(Hello(library=la.library, heads={}, root=bytes(16), answer=False))
            await messages.send(Pull(library=la.library, after={}))
            await la.put("k", "y", {"v": 2})
            with anyio.move_on_after(0.3) as scope:
                raise AssertionError(await messages.receive_bytes())
            assert scope.cancelled_caught
        # It invites itself into a library it knows the id of: a has no reason to believe it.
        invitation = Invitation(
            library=la.library,
            name="x",
            role=Role.OWNER,
            secret=bytes(32),
            founder=stranger.device_info.device_id,
            founder_key=stranger.device_info.public_key,
        )
        answer = await stranger.request(a.device_info.id, "sync", encode(invitation))
        assert b"already" in answer
        assert service(stranger).libraries() == []
        await eventually(lambda: in_step(la, lb))
        assert await contents(lb) == {("k", "x"): {"v": 1}, ("k", "y"): {"v": 2}}
