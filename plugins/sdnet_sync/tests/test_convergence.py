"""Replicas that hear of everything in whatever order and however often end up the same, byte for byte."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdnet_sync.clock import HybridClock
from sdnet_sync.maintenance import forget_deletions, prune_log
from sdnet_sync.operations import Delete, Put
from sdnet_sync.strategies import conflicts_of
from sdnet_sync.transaction import Transaction

from .replicas import Device, devices, settle

CASES = int(os.environ.get("SDNET_SYNC_CASES", "200"))
"""`nox -s simulate_sync` sets more."""


def leaf_sums_are_right(device: Device) -> bool:
    before = device.store.leaves.root()
    sums: dict[int, int] = {}
    for key, digest in device.store.db.execute("SELECT key, hash FROM entry WHERE hash != x''"):
        leaf = int.from_bytes(key[:2], "big") >> 2
        sums[leaf] = (sums.get(leaf, 0) + int.from_bytes(digest, "big")) % (1 << 128)
    return sums == {leaf: total for leaf, total in device.store.leaves.sums.items() if total} and bool(before)


STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 4), st.integers(0, 4), st.sampled_from("ab")),
    st.tuples(st.just("delete"), st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.just("delete for good"), st.integers(0, 4), st.integers(1, 15)),
    st.tuples(st.just("send"), st.integers(0, 4), st.integers(0, 4), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("restart"), st.integers(0, 4)),
    st.tuples(st.just("clock"), st.integers(0, 4), st.floats(-3600, 3600)),
    st.tuples(st.just("tidy"), st.integers(0, 4)),
    st.tuples(st.just("crash"), st.integers(0, 4)),
    st.tuples(st.just("dies writing"), st.integers(0, 4), st.integers(0, 4), st.integers(0, 25)),
    st.tuples(st.just("dies taking"), st.integers(0, 4), st.integers(0, 4), st.integers(0, 40)),
)


@settings(max_examples=CASES)
@given(st.integers(3, 5), st.lists(STEP, max_size=40))
def test_replicas_converge(count: int, steps: list[tuple[Any, ...]]) -> None:
    with devices(count) as found:
        settle(found)
        written = 0
        acknowledged: list[int] = []
        deleted: set[int] = set()
        for step in steps:
            device = found[step[1] % count]
            match step:
                case ("put", _, entry, name):
                    written += 1
                    device.write(Put("k", str(entry), {name: written}), Put("log", str(written), {"n": written}))
                    acknowledged.append(written)
                case ("dies writing", _, entry, statements):
                    written += 1
                    operations = Put("k", str(entry), {"a": written}), Put("log", str(written), {"n": written})
                    if device.dies_within(statements, partial(device.write, *operations)):
                        acknowledged.append(written)
                case ("dies taking", _, to, statements):
                    taker = found[to % count]
                    if taker is not device:
                        batches = device.lacking(taker, 4)
                        taker.dies_within(statements, partial(taker.take, batches))
                case ("delete", _, entry):
                    device.write(Delete("k", str(entry)))
                case ("delete for good", _, number):
                    # Written once and never again: whoever deletes it has seen all that there ever is of it.
                    state = device.store.get(device.store.key("log", str(number)))
                    if state is not None and state.visible:
                        device.write(Delete("log", str(number)))
                        deleted.add(number)
                case ("send", _, to, limit, twice):
                    taker = found[to % count]
                    if taker is not device:
                        batches = device.lacking(taker, limit)
                        taker.take([*batches, *reversed(batches), *batches] if twice else batches)
                case ("restart", _):
                    device.restart()
                case ("clock", _, moved_s):
                    device.wall.now_s = 1_700_000_000 + moved_s
                case ("tidy", _):
                    with device.store.changing():
                        transaction = Transaction(device.store)
                        prune_log(transaction, keep=0)
                        forget_deletions(transaction, b"")
                        transaction.finish(changes=False)
                case ("crash", _):
                    with pytest.raises(ZeroDivisionError):
                        device.write_and_crash(Put("k", "lost", {"a": 0}))
        settle(found)
        first = found[0]
        for device in found:
            assert device.states() == first.states()
            assert device.store.view().vector == first.store.view().vector
            assert device.store.leaves.root() == first.store.leaves.root()
            assert leaf_sums_are_right(device)
        assert first.store.get(first.store.key("k", "lost")) is None
        for number in {*acknowledged, *deleted}:
            state = first.store.get(first.store.key("log", str(number)))
            assert (state is not None and state.visible) == (number not in deleted), number


@settings(max_examples=max(20, CASES // 2))
@given(st.lists(STEP, max_size=25), st.lists(STEP, max_size=10))
def test_a_snapshot_gives_what_the_log_gives(steps: list[tuple[Any, ...]], more: list[tuple[Any, ...]]) -> None:
    with devices(3) as found:
        a, b, c = found
        settle(found)
        written = 0
        for number, step in enumerate([*steps, *more]):
            device = found[step[1] % 3]
            written += 1
            if step[0] == "put":
                device.write(Put("k", str(step[2]), {step[3]: written}))
            elif step[0] == "delete":
                device.write(Delete("k", str(step[2])))
            elif step[0] == "send" and number < len(steps):
                settle(found, {found[step[2] % 3], device})
        settle(found, {a, b})
        # c has written on its own meanwhile; what it lacks comes as a snapshot, and again, as after a cut.
        c.snapshot_from(a)
        c.snapshot_from(a)
        assert not c.store.loading
        settle(found)
        assert a.states() == b.states() == c.states()
        assert leaf_sums_are_right(c)
        c.restart()
        assert c.store.leaves.root() == a.store.leaves.root()


@settings(max_examples=12)
@given(st.permutations(range(3)), st.booleans())
def test_concurrent_writes_are_all_kept_in_every_order(order: list[int], deletes: bool) -> None:
    with devices(4) as found:
        settle(found)
        for device in found[:3]:
            device.write(Put("k", "x", {"v": device.id[0]}))
        if deletes:
            found[3].write(Delete("k", "x"))
        for number in order:
            found[3].take(found[number].lacking(found[3]))
        state = found[3].store.get(found[3].store.key("k", "x"))
        assert state is not None
        assert {write.value for write in state.fields["v"]} == {1, 2, 3}
        assert state.visible is not deletes
        [conflict] = conflicts_of(state, {}, {})
        assert len(conflict.sides) == 3 + deletes
        found[3].write(Put("k", "x", {"v": "mine"}))
        settle(found)
        for device in found:
            state = device.store.get(device.store.key("k", "x"))
            assert state is not None
            assert [write.value for write in state.fields["v"]] == ["mine"]
            assert not state.conflicted


def test_a_deletion_does_not_come_back_and_is_forgotten_when_all_have_it() -> None:
    with devices(3) as found:
        a, b, c = found
        settle(found)
        a.write(Put("k", "x", {"v": 1}))
        settle(found)
        b.write(Delete("k", "x"))
        settle(found, {a, b})

        def tidy(device: Device) -> int:
            with device.store.changing():
                transaction = Transaction(device.store)
                forget_deletions(transaction, b"")
                prune_log(transaction, keep=0)
                transaction.finish(changes=False)
            return int(device.store.counts()["deletions"])

        assert tidy(a) == 1, "c has not got it"
        c.write(Put("k", "y", {"v": 2}))
        settle(found)
        for device in found:
            with device.store.changing():
                transaction = Transaction(device.store)
                transaction.acknowledge = True
                transaction.finish(changes=False)
        settle(found)
        assert [tidy(device) for device in found] == [0, 0, 0]
        assert a.states() == b.states() == c.states()
        assert a.store.get(a.store.key("k", "x")) is None
        assert a.store.counts()["batches"] <= 3


def test_stamps_survive_restarts_with_a_clock_set_back() -> None:
    with devices(2) as found:
        a, b = found
        settle(found)
        a.write(Put("k", "x", {"v": 1}))
        last = a.store.clock.last
        a.wall.now_s -= 3600
        a.restart()
        assert a.store.clock.last == last
        a.write(Put("k", "x", {"v": 2}))
        assert not b.take(a.lacking(b)).refusals
        state = b.store.get(b.store.key("k", "x"))
        assert state is not None
        assert state.fields["v"][-1].value == 2
        assert isinstance(a.store.clock, HybridClock)
