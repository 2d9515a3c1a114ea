"""Devices share libraries."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sdnet_core.errors import ConflictError, InvalidRequestError, NotFoundError, RefusedError
from sdnet_sync import Change, Role
from sdnet_sync.transaction import Transaction

from .nodes import contents, eventually, in_step, nodes, service, shared

pytestmark = pytest.mark.anyio


async def test_what_one_device_writes_is_on_the_others() -> None:
    async with nodes(3) as (a, b, c):
        la, lb, lc = await shared(a, b, c)
        await la.put("recipe", "pancakes", {"title": "Pancakes", "eggs": 3})
        await lb.put("recipe", "waffles", {"title": "Waffles", "photo": b"\xff\x00", "tags": ["sweet", None, 1.5]})
        await eventually(lambda: in_step(la, lb, lc))
        expected = {
            ("recipe", "pancakes"): {"title": "Pancakes", "eggs": 3},
            ("recipe", "waffles"): {"title": "Waffles", "photo": b"\xff\x00", "tags": ["sweet", None, 1.5]},
        }
        for library in (la, lb, lc):
            await eventually(lambda library=library: _has(library, expected))
        entry = await lc.get("recipe", "waffles")
        assert entry is not None
        assert entry.author == b.device_info.id
        await lc.delete("recipe", "pancakes")
        await lc.put("recipe", "waffles", {"photo": None})
        await eventually(lambda: in_step(la, lb, lc))
        assert await contents(la) == {("recipe", "waffles"): {"title": "Waffles", "tags": ["sweet", None, 1.5]}}


async def _has(library: object, expected: object) -> bool:
    return await contents(library) == expected  # type: ignore[arg-type]


async def test_watchers_hear_of_changes_here_and_there() -> None:
    async with nodes(2) as (a, b):
        la, lb = await shared(a, b)
        async with lb.watch("note") as changes:
            await la.put("other", "x", {"v": 1})
            await la.put("note", "1", {"text": "hello"})
            with anyio.fail_after(5):
                change = await changes.receive()
            assert (change.kind, change.id, change.author) == ("note", "1", a.device_info.id)
            assert change.entry is not None
            assert change.entry.fields == {"text": "hello"}
            await la.delete("note", "1")
            with anyio.fail_after(5):
                change = await changes.receive()
            assert (change.id, change.entry) == ("1", None)
            await lb.put("note", "2", {"text": "own"})
            with anyio.fail_after(5):
                change = await changes.receive()
            assert isinstance(change, Change)
            assert (change.id, change.author) == ("2", b.device_info.id)


async def test_a_transaction_arrives_as_a_whole() -> None:
    async with nodes(2) as (a, b):
        la, lb = await shared(a, b)
        async with la.transaction() as t:
            for number in range(50):
                t.put("item", str(number), {"n": number})
            t.delete("item", "7")

        async def broken_off() -> None:
            async with la.transaction() as t:
                t.put("item", "never", {"n": 1})
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await broken_off()
        await eventually(lambda: in_step(la, lb))
        found = await contents(lb)
        assert len(found) == 49
        assert ("item", "never") not in found


async def test_a_device_that_was_away_catches_up() -> None:
    async with nodes(3) as linked:
        a, b, c = linked
        la, lb, lc = await shared(a, b, c)
        linked.cut(a, c)
        linked.cut(b, c)
        for number in range(100):
            await la.put("item", str(number), {"n": number})
        await lc.put("item", "mine", {"n": -1})
        linked.heal(b, c)
        # Over b alone, for a and c are still apart.
        await eventually(lambda: in_step(la, lb, lc))
        assert len(await contents(lc)) == 101


async def test_roles_are_enforced_and_a_removed_member_gets_nothing_more() -> None:
    async with nodes(3) as (a, b, c):
        la, lb = await shared(a, b)
        await service(a).invite(la.id, c.device_info.id, Role.READER)
        lc = await service(c).accept(la.id)
        await eventually(lambda: in_step(la, lb, lc))
        with pytest.raises(RefusedError, match="reader"):
            await lc.put("item", "1", {"n": 1})
        with pytest.raises(RefusedError):
            await lb.set_strategy("item", {"*": "max"})
        with pytest.raises(RefusedError):
            await service(b).remove(lb.id, c.device_info.id)
        await service(a).set_role(la.id, c.device_info.id, Role.WRITER)
        await eventually(lambda: _is(lc, Role.WRITER))
        await lc.put("item", "1", {"n": 1})
        await eventually(lambda: in_step(la, lb, lc))

        await service(a).remove(la.id, c.device_info.id)

        async def removed() -> bool:
            return service(c).record(lc.library).state == "removed"

        await eventually(removed)
        await la.put("item", "secret", {"n": 2})
        await eventually(lambda: in_step(la, lb))
        await anyio.sleep(0.2)
        assert ("item", "secret") not in await contents(lc)
        assert (await la.status()).members == (await service(a).status(la.library)).members
        assert {m.device_id for m in la.members()} == {a.device_info.id, b.device_info.id}


async def _is(library: object, role: Role) -> bool:
    return library.role is role  # type: ignore[attr-defined, no-any-return]


async def test_conflicts_are_kept_listed_and_resolved_everywhere() -> None:
    async with nodes(3) as linked:
        a, b, c = linked
        la, lb, lc = await shared(a, b, c)
        await la.put("note", "n", {"text": "first", "color": "red"})
        await eventually(lambda: in_step(la, lb, lc))
        for x, y in ((a, b), (a, c), (b, c)):
            linked.cut(x, y)
        await la.put("note", "n", {"text": "from a"})
        await lb.put("note", "n", {"text": "from b", "size": 4})
        await lc.delete("note", "n")
        linked.heal(a, b)
        await eventually(lambda: in_step(la, lb))
        [conflict] = await la.conflicts()
        assert conflict == (await lb.conflicts())[0]
        assert (conflict.kind, conflict.id, conflict.field) == ("note", "n", "text")
        assert {side.value for side in conflict.sides} == {"from a", "from b"}
        entry = await la.get("note", "n")
        assert entry is not None
        assert entry.conflicted
        assert entry.fields == {"text": conflict.sides[-1].value, "color": "red", "size": 4}

        linked.heal(a, c)
        linked.heal(b, c)
        await eventually(lambda: in_step(la, lb, lc))
        assert await lc.get("note", "n") is None, "a deletion stays beside concurrent edits"
        [conflict] = await lc.conflicts()
        assert conflict.sides[-1].deletes
        await lc.resolve("note", "n", values={"text": "both", "color": "blue"})
        await eventually(lambda: in_step(la, lb, lc))
        for library in (la, lb, lc):
            assert await library.conflicts() == []
            entry = await library.get("note", "n")
            assert entry is not None
            assert entry.fields["text"] == "both"
        with pytest.raises(NotFoundError):
            await la.resolve("note", "n")


async def test_strategies_settle_conflicts_alike() -> None:
    async with nodes(2) as linked:
        a, b = linked
        la, lb = await shared(a, b)
        for core in (a, b):
            service(core).register_strategy("longest", lambda values: max(values, key=lambda v: (len(v), v)))
        await la.set_strategy("item", {"n": "max", "tags": "union", "name": "custom:longest", "*": "first-writer"})
        await la.put("item", "1", {"n": 0, "tags": [], "name": "x", "x": 0})
        await eventually(lambda: in_step(la, lb))
        linked.cut(a, b)
        await la.put("item", "1", {"n": 9, "tags": ["a", "b"], "name": "lengthy", "x": 1})
        await lb.put("item", "1", {"n": 5, "tags": ["b", "c"], "name": "short", "x": 2})
        linked.heal(a, b)
        await eventually(lambda: in_step(la, lb))
        entry = await lb.get("item", "1")
        assert entry is not None
        assert (entry.fields["n"], entry.fields["name"], entry.fields["x"]) == (9, "lengthy", 1)
        assert set(entry.fields["tags"]) == {"a", "b", "c"}
        assert not entry.conflicted
        assert await la.get("item", "1") == entry
        assert await la.conflicts() == []
        assert len(await la.conflicts(all_of_them=True)) == 4
        with pytest.raises(InvalidRequestError):
            await la.set_strategy("item", {"*": "coin-toss"})


async def test_unique_values() -> None:
    async with nodes(2) as linked:
        a, b = linked
        la, lb = await shared(a, b)
        await la.put("file", "1", {"path": "/a"})
        await la.set_unique("file", ["path"])
        await eventually(lambda: in_step(la, lb))
        with pytest.raises(ConflictError, match="path"):
            await lb.put("file", "2", {"path": "/a"})
        with pytest.raises(ConflictError, match="same path"):
            await lb.put_many([("file", "2", {"path": "/b"}), ("file", "3", {"path": "/b"})])
        assert len(await contents(lb)) == 1
        await lb.put("file", "1", {"path": "/c"})
        await lb.put("file", "2", {"path": "/a"})
        assert [entry.id async for entry in lb.query("file", {"path": "/a"})] == ["2"]
        await eventually(lambda: in_step(la, lb))
        linked.cut(a, b)
        await la.put("file", "x", {"path": "/same"})
        await lb.put("file", "y", {"path": "/same"})
        linked.heal(a, b)
        await eventually(lambda: in_step(la, lb))
        [conflict] = await la.conflicts()
        assert (conflict.strategy, {conflict.id, *conflict.others}) == ("unique", {"x", "y"})
        await la.delete("file", "y")
        assert await la.conflicts() == []


async def test_a_new_member_of_a_large_library_gets_a_snapshot() -> None:
    async with nodes(3) as (a, b, c):
        [la] = await shared(a)
        for start in range(0, 1000, 10):
            await la.put_many(("item", str(n), {"n": n, "text": "x" * 50}) for n in range(start, start + 10))
        await la.delete("item", "3")
        await service(a).maintain()
        await service(a).invite(la.id, b.device_info.id, Role.OWNER)
        lb = await service(b).accept(la.id)
        await eventually(lambda: in_step(la, lb))
        assert len(await contents(lb)) == 999
        await lb.put("item", "new", {"n": 0})
        await service(b).invite(la.id, c.device_info.id)
        lc = await service(c).accept(la.id)
        await eventually(lambda: in_step(la, lb, lc))
        await lc.put("item", "newer", {"n": 0})
        await eventually(lambda: in_step(la, lb, lc))
        verification = await la.verify(c.device_info.id)
        assert verification.equal
        assert verification.in_step


async def test_leaving_pausing_and_asking() -> None:
    async with nodes(2) as (a, b):
        la, lb = await shared(a, b)
        await service(a).pause(la.id)
        await lb.put("item", "1", {"n": 1})
        await anyio.sleep(0.2)
        assert await la.get("item", "1") is None
        await service(a).resume(la.id)
        await eventually(lambda: in_step(la, lb))
        with pytest.raises(ConflictError, match="only owner"):
            await service(a).leave(la.id)
        await service(b).leave(lb.id)
        assert service(b).record(lb.library).state == "left"
        await eventually(lambda: _members(la, 1))
        await la.put("item", "2", {"n": 2})
        assert len(await contents(lb)) == 1
        await service(b).request_access(a.device_info.id, "Recipes")
        [request] = service(a).requests()
        assert (request.device_id, request.library, request.role) == (b.device_info.id, "Recipes", "writer")
        await service(a).invite(la.id, b.device_info.id)
        assert service(a).requests() == []
        again = await service(b).accept(la.id)
        await eventually(lambda: in_step(la, again))
        await again.put("item", "3", {"n": 3})
        await eventually(lambda: in_step(la, again))
        await service(b).leave(again.id, delete=True)
        assert service(b).libraries() == []


async def _members(library: object, count: int) -> bool:
    return len(library.members()) == count  # type: ignore[attr-defined, no-any-return]


async def test_a_difference_is_found_and_repaired() -> None:
    async with nodes(2) as (a, b):
        la, lb = await shared(a, b)
        await la.put_many(("item", str(n), {"n": n}) for n in range(500))
        await eventually(lambda: in_step(la, lb))

        def spoil(transaction: Transaction) -> None:
            for number in (3, 77):
                key = transaction.store.key("item", str(number))
                transaction.prefetch([key])
                state = transaction.state(key)
                assert state is not None
                if number == 3:
                    transaction.replace_state(key, None)
                else:
                    state = state.copy()
                    state.fields["n"] = [state.fields["n"][0]._replace(value="spoilt")]
                    transaction.replace_state(key, state)

        await lb.replica.work(spoil)
        found = await lb.verify(a.device_info.id)
        assert (found.equal, found.in_step, found.differing_count) == (False, True, 2)
        assert ("item", "77") in found.differing
        with pytest.raises(RefusedError, match="owner"):
            await la.verify(b.device_info.id, repair=True)
        found = await lb.verify(a.device_info.id, repair=True)
        assert found.repaired == 2
        assert (await la.verify(b.device_info.id)).equal
        assert await contents(la) == await contents(lb)


async def test_a_revoked_device_gets_nothing_more_and_is_removed_from_its_owners_libraries() -> None:
    async with nodes(3) as (a, b, c):
        la, lb, lc = await shared(a, b, c)
        await a.revoke_device(c.device_info.id)
        await eventually(lambda: _members(la, 2))
        await eventually(lambda: _members(lb, 2))
        await la.put("item", "secret", {"n": 1})
        await eventually(lambda: in_step(la, lb))
        await anyio.sleep(0.2)
        assert await contents(lc) == {}


async def test_signals_reach_those_who_listen() -> None:
    async with nodes(2) as (a, b):
        la, lb = await shared(a, b)
        heard: list[tuple[str, bytes]] = []
        with service(b).on_signal("indexer", lambda lib, device, data: heard.append((device.name, data))):
            with pytest.raises(ConflictError), service(b).on_signal("indexer", lambda *_: None):
                pass
            la.send_signal("indexer", b"50 %")
            la.send_signal("other", b"x")
            await la.put("item", "1", {"n": 1})
            await eventually(lambda: in_step(la, lb))
        assert heard == [("node0", b"50 %")]


async def test_five_members_do_not_echo() -> None:
    async with nodes(5, settings={"plugins": {"sync": {"relay_delay_s": 0.5}}}) as linked:
        libraries = await shared(*linked)
        await anyio.sleep(0.6)
        links = [link for node in linked for link in service(node)._sharing.linker.links.values()]
        before = sum(link.sent_bytes for link in links)
        await libraries[0].put("item", "1", {"blob": b"x" * 100_000})
        await eventually(lambda: in_step(*libraries))
        await anyio.sleep(0.8)
        sent = sum(link.sent_bytes for link in links) - before
        # Once for each of the four others would be 400,000; each passing it on to all others 1,600,000.
        assert sent < 800_000


async def test_libraries_are_there_after_a_restart(tmp_path: Path) -> None:
    async with nodes(2, home=tmp_path) as (a, b):
        la, lb = await shared(a, b)
        await la.put("item", "1", {"n": 1})
        await eventually(lambda: in_step(la, lb))
        root = la.replica.view.root()
    async with nodes(1, home=tmp_path) as (a,):
        [library] = service(a).libraries()
        assert library.name == "Recipes"
        assert library.replica.view.root() == root
        await library.put("item", "2", {"n": 2})
        assert len(await contents(library)) == 2
        assert service(a).find("rec") is library
        with pytest.raises(NotFoundError):
            service(a).find("")
