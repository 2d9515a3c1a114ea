"""A member that passes on what two others write and lies about it: found out, reported, and of no effect on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import msgspec
import pytest

from sdnet_core import NetworkingCore
from sdnet_core.testing import record_events
from sdnet_core.wire import encode
from sdnet_sync import Library, Role
from sdnet_sync.apply import Reason
from sdnet_sync.clock import COUNTER_BITS
from sdnet_sync.limits import MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS, MAX_OPERATION_BYTES
from sdnet_sync.link import Link
from sdnet_sync.machine import MAX_STALLS, Send
from sdnet_sync.messages import Push
from sdnet_sync.operations import Delete, Put, SignedBatch, open_batch, sign_batch
from sdnet_sync.records import SyncRefused
from sdnet_sync.standing import NO_HEAD
from sdnet_sync.store import Store

from .nodes import WITHIN_S, contents, eventually, in_step, nodes, service, shared
from .replicas import forge_batch

pytestmark = pytest.mark.anyio

Found = list[tuple[bytes, int, SignedBatch]]
Lie = Callable[[Store, Found], Found]
WRITE = Put("k", "x", {"v": "forged"})


class Liar:
    """Changes what a member sends to others out of its log, theirs and its own."""

    def __init__(self, library: Library) -> None:
        self.store = library.replica.store
        self._read_log = self.store.read_log
        self.store.read_log = self._read  # type: ignore[method-assign]
        self.lie: Lie | None = None
        self.lies = 0

    def _read(self, *arguments: Any, **options: Any) -> tuple[Found, int]:
        found, cursor = self._read_log(*arguments, **options)
        if self.lie is None or not found:
            return found, cursor
        self.lies += 1
        return self.lie(self.store, found), cursor


def others(store: Store, found: Found, change: Callable[[SignedBatch], SignedBatch]) -> Found:
    """Change what others wrote."""
    return [(a, n, batch if a == store.device else change(batch)) for a, n, batch in found]


def altered(batch: SignedBatch, **values: Any) -> SignedBatch:
    """Another body under the same signature."""
    return msgspec.structs.replace(batch, body=encode(msgspec.structs.replace(open_batch(batch), **values)))


def own(store: Store, found: Found, *operations: Any, **changes: Any) -> Found:
    """Go on with a batch in the member's own name."""
    return after(store, found, forge_batch(store, *operations, **changes))


def after(store: Store, found: Found, batch: SignedBatch) -> Found:
    """Go on with something in the place of the member's next batch."""
    return [*found, (store.device, store.heads.get(store.device, NO_HEAD).sequence + 1, batch)]


def too_long(store: Store, found: Found) -> Found:
    """Go on with what is longer than any batch."""
    body = bytes(MAX_BATCH_BYTES + MAX_OPERATION_BYTES + 1)
    return after(store, found, SignedBatch(body=body, signature=bytes(64)))


def year_ahead(store: Store) -> int:
    return store.clock.last + (365 * 86_400_000 << COUNTER_BITS)


RELAY_LIES: Mapping[str, tuple[Lie, Reason]] = {
    "forges": (
        lambda s, found: others(s, found, lambda batch: altered(batch, operations=(Delete("k", "first"), WRITE))),
        Reason.BAD_SIGNATURE,
    ),
    "forges and signs itself": (
        lambda s, found: others(
            s, found, lambda b: sign_batch(msgspec.structs.replace(open_batch(b), operations=(WRITE,)), s.sign)[0]
        ),
        Reason.BAD_SIGNATURE,
    ),
    "backdates": (
        lambda s, found: others(s, found, lambda batch: altered(batch, stamp=open_batch(batch).stamp - 1)),
        Reason.BAD_SIGNATURE,
    ),
    "turns others' bytes into garbage": (
        lambda s, found: others(s, found, lambda batch: msgspec.structs.replace(batch, body=b"\xff" + batch.body)),
        Reason.MALFORMED,
    ),
}
OWN_LIES: Mapping[str, tuple[Lie, Reason]] = {
    "backdates itself": (lambda s, found: own(s, found, WRITE, stamp=1 << 20), Reason.BACKDATED),
    "is a year ahead": (lambda s, found: own(s, found, WRITE, stamp=year_ahead(s)), Reason.FUTURE),
    "writes for another library": (lambda s, found: own(s, found, WRITE, library=b"M" * 16), Reason.WRONG_LIBRARY),
    "writes too much at once": (
        lambda s, found: own(s, found, *[WRITE] * (MAX_BATCH_OPERATIONS + 1)),
        Reason.MALFORMED,
    ),
    "sets strategies": (lambda s, found: own(s, found, Put("$strategy", "k", {"*": "max"})), Reason.NOT_ALLOWED),
    "tells of nobody": (lambda s, found: own(s, found, WRITE, author=b"?" * 16, seen={}), Reason.NOT_A_MEMBER),
}


async def test_a_relay_that_lies_is_found_out_and_reported_and_honest_members_go_on() -> None:
    async with nodes(3) as linked:
        a, b, m = linked
        la, lb, lm = await shared(a, b, m)
        await la.put("k", "first", {"v": 1})
        await eventually(lambda: in_step(la, lb, lm))
        liar = Liar(lm)
        linked.cut(a, b)
        expected = {("k", "first"): {"v": 1}}

        async def told(name: str, lie: Lie, reason: Reason) -> None:
            async with record_events(b) as events:
                liar.lie = lie
                heard = anyio.Event()

                async def write() -> None:
                    # On and on: what it reads before it has heard what we lack holds no lie that it would send.
                    number = 0
                    while not heard.is_set():
                        await la.put("k", f"{name} {number}", {"v": number})
                        expected["k", f"{name} {number}"] = {"v": number}
                        number += 1
                        with anyio.move_on_after(0.1 if number > 1 else 0):
                            await heard.wait()

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(write)
                    refused = await events.wait_for(
                        SyncRefused, where=lambda event: event.reason == str(reason), timeout_s=WITHIN_S
                    )
                    heard.set()
            assert refused.library_id == lb.id
            assert refused.device_id == m.device_info.id, "it is the relay that is named, whoever it lied about"
            status = await lb.status()
            assert any(text.startswith(f"{reason} from ") for text in status.refusals), status.refusals
            await honest_again()

        async def honest_again() -> None:
            liar.lie = None
            found = await contents(lb)
            assert {key: found[key] for key in found if expected.get(key) != found[key]} == {}
            for core in (a, b):
                await service(core).maintain()  # by and by they ask again by themselves
            await eventually(lambda: in_step(la, lb, lm))
            assert await contents(lb) == expected

        for name, (lie, reason) in {**RELAY_LIES, **OWN_LIES}.items():
            await told(name, lie, reason)

        # It leaves something out in the middle: what comes after it does not count before that is there, too.
        before, lacking = liar.lies, [0]

        def drop(store: Store, found: Found) -> Found:
            first = min((n for author, n, _ in found if author == a.device_info.device_id), default=0)
            lacking[0] = lacking[0] or first
            return [(author, n, x) for author, n, x in found if (author, n) != (a.device_info.device_id, lacking[0])]

        linked.cut(m, b)
        for number in range(3):
            await la.put("k", f"dropped {number}", {"v": number})
            expected["k", f"dropped {number}"] = {"v": number}
        await eventually(lambda: in_step(la, lm))
        liar.lie = drop
        linked.heal(m, b)
        await eventually(lambda: _at_least(liar, before + MAX_STALLS))
        assert not any(entry_id.startswith("dropped") for _, entry_id in await contents(lb))
        await honest_again()

        # What is too long to be a batch ends the link, and nothing else.
        link = service(b)._sharing.linker.links[m.device_info.id]
        await lm.put("k", "by m", {"v": 1})
        expected["k", "by m"] = {"v": 1}
        await eventually(lambda: in_step(la, lb, lm))
        liar.lie = too_long
        await la.put("k", "after it", {"v": 1})
        expected["k", "after it"] = {"v": 1}
        await eventually(lambda: _is_over(b, m, link))
        await honest_again()

        # As a reader it cannot even write what would be right.
        await service(a).set_role(la.id, m.device_info.id, Role.READER)
        await eventually(lambda: in_step(la, lb, lm))
        await told("is a reader", lambda s, found: own(s, found, WRITE), Reason.NOT_ALLOWED)

        # Removed, it is not listened to any more.
        linked.heal(a, b)
        await service(a).remove(la.id, m.device_info.id)
        await eventually(lambda: _members(lb, 2))
        late = service(m)._sharing.linker.links.get(b.device_info.id)
        if late is not None:
            late.do([Send(Push(library=la.library, batches=(forge_batch(liar.store, WRITE),)))])
        await la.put("k", "last", {"v": 1})
        expected["k", "last"] = {"v": 1}
        await eventually(lambda: in_step(la, lb))
        assert await contents(lb) == expected
        assert ("k", "last") not in await contents(lm)


async def _at_least(liar: Liar, lies: int) -> bool:
    return liar.lies >= lies


async def _is_over(core: NetworkingCore, other: NetworkingCore, link: Link) -> bool:
    return service(core)._sharing.linker.links.get(other.device_info.id) is not link


async def _members(library: Library, count: int) -> bool:
    return len(library.members()) == count


def test_the_lies_are_of_every_kind() -> None:
    """So that a reason that is added gets its lie here, or in `test_hostile`."""
    told = {reason for _, reason in (*RELAY_LIES.values(), *OWN_LIES.values())}
    assert set(Reason) - told == {Reason.FORK, Reason.REMOVED, Reason.GAP}
